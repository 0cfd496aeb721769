"""What is stored, as heads read it: features as a tensor, or as a memory map that is read in pieces and stays on disk;
and the tensors of one part of a model among those of the whole."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prudent.arrays import as_tensor
from prudent.errors import PrudentError

CHUNK_ROWS = 16_384


def as_source(features: Any, name: str) -> Any:
    """Features as something with shape and row slices; a memory map stays on disk."""
    values = features if isinstance(features, (np.memmap, PickedRows)) else as_tensor(features)
    if len(values.shape) != 2 or 0 in values.shape:
        raise PrudentError(f"{name} features have shape {tuple(values.shape)}, expected (pairs, width), neither empty")
    return values


def part_of(values: Any, rows: slice | torch.Tensor) -> torch.Tensor:
    """Those rows as a float32 tensor in memory."""
    part = values[rows.numpy() if isinstance(rows, torch.Tensor) and isinstance(values, np.ndarray) else rows]
    if isinstance(part, torch.Tensor):
        return part.float()
    copy = torch.from_numpy(np.array(part)).float()
    _let_go(values)
    return copy


def _let_go(values: Any) -> None:
    """Take a memory map's pages out of this process's memory: they were copied, and come back from disk when needed."""
    shared = isinstance(values, np.memmap) and values.mode != "c"  # a copy-on-write map would lose its changes
    if shared and hasattr(mmap, "MADV_DONTNEED"):
        values._mmap.madvise(mmap.MADV_DONTNEED)


class PickedRows:
    """Some rows (n,) of features that lie on disk, read when they are asked for."""

    def __init__(self, source: np.memmap, rows: torch.Tensor) -> None:
        self.source, self.rows = source, rows
        self.shape = (len(rows), *source.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        return part_of(self.source, self.rows[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[slice(None)].numpy().astype(dtype or np.float32)


def pick_rows(features: Any, rows: torch.Tensor) -> Any:
    """``features[rows]``; of a memory map without reading it."""
    return PickedRows(features, rows) if isinstance(features, np.memmap) else features[rows]


def equal_rows(chosen: Any, rejected: Any) -> torch.Tensor:
    """(n,) whether a pair's two feature vectors (n, d) are the same."""
    same = torch.empty(len(chosen), dtype=torch.bool)
    for start in range(0, len(same), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        same[part] = (part_of(chosen, part) == part_of(rejected, part)).all(1)
    return same


def named_under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a part, under the names that they have in the whole."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def part_under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the part that ``named_under`` put under a prefix, by their own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
