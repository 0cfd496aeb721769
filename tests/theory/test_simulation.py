"""Policies with pi >= 0 imposed and in KL balls: exact for each draw, and their risks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from prudent.policies import ball, kl, objective, solve
from prudent.theory.risks import risks
from prudent.theory.simulation import ball_on_simplex, draw_rewards, kl_ball, simulate

RADII = (0.05, 0.3, 0.6, 1.5)


def world(n: int, draws: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    reference = torch.rand(n, generator=generator, dtype=torch.float64) + 0.05
    reward = torch.randn(draws, n, generator=generator, dtype=torch.float64)
    return reward, reference / reference.sum(), torch.rand(n, generator=generator, dtype=torch.float64) * 3 + 0.05


@pytest.mark.parametrize("radius", RADII)
def test_ball_on_simplex_against_scipy(radius: float) -> None:
    """Equation (26)."""
    reward, reference, variance = world(6)
    for spread in (None, variance):
        weight = torch.ones(6, dtype=torch.float64) if spread is None else spread
        policy = ball_on_simplex(reward, reference, radius, spread)
        norms = (weight * (policy - reference).square()).sum(-1).sqrt()
        assert policy.min() >= 0 and (policy.sum(-1) - 1).abs().max() < 1e-12
        assert norms.max() <= radius * (1 + 1e-9)
        corner = (policy.max(-1).values > 1 - 1e-12) | (norms > radius * (1 - 1e-9))
        assert bool(corner.all())  # the ball is used up, unless it holds the best corner
        for k in range(4):
            scaled = weight.numpy()
            rules = (
                {"type": "eq", "fun": lambda x: x.sum() - 1},
                {"type": "ineq", "fun": lambda x, w=scaled: radius**2 - (w * (x - reference.numpy()) ** 2).sum()},
            )
            found = minimize(
                lambda x, row=k: -(x @ reward[row].numpy()),
                reference.numpy(),
                method="SLSQP",
                bounds=[(0, 1)] * 6,
                constraints=rules,
                options={"maxiter": 500, "ftol": 1e-12},
            )
            assert (policy[k] @ reward[k]).item() == pytest.approx(-found.fun, abs=2e-6)


def test_small_balls_are_the_closed_forms() -> None:
    """Equation (26) where no corner binds is (10) and (11)."""
    reward, reference, variance = world(8)
    for spread in (None, variance):
        free = ball(reward, reference, 1e-3, covariance=spread, on_simplex=True)
        assert torch.allclose(ball_on_simplex(reward, reference, 1e-3, spread), free, atol=1e-12)


@pytest.mark.parametrize("divergence", (1e-3, 0.2, 1.0, 3.0))
def test_kl_ball(divergence: float) -> None:
    """Equations (28), (29): on the sphere, and better than every random policy inside; or the best corner."""
    reward, reference, variance = world(5)
    far = torch.from_numpy(np.random.default_rng(0).dirichlet([0.6] * 5, 20_000))
    share = torch.logspace(-3, 0, 20_000, dtype=torch.float64)[:, None]
    points = reference + share * (far - reference)
    for spread in (None, variance):
        weight = torch.ones(5, dtype=torch.float64) if spread is None else spread
        policy = kl_ball(reward, reference, divergence, spread)

        def spent(p: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            nothing = torch.zeros(5, dtype=torch.float64)
            return -objective(p, nothing, reference, 1.0, variance=weight, bregman=True)

        used = spent(policy)
        corner = policy.max(-1).values > 1 - 1e-9
        assert bool(((used - divergence).abs() < 1e-8)[~corner].all()) and bool((used <= divergence + 1e-8).all())
        inside = points[spent(points) <= divergence]
        assert bool(((inside @ reward.T).max(0).values <= (policy * reward).sum(-1) + 1e-9).all())
    if divergence < 0.5:
        assert torch.allclose(kl(kl_ball(reward, reference, divergence), reference), torch.tensor(divergence).double())


def test_risk_of_small_balls_meets_the_closed_form() -> None:
    """With n = 64, Monte Carlo with pi >= 0 imposed lies around the exact risk, equations (17), (18)."""
    generator = torch.Generator().manual_seed(0)
    n = 64
    truth = 0.15 * torch.randn(n, generator=generator, dtype=torch.float64)
    variance = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64))
    reference = torch.full((n,), 1 / n, dtype=torch.float64)
    exact = risks(truth, variance, on_simplex=True)
    rules = {
        False: lambda r: ball_on_simplex(r, reference, 0.01),
        True: lambda r: ball_on_simplex(r, reference, 0.01, variance),
    }
    for aware, rule in rules.items():
        found = simulate(truth, variance, reference, rule, draws=50_000, seed=1)
        assert abs(found.risk - exact[aware]) < 4 * (exact[aware] / 50_000) ** 0.5
        assert found.low <= found.risk <= found.high
    large = simulate(truth, variance, reference, lambda r: ball_on_simplex(r, reference, 0.5), draws=5_000)
    assert large.risk > exact.vanilla + 0.03  # pi >= 0 costs safety once it binds


def test_kl_weighted_policies_are_safer_than_vanilla() -> None:
    """Equations (2) to (4): 16 responses whose seven noisy ones hold much of the reward; every form, every beta."""
    truth = torch.tensor(
        [
            *(0.104, 0.246, 0.099, -0.391, 0.272, 0.134, -0.161, 0.174),
            *(0.109, 0.088, 0.009, 0.164, -0.221, -0.049, -0.145, 0.18),
        ],
        dtype=torch.float64,
    )
    variance = torch.full((16,), 0.05, dtype=torch.float64)
    variance[[4, 7, 8, 9, 10, 13, 14]] = 2.0
    weight = variance / variance.mean()
    reference = torch.full((16,), 1 / 16, dtype=torch.float64)
    for beta in (0.1, 0.3, 1.0, 3.0):
        vanilla = simulate(truth, variance, reference, partial(solve, reference=reference, beta=beta), draws=4000)
        for form in ("proportional", "bregman", "exact"):

            def aware(r: torch.Tensor, form: str = form, beta: float = beta) -> torch.Tensor:
                centred = r - r.mean(-1, keepdim=True)
                return solve(centred, reference, beta, variance=weight, form=form)

            assert simulate(truth, variance, reference, aware, draws=4000).risk < vanilla.risk
    limit = risks(truth, variance, on_simplex=True)
    slow = simulate(truth, variance, reference, lambda r: solve(r, reference, 1e4), draws=4000)
    assert slow.risk == pytest.approx(limit.vanilla, abs=0.02)


def test_draws_have_the_covariance_asked_for() -> None:
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, -0.3, 0.0]], dtype=torch.float64)
    matrix = root @ root.T  # singular
    drawn = draw_rewards([1.0, 2.0, 3.0], matrix, 200_000, seed=0)
    assert torch.allclose(torch.cov(drawn.T), matrix, atol=0.02)
    assert torch.allclose(drawn.mean(0), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), atol=0.02)
    assert torch.equal(drawn, draw_rewards([1.0, 2.0, 3.0], matrix, 200_000, seed=0))
