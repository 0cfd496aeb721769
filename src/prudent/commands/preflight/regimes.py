"""In which regime do the variance-aware forms beat vanilla, and in which not? A map on a world whose truth is known.

Two maps, both with both controls. ``learned``: reward models learn from fresh preference pairs drawn from the gold
reward; the number of pairs, their noise and beta vary. ``assumed``: the theory's own world, where a reward estimate is
gold plus independent Gaussian noise; how unequal the noise's variance is, and how large, vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from prudent.arrays import as_tensor
from prudent.commands.preflight.core import DRAW_TOLERANCE, DrawnScores, at_equal_beta, at_equal_kl, see, table
from prudent.commands.preflight.truth import standardised
from prudent.rewards.heads import bootstrap_counts, choose_ridge, fit_heads
from prudent.seeding import Seed, spawn, torch_generator

METHODS = ("vanilla", "mean", "proportional", "bregman", "exact", "variance-only", "permuted")
Choice = Callable[[int, float, Seed], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def link(variance: torch.Tensor, gold: torch.Tensor, reference: torch.Tensor) -> float:
    """Correlation of log variance (draws, P, C) and gold (P, C) within prompts: does low variance go with truth?"""
    logs = torch.log(variance)
    logs = logs - (reference * logs).sum(-1, keepdim=True)
    truth = gold - (reference * gold).sum(-1, keepdim=True)
    together = (reference * logs * truth).sum(-1).mean()
    size = (reference * logs.square()).sum(-1).mean() * (reference * truth.square()).sum(-1).mean()
    return float(together / size.sqrt()) if float(size) > 0 else float("nan")


def ordering(reward: torch.Tensor, gold: torch.Tensor, reference: torch.Tensor, most: int = 50) -> float:
    """Share of candidate pairs of one prompt that a reward model orders as gold does, ties of the reward at half.

    reward (draws, P, C), of which the first ``most`` draws are looked at; gold and reference (P, C). Pairs of equal
    gold and places of reference 0 are left out.
    """
    known = (reference > 0)[:, :, None] & (reference > 0)[:, None, :]
    true = gold[:, :, None] - gold[:, None, :]
    counted = known & (true > 0)
    right = [
        ((r[:, :, None] > r[:, None, :])[counted].double() + 0.5 * (r[:, :, None] == r[:, None, :])[counted].double())
        for r in reward[:most]
    ]
    return float(torch.stack(right).mean()) if int(counted.sum()) else float("nan")


def inequality(variance: torch.Tensor, reference: torch.Tensor) -> float:
    """Coefficient of variation of variances (draws, P, C) over the pool, mean over draws; 0 where all are the same."""
    weight = reference / reference.sum()
    mean = (weight * variance).sum((-2, -1), keepdim=True)
    spread = (weight * (variance - mean).square()).sum((-2, -1)).sqrt()
    return float((spread / mean[..., 0, 0]).mean())


def fresh_scores(
    features: torch.Tensor,
    choose: Choice,
    test: torch.Tensor,
    *,
    pairs: int,
    slope: float,
    draws: int,
    members: int,
    seed: Seed,
) -> DrawnScores:
    """Scores (draws, members, P_test, C) of heads that learn from fresh pairs, each draw's its own.

    features (P, C, d). choose(pairs, slope, seed): a draw of preferences as (prompt, chosen, rejected) indices. Members
    bootstrap the draw, whole prompts at a time. The ridge is cross-validated on the first draw and kept.
    """
    flat = features.reshape(-1, features.shape[-1]).float()
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    standard = ((features.float() - mean) / scale).to(torch.float32)
    target = standard[test].reshape(-1, features.shape[-1])
    scores, ridge, found = [], 0.0, None
    for number, child in enumerate(spawn(seed, draws)):
        pick, cross, *boot = spawn(child, 2 + members)
        prompt, better, worse = choose(pairs, slope, pick)
        difference = standard[prompt, better] - standard[prompt, worse]
        if number == 0:
            ridge, found = choose_ridge(difference, groups=prompt, seed=cross)
        counts = bootstrap_counts(pairs, boot, groups=prompt)
        fit = fit_heads(difference, counts, ridge=ridge, tolerance=DRAW_TOLERANCE)
        scores.append((fit.weights.float() @ target.T).reshape(members, len(test), -1))
    return DrawnScores(torch.stack(scores).double(), ridge, found)


def cell(drawn: DrawnScores, reference: torch.Tensor, gold: torch.Tensor, betas: Sequence[float]) -> dict[str, Any]:
    """Tables of one regime, with how unequal its variance is and whether low variance goes with truth."""
    seen = see(drawn, reference)
    equal_beta = at_equal_beta(seen, reference, gold, betas, methods=METHODS)
    equal_kl = at_equal_kl(seen, reference, gold, equal_beta, methods=METHODS)
    return {
        "equal_beta": table(equal_beta),
        "equal_kl": table(equal_kl),
        "inequality": inequality(seen.variance, reference),
        "link": link(seen.variance, gold, reference),
        "order": ordering(seen.reward, gold, reference),
        "ridge": drawn.ridge,
    }


def learned_map(
    features: torch.Tensor,
    gold: torch.Tensor,
    choose: Choice,
    test: torch.Tensor,
    *,
    pairs: Sequence[int],
    slopes: Sequence[float],
    betas: Sequence[float],
    draws: int = 40,
    members: int = 10,
    seed: Seed = 0,
    tick: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """One row a regime (pairs, slope of the labels' noise), beta, comparison and method.

    gold (P, C); test: numbers of the prompts that policies are solved on; ``choose`` draws pairs from the others.
    """
    truth = as_tensor(gold, torch.float64)[test]
    reference = torch.full(truth.shape, 1.0 / truth.shape[1], dtype=torch.float64)
    rows = []
    seeds = iter(spawn(seed, len(pairs) * len(slopes)))
    for count in pairs:
        for slope in slopes:
            drawn = fresh_scores(
                features, choose, test, pairs=count, slope=slope, draws=draws, members=members, seed=next(seeds)
            )
            found = cell(drawn, reference, truth, betas)
            rows += spread_rows(found, {"pairs": count, "slope": slope})
            tick(f"{count} pairs, slope {slope:g}")
    return rows


def spread_rows(found: dict[str, Any], regime: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of both comparisons of one cell, the regime's own numbers in each."""
    facts: dict[str, Any] = {key: found[key] for key in ("inequality", "link", "order", "ridge")}
    return [
        {**regime, "comparison": comparison.replace("_", " "), **facts, **row}
        for comparison in ("equal_beta", "equal_kl")
        for row in found[comparison]
    ]


def assumed_map(
    gold: torch.Tensor,
    *,
    inequalities: Sequence[float],
    noises: Sequence[float],
    betas: Sequence[float],
    draws: int = 200,
    members: int = 10,
    seed: Seed = 0,
) -> list[dict[str, Any]]:
    """The theory's world on the gold rewards (P, C) of a pool, in standard deviations within a prompt.

    Each member is gold plus N(0, noise * s2), s2 lognormal with log standard deviation ``inequality`` and mean 1, drawn
    anew each time and independent of gold; the variance is estimated from the members, as in practice.
    """
    truth = as_tensor(gold, torch.float64)
    reference = torch.full(truth.shape, 1.0 / truth.shape[1], dtype=torch.float64)
    truth = standardised(truth, reference)
    rows = []
    seeds = iter(spawn(seed, len(inequalities) * len(noises)))
    for unequal in inequalities:
        for noise in noises:
            generator = torch_generator(next(seeds))
            shape = (draws, 1, *truth.shape)
            logs = unequal * torch.randn(shape, generator=generator, dtype=torch.float64) - unequal**2 / 2
            errors = torch.randn((draws, members, *truth.shape), generator=generator, dtype=torch.float64)
            drawn = DrawnScores(truth + (noise * torch.exp(logs)).sqrt() * errors, 0.0, None)
            found = cell(drawn, reference, truth, betas)
            rows += spread_rows(found, {"unequal": unequal, "noise": noise})
    return rows


def pick(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Rows whose columns hold the wanted values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
