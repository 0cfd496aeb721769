"""Confidence bounds: their coverage, the direction that attains them, and that the aware policy maximises the bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prudent.errors import PrudentError
from prudent.policies import ball
from prudent.theory.bounds import improvement_bound, width
from prudent.theory.covariances import group_index, quadratic, times_inverse
from prudent.theory.simulation import draw_rewards


def covariance(n: int, seed: int) -> torch.Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.01 * torch.eye(n, dtype=torch.float64)


def test_fixed_direction_coverage_is_exact() -> None:
    """Equation (20) at b = 1.645."""
    matrix = covariance(6, 0)
    v = torch.randn(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise = draw_rewards(torch.zeros(6), matrix, 100_000, seed=1)
    share = (noise @ v > 1.645 * (v @ matrix @ v).sqrt()).double().mean().item()
    assert share == pytest.approx(0.05, abs=3e-3)
    assert width(0.05) == pytest.approx(1.6448536, abs=1e-6)


def test_uniform_coverage_at_the_worst_direction() -> None:
    """Equations (21), (22), (24): the worst direction attains the bound, and it still covers."""
    n = 7
    matrix = covariance(n, 2)
    noise = draw_rewards(torch.zeros(n), matrix, 20_000, seed=3)
    inverse = torch.linalg.inv(matrix)
    worst = noise @ inverse
    ratio = (worst * noise).sum(-1) / ((worst @ matrix) * worst).sum(-1).sqrt()
    expected = ((noise @ inverse) * noise).sum(-1).sqrt()
    assert torch.allclose(ratio, expected)
    share = (ratio <= width(0.05, n)).double().mean().item()
    assert share == pytest.approx(0.95, abs=5e-3)
    assert (ratio <= width(0.05, n, sharp=False)).double().mean().item() >= 0.95
    assert width(0.05, n) == pytest.approx(math.sqrt(stats.chi2.ppf(0.95, n)))


@given(st.integers(0, 2**31), st.integers(2, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_direction_deceives_more(seed: int, n: int, on_simplex: bool) -> None:
    """Equations (21), (24): the worst direction's ratio is reached by it and exceeded by none."""
    matrix = covariance(n, seed)
    noise = draw_rewards(torch.zeros(n), matrix, 1, seed=seed)[0]
    worst = times_inverse(matrix, noise, group_index(None, n) if on_simplex else None)  # Sigma^-1 eta, or M eta
    others = torch.randn(500, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if on_simplex:
        others -= others.mean(-1, keepdim=True)
        assert abs(worst.sum().item()) < 1e-8 * (1 + worst.abs().max().item())
    ratios = (others @ noise) / ((others @ matrix) * others).sum(-1).sqrt()
    top = float(worst @ noise) / math.sqrt(quadratic(matrix, worst))
    assert ratios.max().item() <= top * (1 + 1e-9)
    if not on_simplex:
        assert top == pytest.approx((noise @ torch.linalg.inv(matrix) @ noise).sqrt().item(), rel=1e-6)
    for delta in (0.3, 0.05, 1e-6):
        assert width(delta, n, sharp=False) >= width(delta, n) > width(delta)


def test_improvement_bound_covers_an_optimised_policy() -> None:
    """Equation (23): a fixed direction's bound fails for a policy that was optimised, the uniform one holds."""
    n = 6
    truth, matrix = torch.zeros(n, dtype=torch.float64), covariance(n, 9)
    reference = torch.full((n,), 1 / n, dtype=torch.float64)
    broken = {True: 0, False: 0}
    drawn = draw_rewards(truth, matrix, 200, seed=4)
    for reward in drawn:
        policy = ball(reward, reference, 0.01, covariance=matrix, on_simplex=True)
        for uniform in broken:
            bound = improvement_bound(policy, reference, reward, matrix, delta=0.05, uniform=uniform)
            broken[uniform] += bound > float((policy - reference) @ truth)
    assert broken[True] <= 20 and broken[False] > 40


def test_the_aware_policy_maximises_the_bound() -> None:
    """Equation (23): the policy of (11) maximises it on a sphere of the Sigma norm."""
    n = 5
    matrix = covariance(n, 1)
    reward = 20 * torch.randn(n, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    reference = torch.full((n,), 1 / n, dtype=torch.float64)
    policy = ball(reward, reference, 0.01, covariance=matrix, on_simplex=True)
    best = improvement_bound(policy, reference, reward, matrix)
    steps = torch.randn(400, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    steps -= steps.mean(-1, keepdim=True)
    steps *= 0.01 / ((steps @ matrix) * steps).sum(-1, keepdim=True).sqrt()
    assert best > 0
    assert max(improvement_bound(reference + s, reference, reward, matrix) for s in steps) <= best
    variance = matrix.diagonal()
    table = improvement_bound(policy[None], reference[None], reward[None], variance[None])
    assert table == pytest.approx(improvement_bound(policy, reference, reward, variance))


def test_errors() -> None:
    for call in (
        lambda: width(0.0),
        lambda: width(0.05, 0),
        lambda: improvement_bound([0.5, 0.5], [1.0], [1.0], [1.0]),
    ):
        with pytest.raises(PrudentError):
            call()
