"""Many ridge Bradley-Terry heads as one batched convex problem, to a stated gradient norm.

Head h minimises, over w in R^d,

    F_h(w) = sum_i c_hi L(w' x_i) / sum_i c_hi + ridge_h / 2 ||w||^2

with x_i the feature difference of pair i, c_hi its row weight (a bootstrap count, a fold mask) and L the loss of
``losses.bradley_terry``. All heads share the rows, so the work is shared too:

1. The rows are rotated once into the eigenbasis of their Gram matrix (after a QR step when there are fewer rows than
   features: r = min(n, d) unknowns are left). There a typical head's Hessian is nearly diagonal, whatever its ridge.
2. Newton steps are found by conjugate gradients, preconditioned by that diagonal. An iteration for all heads is two
   matrix products, in single precision; gradients, losses and iterates are in double precision.
3. Each head has its own step length and leaves the batch when its gradient norm is reached, so a head's result doesn't
   depend on the others beyond the stated tolerance.

Rows may lie on disk (a memory map): anything with ``shape`` and row slices is read in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError

HELD_IN_MEMORY = 60_000_000  # numbers: rows up to this size are rotated once and kept, larger ones are read in chunks
CHUNK = 4_000_000  # numbers of one chunk of rows
HEAD_BLOCK = 12_000_000  # heads x rows worked on at once


class HeadFit(NamedTuple):
    """weights (H, d) float64; gradient_norm (H,) reached; loss (H,) mean loss without the ridge term; iterations."""

    weights: torch.Tensor
    gradient_norm: torch.Tensor
    loss: torch.Tensor
    iterations: int


class Rows:
    """Rotated rows Z = X B (n, r): products with many vectors at once, from memory or chunk by chunk."""

    def __init__(self, source: Any, rotate: bool = True) -> None:
        self.source = source
        self.n, self.d = int(source.shape[0]), int(source.shape[1])
        self.step = max(1, CHUNK // self.d)
        self.held64: torch.Tensor | None = None
        self.held32: torch.Tensor | None = None
        small = self.n * self.d <= HELD_IN_MEMORY
        rows = self._read(0, self.n).to(torch.float64) if small else None
        if rows is not None and self.n < self.d:
            basis, triangle = torch.linalg.qr(rows.T)  # (d, n), (n, n)
            rows = triangle.T.contiguous()
            gram = rows.T @ rows / self.n
        else:
            basis = None
            gram = self._gram(rows)
        if not bool(torch.isfinite(gram).all()):
            raise PrudentError("feature differences hold values that are not finite; remove or mend those pairs first")
        values, vectors = torch.linalg.eigh(gram)
        self.spectrum = values.clamp_min(0)
        self.basis = vectors if basis is None else basis @ vectors  # (d, r), orthonormal columns
        if rows is not None:
            self.held64 = rows @ vectors
            self.held32 = self.held64.float()

    def _read(self, start: int, stop: int) -> torch.Tensor:
        part = self.source[start:stop]
        return part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))

    def _gram(self, rows: torch.Tensor | None) -> torch.Tensor:
        if rows is not None:
            return rows.T @ rows / self.n
        total = torch.zeros(self.d, self.d, dtype=torch.float64)
        for _, _, part in self._chunks():
            total += (part.T @ part).double()
        return total / self.n

    def _chunks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        for start in range(0, self.n, self.step):
            stop = min(start + self.step, self.n)
            yield start, stop, self._read(start, stop).float()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(H, r) -> (H, n), in the dtype of ``vectors``."""
        if self.held64 is not None and self.held32 is not None:
            return vectors @ (self.held64 if vectors.dtype == torch.float64 else self.held32).T
        turned = vectors @ self.basis.to(vectors.dtype).T
        out = torch.empty(len(vectors), self.n, dtype=vectors.dtype)
        for start, stop, part in self._chunks():
            out[:, start:stop] = turned @ part.to(vectors.dtype).T
        return out

    def backward(self, values: torch.Tensor) -> torch.Tensor:
        """(H, n) -> (H, r), in the dtype of ``values``."""
        if self.held64 is not None and self.held32 is not None:
            return values @ (self.held64 if values.dtype == torch.float64 else self.held32)
        total = torch.zeros(len(values), self.d, dtype=values.dtype)
        for start, stop, part in self._chunks():
            total += values[:, start:stop] @ part.to(values.dtype)
        return total @ self.basis.to(values.dtype)

    def curved(self, vectors: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
        """Z' diag(curvature_h) Z v_h of every head, in one pass over the rows."""
        if self.held32 is not None:
            return ((vectors @ self.held32.T) * curvature) @ self.held32
        basis = self.basis.to(vectors.dtype)
        turned = vectors @ basis.T
        total = torch.zeros_like(turned)
        for start, stop, part in self._chunks():
            total += ((turned @ part.T) * curvature[:, start:stop]) @ part
        return total @ basis


class Problem(NamedTuple):
    """One batch of heads: rows, normalised row weights (H, n), ridge (H, 1), soft labels and margins (n,) or None."""

    rows: Rows
    weights: torch.Tensor
    ridge: torch.Tensor
    soft_label: torch.Tensor | None
    margin: torch.Tensor | None

    def select(self, heads: torch.Tensor) -> Problem:
        return self._replace(weights=self.weights[heads], ridge=self.ridge[heads])

    def data_loss(self, logit: torch.Tensor) -> torch.Tensor:
        loss = -logsigmoid(logit)
        if self.soft_label is not None:
            loss = loss + (1 - self.soft_label) * logit
        return (self.weights * loss).sum(1)

    def slope(self, chance: torch.Tensor) -> torch.Tensor:
        return self.weights * (chance - (1.0 if self.soft_label is None else self.soft_label))


def _solve(problem: Problem, curvature: torch.Tensor, gradient: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Newton directions (H, r): Hessian x = -g to the relative residual ``wanted`` (H,), by conjugate gradients."""
    rows, ridge = problem.rows, problem.ridge.float()
    diagonal = rows.spectrum.float() * curvature.sum(1, keepdim=True) + ridge
    # Unit gradients: single precision would lose tiny ones.
    scale = gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    residual = (-gradient / scale).float()
    wanted = wanted.float()
    solution = torch.zeros_like(residual)
    direction = residual / diagonal
    energy = (residual * direction).sum(1, keepdim=True)
    active = torch.arange(len(residual))
    x, r, p, c, e, m, g = solution.clone(), residual, direction, curvature, energy, diagonal, ridge
    for _ in range(200):
        q = rows.curved(p, c) + g * p
        step = e / (p * q).sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        x = x + step * p
        r = r - step * q
        keep = r.norm(dim=1) > wanted[active]
        if not bool(keep.all()):
            done = ~keep
            solution[active[done]] = x[done]
            if not bool(keep.any()):
                return solution.double() * scale
            x, r, p, c, e, m, g = (part[keep] for part in (x, r, p, c, e, m, g))
            active = active[keep]
        z = r / m
        fresh = (r * z).sum(1, keepdim=True)
        p = z + (fresh / e) * p
        e = fresh
    solution[active] = x
    return solution.double() * scale


def _step_length(
    problem: Problem,
    point: torch.Tensor,
    logit: torch.Tensor,
    direction: torch.Tensor,
    moved: torch.Tensor,
    slope: torch.Tensor,
) -> torch.Tensor:
    """Step (H, 1) that lowers the objective enough (Armijo), by halving; needs no further pass over the rows."""
    base = problem.data_loss(logit)
    inner, square = (point * direction).sum(1), (direction * direction).sum(1)
    step = torch.ones(len(point), dtype=torch.float64)
    todo = torch.arange(len(point))
    for _ in range(40):
        part = problem if len(todo) == len(point) else problem.select(todo)
        t = step[todo]
        change = part.data_loss(logit[todo] + t[:, None] * moved[todo]) - base[todo]
        change = change + part.ridge[:, 0] * (t * inner[todo] + 0.5 * t * t * square[todo])
        slack = 1e-14 * (1 + base[todo].abs())
        todo = todo[change > 1e-4 * t * slope[todo] + slack]
        if len(todo) == 0:
            break
        step[todo] *= 0.5
    return step[:, None]


def _newton(
    problem: Problem, tolerance: float, max_iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Rotated weights (H, r), gradient norms, losses and iterations of one batch of heads."""
    heads, rank = len(problem.weights), len(problem.rows.spectrum)
    point = torch.zeros(heads, rank, dtype=torch.float64)
    logit = torch.zeros(heads, problem.rows.n, dtype=torch.float64)
    if problem.margin is not None:
        logit = logit - problem.margin
    norm = torch.full((heads,), torch.inf, dtype=torch.float64)
    loss = torch.empty(heads, dtype=torch.float64)
    active = torch.arange(heads)
    part, first, iteration = problem, None, 0
    for iteration in range(max_iterations + 1):
        chance = torch.sigmoid(logit)
        gradient = part.rows.backward(part.slope(chance)) + part.ridge * point_of(point, active)
        size = gradient.norm(dim=1)
        norm[active] = size
        first = size.clone() if first is None else first
        keep = size > tolerance
        if not bool(keep.all()):
            done = ~keep
            loss[active[done]] = part.select(done).data_loss(logit[done])
            active, logit, chance, gradient, size = active[keep], logit[keep], chance[keep], gradient[keep], size[keep]
            part, first = part.select(keep), first[keep]
        if len(active) == 0 or iteration == max_iterations:
            break
        curvature = (part.weights * chance * (1 - chance)).float()
        wanted = (size / first.clamp_min(1e-300)).sqrt().clamp(1e-3, 0.25)
        here = point_of(point, active)
        direction = _solve(part, curvature, gradient, wanted)
        slope = (direction * gradient).sum(1)
        uphill = slope >= 0  # rounding in single precision: fall back to the gradient itself
        direction[uphill] = -gradient[uphill]
        slope[uphill] = -(gradient[uphill] ** 2).sum(1)
        moved = part.rows.forward(direction)
        step = _step_length(part, here, logit, direction, moved, slope)
        point[active] = here + step * direction
        logit = logit + step * moved
    if len(active):
        loss[active] = part.data_loss(logit)
    return point, norm, loss, iteration


def point_of(point: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Rows of ``point`` in use, without a copy while all of them are."""
    return point if len(active) == len(point) else point[active]


def _normalised_weights(row_weights: ArrayLike | None, n: int) -> torch.Tensor:
    weights = torch.ones(1, n, dtype=torch.float64) if row_weights is None else as_tensor(row_weights)
    if weights.ndim != 2 or weights.shape[1] != n:
        raise PrudentError(f"row_weights has shape {tuple(weights.shape)}, expected (heads, {n})")
    require_finite(weights.double(), "row_weights", ("head", "pair"))
    if bool((weights < 0).any()):
        head, pair = torch.nonzero(weights < 0)[0].tolist()
        raise PrudentError(f"row weight of head {head}, pair {pair} is negative ({float(weights[head, pair])})")
    empty = torch.nonzero(weights.sum(1) == 0)
    if len(empty):
        raise PrudentError(f"head {int(empty[0])} has row weight 0 on every pair; give it at least one pair")
    return weights


def fit_heads(
    difference: Any,
    row_weights: ArrayLike | None = None,
    *,
    ridge: ArrayLike,
    soft_label: ArrayLike | None = None,
    margin: ArrayLike | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
) -> HeadFit:
    """H linear Bradley-Terry heads with ridge, fitted together to the gradient norm ``tolerance``.

    difference: (n, d) features of chosen minus rejected (torch, numpy, or a memory map, which is read in chunks).
    row_weights: (H, n), for example bootstrap counts or fold masks; None fits one head on all rows equally.
    ridge: positive number, or one a head (H,): half of it times ||w||^2 is added to the *mean* loss.
    soft_label, margin: (n,), see ``losses.bradley_terry``.
    Returns HeadFit. Raises PrudentError when a head doesn't reach the tolerance in ``max_iterations`` Newton steps.
    """
    source = difference if hasattr(difference, "shape") else as_tensor(difference)
    if len(source.shape) != 2 or 0 in source.shape:
        raise PrudentError(f"difference has shape {tuple(source.shape)}, expected (pairs, features), neither empty")
    n = int(source.shape[0])
    weights = _normalised_weights(row_weights, n)
    heads = len(weights)
    penalty = as_tensor(ridge, torch.float64).reshape(-1)
    if len(penalty) not in (1, heads) or not bool((penalty > 0).all()) or not bool(torch.isfinite(penalty).all()):
        raise PrudentError(f"ridge must be positive, one number or one a head ({heads}), got {penalty.tolist()[:5]}")
    penalty = penalty.expand(heads)[:, None]
    extras: list[torch.Tensor | None] = []
    for values, name in ((soft_label, "soft_label"), (margin, "margin")):
        column = None if values is None else as_tensor(values, torch.float64)
        if column is not None:
            if column.shape != (n,):
                raise PrudentError(f"{name} has shape {tuple(column.shape)}, expected ({n},)")
            require_finite(column, name, ("pair",))
        extras.append(column)
    rows = Rows(source)
    block = max(1, HEAD_BLOCK // n)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    most = 0
    for start in range(0, heads, block):
        share = weights[start : start + block].to(torch.float64)
        share = share / share.sum(1, keepdim=True)
        problem = Problem(rows, share, penalty[start : start + block], *extras)
        point, norm, loss, iterations = _newton(problem, tolerance, max_iterations)
        parts.append((point @ rows.basis.T, norm, loss))
        most = max(most, iterations)
    solved, norms, losses = (torch.cat(column) for column in zip(*parts))
    fit = HeadFit(solved, norms, losses, most)
    late = torch.nonzero(~(fit.gradient_norm <= tolerance))
    if len(late):
        head = int(late[0])
        raise PrudentError(
            f"head {head} stopped at gradient norm {float(fit.gradient_norm[head]):.3g} after {most} Newton steps, "
            f"wanted {tolerance:.3g}; give a larger ridge (now {float(penalty[head]):.3g}) or tolerance"
        )
    return fit
