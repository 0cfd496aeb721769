"""Policies and risks where no closed form exists: the balls with pi >= 0 imposed, and KL balls. Monte Carlo over draws.

Every solver takes rewards (draws, n) of one prompt and is exact for each draw; the closed forms of `theory.risks` are
their limit for small balls (docs/theory.md, equations (25) to (29)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.statistics import wilson
from prudent.policies.finite import kl, objective, solve
from prudent.seeding import Seed, torch_generator

CHUNK = (1 << 15) - 1  # rewards worked on at once (see policies.finite)


class Simulated(NamedTuple):
    """Risk over simulated draws with its Wilson interval, and mean, standard deviation (ddof=1) and KL of the gains."""

    risk: float
    low: float
    high: float
    draws: int
    gain: float
    deviation: float
    kl: float


def ball_on_simplex(
    reward: torch.Tensor, reference: torch.Tensor, radius: float, variance: torch.Tensor | None = None
) -> torch.Tensor:
    """Maximiser of <pi, r> with ||pi - pi0|| <= radius, sum(pi) = 1 and pi >= 0, for each row of r (draws, n).

    variance (n,) or (draws, n), positive: the diagonal Sigma ball in place of the L2 ball. The optimum is
    max(0, pi0 + tau (r - mu) / variance); mu keeps the sum and tau the radius (equation (26)). Both are found by steps
    that are exact once it is known which candidates are at 0. A ball that holds the best candidate's corner gives that
    corner.
    """
    weight = torch.ones_like(reward) if variance is None else variance.expand_as(reward)
    out = torch.empty_like(reward)
    step = max(1, CHUNK // reward.shape[1])
    for at in range(0, len(reward), step):
        rows = slice(at, at + step)
        out[rows] = _ball_rows(reward[rows], reference, radius, 1.0 / weight[rows])
    return out


def _ball_rows(r: torch.Tensor, pi0: torch.Tensor, radius: float, u: torch.Tensor) -> torch.Tensor:
    corner = torch.where(r == r.amax(-1, keepdim=True), u, 0.0)
    freed = torch.where(corner == 0, pi0, 0.0).sum(-1, keepdim=True)
    policy = torch.where(corner > 0, pi0 + corner * freed / corner.sum(-1, keepdim=True), torch.zeros_like(r))
    todo = torch.nonzero(((policy - pi0).square() / u).sum(-1) > radius**2)[:, 0]
    r, u = r[todo], u[todo]
    level = (u * r).sum(-1, keepdim=True) / u.sum(-1, keepdim=True)
    tau = radius / (u * (r - level).square()).sum(-1, keepdim=True).sqrt()
    low, high = torch.zeros_like(tau), torch.full_like(tau, float("inf"))
    for _ in range(200):
        level = _level(r, pi0, u, tau, level)
        found = (pi0 + tau * u * (r - level)).clamp(min=0.0)
        free = torch.where(found > 0, u, 0.0)
        size = ((found - pi0).square() / u).sum(-1, keepdim=True)
        mass = free.sum(-1, keepdim=True)
        slope = (free * (r - (free * r).sum(-1, keepdim=True) / mass).square()).sum(-1, keepdim=True)
        inside = size <= radius**2
        low, high = torch.where(inside, tau, low), torch.where(inside, high, tau)
        done = ((size - radius**2).abs() <= 1e-13 * radius**2) | (torch.isfinite(high) & (high - low <= 1e-15 * high))
        policy[todo[done[:, 0]]] = found[done[:, 0]]
        keep = ~done[:, 0]
        if not bool(keep.any()):
            return policy
        exact = (tau.square() + (radius**2 - size) / torch.where(slope > 0, slope, 1.0)).clamp(min=0.0).sqrt()
        halfway = torch.where(torch.isfinite(high), (low * high).sqrt().maximum(0.1 * high), 4 * low)
        tau = torch.where((exact > low) & (exact < high) & (slope > 0), exact, halfway)
        r, u, tau, level, low, high, todo = (x[keep] for x in (r, u, tau, level, low, high, todo))
    raise RuntimeError(f"the ball's constraints didn't settle for {len(r)} draws")


def _level(r: torch.Tensor, pi0: torch.Tensor, u: torch.Tensor, tau: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """mu with sum max(0, pi0 + tau u (r - mu)) = 1. The sum is convex and falls in mu: Newton's method ends after
    finitely many steps, once the candidates above 0 stay the same."""
    level, outside = start, (r + pi0 / (tau * u)).amax(-1, keepdim=True)
    for _ in range(200):
        level = torch.where(level >= outside, outside - 1e-3 / tau, level)
        point = pi0 + tau * u * (r - level)
        above = point > 0
        excess = torch.where(above, point, 0.0).sum(-1, keepdim=True) - 1.0
        move = excess / (tau * torch.where(above, u, 0.0).sum(-1, keepdim=True))
        level = level + move
        if bool((excess.abs() <= 1e-14).all()):
            break
    return level


def kl_ball(
    reward: torch.Tensor, reference: torch.Tensor, divergence: float, variance: torch.Tensor | None = None
) -> torch.Tensor:
    """Maximiser of <pi, r> with KL(pi || pi0) <= divergence nats, for each row of r (draws, n).

    variance (n,): the Bregman divergence sum sigma2 [pi ln(pi / pi0) - pi + pi0] in place of the KL (equation (28)); to
    second order it is half the squared Sigma-ball norm with weights sigma2 / pi0. A ball that holds the best
    candidate's corner gives that corner.
    """
    sigma2 = torch.ones_like(reference) if variance is None else variance
    out = torch.empty_like(reward)
    step = max(1, CHUNK // reward.shape[1])
    for at in range(0, len(reward), step):
        rows = slice(at, at + step)
        out[rows] = _kl_rows(reward[rows] - reward[rows].amax(-1, keepdim=True), reference, divergence, sigma2)
    return out


def _kl_rows(r: torch.Tensor, pi0: torch.Tensor, divergence: float, sigma2: torch.Tensor) -> torch.Tensor:
    """pi0 exp(theta (r - lam) / sigma2) with theta by Newton's method on the logarithms of theta and of the divergence,
    lam following theta (equation (29)); inside a bracket that halves where Newton would leave it."""
    policy = solve(r[:, None, :], pi0, 1e-12, variance=sigma2, form="bregman")[:, 0]
    corner = -objective(policy, torch.zeros_like(r), pi0, 1.0, variance=sigma2, bregman=True)
    todo = torch.nonzero(corner > divergence * (1 + 1e-9))[:, 0]
    r, log_pi0, precision = r[todo], torch.log(pi0), 1.0 / sigma2
    lam = (pi0 * precision * r).sum(-1, keepdim=True) / (pi0 * precision).sum(-1, keepdim=True)
    theta = (2 * divergence / (pi0 * precision * (r - lam).square()).sum(-1, keepdim=True)).sqrt()
    low, high = torch.zeros_like(theta), torch.full_like(theta, float("inf"))
    for _ in range(200):
        lam, found, tilt = _sum_to_one(r, log_pi0, precision, theta, lam)
        spent = (sigma2 * (found * tilt - found + pi0)).sum(-1, keepdim=True)
        pull = (found * (r - lam) * precision).sum(-1, keepdim=True)
        turn = (found * (r - lam).square() * precision).sum(-1, keepdim=True)
        slope = theta.square() * (turn - pull.square() / (found * precision).sum(-1, keepdim=True)) / spent
        gap = torch.log(divergence / spent)
        low, high = torch.where(gap > 0, theta, low), torch.where(gap > 0, high, theta)
        done = (gap.abs() <= 1e-10) | (torch.isfinite(high) & (high - low <= 1e-14 * high))
        policy[todo[done[:, 0]]] = found[done[:, 0]]
        keep = ~done[:, 0]
        if not bool(keep.any()):
            return policy
        newton = theta * torch.exp((gap / slope).clamp(-3, 3))
        halfway = torch.where(torch.isfinite(high), (low * high).sqrt().maximum(0.1 * high), 4 * low)
        theta = torch.where((newton > low) & (newton < high), newton, halfway)
        r, theta, lam, low, high, todo = (x[keep] for x in (r, theta, lam, low, high, todo))
    raise RuntimeError(f"the KL ball's constraints didn't settle for {len(r)} draws")


def _sum_to_one(
    r: torch.Tensor, log_pi0: torch.Tensor, precision: torch.Tensor, theta: torch.Tensor, lam: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """lam with sum pi = 1, pi and its exponent. Newton's method on the convex logarithm of the sum, from any lam."""
    for _ in range(200):
        tilt = theta * precision * (r - lam)
        log_sum = torch.logsumexp(log_pi0 + tilt, -1, keepdim=True)
        found = torch.exp(log_pi0 + tilt - log_sum)
        if bool((log_sum.abs() <= 1e-12).all()):
            break
        lam = lam + log_sum / (theta * (found * precision).sum(-1, keepdim=True))
    return lam, found, tilt


