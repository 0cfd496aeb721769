"""Curves of overoptimisation: gold and proxy against the square root of KL, fits, and policies at matched KL.

Every interval is over prompts and, where there are several, over drawn reward models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from prudent.evaluation.intervals import Estimate, proportion
from prudent.evaluation.overoptimization.fits import (
    Overoptimization,
    best_of_n_curves,
    features,
    fit_overoptimization,
    kl_best_of_n,
    n_of_kl,
)
from prudent.evaluation.overoptimization.goodhart import (
    Setting,
    World,
    held_out_pairs,
    member_scores,
    pair_accuracy,
    reward_of,
)
from prudent.rewards.uncertainty import centre, deviation_within
from prudent.seeding import Seed, numpy_generator

ROUNDS = 500
TILT_SHARE = 0.97  # of the largest KL that a pool allows: beyond it every method is the argmax


@dataclass
class Point:
    """One point of a curve. how: "best of n" (unbiased, from samples) or "tilted" (the pool's own exponential tilting
    at the KL of best of n). Values are from the reference; None with the reason where there is none."""

    n: float
    kl: float
    how: str
    gold: Estimate
    proxy: Estimate

    @property
    def distance(self) -> float:
        """Square root of the KL, the axis of Gao et al. (arXiv 2210.10760)."""
        return float(np.sqrt(self.kl))


@dataclass
class Curve:
    """Gold and proxy against optimisation.

    fit: best-of-n form on gold, by the points of best of n (tilting saturates at a pool's end, which is no
    overoptimisation). peak, alpha, beta: with bootstrap intervals over prompts and draws. accuracy: on held-out pairs,
    over draws. notes: points that could not be had, and why. ends: gold at the largest n of the samples, (draws,
    prompts), from which curves with shared draws are compared in pairs; it stays out of files.
    over_first: that difference to the first curve of its sweep. fall: gold at the largest n minus gold at the best one,
    in pairs over the same resamples (the best n is picked on the mean curve)."""

    label: str
    points: list[Point]
    fit: Overoptimization | None
    peak: Estimate
    alpha: Estimate
    beta: Estimate
    accuracy: Estimate
    draws: int
    prompts: int
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    ends: torch.Tensor | None = field(default=None, repr=False)
    over_first: Estimate | None = None
    fall: Estimate | None = None


def two_way_bootstrap(values: torch.Tensor, rounds: int, seed: Seed) -> torch.Tensor:
    """Means of ``values`` (points, draws, prompts) over resampled draws and, independently, resampled prompts:
    (rounds, points). One draw: prompts alone. The crossed (pigeonhole) bootstrap of Owen 2007."""
    points, draws, prompts = values.shape
    generator = numpy_generator(seed)
    over_prompts = torch.from_numpy(generator.multinomial(prompts, np.full(prompts, 1 / prompts), rounds) / prompts)
    if draws == 1:
        return over_prompts @ values[:, 0].T
    over_draws = torch.from_numpy(generator.multinomial(draws, np.full(draws, 1 / draws), rounds) / draws)
    means = torch.empty(rounds, points, dtype=torch.float64)
    for point in range(points):
        means[:, point] = ((over_draws @ values[point]) * over_prompts).sum(1)
    return means


def percentile(value: float, draws: torch.Tensor, n: int, method: str) -> Estimate:
    """A value with the central 95 % of bootstrap draws (rounds,)."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, n, 0.95, method)


def usable_n(n: Sequence[int], samples: int) -> tuple[list[int], list[int]]:
    """(n that the samples allow, n beyond them), sorted, each once; 1 is always there, since curves start at it."""
    wanted = sorted({1, *n})
    return [k for k in wanted if k <= samples], [k for k in wanted if k > samples]


