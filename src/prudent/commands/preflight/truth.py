"""What a policy's responses are truly worth: a gold column, a judge, or a cross-fit where there is neither.

In a cross-fit the preference pairs are split by prompt: reward models learn from one half and a judge, which they never
share a pair with, from the other; then the halves change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.intervals import wilson
from prudent.rewards.accuracy import credit, differences
from prudent.rewards.containers import PairFeatures
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.uncertainty import centre, deviation_within
from prudent.seeding import Seed, numpy_generator, spawn

JUDGE_MEMBERS = 20
WORDS = {
    "gold": "the gold column of the pool",
    "judge": "a judge reward model",
    "cross-fit": "a cross-fit: reward models learn from one half of the pairs, the judge from the other, and back",
}


@dataclass(frozen=True)
class Truth:
    """True reward of the candidates as far as it is known.

    values (P, C): what policies are valued by. resampled (J, P, C): the judge as it might have been with other pairs,
    or None where the truth is gold. kind: gold, judge or cross-fit. unit: of the values, in words. quality: how good
    the judge is.
    """

    values: torch.Tensor
    kind: str
    unit: str
    resampled: torch.Tensor | None = None
    quality: dict[str, Any] = field(default_factory=dict)


def spread_within(values: ArrayLike, reference: ArrayLike) -> float:
    """Root mean square of values (P, C) around their prompt's mean under the reference probabilities."""
    return float(deviation_within(as_tensor(values, torch.float64), as_tensor(reference, torch.float64)))


def standardised(scores: ArrayLike, reference: ArrayLike) -> torch.Tensor:
    """Scores (..., P, C) centred per prompt and divided by their spread within prompts, each leading index by itself.

    A judge's scale and its offset per prompt mean nothing; in these units the reference is worth 0 and a gain of 1 is
    one standard deviation among the reference policy's own responses.
    """
    found, weight = as_tensor(scores, torch.float64), as_tensor(reference, torch.float64)
    centred, deviation = centre(found, weights=weight), deviation_within(found, weight)
    if not bool((deviation > 0).all()):
        raise PrudentError("the judge gives every candidate of a prompt the same score; it can't tell policies apart")
    return centred / deviation[..., None, None]


def gold_truth(gold: ArrayLike, reference: ArrayLike, name: str = "gold") -> Truth:
    """Truth from a gold column: values (P, C) in its own units; a place without a candidate may hold anything."""
    weight = as_tensor(reference, torch.float64)
    values = torch.where(weight > 0, as_tensor(gold, torch.float64), 0.0)
    require_finite(values, f"gold column {name!r}", ("prompt", "response"))
    spread = spread_within(values, weight)
    if spread == 0:
        raise PrudentError(
            f"gold column {name!r} is the same for all responses of each prompt; no policy can gain or lose by it"
        )
    mean = float((weight * values).sum(-1).mean())
    return Truth(values, "gold", f"units of {name}", quality={"spread_within_prompt": spread, "reference_value": mean})


def judge_truth(scores: ArrayLike, reference: ArrayLike, quality: dict[str, Any] | None = None) -> Truth:
    """Truth from a judge's members' scores (K, P, C): their mean is the judge, its members are the resampled judges."""
    members = as_tensor(scores, torch.float64)
    values = standardised(members.mean(0), reference)
    resampled = standardised(members, reference) if len(members) > 1 else None
    return Truth(values, "judge", "standard deviations of the judge within a prompt", resampled, quality or {})


def halves(groups: Sequence[Any], seed: Seed) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers of two halves that share no prompt, as even in pairs as whole prompts allow."""
    rows: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    if len(rows) < 4:
        raise PrudentError(
            f"a cross-fit needs preference pairs of at least 4 prompts, found {len(rows)}; give more pairs, a pool "
            "with a gold column (--gold) or a judge (--judge)"
        )
    names = list(rows)
    order = numpy_generator(seed).permutation(len(names))
    sides: tuple[list[int], list[int]] = ([], [])
    for place in sorted(order, key=lambda i: -len(rows[names[i]])):
        smaller = sides[0] if len(sides[0]) <= len(sides[1]) else sides[1]
        smaller.extend(rows[names[place]])
    return torch.tensor(sorted(sides[0])), torch.tensor(sorted(sides[1]))


def accuracy(margins: ArrayLike, level: float = 0.95) -> dict[str, Any]:
    """Share of pairs (n,) with a positive margin, ties counted half and told apart, with its Wilson interval."""
    found = as_tensor(margins, torch.float64).reshape(-1)
    right, ties = float(credit(found).sum()), int((found == 0).sum())
    share = right / len(found) if len(found) else float("nan")
    low, high = wilson(right, len(found), level) if len(found) else (float("nan"), float("nan"))
    return {"pairs": len(found), "accuracy": share, "low": float(low), "high": float(high), "ties": ties}


@dataclass(frozen=True)
class Direction:
    """One direction of a cross-fit: pairs that reward models learn from, and the truth by the other half's judge."""

    learns: PairFeatures
    truth: Truth


def cross_fit(
    pairs: PairFeatures,
    features: torch.Tensor,
    reference: ArrayLike,
    *,
    members: int = JUDGE_MEMBERS,
    ridge: float | str = "cv",
    seed: Seed = 0,
) -> list[Direction]:
    """Both directions of a cross-fit on candidates with ``features`` (P, C, d)."""
    split_seed, *judge_seeds = spawn(seed, 3)
    parts = halves(pairs.groups, split_seed)
    prompts, width, size = features.shape
    directions = []
    for learner, judge_seed in zip((0, 1), judge_seeds):
        learns, judged = pairs.take(parts[learner]), pairs.take(parts[1 - learner])
        judge = HeadEnsemble.fit(**judged.fit_arguments(), members=members, ridge=ridge, seed=judge_seed)
        scores = judge.scores(features.reshape(-1, size)).reshape(members, prompts, width)
        margins = (judge.scores(learns.chosen) - judge.scores(learns.rejected)).mean(0)
        quality = {**accuracy(margins), "trained_on": len(judged), "ridge": judge.info["ridge"]}
        truth = judge_truth(scores, reference, quality)
        directions.append(Direction(learns, Truth(truth.values, "cross-fit", truth.unit, truth.resampled, quality)))
    return directions


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
    counted = known & (differences(gold) > 0)
    right = [credit(differences(r))[counted] for r in reward[:most]]
    return float(torch.stack(right).mean()) if int(counted.sum()) else float("nan")


def inequality(variance: torch.Tensor, reference: torch.Tensor) -> float:
    """Coefficient of variation of variances (draws, P, C) over the pool, mean over draws; 0 where all are the same."""
    weight = reference / reference.sum()
    mean = (weight * variance).sum((-2, -1), keepdim=True)
    spread = (weight * (variance - mean).square()).sum((-2, -1)).sqrt()
    return float((spread / mean[..., 0, 0]).mean())
