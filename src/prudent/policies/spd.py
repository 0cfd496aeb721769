"""Linear systems with covariances, diagonal or dense, exact to rounding up to condition numbers of about 1e14."""

from __future__ import annotations

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError

SPLITTER = 134217729.0  # 2^27 + 1: halves the 53-bit significand (Dekker)


def _two_product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """a * b as an exact sum of two floats."""
    product = a * b
    wide_a, wide_b = SPLITTER * a, SPLITTER * b
    high_a, high_b = wide_a - (wide_a - a), wide_b - (wide_b - b)
    low_a, low_b = a - high_a, b - high_b
    return product, ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b


def _two_sum(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def dot(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
    """Sum over the last axis of a * b (plus ``start``) as if in twice the precision (Ogita, Rump, Oishi 2005, Dot2)."""
    products, errors = _two_product(a, b)
    total = torch.zeros(products.shape[:-1], dtype=products.dtype, device=products.device) if start is None else start
    correction = errors.sum(-1)
    for k in range(products.shape[-1]):
        total, error = _two_sum(total, products[..., k])
        correction = correction + error
    return total + correction


class Unbounded(PrudentError):
    """A singular covariance and a vector with a part in its null space: there is no finite solution."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"covariance is singular and the reward has a part in its null space ({detail}): no finite solution "
            "exists; add a small ridge to the covariance, or leave those candidates out"
        )


def as_covariance(covariance: ArrayLike, vector: torch.Tensor, dense: bool | None = None) -> tuple[torch.Tensor, bool]:
    """Covariance as a float64 tensor, and whether it is dense (..., n, n) rather than diagonal (..., n).

    Told apart by its shape beside ``vector`` (..., n); PrudentError where that leaves two readings and dense is None.
    """
    matrix = as_tensor(covariance, torch.float64)
    n = vector.shape[-1]
    if matrix.ndim == 0:
        matrix = matrix.expand(n)
    square = matrix.ndim >= 2 and matrix.shape[-2:] == (n, n)
    diagonal = matrix.shape[-1] == n and matrix.ndim <= vector.ndim
    if diagonal:
        diagonal = all(m in (1, v) for m, v in zip(matrix.shape[::-1], list(vector.shape)[::-1]))
    if dense is None and square and diagonal:
        raise PrudentError(
            f"covariance of shape {tuple(matrix.shape)} beside a reward of shape {tuple(vector.shape)} may be a full "
            "matrix or one diagonal a prompt; say dense=True or dense=False"
        )
    chosen = square if dense is None else dense
    if not (square if chosen else diagonal):
        raise PrudentError(
            f"covariance has shape {tuple(matrix.shape)}; beside a reward of shape {tuple(vector.shape)} it must be "
            f"({n}, {n}) a prompt, or a diagonal that broadcasts with the reward"
        )
    return matrix, chosen


def solve_diagonal(variance: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """v / variance, (..., n); 0 / 0 is 0. Raises Unbounded where the variance is 0 and the vector isn't."""
    if not bool((torch.isfinite(variance) & (variance >= 0)).all()):
        bad = variance[~(torch.isfinite(variance) & (variance >= 0))][0].item()
        raise PrudentError(f"covariance holds a variance of {bad}, must be finite and >= 0")
    if bool(((variance == 0) & (vector != 0)).any()):
        raise Unbounded("a variance of 0 beside a reward that isn't 0")
    return torch.where(vector == 0, torch.zeros_like(vector), vector / variance)


def _least_norm(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Least-norm x with matrix x = vector for one singular positive semi-definite matrix."""
    values, basis = torch.linalg.eigh(matrix)
    floor = matrix.shape[-1] * torch.finfo(torch.float64).eps * values[-1].abs().clamp(min=1e-300)
    if values[0] < -8 * floor:
        raise PrudentError(
            f"covariance isn't positive semi-definite (eigenvalues {values[0].item():.3g} to {values[-1].item():.3g}); "
            "rebuild it from data, or clip its negative eigenvalues first"
        )
    part = basis.T @ vector
    null = values <= 8 * floor
    if bool((part[null].abs() > 1e-8 * torch.linalg.vector_norm(vector)).any()):
        raise Unbounded(f"{int(null.sum())} of {len(values)} eigenvalues are 0 within rounding")
    scaled = torch.where(null, torch.zeros_like(part), part / torch.where(null, torch.ones_like(values), values))
    return basis @ scaled


def solve_dense(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Sigma^-1 v, (..., n), for dense positive semi-definite Sigma (..., n, n), broadcast over the leading axes.

    Cholesky of the matrix scaled to unit diagonal, then iterative refinement with residuals in doubled precision: exact
    to rounding wherever that converges, which is up to condition numbers of about 1e15 of the scaled matrix. Beyond,
    the matrix counts as singular: the least-norm solution where the vector lies in its range, else `Unbounded`. Raises
    PrudentError for a matrix that isn't finite, symmetric and positive semi-definite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise PrudentError("covariance holds values that aren't finite")
    if bool(((matrix - matrix.mT).abs() > 1e-10 * matrix.abs().amax((-2, -1), keepdim=True)).any()):
        raise PrudentError("covariance isn't symmetric; average it with its transpose if that is rounding")
    lead = torch.broadcast_shapes(matrix.shape[:-2], vector.shape[:-1])
    vector = vector.expand(*lead, vector.shape[-1])
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    factor, failed = torch.linalg.cholesky_ex(matrix * scale[..., :, None] * scale[..., None, :])
    factor = torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor))

    def approximate(right: torch.Tensor) -> torch.Tensor:
        return scale * torch.cholesky_solve((scale * right)[..., None], factor)[..., 0]

    solution = approximate(vector)
    sound = (failed == 0).expand(lead)
    change = torch.full(lead, float("inf"), dtype=torch.float64)
    for _ in range(12):
        residual = dot(-matrix, solution[..., None, :].expand(*lead, *matrix.shape[-2:]), start=vector)
        step = approximate(residual)
        size = (step.abs() / scale).amax(-1) / (solution.abs() / scale).amax(-1).clamp(min=1e-300)
        better = torch.isfinite(size) & (size < 0.5 * change)
        solution = torch.where((better & sound)[..., None], solution + step, solution)
        sound = sound & (better | (size < 1e-12))
        change = torch.where(better, size, change)
        if bool((~sound | (size < 1e-15)).all()):
            break
    for index in torch.nonzero(~sound):
        at = tuple(index.tolist())
        singular = matrix.expand(*lead, *matrix.shape[-2:])[at]
        solution[at] = _least_norm((singular + singular.T) / 2, vector[at])
    return solution
