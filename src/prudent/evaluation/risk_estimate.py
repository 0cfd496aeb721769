"""How likely is the policy trained on these pairs no better than its reference? Arrays in, rows out.

``docs/calibration.md`` holds what was promised and what came, world by world.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.intervals import wilson
from prudent.evaluation.posterior_risk import (
    Posterior,
    Risks,
    draw_rewards,
    leverage_ratio,
    reward_posterior,
    risk_with_gold,
    risk_without_gold,
    separate_pairs,
    weighted_interval,
)
from prudent.evaluation.risk import at_or_below
from prudent.evaluation.shift import candidate_midpoints, mean_shift
from prudent.policies.estimates import estimate
from prudent.policies.objectives import METHODS
from prudent.rewards.columns import NO_COLUMNS, PairColumns
from prudent.rewards.convex import fit_heads
from prudent.rewards.draws import bootstrap_counts, fit_resamples, standardisation
from prudent.rewards.uncertainty import centre, deviation_within
from prudent.seeding import Seed, numpy_generator, spawn

LEAST_PAIRS, LEAST_PROMPTS = 30, 8
NO_PROCEDURE: dict[str, Any] = {"procedure_risk": None, "procedure_low": 0.0, "procedure_high": 1.0}
FRESH = 8  # data sets a drawn reward, without gold
LEAST_DRAWS = 10 * FRESH
SHIFTED = 0.01  # p-value of one kind of prompts and responses at or below which the interval is widened
OUTSIDE = 1.25  # leverage_ratio is 1 where pairs and candidates are alike; docs/calibration.md


def estimate_risk(
    chosen: ArrayLike,
    rejected: ArrayLike,
    groups: Sequence[Any],
    candidates: ArrayLike,
    reference: ArrayLike,
    *,
    betas: Sequence[float] = (0.1,),
    methods: Sequence[str] = ("vanilla", "lcb", "proportional"),
    draws: int = 200,
    members: int = 10,
    gold: ArrayLike | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The probability that the policy trained on THESE pairs is no better than the reference: a row a method and beta.

    chosen, rejected: features (n, d) of the pairs; groups: the n pairs' prompts. candidates (P, C, d) and reference
    (P, C): features and probabilities of sampled responses, 0 masks one. methods: names of ``policies.METHODS``. The
    reward is the head fitted on all pairs; ``members`` bootstrap heads serve the mean and the variance.

    risk, low, high, gain: the data-set risk. Without ``gold`` by the posterior of the reward given the pairs
    (``posterior_risk``; gain in logits of the preference model; low is 0, high that posterior's 97.5 %) given
    ``separate_pairs``. With ``gold`` (P, C), the true reward, by Student's t over prompts.

    procedure_risk, procedure_low, procedure_high: the share of fresh data sets of this size whose policy is no better,
    each fitted once, with the variance of the given data. With gold over ``draws`` resamples of the pairs, with a
    Wilson interval. Without, over draws / FRESH rewards from the posterior and FRESH data sets of new answers to the
    same comparisons for each; the interval is the central 95 % of that share over the rewards. None under LEAST_DRAWS
    draws (without gold) or with none.

    reason: what limits a row, or None. Fewer than LEAST_PAIRS pairs or LEAST_PROMPTS prompts, of pairs or of gold, give
    risk None, low 0, high 1; the procedure risk by gold of so few prompts is given with 0 to 1. Raises PrudentError for
    shapes, values that aren't finite, sides that are all equal and unknown methods.
    """
    better, worse, features, weight = (as_tensor(x, torch.float64) for x in (chosen, rejected, candidates, reference))
    _check(better, worse, groups, features, weight, betas, methods)
    truth = _truth(gold, weight, draws)
    rows: list[dict[str, Any]] = [{"method": name, "beta": float(beta)} for name in methods for beta in betas]
    reason = too_few(groups)
    if reason is not None:
        return [{**row, **unknown(reason)} for row in rows]
    resampled = draws if truth is not None else 0
    fit = fit_rewards(better, worse, groups, features, weight, members=members, resampled=resampled, seed=seed)
    moved = policy_moves(fit, rows)
    if truth is None:
        return promised(fit, moved, groups, rows, draws=draws, seed=seed)
    few = too_few_valued(len(weight))
    found = by_gold(moved, truth) if few is None else [unknown(few) for _ in rows]
    out = []
    for row, known in zip(rows, found):
        shares = dict(NO_PROCEDURE)
        if draws:
            fresh = fit.moves(fit.fresh, row["method"], row["beta"])
            below = int(at_or_below((fresh * truth).sum(-1).mean(-1), float(truth.abs().max())).sum())
            low, high = wilson(below, draws) if few is None else (0.0, 1.0)
            shares = {"procedure_risk": below / draws, "procedure_low": low, "procedure_high": high}
        out.append({**row, **known, **shares})
    return out


