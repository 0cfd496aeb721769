"""Rows of sparse matrices, a batch of users at a time: nothing here grows with users times items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from prudent.progress import track


@dataclass(frozen=True)
class History:
    """Entries of a batch of rows. row: (entries,) index in the batch. column: (entries,) item. starts: (batch,) first
    entry.
    """

    row: torch.Tensor
    column: torch.Tensor
    starts: torch.Tensor
    sizes: torch.Tensor


def history(matrix: sparse.csr_matrix, users: np.ndarray) -> History:
    """Entries of ``matrix`` in the rows ``users``, without touching the others."""
    first, last = matrix.indptr[users].astype(np.int64), matrix.indptr[users + 1].astype(np.int64)
    sizes = last - first
    starts = np.cumsum(sizes) - sizes
    row = np.repeat(np.arange(len(users)), sizes)
    column = matrix.indices[np.arange(int(sizes.sum())) - starts[row] + first[row]].astype(np.int64)
    return History(*(torch.from_numpy(part) for part in (row, column, starts, sizes)))


def chunks(users: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of ``users``."""
    for start in track(range(0, len(users), size), "batches of users"):
        yield users[start : start + size]


def scoring_batch(items: int, cells: int = 2**22) -> int:
    """Users a batch so that a batch of scores holds about ``cells`` numbers (16 MiB of float32)."""
    return max(1, min(4096, cells // max(items, 1)))
