"""The experiments behind the charts of ``prudent theory reproduce``: rows of numbers, no drawing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from prudent.policies.finite import kl, solve
from prudent.seeding import Seed, torch_generator
from prudent.theory.simulation import ball_on_simplex, draw_rewards, kl_ball, simulate

TRUTH = (
    *(0.104, 0.246, 0.099, -0.391, 0.272, 0.134, -0.161, 0.174),
    *(0.109, 0.088, 0.009, 0.164, -0.221, -0.049, -0.145, 0.18),
)
NOISY = (4, 7, 8, 9, 10, 13, 14)


def random_covariance(n: int, generator: torch.Generator) -> torch.Tensor:
    """Positive definite (n, n) with a condition number up to about 10^4."""
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    scale = torch.exp(1.5 * torch.randn(n, generator=generator, dtype=torch.float64))
    matrix = (root * scale) @ root.T
    return matrix + 1e-3 * torch.eye(n, dtype=torch.float64)


def large_prompt(seed: Seed, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True rewards, variances and uniform reference of one prompt of 64 responses."""
    generator = torch_generator(seed)
    truth = 0.15 * torch.randn(n, generator=generator, dtype=torch.float64)
    variance = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64))
    return truth, variance, torch.full((n,), 1 / n, dtype=torch.float64)


def risk_by_size(seed: Seed, draws: int = 8_000) -> list[dict[str, Any]]:
    """How risks leave their small-ball value as the ball grows: rows of ball, method, size, risk, gain and KL."""
    truth, variance, reference = large_prompt(seed)
    rows = []
    for size in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8):
        for name, weight in (("vanilla", None), ("variance-aware", variance)):
            rule = partial(ball_on_simplex, reference=reference, radius=size, variance=weight)
            found = simulate(truth, variance, reference, rule, draws=draws, seed=seed)
            rows.append({"ball": "L2 / Sigma", "method": name, "size": size, **_numbers(found)})
    for size in (1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0):
        for name, weight in (("vanilla", None), ("variance-aware", variance)):
            rule = partial(kl_ball, reference=reference, divergence=size, variance=weight)
            found = simulate(truth, variance, reference, rule, draws=draws, seed=seed)
            rows.append({"ball": "KL", "method": name, "size": size, **_numbers(found)})
    return rows


def _numbers(found: Any) -> dict[str, float]:
    return {"risk": found.risk, "low": found.low, "high": found.high, "gain": found.gain, "kl": found.kl}


def penalty_world() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(R, sigma2, sigma2 / mean, uniform reference) of the 16-response simulation."""
    variance = torch.full((16,), 0.05, dtype=torch.float64)
    variance[list(NOISY)] = 2.0
    reference = torch.full((16,), 1 / 16, dtype=torch.float64)
    return torch.tensor(TRUTH, dtype=torch.float64), variance, variance / variance.mean(), reference


def penalty_draws(seed: Seed, draws: int = 4000) -> list[dict[str, Any]]:
    """True gains of each form at each beta on the same draws: rows (beta, method, gains tensor, kl)."""
    truth, variance, weight, reference = penalty_world()
    drawn = draw_rewards(truth, variance, draws, seed)
    drawn = drawn - drawn.mean(-1, keepdim=True)
    rows = []
    for beta in (0.1, 0.3, 1.0, 3.0):
        for method in ("vanilla", "proportional", "bregman", "exact"):
            aware = {} if method == "vanilla" else {"variance": weight, "form": method}
            policy = solve(drawn[:, None], reference[None], beta, **aware)[:, 0]  # type: ignore[arg-type]
            rows.append(
                {
                    "beta": beta,
                    "method": method,
                    "gains": (policy - reference) @ truth,
                    "kl": float(kl(policy, reference).mean()),
                }
            )
    return rows
