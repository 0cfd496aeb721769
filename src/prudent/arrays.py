"""What every room does with arrays: accept torch or numpy, and name what is not finite or has the wrong shape."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from prudent.errors import PrudentError

ArrayLike: TypeAlias = torch.Tensor | np.ndarray | list | tuple | float | int


def as_tensor(values: ArrayLike, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Torch tensor of ``values`` (torch, numpy or nested lists), without a copy where none is needed."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch refuses to promise that it won't write to a read-only buffer
    return torch.as_tensor(values, dtype=dtype)  # in one step: Python floats must not pass through float32


def require_finite(values: torch.Tensor, name: str, axes: tuple[str, ...] = ()) -> None:
    """Raise PrudentError naming the first non-finite entry of ``values`` by its place along the named ``axes``."""
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return
    position = torch.nonzero(bad)[0].tolist()
    where = ", ".join(f"{axes[i] if i < len(axes) else f'axis {i}'} {index}" for i, index in enumerate(position))
    raise PrudentError(
        f"{name} is {values[tuple(position)].item()} at {where or 'its only value'} "
        f"({int(bad.sum())} of {values.numel()} values are not finite); remove or fix them first"
    )