def ragged_best_of_n(
    proxy: torch.Tensor, gold: torch.Tensor, present: torch.Tensor, n: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gold and proxy of best of n, (len(n), P) each, where prompts may have different numbers of candidates."""
    sizes = present.sum(1)
    out = torch.empty(2, len(n), len(gold), dtype=torch.float64)
    for size in sizes.unique().tolist():
        mine = torch.nonzero(sizes == size)[:, 0]
        there = present[mine]
        scores, truth = (values[mine][there].reshape(len(mine), size) for values in (proxy, gold))
        found = best_of_n_curves(scores, [truth, scores], n)
        out[0][:, mine], out[1][:, mine] = found
    return out[0], out[1]


def tilted_values(
    reward: torch.Tensor, gold: torch.Tensor, reference: torch.Tensor, kls: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gold and proxy of the pool's exponential tilting pi ~ pi0 exp(r / beta) at each mean KL: (len(kls), P) each."""
    from prudent.policies.finite import beta_for_kl, solve, value

    out = torch.full((2, len(kls), len(gold)), float("nan"), dtype=torch.float64)
    for index, target in enumerate(kls):
        beta = beta_for_kl(lambda b: solve(reward, reference, b), reference, target, strict=False)
        if bool(torch.isfinite(beta)):
            policy = solve(reward, reference, beta)
            out[0, index], out[1, index] = value(policy, gold), value(policy, reward)
    return out[0], out[1]


def curve(
    label: str,
    rewards: Sequence[torch.Tensor],
    gold: torch.Tensor,
    present: torch.Tensor,
    n: Sequence[int],
    *,
    accuracy: Sequence[float] = (),
    rounds: int = ROUNDS,
    seed: Seed = 0,
) -> Curve:
    """Curve of one way to make a reward. rewards: (P, N) a draw, centred and in their own deviations. gold: (P, N)."""
    reference = present.double() / present.double().sum(1, keepdim=True)
    inside, beyond = usable_n(n, int(present.sum(1).min()))
    kls, notes = reachable(beyond, int(present.sum(1).min()))
    truth, proxy = [], []
    for reward in rewards:
        found = ragged_best_of_n(reward, gold, present, inside)
        tilted = tilted_values(reward, gold, reference, [kl for _, kl in kls])
        truth.append(torch.cat([found[0], tilted[0]]))
        proxy.append(torch.cat([found[1], tilted[1]]))
    steps = [(float(k), kl_best_of_n(k), "best of n") for k in inside] + [(k, kl, "tilted") for k, kl in kls]
    stacked = [torch.stack(values, dim=1) for values in (truth, proxy)]  # (points, draws, prompts)
    stacked = [values - values[:1] for values in stacked]
    whole = ~torch.isnan(stacked[0]).flatten(1).any(1)
    if not bool(whole.all()):
        lost = [steps[i][0] for i in torch.nonzero(~whole)[:, 0].tolist()]
        notes.append(
            f"no tilting reaches the KL of n = {', '.join(f'{k:.0f}' for k in lost)} in every draw: ties at the top"
        )
        steps = [step for step, keep in zip(steps, whole.tolist()) if keep]
        stacked = [values[whole] for values in stacked]
    means = [two_way_bootstrap(values, rounds, seed) for values in stacked]
    method = "bootstrap over prompts" + (" and draws" if len(rewards) > 1 else "")
    points = [
        Point(
            k,
            kl,
            how,
            percentile(float(stacked[0][i].mean()), means[0][:, i], len(gold), method),
            percentile(float(stacked[1][i].mean()), means[1][:, i], len(gold), method),
        )
        for i, (k, kl, how) in enumerate(steps)
    ]
    fitted = fit_points(points, means[0], method)
    return Curve(
        label,
        points,
        *fitted,
        accuracy_over(accuracy),
        len(rewards),
        len(gold),
        notes,
        ends=stacked[0][len(inside) - 1],
        fall=fall_of(points, means[0], method),
    )


def fall_of(points: list[Point], means: torch.Tensor, method: str) -> Estimate:
    """Gold at the last point of best of n minus gold at the best one, over resampled curves (rounds, points)."""
    kept = [index for index, point in enumerate(points) if point.how == "best of n"]
    best = max(kept, key=lambda index: points[index].gold.value or 0.0)
    if best == kept[-1]:
        return Estimate(0.0, None, None, len(kept), 0.95, method, "gold is highest at the largest n")
    value = (points[kept[-1]].gold.value or 0.0) - (points[best].gold.value or 0.0)
    return percentile(value, means[:, kept[-1]] - means[:, best], len(kept), method)


def against_first(curves: Sequence[Curve], rounds: int = ROUNDS, seed: Seed = 0) -> list[Curve]:
    """The curves with ``over_first``: gold at the largest n minus the first curve's, paired over prompts and draws."""
    first = curves[0].ends
    result = []
    for c in curves:
        if first is None or c.ends is None or c is curves[0] or c.ends.shape != first.shape:
            result.append(c)
            continue
        result.append(replace(c, over_first=mean_over(c.ends - first, rounds, seed)))
    return result


def reachable(beyond: Sequence[int], samples: int) -> tuple[list[tuple[float, float]], list[str]]:
    """(n, KL) beyond the samples that the pool's tilting can reach, its end included, and what it can't."""
    if not beyond:
        return [], []
    most = float(np.log(samples))
    kls = [(float(k), kl_best_of_n(k)) for k in beyond if kl_best_of_n(k) < TILT_SHARE * most]
    lost = [k for k in beyond if kl_best_of_n(k) >= TILT_SHARE * most]
    notes = []
    if kls or lost:
        notes.append(
            f"n > {samples}: only {samples} samples a prompt are there, so best of n is null; the pool's own "
            "exponential tilting at the same KL stands in, labelled so"
        )
    if lost:
        end = TILT_SHARE * most
        kls.append((n_of_kl(end), end))
        notes.append(
            f"n >= {min(lost)}: null, beyond the largest KL of {samples} candidates, ln {samples} = "
            f"{most:.2f} nats; the last point is at {TILT_SHARE:.0%} of it"
        )
    return kls, notes


def fit_points(
    points: list[Point], means: torch.Tensor, method: str
) -> tuple[Overoptimization | None, Estimate, Estimate, Estimate]:
    """(fit, peak, alpha, beta): the best-of-n form on the mean curve, and its coefficients over bootstrapped curves."""
    kept = [index for index, point in enumerate(points) if point.how == "best of n"]
    points, means = [points[index] for index in kept], means[:, kept]
    distance = torch.tensor([point.distance for point in points], dtype=torch.float64)
    n = len(points)
    if len(distance.unique()) < 3:
        nothing = Estimate(None, None, None, n, 0.95, method, "fewer than two distances above 0")
        return None, nothing, nothing, nothing
    gold = torch.tensor([point.gold.value for point in points], dtype=torch.float64)
    fit = fit_overoptimization(distance, gold, "bon")
    x = features(distance, "bon")
    coefficients = means @ x @ torch.linalg.inv(x.T @ x)
    alpha, beta = coefficients[:, 0], coefficients[:, 1]
    estimates = [percentile(value, draws, n, method) for value, draws in ((fit.alpha, alpha), (fit.beta, beta))]
    peaks = torch.where(beta > 0, alpha.clamp(min=0) / (2 * beta), torch.inf)
    low, high = np.quantile(peaks.numpy(), [0.025, 0.975], method="inverted_cdf").tolist()
    peak = Estimate(
        fit.peak,
        low if np.isfinite(low) else None,
        high if np.isfinite(high) else None,
        n,
        0.95,
        method,
        None if fit.peak is not None else "; ".join(fit.warnings),
    )
    return fit, peak, estimates[0], estimates[1]


def accuracy_over(values: Sequence[float]) -> Estimate:
    """Mean held-out accuracy over draws, with the 95 % range of the *draws* (not of their mean)."""
    known = np.array([v for v in values if np.isfinite(v)])
    if not len(known):
        return Estimate(None, None, None, 0, 0.95, "range over draws", "no held-out pair of unequal gold")
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) > 1 else (None, None)
    return Estimate(
        float(known.mean()),
        None if low is None else float(low),
        None if high is None else float(high),
        len(known),
        0.95,
        "range over draws",
    )


