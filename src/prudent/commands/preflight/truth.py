"""The true reward of a policy's responses as far as it is known: a gold column or a judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.intervals import wilson
from prudent.rewards.accuracy import credit, differences
from prudent.rewards.uncertainty import centre, deviation_within

WORDS = {
    "gold": "the gold column of the pool",
    "judge": "a judge reward model",
    "posterior": "what these pairs leave open: rewards from the posterior given all of them",
}


@dataclass(frozen=True)
class Truth:
    """True reward of the candidates as far as it is known.

    values (P, C): what policies are valued by. resampled (J, P, C): the judge as it might have been with other pairs,
    or None where the truth is gold. kind: gold or judge. unit: of the values, in words. quality: how good
    the judge is.
    """

    values: torch.Tensor
    kind: str
    unit: str
    resampled: torch.Tensor | None = None
    quality: dict[str, Any] = field(default_factory=dict)


def standardised(scores: ArrayLike, reference: ArrayLike) -> torch.Tensor:
    """Scores (..., P, C) centred per prompt, in units of their standard deviation within prompts, for each index.

    A judge's scale and its offset per prompt mean nothing; in these units the reference has 0 and a gain of 1 is
    one standard deviation among the reference policy's own responses.
    """
    found, weight = as_tensor(scores, torch.float64), as_tensor(reference, torch.float64)
    centred, deviation = centre(found, weights=weight), deviation_within(found, weight)
    if not bool((deviation > 0).all()):
        raise PrudentError("the judge gives every candidate of a prompt the same score; it can't tell policies apart")
    return centred / deviation[..., None, None]


def gold_truth(gold: ArrayLike, reference: ArrayLike, name: str = "gold") -> Truth:
    """Truth from a gold column: values (P, C) in its own units; an entry without a candidate may hold anything."""
    weight = as_tensor(reference, torch.float64)
    values = torch.where(weight > 0, as_tensor(gold, torch.float64), 0.0)
    require_finite(values, f"gold column {name!r}", ("prompt", "response"))
    deviation = float(deviation_within(values, weight))
    if deviation == 0:
        raise PrudentError(
            f"gold column {name!r} is the same for all responses of each prompt; no policy can gain or lose by it"
        )
    mean = float((weight * values).sum(-1).mean())
    return Truth(
        values, "gold", f"units of {name}", quality={"deviation_within_prompt": deviation, "reference_value": mean}
    )


def judge_truth(scores: ArrayLike, reference: ArrayLike, quality: dict[str, Any] | None = None) -> Truth:
    """Truth from a judge's members' scores (K, P, C): their mean is the judge, its members are the resampled judges."""
    members = as_tensor(scores, torch.float64)
    values = standardised(members.mean(0), reference)
    resampled = standardised(members, reference) if len(members) > 1 else None
    return Truth(values, "judge", "standard deviations of the judge within a prompt", resampled, quality or {})


def accuracy(margins: ArrayLike, level: float = 0.95) -> dict[str, Any]:
    """Share of pairs (n,) with a positive margin, ties count 0.5 and are counted apart, with its Wilson interval."""
    found = as_tensor(margins, torch.float64).reshape(-1)
    right, ties = float(credit(found).sum()), int((found == 0).sum())
    share = right / len(found) if len(found) else float("nan")
    low, high = wilson(right, len(found), level) if len(found) else (float("nan"), float("nan"))
    return {"pairs": len(found), "accuracy": share, "low": float(low), "high": float(high), "ties": ties}


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
    deviation = (weight * (variance - mean).square()).sum((-2, -1)).sqrt()
    return float((deviation / mean[..., 0, 0]).mean())
