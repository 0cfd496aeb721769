"""Many ridge Bradley-Terry heads as one batched convex problem, to a stated gradient norm.

Head h minimises, over w in R^d,

    F_h(w) = sum_i c_hi L(w' x_i) / sum_i c_hi + ridge_h / 2 ||w||^2

with x_i the feature difference of pair i, c_hi its row weight (a bootstrap count, a fold mask) and L the loss of
``losses.bradley_terry``. All heads share the rows, so the work is shared too:

1. Coordinates are chosen once in which a typical head's Hessian is simple (``coordinates``).
2. Newton steps are found by conjugate gradients, preconditioned by that diagonal. An iteration for all heads is two
   matrix products (among the pairs one), in single precision; gradients, losses and iterates are in double precision.
3. Each head has its own step length and leaves the batch when its gradient norm is reached, so a head's result doesn't
   depend on the others beyond the stated tolerance.

Rows may lie on disk (a memory map): anything with ``shape`` and row slices is read in chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.progress import Advance, meter
from prudent.rewards.coordinates import Rows

HEAD_BLOCK = 12_000_000  # heads x rows worked on at once,
LEAST_HEADS = 16  # but so many heads, however many rows: every block reads all rows again


class HeadFit(NamedTuple):
    """weights (H, d) float64; gradient_norm (H,) reached; loss (H,) mean loss without the ridge term; iterations."""

    weights: torch.Tensor
    gradient_norm: torch.Tensor
    loss: torch.Tensor
    iterations: int


class Problem(NamedTuple):
    """One batch of heads: rows, normalised row weights (H, n), ridge (H, 1), soft labels and margins (n,) or None."""

    rows: Rows
    weights: torch.Tensor
    ridge: torch.Tensor
    soft_label: torch.Tensor | None
    margin: torch.Tensor | None

    def select(self, heads: torch.Tensor) -> Problem:
        """The same problem for some heads. heads: (h,) indices."""
        return self._replace(weights=self.weights[heads], ridge=self.ridge[heads])

    def data_loss(self, logit: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each head, summed over pairs and without the ridge: (heads,). logit: (heads, n)."""
        loss = -logsigmoid(logit)
        if self.soft_label is not None:
            loss = loss + (1 - self.soft_label) * logit
        return (self.weights * loss).sum(1)

    def slopes(self, chance: torch.Tensor) -> torch.Tensor:
        """Slope (H, n) of the data loss in every pair's logit; X' of it is its gradient in the weights."""
        return self.weights * (chance - (1.0 if self.soft_label is None else self.soft_label))


