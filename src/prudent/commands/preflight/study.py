"""How much reward models that differ by chance alone disagree: the variability study of arXiv 2410.23726, on arrays.

Spread is the sample standard deviation over members (ddof=1). A margin is a member's score of the chosen answer minus
that of the rejected one; it is free of members' offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.commands.preflight.truth import accuracy
from prudent.errors import PrudentError


@dataclass(frozen=True)
class Study:
    """One file's held-out pairs under K members.

    margins (K, n). mean, spread (n,): of the margins over members. ratio (n,): spread / |mean|. variance (2n,): of the
    scores of chosen then rejected answers. by_member: accuracy of each member; ensemble: of the mean; longer: of "the
    longer answer is better". facts: medians and shares.
    """

    name: str
    margins: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    ratio: torch.Tensor
    variance: torch.Tensor
    by_member: list[dict[str, Any]]
    ensemble: dict[str, Any]
    longer: dict[str, Any]
    facts: dict[str, Any]


def study(name: str, chosen: ArrayLike, rejected: ArrayLike, length_difference: ArrayLike) -> Study:
    """Study of members' scores (K, n) of chosen and rejected answers.

    length_difference (n,): length of the chosen answer minus that of the rejected one, for the length-only baseline.
    """
    a, b = as_tensor(chosen, torch.float64), as_tensor(rejected, torch.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] < 2 or a.shape[1] < 1:
        raise PrudentError(f"scores have shapes {tuple(a.shape)}, {tuple(b.shape)}; give (members >= 2, pairs) of both")
    margins = a - b
    mean, deviation = margins.mean(0), margins.std(0, correction=1)
    ratio = deviation / mean.abs().clamp_min(1e-12)
    by_member = [accuracy(row) for row in margins]
    shares = torch.tensor([row["accuracy"] for row in by_member], dtype=torch.float64)
    votes = (margins > 0).double().mean(0)
    facts = {
        "pairs": int(a.shape[1]),
        "members": int(a.shape[0]),
        "member_accuracy_lowest": float(shares.min()),
        "member_accuracy_highest": float(shares.max()),
        "median_deviation": float(deviation.median()),
        "median_margin": float(mean.abs().median()),
        "median_ratio": float(ratio.median()),
        "share_ratio_above_1": float((ratio > 1).double().mean()),
        "share_not_unanimous": float(((votes > 0) & (votes < 1)).double().mean()),
        "margin_variance": float(deviation.square().mean()),
    }
    variance = torch.cat([a.var(0, correction=1), b.var(0, correction=1)])
    return Study(
        name, margins, mean, deviation, ratio, variance, by_member, accuracy(mean), accuracy(length_difference), facts
    )


def most_disputed(found: Study, count: int = 5) -> list[int]:
    """Pairs whose members' votes are split most evenly; among those, the largest sigma first."""
    votes = (found.margins > 0).double().mean(0)
    order = sorted(range(len(votes)), key=lambda i: (round(abs(float(votes[i]) - 0.5), 9), -float(found.deviation[i])))
    return order[:count]


def typical_response(found: Study, quantile: float = 0.75) -> int:
    """Place (in chosen-then-rejected order) of the response whose variance is nearest the given quantile."""
    target = torch.quantile(found.variance, quantile)
    return int((found.variance - target).abs().argmin())
