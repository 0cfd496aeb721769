"""Pairwise accuracy; ties count 0.5."""

from __future__ import annotations

import torch

from prudent.arrays import ArrayLike, as_tensor


def credit(margin: ArrayLike) -> torch.Tensor:
    """1 for a positive margin (the pair is ordered as it should be), 0.5 for a tie, 0 for a negative one; float64."""
    return (torch.sign(as_tensor(margin, torch.float64)) + 1) / 2


def differences(values: ArrayLike) -> torch.Tensor:
    """[..., i, j] = value i minus value j of the last axis: (..., C) -> (..., C, C) float64."""
    found = as_tensor(values, torch.float64)
    return found[..., :, None] - found[..., None, :]