def too_few(groups: Sequence[Any], separate: np.ndarray | None = None) -> str | None:
    """Why pairs of these prompts (n,) give no estimate; None where they do. separate: of all pairs, those to count."""
    counted = groups if separate is None else [groups[k] for k in separate]
    prompts = len(set(counted))
    if len(counted) >= LEAST_PAIRS and prompts >= LEAST_PROMPTS:
        return None
    kind = "" if len(counted) == len(groups) else " without a response in common"
    return f"{len(counted)} pairs of {prompts} prompts{kind}; an estimate needs {LEAST_PAIRS} of {LEAST_PROMPTS}"


def too_few_valued(prompts: int) -> str | None:
    """Why gold or a judge on so many prompts of candidates gives no risk; None where it does."""
    if prompts >= LEAST_PROMPTS:
        return None
    return f"policies are valued on {prompts} prompts; an estimate needs {LEAST_PROMPTS}"


def unknown(reason: str) -> dict[str, Any]:
    """The numbers of a row without an estimate: the widest intervals, and why."""
    return {"risk": None, "low": 0.0, "high": 1.0, "gain": None, **NO_PROCEDURE, "reason": reason}


def by_gold(moved: torch.Tensor, gold: torch.Tensor) -> list[dict[str, Any]]:
    """risk, low, high, gain and reason (None) of policies (M, P, C), less the reference, by gold (P, C)."""
    found = risk_with_gold((moved * gold).sum(-1).numpy())
    return [{**_numbers(found, k), "reason": None} for k in range(len(moved))]


@dataclass(frozen=True)
class Fit:
    """What the pairs give. difference, midpoint (n, d): of both sides, standardised. standard (P, C, d): candidates
    likewise. ridge. full (1, P, C), ensemble (K, P, C), fresh (resampled, P, C): scores of the head on all pairs, the
    members, and more resamples. weight (P, C): the reference's probabilities. separate: ``separate_pairs``."""

    difference: torch.Tensor
    midpoint: torch.Tensor
    standard: torch.Tensor
    ridge: float
    full: torch.Tensor
    ensemble: torch.Tensor
    fresh: torch.Tensor
    weight: torch.Tensor
    separate: np.ndarray

    @cached_property
    def posterior(self) -> Posterior:
        """The reward's, given the separate pairs."""
        return reward_posterior(self.difference[self.separate].double().numpy())

    @cached_property
    def centred(self) -> torch.Tensor:
        """Candidates' features (P, C, d) less their prompt's mean under the reference."""
        return centre(self.standard.movedim(-1, 0), weights=self.weight).movedim(0, -1)

    def moves(self, rewards: torch.Tensor, method: str, beta: float) -> torch.Tensor:
        """Policy less the reference (draws, P, C) for each of ``rewards`` (draws, P, C), draws about the fit."""
        return _moves(self.ensemble, self.full, rewards, self.weight, method, beta)

    def feature_moves(self, moved: torch.Tensor) -> np.ndarray:
        """What policies (M, P, C), less the reference, move in features (M, d): summed over responses, mean over
        prompts."""
        return (moved.flatten(1) @ self.centred.flatten(0, 1) / len(self.weight)).numpy()


def fit_rewards(
    better: torch.Tensor,
    worse: torch.Tensor,
    groups: Sequence[Any],
    features: torch.Tensor,
    weight: torch.Tensor,
    *,
    members: int,
    resampled: int = 0,
    seed: Seed = 0,
    ridge: float | str = "cv",
    columns: PairColumns = NO_COLUMNS,
) -> Fit:
    """The rewards fitted on pairs (float64 tensors as in ``estimate_risk``).

    columns: weights, margins and soft labels of the pairs, which the fits take.
    """
    mean, scale = standardisation(better.float(), worse.float())
    difference = ((better - worse) / scale).float()
    standard = (features - mean) / scale
    # One resample each: a draw stands beside the fit on all pairs, and is not resampled again.
    resamples = bootstrap_counts(len(better), spawn(seed, members + resampled), groups)
    counts = torch.cat([torch.ones(1, len(better)), resamples])
    fitted = fit_resamples(difference, counts, ridge=ridge, columns=columns, groups=groups, seed=seed)
    scores = _scores(fitted.weights, standard)
    full, ensemble, fresh = scores[:1], scores[1 : members + 1], scores[members + 1 :]
    midpoint = ((better + worse) / 2 - mean) / scale
    separate = separate_pairs(better.numpy(), worse.numpy(), groups)
    return Fit(difference, midpoint, standard, fitted.ridge, full, ensemble, fresh, weight, separate)


