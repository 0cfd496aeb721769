"""Every claim of the theory, recomputed: what it predicts, what is measured, with what interval, and whether it holds.

`reproduce` runs them all. A measured share or mean comes with a 99.9 % interval, so that a true claim fails one run in
a thousand; an identity comes with the largest deviation found and the tolerance it must stay under. Numbers of
equations are those of docs/theory.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from prudent.evaluation.statistics import wilson
from prudent.policies.finite import ball, multiplier, objective, solve
from prudent.progress import track
from prudent.seeding import Seed, spawn, torch_generator
from prudent.theory.bounds import improvement_bound, width
from prudent.theory.certificates import belief_from_posterior, bound_quantile, certify, draw_deviations, policy_of
from prudent.theory.covariances import group_index, inverse_quadratic, times_inverse
from prudent.theory.experiments import large_prompt, penalty_draws, random_covariance, risk_by_size
from prudent.theory.levels import tilt_gain, tilts
from prudent.theory.risks import risks
from prudent.theory.simulation import ball_on_simplex, draw_rewards, kl_ball, simulate

LEVEL = 0.999
EXAMPLE = ((1.0, 0.8, 0.2, 0.0), (2.0, 0.5, 0.5, 1.0))
EXAMPLE_GAIN = {"exact": 0.682371, "proportional": 0.679147, "bregman": 0.545391}


class Claim(NamedTuple):
    """One line of the table. predicted None: the claim is an inequality, stated in ``claim``. low, high: interval of
    the measured value, or the tolerance around the prediction where nothing is random."""

    section: str
    claim: str
    equation: str
    predicted: float | None
    measured: float
    low: float
    high: float
    holds: bool


def _share(section: str, claim: str, equation: str, predicted: float, hits: torch.Tensor) -> Claim:
    """A probability against the share of draws."""
    found, total = int(hits.sum()), len(hits)
    low, high = wilson(found, total, LEVEL)
    return Claim(section, claim, equation, predicted, found / total, low, high, low <= predicted <= high)


def _interval(values: torch.Tensor) -> tuple[float, float]:
    """Mean and half width of its 99.9 % interval."""
    return float(values.mean()), 3.2905 * float(values.std()) / math.sqrt(len(values))


def _mean(section: str, claim: str, equation: str, predicted: float, values: torch.Tensor) -> Claim:
    mean, half = _interval(values)
    return Claim(section, claim, equation, predicted, mean, mean - half, mean + half, abs(mean - predicted) <= half)


def _identity(section: str, claim: str, equation: str, deviation: float, tolerance: float) -> Claim:
    return Claim(section, claim, equation, 0.0, deviation, 0.0, tolerance, deviation <= tolerance)


def _below(section: str, claim: str, equation: str, measured: float, bound: float) -> Claim:
    return Claim(section, claim, equation, None, measured, -math.inf, bound, measured <= bound)


def failures(section: str, claim: str, equation: str, hits: torch.Tensor, most: float) -> Claim:
    """A bound's share of failures (draws,) of bool: it holds where the interval's UPPER end is at or below ``most``."""
    found, total = int(hits.sum()), len(hits)
    low, high = wilson(found, total, LEVEL)
    return Claim(section, claim, equation, None, found / total, low, high, high <= most)


def risk_claims(seed: Seed) -> Iterator[Claim]:
    """Theorem B: exact risks, the inequality between them and its equality."""
    section = "Risk of one step"
    truth, variance = torch.ones(3, dtype=torch.float64), torch.tensor([0.25, 1.0, 9.0], dtype=torch.float64)
    drawn = draw_rewards(truth, variance, 400_000, seed)
    exact = risks(truth, variance)
    yield _share(section, "vanilla, R = (1, 1, 1), variances 1/4, 1, 9", "(13)", exact.vanilla, drawn @ truth <= 0)
    yield _share(section, "variance-aware, the same", "(14)", exact.aware, (drawn / variance) @ truth <= 0)
    generator = torch_generator(seed)
    matrix = random_covariance(5, generator)
    reward = torch.randn(5, generator=generator, dtype=torch.float64)
    reward = 1.2 * reward / math.sqrt(inverse_quadratic(matrix, reward, group_index(None, 5)))
    drawn = draw_rewards(reward, matrix, 400_000, seed)
    exact = risks(reward, matrix, on_simplex=True)
    moved = reward - reward.mean()
    aware = times_inverse(matrix, reward, group_index(None, 5))
    yield _share(section, "vanilla, sum kept at 1, dense covariance", "(17)", exact.vanilla, drawn @ moved <= 0)
    yield _share(section, "variance-aware, the same", "(18)", exact.aware, drawn @ aware <= 0)
    pairs = [random_risks(generator) for _ in range(1000)]
    worst = max(pair.aware - pair.vanilla for pair in pairs)
    yield _below(section, "aware risk - vanilla risk, largest of 1000 random covariances", "(16)", worst, 1e-12)
    same = [risks(torch.randn(4, generator=generator), 0.7 * torch.eye(4), on_simplex=s) for s in (True, False) * 20]
    gap = max(abs(pair.aware - pair.vanilla) for pair in same)
    yield _identity(section, "equal risks where the covariance is a multiple of the identity", "(16)", gap, 1e-12)


def random_risks(generator: torch.Generator) -> Any:
    """``theory.risks`` of a random true reward and covariance of 2 to 8 responses."""
    n = int(torch.randint(2, 9, (1,), generator=generator))
    reward = torch.randn(n, generator=generator, dtype=torch.float64)
    return risks(reward, random_covariance(n, generator), on_simplex=bool(torch.rand(1, generator=generator) < 0.5))


def ball_claims(seed: Seed) -> Iterator[Claim]:
    """The closed forms are the optima of their balls."""
    section, generator = "Optimum of the balls", torch_generator(seed)
    matrix = random_covariance(6, generator)
    reward = torch.randn(6, generator=generator, dtype=torch.float64)
    reference = torch.full((6,), 1 / 6, dtype=torch.float64)
    normals = torch.randn(10_000, 6, generator=generator, dtype=torch.float64)
    for name, metric, covariance, equation in (
        ("L2", torch.eye(6, dtype=torch.float64), None, "(8)"),
        ("Sigma", matrix, matrix, "(9)"),
    ):
        # Uniform in the ball's own metric: L^-T z for metric = L L'. Drawn in another one they'd miss the optimum.
        root = torch.linalg.cholesky(metric)
        directions = torch.linalg.solve_triangular(root.T, normals.T, upper=True).T
        step = ball(reward, reference, 0.3, covariance=covariance) - reference
        best = float(step @ reward)
        gains = 0.3 * (directions @ reward) / torch.einsum("ki,ij,kj->k", directions, metric, directions).sqrt()
        claim = f"{name} ball: best of 10,000 feasible directions, as a share of the closed form's gain"
        share = float(gains.max()) / best
        yield Claim(section, claim, equation, None, share, 0.95, 1.0, 0.95 <= share <= 1.0 + 1e-12)
        off = abs(float(step @ metric @ step) - 0.09)
        yield _identity(section, f"{name} ball: squared norm is the squared radius", equation, off, 1e-10)


def bound_claims(seed: Seed) -> Iterator[Claim]:
    """Theorem A in its provable form: coverage for one direction, for all, and for an optimised policy."""
    section, generator = "Confidence bounds", torch_generator(seed)
    n = 6
    matrix = random_covariance(n, generator)
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    noise = draw_rewards(torch.zeros(n), matrix, 100_000, seed)
    over = noise @ v > 1.645 * (v @ matrix @ v).sqrt()
    yield _share(section, "one direction: P(noise above 1.645 standard deviations)", "(20)", 0.049985, over)
    inverse = torch.linalg.inv(matrix)
    ratio = ((noise @ inverse) * noise).sum(-1).sqrt()
    claim = "all directions, at the worst one: coverage of the chi-square bound"
    yield _share(section, claim, "(21)", 0.95, ratio <= width(0.05, n))
    loose = ratio > width(0.05, n, sharp=False)
    yield failures(section, "all directions: failures of sqrt(n) + sqrt(2 ln 20)", "(22)", loose, 0.05)
    reference = torch.full((n,), 1 / n, dtype=torch.float64)
    drawn = draw_rewards(torch.zeros(n), matrix, 2000, seed)
    policies = ball(drawn, reference, 0.01, covariance=matrix, on_simplex=True)
    fails, naive = (
        torch.tensor([improvement_bound(p, reference, r, matrix, uniform=u) > 0 for p, r in zip(policies, drawn)])
        for u in (True, False)
    )
    claim = "optimised policy, R = 0: failures of the uniform bound (5 %, 2000 draws: at most 10 %)"
    yield failures(section, claim, "(23)", fails, 0.10)
    claim = "optimised policy, R = 0: failures of the one-direction bound (must exceed 5 %)"
    found = failures(section, claim, "(23)", naive, 1.0)
    yield found._replace(holds=found.low > 0.05)


def solver_claims(seed: Seed) -> Iterator[Claim]:
    """Closed forms of the KL-regularised problem on the one-prompt example, and their invariances."""
    section = "Exact policies"
    reward, variance = (torch.tensor([row], dtype=torch.float64) for row in EXAMPLE)
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    equations = {"exact": "(3)", "proportional": "(2)", "bregman": "(4)"}
    policies = {form: solve(reward, uniform, 1.0, variance=variance, form=form) for form in EXAMPLE_GAIN}
    for form, published in EXAMPLE_GAIN.items():
        found = float(objective(policies[form], reward, uniform, 1.0, variance=variance))
        claim, low, high = f"J of the {form} form on the example", published - 6e-7, published + 6e-7
        near = abs(found - published) < 6e-7
        yield Claim(section, claim, equations[form], published, found, low, high, near)
    points = torch.distributions.Dirichlet(torch.full((4,), 0.7, dtype=torch.float64))
    torch.manual_seed(0)
    best = float(objective(points.sample((200_000,)), reward, uniform, 1.0, variance=variance).max())
    yield _below(section, "J of the best of 200,000 random policies", "(3)", best, EXAMPLE_GAIN["exact"])
    for form in ("exact", "bregman"):
        moved = float((solve(reward + 5, uniform, 1.0, variance=variance, form=form) - policies[form]).abs().max())
        yield _identity(section, f"{form} form unmoved by a constant added to the reward", equations[form], moved, 1e-9)
    moved = float((solve(reward + 5, uniform, 1.0, variance=variance) - policies["proportional"]).abs().max())
    yield Claim(section, "proportional form moved by it", "(2)", None, moved, 0.01, 1.0, moved > 0.01)
    for form, extra in (("exact", 1.0), ("bregman", 0.0)):
        name = "true gradient of J" if extra else "gradient with the penalty detached"
        off = 0.5 * float((_ascend(reward[0], variance[0], extra) - policies[form][0]).abs().sum())
        claim = f"policy gradient, {name}, ends at the {form} form"
        yield _identity(section, claim, "(6)" if extra else "(5)", off, 1e-3)


def _ascend(reward: torch.Tensor, variance: torch.Tensor, extra: float) -> torch.Tensor:
    """Tabular policy gradient with the KL in the reward, from the uniform policy on four responses."""
    logits = torch.zeros(4, dtype=torch.float64)
    for _ in range(4000):
        policy = torch.softmax(logits, 0)
        signal = reward - variance * (torch.log(policy * 4) + extra)
        logits = logits + 0.5 * policy * (signal - (policy * signal).sum())
    return torch.softmax(logits, 0)


def simplex_claims(seed: Seed, draws: int = 100_000) -> Iterator[Claim]:
    """With pi >= 0 imposed the closed forms are the limit of small balls, L2 and KL."""
    section = "With pi >= 0 imposed"
    truth, variance, reference = large_prompt(seed)
    exact = risks(truth, variance, on_simplex=True)
    l2 = partial(ball_on_simplex, reference=reference, radius=0.01)
    kl = partial(kl_ball, reference=reference, divergence=1e-6)
    rules = (
        ("L2 ball, radius .01", exact.vanilla, l2, "(26)"),
        ("Sigma ball, radius .01", exact.aware, partial(l2, variance=variance), "(26)"),
        ("KL ball, 10^-6 nats", exact.vanilla, kl, "(28)"),
        ("weighted KL ball, 10^-6 nats", exact.aware, partial(kl, variance=variance), "(28)"),
    )
    for name, predicted, rule, equation in rules:
        found = simulate(truth, variance, reference, rule, draws=draws, seed=seed, level=LEVEL)
        claim, holds = f"{name}: risk over {draws:,} draws, 64 responses", found.low <= predicted <= found.high
        yield Claim(section, claim, equation, predicted, found.risk, found.low, found.high, holds)


def penalty_claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    """With the variance-weighted KL penalty every form is safer than vanilla at the same beta."""
    vanilla = {row["beta"]: row["gains"] <= 0 for row in rows if row["method"] == "vanilla"}
    for row in rows:
        if row["method"] == "vanilla":
            continue
        both = (row["gains"] <= 0).double() - vanilla[row["beta"]].double()
        mean, half = _interval(both)
        claim = f"beta {row['beta']:g}: risk of the {row['method']} form minus vanilla's, 4000 paired draws"
        yield Claim("KL penalty", claim, "(1)", None, mean, mean - half, mean + half, mean + half < 0)


def level_claims(seed: Seed) -> Iterator[Claim]:
    """The forms differ in their level alone, and what the level gains to first order."""
    section, generator = "Between the forms", torch_generator(seed)
    n, prompts = 8, 50
    reward = torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    reward = reward - reward.mean(-1, keepdim=True)
    variance = torch.exp(0.8 * torch.randn(prompts, n, generator=generator, dtype=torch.float64))
    reference = torch.full((prompts, n), 1 / n, dtype=torch.float64)
    gaps = []
    for form in ("bregman", "exact"):
        level = multiplier(reward, reference, 0.7, variance, form=form)
        shifted = solve(reward - level[:, None], reference, 0.7, variance=variance)
        gaps.append(float((shifted - solve(reward, reference, 0.7, variance=variance, form=form)).abs().max()))
    yield _identity(section, "each form is the proportional one of r - lam", "(7)", max(gaps), 1e-10)
    drawn = reward[0] + variance[0].sqrt() * torch.randn(200_000, n, generator=generator, dtype=torch.float64)
    parts = tilts(drawn, reference[0], 1.0, variance[0])
    precision = 1 / variance[0]
    both = float(tilt_gain(precision, reference[0], reward[0]))
    claim = "mean first-order gain of the link: cov(w, R)^2 / (beta E w)"
    gains = tilt_gain(parts.link, reference[0], reward[0])
    yield _mean(section, claim, "(33)", both**2 / float(precision.mean()), gains)
    each = tilt_gain(parts.bregman, reference[0], reward[0])
    level = (precision * reward[0]).sum() / precision.sum()
    expected = float((reference[0] * precision * (reward[0] - level) * reward[0]).sum())
    yield _mean(section, "mean first-order gain of the Bregman form: E w (R - R_w) R / beta", "(31)", expected, each)


def promise_claims(seed: Seed, draws: int = 2000) -> Iterator[Claim]:
    """Corrected promises are unbiased; the plug-in is not."""
    section, generator = "Promises", torch_generator(seed)
    prompts, n, rank = 10, 6, 70
    truth = 0.3 * torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    factor = 0.12 * torch.randn(prompts, n, rank, generator=generator, dtype=torch.float64)
    factor = factor * torch.exp(0.5 * torch.randn(prompts, n, 1, generator=generator, dtype=torch.float64))
    reference = torch.full((prompts, n), 1 / n, dtype=torch.float64)
    truth = truth - truth.mean(-1, keepdim=True)
    belief = belief_from_posterior(truth, factor, reference)
    noise = draw_deviations(belief, draws, generator)
    gaps: dict[str, list[float]] = {"plug": [], "stein": []}
    failed = []
    quantile = bound_quantile(belief, 1.0, "bregman")  # hardly moves with the estimate: simulated once
    for eta in noise:
        observed = belief._replace(reward=truth + eta)
        found = certify(observed, 1.0, "bregman", quantile=quantile)
        real = float(((policy_of(observed, observed.reward, 1.0, "bregman") - reference) * truth).sum(-1).mean())
        gaps["plug"].append(found.plug_in - real)
        gaps["stein"].append(found.improvement - real)
        failed.append(found.bound > real)
    stein, plug = (torch.tensor(gaps[name], dtype=torch.float64) for name in ("stein", "plug"))
    yield _mean(section, "corrected promise minus the truth, Bregman form", "(35)", 0.0, stein)
    mean, half = _interval(plug)
    claim = "plug-in promise minus the truth (must be above 0)"
    yield Claim(section, claim, "(35)", None, mean, mean - half, mean + half, mean - half > 0)
    yield failures(section, "failures of the 95 % bound (at most 7.5 %)", "(38)", torch.tensor(failed), 0.075)


def all_claims(seed: Seed = 0, note: Callable[[str], None] = lambda text: None) -> tuple[list[Claim], dict[str, Any]]:
    """Every claim, and the rows behind the charts: ``size``, ``penalty`` and ``pairs`` of risks."""
    seeds = spawn(seed, 10)
    penalty = penalty_draws(seeds[0])
    claims: list[Claim] = []
    parts: list[tuple[str, Callable[[], Iterator[Claim]]]] = [
        ("risks", lambda: risk_claims(seeds[1])),
        ("balls", lambda: ball_claims(seeds[2])),
        ("bounds", lambda: bound_claims(seeds[3])),
        ("solvers", lambda: solver_claims(seeds[4])),
        ("simplex and KL balls", lambda: simplex_claims(seeds[5])),
        ("KL penalty", lambda: penalty_claims(penalty)),
        ("between the forms", lambda: level_claims(seeds[6])),
        ("promises", lambda: promise_claims(seeds[7])),
    ]
    for name, part in track(parts, "claims"):
        note(name)
        claims += part()
    note("risk by size of the ball")
    generator = torch_generator(seeds[8])
    pairs = [random_risks(generator) for _ in range(400)]
    return claims, {
        "size": risk_by_size(seeds[5]),
        "penalty": penalty,
        "pairs": pairs,
        "exact": risks(*large_prompt(seeds[5])[:2], on_simplex=True),
    }
