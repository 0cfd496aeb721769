"""By how many of its standard errors a corrected promise is too good, at most, with a given probability.

T = (<v(m), eta> - tr(Sigma J)) / deviation isn't normal where the policy mostly follows noise: <v, eta> is nearly
quadratic in eta and bounded. Its law is simulated: eta ~ N(0, Sigma) is drawn, and the policy, its optimism and its
deviation are computed as they are from data. The law depends on the true rewards, which nobody knows; it is taken at
``SHARES`` of the estimate, none (where every policy follows noise alone) and all of it, and the larger of the two
quantiles is used. With N draws the ceil((N + 1)(1 - delta))-th smallest bounds a further draw with probability 1 -
delta exactly, as in a Monte Carlo test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from prudent.errors import PrudentError
from prudent.seeding import torch_generator

SHARES = (0.0, 1.0)
ROWS = 500  # responses simulated: a larger pool averages more, and is nearer the normal
LEAST_DELTA = 1e-3


class Response(NamedTuple):
    """J = d pi / d m of each prompt as diag(pull) - left right', (..., P, n) each: equations (36), (37)."""

    pull: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


def optimism(factor: torch.Tensor, moved: Response) -> torch.Tensor:
    """tr(Sigma J) of each prompt, (..., P): what the plug-in promise is too good by, on average (equation (35)).

    factor (P, n, r): F with Sigma = F F'.
    """
    left, right = (torch.einsum("...pn,pnr->...pr", side, factor) for side in (moved.left, moved.right))
    return (moved.pull * factor.square().sum(-1)).sum(-1) - (left * right).sum(-1)


def pool_variance(factor: torch.Tensor, moved: Response) -> torch.Tensor:
    """tr(Sigma J Sigma J) over the whole pool, (...): the variance that choosing by m adds (equation (38)).

    By r x r matrices where the factor (P, n, r) is narrow, else by the Gram matrix of all N responses, in N^2.
    """
    rows, (prompts, size, rank) = factor.flatten(0, 1), factor.shape
    pull = moved.pull.flatten(-2)
    if rank**2 <= 3 * len(rows):
        left, right = (torch.einsum("...pn,pnr->...pr", side, factor) for side in (moved.left, moved.right))
        whole = rows.T @ (pull[..., None] * rows) - left.mT @ right
        return (whole * whole.mT).sum((-2, -1))
    gram = rows @ rows.T
    blocks = gram.reshape(prompts, size, -1)
    left, right = (torch.einsum("...pn,pnj->...pj", side, blocks) for side in (moved.left, moved.right))
    crossed = (right.unflatten(-1, (prompts, size)) * moved.left[..., None, :, :]).sum(-1)
    square = ((pull @ gram.square()) * pull).sum(-1)
    return square - 2 * (pull[..., None, :] * left * right).sum((-2, -1)) + (crossed * crossed.mT).sum((-2, -1))


def error_quantile(
    reward: torch.Tensor,
    factor: torch.Tensor,
    solve: Callable[[torch.Tensor, slice], tuple[torch.Tensor, Response]],
    delta: float,
) -> float:
    """The (1 - delta) quantile of T, the larger over SHARES of the estimate ``reward`` (P, n) taken for the truth.

    factor (P, n, r). solve: rewards (S, p, n) of the prompts in a slice to policy minus reference and its response.
    Deterministic. Raises PrudentError for a delta under LEAST_DELTA, whose quantile so few draws can't tell.
    """
    if delta < LEAST_DELTA:
        raise PrudentError(f"delta is {delta}, must be at least {LEAST_DELTA}: a rarer error can't be simulated")
    step = max(1, math.ceil(len(reward) * reward.shape[1] / ROWS))
    kept = slice(None, None, step)
    reward, factor = reward[kept], factor[kept]
    draws = math.ceil(max(400, 20 / delta))
    noise = torch.randn(draws, factor.shape[-1], generator=torch_generator(0), dtype=torch.float64)
    found = []
    for share in SHARES:
        errors = []
        for part in noise.split(100):
            eta = torch.einsum("pnr,sr->spn", factor, part)
            moved, response = solve(share * reward + eta, kept)
            along = torch.einsum("spn,pnr->sr", moved, factor).square().sum(-1)
            deviation = (along + pool_variance(factor, response)).clamp(min=1e-300).sqrt()
            errors.append(((moved * eta).sum((-2, -1)) - optimism(factor, response).sum(-1)) / deviation)
        found.append(float(torch.cat(errors).sort().values[math.ceil((draws + 1) * (1 - delta)) - 1]))
    return max(found)
