"""Exact risks: the chance, over the draw of the reward estimate, that an aligned policy ends no better than its
reference.

The estimate is R_hat ~ N(R, Sigma). A policy that moves from pi0 along S R_hat, S symmetric, has risk
P(R_hat' S R <= 0) = Phi(-(R' S R) / ||S R||_Sigma), whatever the size of the move: vanilla has S = I, variance-aware
S = Sigma^-1, and with sum(pi) = 1 kept the projection P and M take their place (docs/theory.md, equations (12) to
(18)). As in the theory, pi >= 0 is not imposed; `prudent.theory.simulation` imposes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.theory.covariances import (
    Covariance,
    checked,
    group_index,
    group_mean,
    inverse_quadratic,
    quadratic,
    stacked,
    times_inverse,
)


class Risks(NamedTuple):
    """Risk of the vanilla and of the variance-aware policy. aware <= vanilla always (Cauchy-Schwarz, equation (16))."""

    vanilla: float
    aware: float


def phi(x: float) -> float:
    """Standard normal distribution function, accurate in both tails."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _prepare(
    true_reward: ArrayLike, on_simplex: bool, groups: Sequence[Any] | ArrayLike | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Reward as one vector, and the group of each entry where sums are kept: a prompt's row, or the labels given."""
    reward = as_tensor(true_reward, torch.float64)
    if reward.ndim not in (1, 2) or reward.numel() == 0:
        raise PrudentError(
            f"true_reward has shape {tuple(reward.shape)}, expected (responses,) or (prompts, responses)"
        )
    require_finite(reward, "true_reward", ("prompt", "response")[2 - reward.ndim :])
    if groups is not None and reward.ndim == 2:
        raise PrudentError("give groups with a reward (responses,) only; the rows of (prompts, responses) are groups")
    if not on_simplex:
        return reward.flatten(), None
    rows = torch.arange(len(reward)).repeat_interleave(reward.shape[1]) if reward.ndim == 2 else groups
    return reward.flatten(), group_index(rows, reward.numel())


def risk(
    true_reward: ArrayLike,
    covariance: Covariance,
    *,
    aware: bool,
    on_simplex: bool = False,
    groups: Sequence[Any] | ArrayLike | None = None,
) -> float:
    """P(<pi, R> <= <pi0, R>) of the policy that optimises R_hat ~ N(R, Sigma) in a small ball around pi0.

    true_reward: R, (n,) for one prompt's n responses, or (prompts, responses), stacked into one joint policy.
    covariance: Sigma, diagonal like the reward, dense (n, n) over all stacked responses, or `LowRank`. aware: False is
    the L2 ball (vanilla), True the Sigma ball. on_simplex: keep sum(pi) = 1 for every prompt (row, or label in
    ``groups`` (n,)).

    Limits: a reward that tells nothing apart (R = 0, or constant on the simplex) gives 1, since no policy is then
    better than pi0. A direction of R that the covariance leaves without any noise gives 0 to the aware policy: it goes
    there. Raises PrudentError for what isn't a covariance. Source: arXiv 2410.23726; equations (13), (14), (17), (18).
    """
    reward, index = _prepare(true_reward, on_simplex, groups)
    matrix = checked(stacked(covariance, true_reward), reward)
    moved = reward if index is None else reward - group_mean(reward, index)
    size = float(moved.square().sum())
    if size <= 1e-28 * float(reward.square().sum()) or size == 0.0:
        return 1.0
    if aware:
        return phi(-math.sqrt(inverse_quadratic(matrix, reward, index)))
    noise = math.sqrt(quadratic(matrix, moved))
    return phi(-size / noise) if noise > 0 else 0.0


def risks(true_reward: ArrayLike, covariance: Covariance, **options: Any) -> Risks:
    """Both risks of `risk`; options are its ``on_simplex`` and ``groups``."""
    return Risks(*(risk(true_reward, covariance, aware=aware, **options) for aware in (False, True)))


def misspecified_risk(
    true_reward: ArrayLike,
    covariance: Covariance,
    assumed: Covariance,
    *,
    on_simplex: bool = False,
    groups: Sequence[Any] | ArrayLike | None = None,
) -> float:
    """Risk of the policy that takes ``assumed`` for the covariance while the noise has ``covariance``: equation (19).

    With assumed = covariance it is `risk` aware; with the identity, vanilla. Nothing bounds it by the vanilla risk.
    """
    reward, index = _prepare(true_reward, on_simplex, groups)
    matrix, believed = (checked(stacked(c, true_reward), reward) for c in (covariance, assumed))
    direction = times_inverse(believed, reward, index)
    gain = float(((reward if index is None else reward - group_mean(reward, index)) * direction).sum())
    if gain == 0.0 and not bool(direction.any()):
        return 1.0
    noise = math.sqrt(quadratic(matrix, direction))
    return phi(-gain / noise) if noise > 0 else float(gain <= 0)