def drawn_curve(
    label: str,
    world: World,
    setting: Setting,
    n: Sequence[int],
    *,
    draws: int,
    seed: Seed,
    advance: Callable[[], None] = lambda: None,
    facts: dict[str, Any] | None = None,
) -> Curve:
    """Curve of reward models drawn by ``setting``: a fresh set of preferences each draw."""
    gold, present, reference = world.gold[world.test], world.present[world.test], world.reference
    rewards, accuracy, slopes = [], [], []
    held, truth = held_out_pairs(gold, present), centre(gold, weights=reference)
    for members in member_scores(world, setting, draws, seed):
        reward = reward_of(members, reference, setting)
        rewards.append(reward)
        accuracy.append(pair_accuracy(reward, held))
        slopes.append(float((reference * reward * truth).sum(-1).mean()))
        advance()
    made = curve(label, rewards, gold, present, n, accuracy=accuracy, seed=seed)
    made.facts = {name: getattr(setting, name) for name in ("pairs", "slope", "members", "rule")} | {
        "gold_per_proxy": float(np.mean(slopes)),
        "gold_deviation": float(deviation_within(gold, reference)),
        **(facts or {}),
    }
    return made


@dataclass
class MethodCurve:
    """A policy method over matched KLs. gold: from the reference, one estimate a KL; gain over vanilla, paired."""

    method: str
    kls: list[float]
    gold: list[Estimate]
    over_vanilla: list[Estimate]
    risk: list[Estimate]
    reached: list[int]


