"""Features of more texts than memory holds: they stay on disk, and rows are read from there as they are needed."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from prudent.features.rendering import Prompt

HELD_BYTES = 2**30  # up to here features are held in memory


def encode_held(
    encoder: Any, prompts: Sequence[Any], responses: Sequence[Any]
) -> torch.Tensor | np.memmap | StoredRows:
    """``encoder.encode`` (N, d) float32; above HELD_BYTES as they lie in its cache, or without a cache as a memory map
    of a nameless file in $TMPDIR, which goes with the last reference to it."""
    shape = (len(prompts), encoder.width)
    if 4 * shape[0] * shape[1] <= HELD_BYTES:
        return encoder.encode(prompts, responses)
    if encoder.cache is not None:
        return encoder.stored(prompts, responses)
    with tempfile.TemporaryFile(prefix="prudent-") as file:
        held = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    for rows, features in encoder.pieces(prompts, responses):
        held[rows] = features.numpy()
    return held


def gather(features: Sequence[np.ndarray], shard: np.ndarray, row: np.ndarray, width: int) -> np.ndarray:
    """(n, width) float32 in memory: of n rows, each row ``row`` of ``features[shard]``."""
    found = np.empty((len(shard), width), np.float32)
    for number in np.unique(shard):
        here = np.flatnonzero(shard == number)
        found[here] = features[number][row[here]]
    return found


class StoredRows:
    """(n, d) float32 features that lie in memory-mapped arrays.

    A slice or a choice of rows is one of these, too, and reads nothing.
    ``numpy.asarray`` reads, and lets the maps' pages go again, so that memory stays flat whatever the number of rows.
    """

    def __init__(self, features: Sequence[np.ndarray], shard: np.ndarray, row: np.ndarray, width: int) -> None:
        self.features, self.shard, self.row, self.shape = features, shard, row, (len(row), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | torch.Tensor) -> StoredRows:
        chosen = rows.numpy() if isinstance(rows, torch.Tensor) else rows
        return StoredRows(self.features, self.shard[chosen], self.row[chosen], self.shape[1])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        found = gather(self.features, self.shard, self.row, self.shape[1])
        for number in np.unique(self.shard):
            let_go(self.features[number])
        return found.astype(dtype or np.float32, copy=False)


def let_go(values: np.ndarray) -> None:
    """Take a memory map's pages out of this process's memory: they come back from disk when they are needed."""
    shared = isinstance(values, np.memmap) and values.mode != "c"  # a copy-on-write map would lose its changes
    if shared and hasattr(mmap, "MADV_DONTNEED"):
        values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def rows_of(texts: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    """Some of the texts; a slice of neighbours, which is far quicker where texts are read from disk."""
    if len(rows) and bool((np.diff(rows) == 1).all()):
        return texts[int(rows[0]) : int(rows[-1]) + 1]
    return [texts[row] for row in rows]


def together(prompts: Sequence[Prompt]) -> np.ndarray:
    """Row numbers in which equal prompts stand together, each where its first one stood."""
    first: dict[int, int] = {}
    firsts = [first.setdefault(hash(p if isinstance(p, str) else repr(p)), row) for row, p in enumerate(prompts)]
    return np.argsort(np.array(firsts, dtype=np.int64), kind="stable")
