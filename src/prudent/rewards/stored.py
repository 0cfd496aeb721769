"""What is stored, as heads read it: features as a tensor, or in pieces from where they lie on disk (a memory map, the
cache's shards); and the tensors of one part of a model among those of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from prudent.arrays import as_tensor
from prudent.errors import PrudentError
from prudent.features.large import StoredRows, let_go

CHUNK_ROWS = 16_384


class Saved:
    """A scorer that can be written as an artefact folder of its own."""

    def save(self, folder: str | Path) -> None:
        """Write the artefact folder: safetensors, JSON and golden scores (see ``artefact``)."""
        from prudent.rewards.artefact import save

        save(folder, self)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what ``save`` wrote; its golden scores are computed again and compared."""
        from prudent.rewards.artefact import load

        return load(folder, expected=cls)


def as_source(features: Any, name: str) -> Any:
    """Features as something with shape and row slices; what lies on disk stays there."""
    values = features if isinstance(features, (np.memmap, StoredRows)) else as_tensor(features)
    if len(values.shape) != 2 or 0 in values.shape:
        raise PrudentError(f"{name} features have shape {tuple(values.shape)}, expected (pairs, width), neither empty")
    return values


def part_of(values: Any, rows: slice | torch.Tensor) -> torch.Tensor:
    """Those rows as a float32 tensor in memory."""
    part = values[rows.numpy() if isinstance(rows, torch.Tensor) and isinstance(values, np.ndarray) else rows]
    if isinstance(part, torch.Tensor):
        return part.float()
    copy = torch.from_numpy(np.array(part)).float()
    let_go(values)
    return copy


def pick_rows(features: Any, rows: torch.Tensor) -> Any:
    """``features[rows]``; of what lies on disk without reading it."""
    if isinstance(features, np.memmap):
        return StoredRows([features], np.zeros(len(rows), np.int32), rows.numpy(), features.shape[1])
    return features[rows]


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