def draw_rewards(true_reward: ArrayLike, covariance: ArrayLike, draws: int, seed: Seed = 0) -> torch.Tensor:
    """Reward estimates R_hat ~ N(R, Sigma), (draws, n), for R (n,) and Sigma diagonal (n,) or dense (n, n)."""
    truth, matrix = as_tensor(true_reward, torch.float64), as_tensor(covariance, torch.float64)
    noise = torch.randn(draws, len(truth), generator=torch_generator(seed), dtype=torch.float64)
    if matrix.ndim < 2:
        return truth + noise * matrix.sqrt()
    values, basis = torch.linalg.eigh(matrix)
    if float(values[0]) < -1e-10 * float(values[-1]):
        raise PrudentError(f"covariance has the eigenvalue {values[0].item():.3g}; it must be positive semi-definite")
    return truth + noise @ (basis * values.clamp(min=0).sqrt()).T


def simulate(
    true_reward: ArrayLike,
    covariance: ArrayLike,
    reference: ArrayLike,
    policy_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    draws: int = 100_000,
    seed: Seed = 0,
    level: float = 0.95,
) -> Simulated:
    """Risk of a rule that turns estimates (draws, n) into policies (draws, n): the share of draws with <pi - pi0, R> <=
    0.

    The same seed gives the same draws to every rule, so rules can be compared in pairs. The interval is Wilson's.
    """
    truth, pi0 = as_tensor(true_reward, torch.float64), as_tensor(reference, torch.float64)
    policy = policy_of(draw_rewards(truth, covariance, draws, seed))
    gain = (policy - pi0) @ truth
    below = int((gain <= 0).sum())
    low, high = wilson(below, draws, level)
    inside = bool((policy >= 0).all())
    divergence = float(kl(policy, pi0).mean()) if inside else math.nan
    return Simulated(below / draws, low, high, draws, float(gain.mean()), float(gain.std()), divergence)
