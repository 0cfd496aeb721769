"""Confidence bounds on what a reward estimate promises.

R_hat - R = eta ~ N(0, Sigma), so <v, R> >= <v, R_hat> - b ||v||_Sigma where b is the width: the normal quantile for one
v chosen without looking at R_hat, the square root of a chi-square quantile for all v at once, and so for a v that was
optimised against R_hat (docs/theory.md, equations (20) to (24)).
"""

from __future__ import annotations

import math

import torch
from scipy import stats

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.theory.covariances import Covariance, checked, quadratic, stacked


def width(delta: float, dimension: int | None = None, *, sharp: bool = True) -> float:
    """b such that <v, R_hat - R> <= b ||v||_Sigma with probability at least 1 - delta.

    dimension None: for one direction fixed beforehand, the normal quantile (equation (20), exact). A number: for all
    directions of a space of so many dimensions at once (n, or n - 1 with sum(v) = 0 of one prompt): sqrt of the
    chi-square quantile (equation (21), exact), or with sharp=False sqrt(n) + sqrt(2 ln(1 / delta)) (equation (22),
    larger).
    """
    if not 0 < delta < 1:
        raise PrudentError(f"delta is {delta}, must lie between 0 and 1")
    if dimension is None:
        return float(stats.norm.isf(delta))
    if dimension < 1:
        raise PrudentError(f"dimension is {dimension}, must be at least 1")
    if sharp:
        return math.sqrt(float(stats.chi2.isf(delta, dimension)))
    return math.sqrt(dimension) + math.sqrt(2 * math.log(1 / delta))


def improvement_bound(
    policy: ArrayLike,
    reference: ArrayLike,
    reward: ArrayLike,
    covariance: Covariance,
    *,
    delta: float = 0.05,
    uniform: bool = True,
) -> float:
    """Lower bound on V(pi) - V(pi0) that holds with probability 1 - delta: <v, R_hat> - b ||v||_Sigma, v = pi - pi0.

    policy, reference, reward: (n,) or (prompts, n); a row's policy is then weighted by 1 / prompts. covariance: as in
    `theory.risk`, over all stacked responses. uniform=True holds for a policy that was optimised against this reward;
    False only for one chosen without it, such as on other draws. Equation (23).
    """
    v, values, dimension = _step(policy, reference, reward)
    matrix = checked(stacked(covariance, reward), values)
    b = width(delta, dimension if uniform else None)
    return float(v @ values) - b * math.sqrt(max(quadratic(matrix, v), 0.0))


def _step(policy: ArrayLike, reference: ArrayLike, reward: ArrayLike) -> tuple[torch.Tensor, torch.Tensor, int]:
    pi, pi0, values = (as_tensor(x, torch.float64) for x in (policy, reference, reward))
    if pi.shape != values.shape or pi.ndim not in (1, 2):
        raise PrudentError(
            f"policy {tuple(pi.shape)} and reward {tuple(values.shape)} must both be (n,) or (prompts, n)"
        )
    prompts = 1 if pi.ndim == 1 else len(pi)
    support = (pi0.expand(pi.shape) > 0) | (pi > 0)
    dimension = int(support.sum()) - prompts
    return ((pi - pi0) / prompts).flatten(), torch.where(support, values, 0.0).flatten(), max(dimension, 1)