def policy_moves(fit: Fit, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The policy of each row's method and beta, trained on all pairs, less the reference: (rows, P, C)."""
    return torch.cat([fit.moves(fit.full, row["method"], row["beta"]) for row in rows])


class Limits(NamedTuple):
    """Whether pairs reach the candidates. outside: ``leverage_ratio``. shift: ``mean_shift``, one pair a prompt.
    beyond: what the pairs don't span or aren't like, they can't say anything about."""

    outside: float
    shift: float

    @property
    def beyond(self) -> bool:
        """Whether the candidates lie beyond the pairs."""
        return self.outside > OUTSIDE or self.shift <= SHIFTED


def limits(fit: Fit, groups: Sequence[Any], seed: Seed) -> Limits:
    """Of pairs of prompts ``groups`` (n,) and the candidates of a fit."""
    sizes = (fit.weight > 0).sum(1, keepdim=True).double()
    free = (fit.centred * (sizes / (sizes - 1).clamp(min=1)).sqrt()[..., None])[fit.weight > 0]  # unbiased in a prompt
    _, first, codes = np.unique([str(name) for name in groups], return_index=True, return_inverse=True)
    generator = numpy_generator(seed)
    candidates = candidate_midpoints(fit.standard.numpy(), fit.weight.numpy(), generator)
    return Limits(
        leverage_ratio(fit.difference.double().numpy(), codes, free.numpy()),
        mean_shift(fit.midpoint.numpy()[first], candidates, generator),
    )


def promised(
    fit: Fit, moved: torch.Tensor, groups: Sequence[Any], rows: Sequence[dict[str, Any]], *, draws: int, seed: Seed
) -> list[dict[str, Any]]:
    """``estimate_risk`` without gold, of a fit and its policies less the reference (rows, P, C): the same rows."""
    reason = too_few(groups, fit.separate)
    if reason is not None:
        return [{**row, **unknown(reason)} for row in rows]
    posterior = fit.posterior
    found = risk_without_gold(posterior, fit.feature_moves(moved))
    reach = limits(fit, groups, seed)
    shares = _procedure(fit, rows, draws, numpy_generator(seed))
    out = []
    for k, row in enumerate(rows):
        numbers = {**_numbers(found, k), **shares[k]}
        if reach.beyond:
            numbers |= {"high": max(numbers["high"], 0.5)}
            if numbers["procedure_risk"] is not None:
                numbers |= {"procedure_high": max(numbers["procedure_high"], 0.5)}
        out.append({**row, **numbers, "reason": _reason(numbers["high"], posterior.no_signal, reach)})
    return out


def drawn_truths(fit: Fit, count: int, generator: np.random.Generator) -> torch.Tensor:
    """True rewards (count, P, C) from the posterior: linear in the features, or, as often as no signal is likely,
    unrelated to them and of the same size."""
    found = _scores(torch.from_numpy(draw_rewards(fit.posterior, count, generator)), fit.standard)
    found = centre(found, weights=fit.weight)
    size = float(deviation_within(found, fit.weight).mean())
    noise = torch.from_numpy(generator.standard_normal(found.shape)) * size
    nothing = torch.from_numpy(generator.random(count) < fit.posterior.no_signal)
    return torch.where(nothing[:, None, None], centre(noise, weights=fit.weight), found)


def _reason(high: float, no_signal: float, reach: Limits) -> str | None:
    said = []
    if reach.outside > OUTSIDE:
        said.append(
            f"the candidates lie outside what the pairs span ({reach.outside:.2f} times as far as other pairs do), so "
            "high is at least 50 %: take pairs of the policy's own responses"
        )
    if reach.shift <= SHIFTED:
        said.append(
            f"the pairs' prompts or responses are of another kind than the candidates' (p = {reach.shift:.3f}); how a "
            "reward differs between them is in no number here, so high is at least 50 %: take pairs of the policy's "
            "own responses to its own prompts"
        )
    if high >= 0.5 and no_signal > 0.025:
        said.append(
            f"these pairs can't tell a signal from none (probability of none: {no_signal:.0%}), so the interval holds "
            "both: more pairs narrow it"
        )
    return "; ".join(said) or None


def _procedure(
    fit: Fit, rows: Sequence[dict[str, Any]], draws: int, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Procedure risk of each row by posterior prediction: rewards from the posterior, data sets from each of them."""
    if draws < LEAST_DRAWS:
        return [NO_PROCEDURE for _ in rows]
    posterior, count = fit.posterior, draws // FRESH
    true = torch.from_numpy(draw_rewards(posterior, count, generator))
    chance = torch.sigmoid(true @ fit.difference.double().T).repeat_interleave(FRESH, 0)
    agrees = (torch.from_numpy(generator.random(chance.shape)) < chance).float()
    # A pair answered the other way is its mirror image, so that one batch of heads has answers of its own each.
    both = torch.cat([fit.difference, -fit.difference])
    heads = fit_heads(both, torch.cat([agrees, 1 - agrees], 1), ridge=fit.ridge, tolerance=1e-3).weights
    fresh, truth = _scores(heads, fit.standard), _scores(true, fit.standard).repeat_interleave(FRESH, 0)
    # Without a signal the gain is symmetric about 0.
    atoms = np.append(posterior.no_signal, np.full(count, (1 - posterior.no_signal) / count))
    out = []
    for row in rows:
        moved = fit.moves(fresh, row["method"], row["beta"])
        gains = (moved * truth).sum(-1).mean(-1).reshape(count, FRESH)
        deviation = gains.std(1).clamp(min=1e-12)
        share = np.append(0.5, torch.special.ndtr(-gains.mean(1) / deviation).numpy())[:, None]
        low, high = weighted_interval(share, atoms)
        out.append(
            {
                "procedure_risk": float(atoms @ share[:, 0]),
                "procedure_low": float(low[0]),
                "procedure_high": float(high[0]),
            }
        )
    return out


def _scores(heads: torch.Tensor, standard: torch.Tensor) -> torch.Tensor:
    return (heads.double() @ standard.flatten(0, 1).T).reshape(-1, *standard.shape[:2])


def _moves(
    ensemble: torch.Tensor, full: torch.Tensor, rewards: torch.Tensor, weight: torch.Tensor, method: str, beta: float
) -> torch.Tensor:
    """Policy minus reference (draws, P, C) for each of ``rewards`` (draws, P, C), by a method's own definition.

    ensemble (K, P, C): the members. full (1, P, C): the fit on all pairs, which ``rewards`` are draws about.
    """
    known = estimate(ensemble, weight, reward=rewards)
    # A draw's own error moves what a rule over members reads as it moves the reward itself.
    shift = known.reward - estimate(ensemble, weight, reward=full).reward
    drawn = known._replace(mean=known.mean + shift, scores=known.scores + shift[:, None])
    return METHODS[method](drawn, weight, beta).expand(shift.shape) - weight


def _truth(gold: ArrayLike | None, weight: torch.Tensor, draws: int) -> torch.Tensor | None:
    """Gold (P, C), 0 where masked; None without gold. PrudentError for what can't be used."""
    if draws < 0:
        raise PrudentError(f"draws is {draws}, must be at least 0")
    if gold is None:
        return None
    values = as_tensor(gold, torch.float64)
    if values.shape != weight.shape:
        raise PrudentError(f"gold must be (P, C) = {tuple(weight.shape)} as the reference, got {tuple(values.shape)}")
    truth = torch.where(weight > 0, values, 0.0)
    require_finite(truth, "gold", ("prompt", "candidate"))
    return truth


def _numbers(found: Risks, row: int) -> dict[str, float]:
    return {name: float(getattr(found, name)[row]) for name in ("risk", "low", "high", "gain")}


def check_pairs(better: torch.Tensor, worse: torch.Tensor, groups: Sequence[Any]) -> None:
    """PrudentError for pairs (n, d) and their prompts (n,) that no reward can be learnt from."""
    if better.ndim != 2 or better.shape != worse.shape or len(groups) != len(better):
        shapes = f"{tuple(better.shape)}, {tuple(worse.shape)} and {len(groups)} prompts"
        raise PrudentError(f"chosen and rejected must be (n, d) with n prompt names, got {shapes}")
    require_finite(torch.stack([better, worse]), "pair features", ("side", "pair", "feature"))
    if bool((better == worse).all()):
        raise PrudentError(f"chosen and rejected are equal in all {len(better)} pairs: there is nothing to learn from")


def _check(
    better: torch.Tensor,
    worse: torch.Tensor,
    groups: Sequence[Any],
    features: torch.Tensor,
    weight: torch.Tensor,
    betas: Sequence[float],
    methods: Sequence[str],
) -> None:
    check_pairs(better, worse, groups)
    if features.ndim != 3 or features.shape[:2] != weight.shape or features.shape[-1] != better.shape[-1]:
        shapes = f"{tuple(features.shape)} and {tuple(weight.shape)} for features of width {better.shape[-1]}"
        raise PrudentError(f"candidates must be (P, C, d) and reference (P, C), got {shapes}")
    require_finite(torch.where(weight[..., None] > 0, features, 0.0), "candidates", ("prompt", "candidate", "feature"))
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise PrudentError(f"methods {', '.join(unknown) or 'none'}: must be of {', '.join(METHODS)}")
    if not betas or any(not (beta > 0 and math.isfinite(beta)) for beta in betas):
        raise PrudentError(f"betas must be positive numbers, got {list(betas)}")
    if not np.any(weight.numpy() > 0):
        raise PrudentError("reference gives no candidate a probability")