def methods_at_kl(
    world: World,
    setting: Setting,
    methods: Sequence[str],
    kls: Sequence[float],
    *,
    draws: int,
    seed: Seed,
    reward: str = "mean",
    advance: Callable[[], None] = lambda: None,
) -> list[MethodCurve]:
    """Gold of exact policies at matched KL: vanilla and the variance-aware forms, with their controls.

    risk: share of draws that end no better than the reference (Wilson). A KL that a method can't reach in a draw is
    left out of its mean and counted in ``reached``; comparisons use draws in which both reach it.
    """
    from prudent.policies.estimates import estimate
    from prudent.policies.finite import value
    from prudent.policies.objectives import METHODS, method_beta_for_kl

    gold, reference = world.gold[world.test], world.reference
    base = (reference * gold).sum(-1)
    wanted = list(dict.fromkeys(["vanilla", *methods]))
    found = torch.full((len(wanted), len(kls), draws, len(gold)), float("nan"), dtype=torch.float64)
    for number, members in enumerate(member_scores(world, setting, draws, seed)):
        known = estimate(members, reference, reward=reward)
        for row, name in enumerate(wanted):
            for column, target in enumerate(kls):
                beta = method_beta_for_kl(name, known, reference, target, strict=False)
                if bool(torch.isfinite(beta)):
                    found[row, column, number] = value(METHODS[name](known, reference, beta), gold) - base
        advance()
    return [_method_curve(name, list(kls), found[row], found[0], ROUNDS, seed) for row, name in enumerate(wanted)]


def _method_curve(
    name: str, kls: list[float], mine: torch.Tensor, vanilla: torch.Tensor, rounds: int, seed: Seed
) -> MethodCurve:
    gold, over, risk, reached = [], [], [], []
    for column in range(len(kls)):
        there = ~torch.isnan(mine[column]).any(-1)
        both = there & ~torch.isnan(vanilla[column]).any(-1)
        gold.append(mean_over(mine[column][there], rounds, seed))
        over.append(mean_over((mine[column] - vanilla[column])[both], rounds, seed))
        risk.append(proportion((mine[column][there].mean(-1) <= 0).double()))
        reached.append(int(there.sum()))
    return MethodCurve(name, kls, gold, over, risk, reached)


def mean_over(values: torch.Tensor, rounds: int, seed: Seed) -> Estimate:
    """Mean of (draws, prompts) with its two-way bootstrap interval; None where no draw is left."""
    if not len(values):
        return Estimate(None, None, None, 0, 0.95, "bootstrap over prompts and draws", "no draw reaches this KL")
    draws = two_way_bootstrap(values[None], rounds, seed)[:, 0]
    return percentile(float(values.mean()), draws, len(values), "bootstrap over prompts and draws")