def _solve_among(rows: Rows, curvature: torch.Tensor, pull: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Newton steps (H, n) among the pairs: a with Hessian X' a = -X' pull, to the relative residual ``wanted`` (H,).

    Conjugate gradients on the whitened vectors Z' r and Z' p, of which only r, p and their images Z Z' r, Z Z' p are
    held: the Hessian takes p to p + (C - shift) Z Z' p, and one product an iteration renews the image of r.
    """
    assert rows.among is not None
    curvature = curvature - rows.shift
    scale = pull.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    residual = (-pull / scale).float()
    image = residual @ rows.among
    energy = (residual * image).sum(1, keepdim=True)
    enough = energy * wanted.float().square()[:, None]
    solution = torch.zeros_like(residual)
    active = torch.arange(len(residual))
    x, r, p, i, c, e, u = solution.clone(), residual, residual, image, curvature, energy, enough
    for _ in range(200):
        q = p + c * i
        step = e / (i * q).sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        x = x + step * p
        r = r - step * q
        image = r @ rows.among
        fresh = (r * image).sum(1, keepdim=True)
        keep = (fresh > u)[:, 0]
        p, i, e = r + (fresh / e) * p, image + (fresh / e) * i, fresh
        if not bool(keep.all()):
            done = ~keep
            solution[active[done]] = x[done]
            x, r, p, i, c, e, u = (part[keep] for part in (x, r, p, i, c, e, u))
            active = active[keep]
            if len(active) == 0:
                break
    solution[active] = x
    return (solution @ rows.inverse).double() * scale


def _solve(problem: Problem, curvature: torch.Tensor, gradient: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Newton directions (H, q): Hessian x = -gradient, by conjugate gradients in Z's coordinates to the relative
    residual ``wanted`` (H,)."""
    rows = problem.rows
    ridge = torch.ones(len(gradient), 1) if rows.shift else problem.ridge.float()
    diagonal = rows.spectrum * curvature.sum(1, keepdim=True) + ridge
    curvature = curvature - rows.shift if rows.shift else curvature
    # Unit gradients: single precision would lose tiny ones.
    scale = gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    residual = (-gradient / scale).float() @ rows.basis
    wanted = wanted.float() * residual.norm(dim=1)
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
            x, r, p, c, e, m, g = (part[keep] for part in (x, r, p, c, e, m, g))
            active = active[keep]
            if len(active) == 0:
                break
        z = r / m
        fresh = (r * z).sum(1, keepdim=True)
        p = z + (fresh / e) * p
        e = fresh
    solution[active] = x
    return (solution @ rows.basis.T).double() * scale


def _line_search(
    problem: Problem,
    point: torch.Tensor,
    logit: torch.Tensor,
    loss: torch.Tensor,
    direction: torch.Tensor,
    moved: torch.Tensor,
    slope: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps (H, 1) that lower the objective enough (Armijo), by halving, with the logits and data losses that they lead
    to; needs no further pass over the rows. loss: the data loss at ``logit``."""
    inner, square = (point * direction).sum(1), (direction * direction).sum(1)
    slack = 1e-14 * (1 + loss.abs())
    step = torch.ones(len(point), dtype=torch.float64)
    ahead = logit + moved
    found = problem.data_loss(ahead)
    todo = torch.arange(len(point))
    for _ in range(40):
        t = step[todo]
        change = found[todo] - loss[todo]
        change = change + problem.ridge[todo, 0] * (t * inner[todo] + 0.5 * t * t * square[todo])
        todo = todo[change > 1e-4 * t * slope[todo] + slack[todo]]
        if len(todo) == 0:
            break
        step[todo] *= 0.5
        ahead[todo] = logit[todo] + step[todo, None] * moved[todo]
        found[todo] = problem.select(todo).data_loss(ahead[todo])
    return step[:, None], ahead, found


def _newton(
    problem: Problem, tolerance: float, max_iterations: int, advance: Advance
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Points (H, q), gradient norms, losses and iterations of one batch of heads. advance: is given how many more are
    solved."""
    heads, rows = len(problem.weights), problem.rows
    point = torch.zeros(heads, rows.q, dtype=torch.float64)
    dual = torch.zeros(heads, 0 if rows.among is None else rows.n, dtype=torch.float64)  # point = X' dual
    logit = torch.zeros(heads, rows.n, dtype=torch.float64)
    if problem.margin is not None:
        logit = logit - problem.margin
    norm = torch.full((heads,), torch.inf, dtype=torch.float64)
    loss = torch.empty(heads, dtype=torch.float64)
    lost = problem.data_loss(logit)
    active = torch.arange(heads)
    part, here, iteration = problem, point, 0
    first: torch.Tensor | None = None
    for iteration in range(max_iterations + 1):
        chance = torch.sigmoid(logit)
        slopes = part.slopes(chance)
        gradient = rows.backward(slopes) + part.ridge * here
        size = gradient.norm(dim=1)
        norm[active] = size
        first = size if first is None else first
        keep = size > tolerance
        if not bool(keep.all()):
            done = ~keep
            advance(int(done.sum()))
            loss[active[done]] = lost[done]
            point[active[done]] = here[done]
            active, logit, lost, chance, slopes, gradient, size, here, dual, first = (
                column[keep] for column in (active, logit, lost, chance, slopes, gradient, size, here, dual, first)
            )
            part = part.select(keep)
        if len(active) == 0 or iteration == max_iterations:
            break
        curvature = (part.weights * chance * (1 - chance)).float()
        # No further than Newton's own error, of second order, and no further than to the tolerance.
        wanted = torch.maximum(size / first.clamp_min(1e-300), 0.3 * tolerance / size).clamp(1e-4, 0.25)
        if rows.among is None:
            pull = along = dual
            direction = _solve(part, curvature, gradient, wanted)
        else:
            pull = slopes + part.ridge * dual
            along = _solve_among(rows, curvature, pull, wanted)
            direction = rows.backward(along)
        slope = (direction * gradient).sum(1)
        uphill = slope >= 0  # rounding in single precision: fall back to the gradient itself
        direction[uphill], along[uphill] = -gradient[uphill], -pull[uphill]
        slope[uphill] = -(gradient[uphill] ** 2).sum(1)
        moved = rows.forward(direction)
        step, logit, lost = _line_search(part, here, logit, lost, direction, moved, slope)
        here, dual = here + step * direction, dual + step * along
    if len(active):
        loss[active] = lost
        point[active] = here
    return point, norm, loss, iteration


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
    rows = Rows(source, float(penalty[0]) if bool((penalty == penalty[0]).all()) else None)
    block = max(LEAST_HEADS, HEAD_BLOCK // n)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    most = 0
    with meter("fitting heads", heads, counts=False) as advance:
        for start in range(0, heads, block):
            share = weights[start : start + block].to(torch.float64)
            share = share / share.sum(1, keepdim=True)
            problem = Problem(rows, share, penalty[start : start + block], *extras)
            point, norm, loss, iterations = _newton(problem, tolerance, max_iterations, advance)
            parts.append((rows.weights(point), norm, loss))
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
