"""Coordinates in which the Hessians of many Bradley-Terry heads on the same rows are nearly simple.

With one ridge for all heads they are whitened by the Cholesky factor of CURVATURE * X'X / n + ridge I, where a typical
head's Hessian is nearly the identity; where pairs are no more than features this is done among the pairs (w = X' a), by
n x n matrices. With many ridges (cross-validation) they are the eigenbasis of the rows' Gram matrix, where it is nearly
diagonal whatever the ridge; with fewer rows than features a QR step leaves r = n unknowns first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError

HELD_IN_MEMORY = 60_000_000  # numbers: rows up to this size are rotated once and kept, larger ones are read in chunks
CHUNK = 4_000_000  # numbers of one chunk of rows
CACHED = 131_072  # numbers of a block of rows that a core's cache keeps from one product to the next
CURVATURE = 0.2  # of a typical pair: sg(z) sg(-z) is 1/4 at z = 0 and falls as heads grow sure
ROTATED_UP_TO = 4  # pairs per feature: beyond, turning vectors to and fro is cheaper than turning all rows once
OWN = 0.01  # of the ridge, added to each pair's product with itself: equal pairs would leave directions free
SMALL_RIDGE = 1e-6  # of the Gram matrix's trace


class Rows:
    """Pairs' rows X (n, q), and the same in coordinates Z = X B (w = B y) for conjugate gradients in single precision.

    first (d, q): orthonormal, where a QR step took the features down to q = n. basis B (q, q). spectrum (q,): diagonal
    of Z'Z / n. shift: not 0 where the coordinates are whitened for one ridge; in them the ridge term is
    I - shift * Z'Z, so that Z' (C - shift) Z + I is a head's Hessian.
    among (n, n): Z Z', where the coordinates are whitened and pairs are no more than features. Points and directions
    are then X' a with a (n,), and Z isn't formed; inverse (n, n): of shift * X X' + ridge I.
    """

    def __init__(self, source: Any, ridge: float | None = None) -> None:
        self.source = source
        self.n, self.q = int(source.shape[0]), int(source.shape[1])
        self.step = max(1, CHUNK // self.q)
        self.first: torch.Tensor | None = None
        self.rows: torch.Tensor | None = None
        self.among: torch.Tensor | None = None
        self.shift = 0.0
        if self.n * self.q <= HELD_IN_MEMORY:
            self.rows = self._read(0, self.n).to(torch.float64)
            if ridge is not None and self.n <= self.q and self._whiten_among(ridge):
                return
            if self.n < self.q:
                self.first, triangle = torch.linalg.qr(self.rows.T)  # (d, n), (n, n)
                self.rows, self.q = triangle.T.contiguous(), self.n
        gram = self._gram()
        if ridge is not None and _resolved(gram, ridge):
            self.shift = CURVATURE / self.n
            whitened = gram.double().mul_(CURVATURE)
            whitened.diagonal().add_(ridge)
            lower = torch.linalg.cholesky(whitened)
            eye = torch.eye(self.q, dtype=torch.float64)
            self.basis = torch.linalg.solve_triangular(lower.T, eye, upper=True).float()
            self.spectrum = torch.zeros(self.q)
        else:
            values, vectors = torch.linalg.eigh(gram)
            self.spectrum, self.basis = values.clamp_min(0), vectors
        self.turned = None
        if self.rows is not None and self.n <= ROTATED_UP_TO * self.q:
            self.turned = self.rows.float() @ self.basis
        elif self.rows is not None:
            self.source = self.rows.float()

    def _whiten_among(self, ridge: float) -> bool:
        """Whiten among the pairs: Z Z' = X (shift X'X + ridge)^-1 X' = (1 - ridge (shift X X' + ridge)^-1) / shift."""
        assert self.rows is not None
        rows = self.rows.float()
        gram = rows @ rows.T / self.n
        if not _resolved(gram, ridge):
            return False
        self.shift = CURVATURE / self.n
        whitened = gram.double().mul_(CURVATURE)
        whitened.diagonal().add_((1 + OWN) * ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(whitened))
        self.inverse = inverse.float()
        self.among = ((torch.eye(self.n, dtype=torch.float64) - ridge * inverse) / self.shift).float()
        return True

    def _read(self, start: int, stop: int) -> torch.Tensor:
        part = self.source[start:stop]
        return part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))

    def _gram(self) -> torch.Tensor:
        """X'X / n in single precision: it shapes the coordinates and nothing else."""
        if self.rows is not None:
            rows = self.rows.float()
            return rows.T @ rows / self.n
        total = torch.zeros(self.q, self.q, dtype=torch.float64)
        for _, _, part in self._chunks():
            total += (part.T @ part).double()
        return (total / self.n).float()

    def _chunks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        for start in range(0, self.n, self.step):
            stop = min(start + self.step, self.n)
            yield start, stop, self._read(start, stop).float()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """X w of every head, in double precision: (H, q) -> (H, n)."""
        if self.rows is not None:
            return vectors @ self.rows.T
        out = torch.empty(len(vectors), self.n, dtype=torch.float64)
        for start, stop, part in self._chunks():
            out[:, start:stop] = vectors @ part.double().T
        return out

    def backward(self, values: torch.Tensor) -> torch.Tensor:
        """X' a of every head, in double precision: (H, n) -> (H, q)."""
        if self.rows is not None:
            return values @ self.rows
        total = torch.zeros(len(values), self.q, dtype=torch.float64)
        for start, stop, part in self._chunks():
            total += values[:, start:stop] @ part.double()
        return total

    def curved(self, vectors: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
        """Z' diag(curvature_h) Z v_h of every head, in one pass over the rows, in single precision."""
        if self.turned is not None:
            return self._add_curved(torch.zeros_like(vectors), vectors, curvature, self.turned)
        turned = vectors @ self.basis.T
        total = torch.zeros_like(turned)
        for start, stop, part in self._chunks():
            self._add_curved(total, turned, curvature[:, start:stop], part)
        return total @ self.basis

    def _add_curved(
        self, total: torch.Tensor, vectors: torch.Tensor, curvature: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Add rows' diag(curvature_h) rows v_h to each head's total; both products read a block while it is cached."""
        step = max(CACHED // self.q, len(vectors))  # for many heads the products, not the reading, take the time
        for block, weights in zip(rows.split(step), curvature.split(step, 1)):
            total.addmm_((vectors @ block.T).mul_(weights), block)
        return total

    def weights(self, point: torch.Tensor) -> torch.Tensor:
        """Weights (H, d) on the features of points (H, q)."""
        return point if self.first is None else point @ self.first.T


def _resolved(gram: torch.Tensor, ridge: float) -> bool:
    """Whether single precision resolves whitened coordinates, where small Hessians are differences of numbers near 1.
    gram: X'X / n or X X' / n, whose traces are equal; PrudentError where it isn't finite."""
    if not bool(torch.isfinite(gram).all()):
        raise PrudentError("feature differences hold values that are not finite; remove or fix those pairs first")
    return ridge > SMALL_RIDGE * CURVATURE * float(gram.diagonal().sum())
