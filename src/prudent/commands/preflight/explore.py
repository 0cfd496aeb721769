"""The grid behind the report's explorer: methods at many betas, from fewer and from all pairs. Arrays in, rows out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.commands.preflight.core import BASELINE, at_equal_beta
from prudent.commands.preflight.given_pairs import Plan, Row, Trained, risk_rows, trained_on
from prudent.commands.preflight.truth import Truth
from prudent.evaluation.risk_estimate import drawn_truths, too_few
from prudent.policies.finite import kl
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.seeding import Seed, numpy_generator, spawn

METHODS = (BASELINE, "mean", "lcb", "proportional", "bregman", "exact")
MOVED = (BASELINE, "mean", "lcb", "proportional")  # those whose most affected prompts are listed
PARTS = (8, 4, 2, 1)  # of the pairs: an eighth to all
PROMPTS = 10
FEW_BETAS, REACH = 8, 3.0  # up to so many betas get others between them, and one so many times beyond either end
DRAWS = 40  # rewards from the posterior that say how many prompts are made worse


@dataclass(frozen=True)
class Grid:
    """sizes: numbers of pairs; betas; rows: one a size, method and beta, with risk, low, high, gain, kl, worse; moves:
    the most affected prompts of each, with the response (its place) that rises most and the one that falls most."""

    sizes: list[int]
    betas: list[float]
    rows: list[Row]
    moves: list[Row]


def betas_of(betas: Sequence[float]) -> list[float]:
    """The betas over 0 that were asked for; where they are few, those between neighbours and beyond either end too."""
    asked = sorted({beta for beta in betas if beta > 0})
    if not asked or len(asked) > FEW_BETAS:
        return asked
    between = [(a * b) ** 0.5 for a, b in itertools.pairwise(asked)]
    return sorted({*asked, *between, asked[0] / REACH, asked[-1] * REACH})


def subsets(pairs: PairFeatures, seed: Seed) -> list[PairFeatures]:
    """Nested parts of the pairs, whole prompts at a time, that are large enough for an estimate; all of them last."""
    names = sorted(set(pairs.groups), key=str)
    order = {names[index]: rank for rank, index in enumerate(numpy_generator(seed).permutation(len(names)))}
    found: list[PairFeatures] = []
    for part in PARTS:
        kept = [row for row, group in enumerate(pairs.groups) if order[group] < -(-len(names) // part)]
        smaller = pairs if len(kept) == len(pairs) else pairs.take(torch.tensor(kept))
        if part == 1 or (too_few(smaller.groups) is None and (not found or len(smaller) > len(found[-1]))):
            found.append(smaller)
    return found


def explore(
    pairs: PairFeatures, candidates: CandidateFeatures, truth: Truth | None, plan: Plan, whole: Trained, seed: Seed = 0
) -> Grid:
    """The grid. whole: what was trained on all of the pairs, so that its points are those of the report's tables."""
    order_seed, fit_seed, draw_seed = spawn(seed, 3)
    methods = [method for method in METHODS if method in plan.methods]
    betas = betas_of(plan.betas)
    parts = subsets(pairs, order_seed) if betas else []
    rows: list[Row] = []
    moves: list[Row] = []
    for part, child in zip(parts, spawn(fit_seed, len(parts)), strict=True):
        trained = whole if part is pairs else trained_on(part, candidates, plan, child)
        rows += [{"pairs": len(part), **row} for row in _values(trained, truth, methods, betas, draw_seed)]
        for method in MOVED:
            moved = trained.policies([(method, beta) for beta in betas])
            for beta, change in zip(betas, moved, strict=True):
                moves += [
                    {"pairs": len(part), "method": method, "beta": beta, **row}
                    for row in most_moved(change, trained.fit.weight)
                ]
    return Grid([len(part) for part in parts], betas, rows, moves)


def _values(
    trained: Trained, truth: Truth | None, methods: Sequence[str], betas: Sequence[float], seed: Seed
) -> list[Row]:
    weight, settings = trained.fit.weight, [(method, beta) for method in methods for beta in betas]
    risks = risk_rows(trained, settings, None if truth is None else truth.values, 0, seed)
    values = drawn_truths(trained.fit, DRAWS, numpy_generator(seed)) if truth is None else truth.values
    found = at_equal_beta(trained.estimate, weight, values, betas, methods=methods)
    rows = []
    for (method, beta), risk in zip(settings, risks, strict=True):
        at = found.of(method, beta)
        row = {name: risk[name] for name in ("risk", "low", "high", "gain")}
        rows.append(
            {
                "method": method,
                "beta": beta,
                **row,
                "kl": float(found.kl[at][0]),
                "worse": float(found.worse[at].mean()),
            }
        )
    return rows


def most_moved(change: torch.Tensor, reference: torch.Tensor, count: int = PROMPTS) -> list[dict[str, Any]]:
    """The prompts that a policy moves furthest (KL), and in each the responses that rise and fall most in probability.

    change (P, C): the policy minus the reference (P, C).
    """
    distance = kl(change + reference, reference)
    order = distance.argsort(descending=True, stable=True)[:count].tolist()
    shown = torch.where(reference > 0, change, 0.0)
    return [
        {
            "rank": rank,
            "prompt": prompt,
            "kl": float(distance[prompt]),
            "rises": (up := int(shown[prompt].argmax())),
            "rise": float(shown[prompt, up]),
            "falls": (down := int(shown[prompt].argmin())),
            "fall": float(shown[prompt, down]),
        }
        for rank, prompt in enumerate(order)
    ]
