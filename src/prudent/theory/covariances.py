"""The two quadratic forms that every risk is made of, for each shape that a covariance comes in.

A covariance of n reward estimates is diagonal (n,), dense (n, n), or `LowRank`: F F' + diag(d), as a Laplace posterior
or an ensemble gives it, never made dense. Constraints sum(v) = 0, one a group (prompt), are the sum-to-one geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.policies.spd import Unbounded, as_covariance, dot, solve_dense


class LowRank(NamedTuple):
    """Covariance F F' + diag(d): factor (n, rank); diagonal (n,) of positive variances, or None for F F' alone."""

    factor: ArrayLike
    diagonal: ArrayLike | None = None


Covariance: TypeAlias = ArrayLike | LowRank


def group_index(groups: Sequence[Any] | ArrayLike | None, n: int) -> torch.Tensor:
    """Number of each entry's group, (n,); None puts all in one."""
    if groups is None:
        return torch.zeros(n, dtype=torch.long)
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)  # type: ignore[arg-type]
    if len(labels) != n:
        raise PrudentError(f"{len(labels)} groups for {n} rewards; give one a reward")
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels], dtype=torch.long)


def group_mean(values: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted mean of ``values`` (n,) or (n, k) over each entry's group, at every entry."""
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights
    weights = weights.reshape(-1, *(1,) * (values.ndim - 1))
    count = int(index.max()) + 1
    total = torch.zeros(count, *values.shape[1:], dtype=torch.float64).index_add_(0, index, weights * values)
    mass = torch.zeros(count, *weights.shape[1:], dtype=torch.float64).index_add_(0, index, weights)
    return (total / mass)[index]


def checked(covariance: Covariance, reward: torch.Tensor) -> LowRank | torch.Tensor:
    """Covariance in float64 beside a reward (n,): `LowRank`, (n, n) or (n,). PrudentError for what isn't one."""
    n = len(reward)
    if isinstance(covariance, LowRank):
        factor = as_tensor(covariance.factor, torch.float64)
        if factor.ndim != 2 or len(factor) != n:
            raise PrudentError(f"factor has shape {tuple(factor.shape)}, expected ({n}, rank)")
        require_finite(factor, "factor", ("response", "column"))
        if covariance.diagonal is None:
            return LowRank(factor)
        diagonal = as_tensor(covariance.diagonal, torch.float64).expand(n)
        if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            raise PrudentError(
                f"diagonal beside a factor holds {diagonal.min().item()}, must be positive and finite (or None)"
            )
        return LowRank(factor, diagonal)
    matrix, dense = as_covariance(covariance, reward)
    require_finite(matrix, "covariance", ("row", "column"))
    if dense:
        if bool(((matrix - matrix.mT).abs() > 1e-10 * matrix.abs().max()).any()):
            raise PrudentError("covariance isn't symmetric; average it with its transpose if that is rounding")
    elif bool((matrix < 0).any()):
        raise PrudentError(f"covariance holds a variance of {matrix.min().item()}, must be >= 0")
    return matrix if dense else matrix.expand(n)


def stacked(covariance: Covariance, reward: ArrayLike) -> Covariance:
    """``covariance`` beside a stacked reward: a diagonal given as (prompts, responses), like it, becomes (n,)."""
    if isinstance(covariance, LowRank):
        return covariance
    table = as_tensor(covariance)
    return table.flatten() if table.ndim == 2 and table.shape == as_tensor(reward).shape else covariance


def quadratic(covariance: LowRank | torch.Tensor, v: torch.Tensor) -> float:
    """v' Sigma v."""
    if isinstance(covariance, LowRank):
        inner = (as_tensor(covariance.factor).T @ v).square().sum()
        return float(inner if covariance.diagonal is None else inner + (as_tensor(covariance.diagonal) * v * v).sum())
    if covariance.ndim == 1:
        return float((covariance * v * v).sum())
    return float(dot(v, dot(covariance, v.expand_as(covariance))).clamp(min=0.0))


def times_inverse(
    covariance: LowRank | torch.Tensor, v: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Sigma^-1 v, or M v with M = B (B' Sigma B)^-1 B' where ``groups`` constrain sums to 0 (B spans those vectors).

    M v = Sigma^-1 (v - c), c constant within a group and chosen so that each group's sum is 0. M stays what it is when
    a multiple of 1 1' is added to a group's block, which makes covariances of centred scores, singular along 1,
    regular. Raises Unbounded where the covariance is singular in a direction that v has a part in.
    """
    if isinstance(covariance, LowRank):
        return _low_rank_inverse(covariance, v, groups)
    if covariance.ndim == 1:
        return _diagonal_inverse(covariance, v, groups)
    if groups is None:
        return solve_dense(covariance, v)
    ones = torch.nn.functional.one_hot(groups).to(torch.float64)
    scale = covariance.diagonal().mean()
    flat = (ones.T @ covariance @ ones).diagonal() <= 1e-10 * ones.sum(0) * scale
    if bool(flat.any()):
        covariance = covariance + scale * (ones * flat) @ ones.T
    try:
        return _constrained(covariance, v, ones)
    except Unbounded:
        return _constrained(covariance + scale * ones @ ones.T, v, ones)


def _constrained(matrix: torch.Tensor, v: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
    flat = solve_dense(matrix, ones.T)  # (groups, n)
    middle = flat @ ones
    level = torch.linalg.solve((middle + middle.T) / 2, flat @ v)
    solved = solve_dense(matrix, v - ones @ level)
    return solved - (torch.linalg.solve((middle + middle.T) / 2, ones.T @ solved) @ flat)


def _diagonal_inverse(variance: torch.Tensor, v: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    zero = variance == 0
    precision = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, variance))
    if groups is None:
        if bool((zero & (v != 0)).any()):
            raise Unbounded("a variance of 0 beside a reward that isn't 0")
        return v * precision
    if not bool(zero.any()):
        moved = (v - group_mean(v, groups, precision)) * precision
        return moved - precision * group_mean(moved / precision, groups, precision)
    # Responses whose reward is known set the level of their group; two that differ leave it without a finite answer.
    count = int(groups.max()) + 1
    ends = [
        torch.full((count,), -sign * float("inf"), dtype=torch.float64).scatter_reduce(0, groups[zero], v[zero], kind)
        for sign, kind in ((1, "amax"), (-1, "amin"))
    ]
    if bool((ends[0] > ends[1]).any()):
        raise Unbounded("two responses of variance 0 with different rewards")
    known = torch.isfinite(ends[0])[groups]
    level = torch.where(known, ends[0][groups], group_mean(v, groups, torch.where(known, 1.0, precision)))
    moved = (v - level) * precision
    # They take up whatever the others' movement leaves, so that each group's sum stays 0.
    share = zero.to(torch.float64) / group_mean(zero.to(torch.float64), groups).clamp(min=1e-300)
    return moved - share * group_mean(moved, groups)


def _low_rank_inverse(covariance: LowRank, v: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    factor = as_tensor(covariance.factor)
    if covariance.diagonal is None:
        if groups is not None:
            v = v - group_mean(v, groups)
            factor = factor - group_mean(factor, groups)
        left, size, _ = torch.linalg.svd(factor, full_matrices=False)
        kept = size > size.max().clamp(min=1e-300) * max(factor.shape) * torch.finfo(torch.float64).eps
        part = left[:, kept].T @ v
        if torch.linalg.vector_norm(v - left[:, kept] @ part) > 1e-8 * torch.linalg.vector_norm(v):
            raise Unbounded(f"a factor of rank {int(kept.sum())} for {len(v)} responses")
        return left[:, kept] @ (part / size[kept].square())
    # x = (v - F z - A c) / d with (z, c) the least-squares fit of v, z penalised: stable where Woodbury would cancel.
    root = as_tensor(covariance.diagonal).sqrt()[:, None]
    rank = factor.shape[1]
    design = torch.cat([factor / root, torch.eye(rank, dtype=torch.float64)])
    target = torch.cat([v / root[:, 0], torch.zeros(rank, dtype=torch.float64)])
    if groups is not None:
        ones = torch.nn.functional.one_hot(groups).to(torch.float64)
        free = torch.cat([ones / root, torch.zeros(rank, ones.shape[1], dtype=torch.float64)])
        design = torch.cat([design, free], 1)
    fitted = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution[:, 0]
    residual = (target - design @ fitted)[: len(v)]
    return residual / root[:, 0]


def inverse_quadratic(covariance: LowRank | torch.Tensor, v: torch.Tensor, groups: torch.Tensor | None = None) -> float:
    """v' Sigma^-1 v (or v' M v); inf where the covariance is singular in a direction that v has a part in."""
    try:
        solved = times_inverse(covariance, v, groups)
    except Unbounded:
        return float("inf")
    if groups is not None:
        v = v - group_mean(v, groups)
    return float(dot(v, solved).clamp(min=0.0))
