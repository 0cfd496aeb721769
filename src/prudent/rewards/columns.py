"""The optional numbers of a preference pair: weight, soft label and margin, checked once and then carried together."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.rewards.losses import bradley_terry

BOUNDS = {"weight": (0.0, math.inf), "soft_label": (0.0, 1.0), "margin": (-math.inf, math.inf)}


class PairLabels(TypedDict, total=False):
    """What a fit takes besides features, (n,) each: weight, soft_label (probability that chosen is better), margin."""

    weight: ArrayLike | None
    soft_label: ArrayLike | None
    margin: ArrayLike | None


class PairColumns(NamedTuple):
    """weight, soft_label (probability that chosen is better), margin: (n,) float64 or None."""

    weight: torch.Tensor | None = None
    soft_label: torch.Tensor | None = None
    margin: torch.Tensor | None = None

    def at(self, rows: torch.Tensor) -> PairColumns:
        """The columns of some pairs; ``rows`` may have any shape."""
        return PairColumns(*(None if column is None else column[rows] for column in self))

    def to(self, dtype: torch.dtype) -> PairColumns:
        """The columns (n,) in another dtype; absent ones stay absent."""
        return PairColumns(*(None if column is None else column.to(dtype) for column in self))

    def losses(self, difference: torch.Tensor) -> torch.Tensor:
        """Unweighted Bradley-Terry loss of every pair, in the shape of ``difference``."""
        return bradley_terry(difference, soft_label=self.soft_label, margin=self.margin)

    def scaled(self) -> PairColumns:
        """Weights scaled to mean 1, so that a batch's mean of weight x loss is a mean over pairs."""
        return self if self.weight is None else self._replace(weight=self.weight / self.weight.mean())


NO_COLUMNS = PairColumns()


def pair_columns(
    n: int, weight: ArrayLike | None = None, soft_label: ArrayLike | None = None, margin: ArrayLike | None = None
) -> PairColumns:
    """PairColumns of n pairs. Raises PrudentError naming the pair for a value that is not finite or out of bounds."""
    columns: list[torch.Tensor | None] = []
    for (name, (low, high)), values in zip(BOUNDS.items(), (weight, soft_label, margin)):
        column = None if values is None else as_tensor(values, torch.float64)
        if column is not None:
            if column.shape != (n,):
                raise PrudentError(f"{name} has shape {tuple(column.shape)}, expected ({n},), one number a pair")
            require_finite(column, name, ("pair",))
            outside = torch.nonzero((column < low) | (column > high))
            if len(outside):
                pair = int(outside[0])
                raise PrudentError(f"{name} of pair {pair} is {float(column[pair])}, expected {low} to {high}")
            if name == "weight" and not bool((column > 0).any()):
                raise PrudentError("the weight of every pair is 0; give at least one pair a positive weight")
        columns.append(column)
    return PairColumns(*columns)
