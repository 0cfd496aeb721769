"""What to do about weak labels, decile by decile: flip, drop, soften, weigh, or widen the margin (arXiv 2401.06080).

Pure functions on arrays; deciles run from 1 (weakest) to 10. Repairs combine: a pair may be flipped and get a soft
label and a margin, then by the strength of the label it has after the flip.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prudent.errors import PrudentError

ALL_DECILES = frozenset(range(1, 11))


@dataclass(frozen=True)
class Plan:
    """flip: share of pairs, the lowest by mean strength, whose sides are swapped. drop, soften, widen, weigh: deciles
    (1 to 10). soft_value: probability that chosen is better in softened pairs; None takes the members' own probability.
    weight_value: what a weighed pair counts in the loss."""

    flip: float = 0.0
    drop: Collection[int] = frozenset()
    soften: Collection[int] = frozenset()
    widen: Collection[int] = frozenset()
    soft_value: float | None = None
    weigh: Collection[int] = frozenset()
    weight_value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise PrudentError(f"flip is {self.flip}; it is a share of the pairs, 0 to 1 (the paper takes 0.1 and 0.2)")
        if self.soft_value is not None and not 0 <= self.soft_value <= 1:
            raise PrudentError(f"soft label {self.soft_value} is no probability; give 0 to 1, or take the members' own")
        if not 0 <= self.weight_value < np.inf:
            raise PrudentError(f"weight {self.weight_value} is no weight; give a number from 0 (1 is a pair's usual)")

    @property
    def changes_anything(self) -> bool:
        """Whether any repair is asked for."""
        return bool(self.flip or self.drop or self.soften or self.widen or self.weigh)


@dataclass(frozen=True)
class Repairs:
    """flip, drop: (n,) bool. soft_label, margin, weight: (n,) float64, NaN where the plan sets none. strength: (n,)
    mean margin of the label as it stands after flipping."""

    flip: np.ndarray
    drop: np.ndarray
    soft_label: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    strength: np.ndarray


def parse_deciles(text: str) -> frozenset[int]:
    """Deciles of "1-3,10", "all" or "" (none)."""
    wanted = text.strip().lower()
    if wanted in ("", "none"):
        return frozenset()
    if wanted == "all":
        return ALL_DECILES
    found: set[int] = set()
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        low, high = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (0, 0)
        if not 1 <= low <= high <= 10:
            raise PrudentError(
                f"deciles {text!r}: {part!r} is none; give numbers and ranges of 1 to 10, such as 1-3,10"
            )
        found |= set(range(low, high + 1))
    return frozenset(found)


def plan_repairs(mean: np.ndarray, probability: np.ndarray, decile: np.ndarray, plan: Plan) -> Repairs:
    """Repairs of n pairs from their mean strength, the members' probability that chosen is better, and their decile.

    The lowest ``floor(flip n)`` pairs are flipped (ties by row order), except those that are dropped.
    """
    mean, probability = np.asarray(mean, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    decile = np.asarray(decile)
    n = len(mean)
    drop = np.isin(decile, list(plan.drop))
    flip = np.zeros(n, dtype=bool)
    flip[np.argsort(mean, kind="stable")[: int(plan.flip * n + 1e-9)]] = True
    flip &= ~drop
    standing = np.where(flip, -mean, mean)
    better = np.where(flip, 1 - probability, probability)
    soft_label, margin, weight = np.full((3, n), np.nan)
    soften = np.isin(decile, list(plan.soften)) & ~drop
    soft_label[soften] = better[soften] if plan.soft_value is None else plan.soft_value
    widen = np.isin(decile, list(plan.widen)) & ~drop
    margin[widen] = standing[widen]
    weight[np.isin(decile, list(plan.weigh)) & ~drop] = plan.weight_value
    return Repairs(flip, drop, soft_label, margin, weight, standing)
