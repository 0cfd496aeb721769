"""Promises: unbiased where the plug-in isn't, with the variance they claim, for every form; ragged pools; errors."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from prudent.errors import PrudentError
from prudent.theory.certificates import (
    RULES,
    Belief,
    belief_from_members,
    belief_from_posterior,
    bound_quantile,
    certify,
    cross_fit,
    draw_deviations,
    policy_of,
    prompt_variances,
    response,
)
from prudent.theory.error_quantiles import Response, error_quantile, optimism, pool_variance


@pytest.fixture
def world() -> tuple[torch.Tensor, Belief]:
    generator = torch.Generator().manual_seed(0)
    factor = 0.15 * torch.randn(4, 5, 30, generator=generator, dtype=torch.float64)
    factor = factor * torch.exp(0.5 * torch.randn(4, 5, 1, generator=generator, dtype=torch.float64))
    reference = torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.2
    reference[1, 4] = 0
    reference /= reference.sum(-1, keepdim=True)
    truth = 0.3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    belief = belief_from_posterior(truth, factor, reference)
    return belief.reward, belief


@pytest.mark.parametrize("method", RULES)
def test_jacobian_is_the_policy_s(world: tuple[torch.Tensor, Belief], method: str) -> None:
    """Equations (36), (37) against finite differences."""
    _, belief = world
    policy = policy_of(belief, belief.reward, 0.6, method)
    moved = response(belief, policy, 0.6, method)
    jacobian = torch.diag_embed(moved.pull) - moved.left[..., :, None] * moved.right[..., None, :]
    for place in range(5):
        bump = torch.zeros_like(belief.reward)
        bump[:, place] = 1e-5
        up, down = (policy_of(belief, belief.reward + sign * bump, 0.6, method) for sign in (1, -1))
        assert torch.allclose((up - down) / 2e-5, jacobian[..., place], atol=1e-7)
    sigma = belief.factor @ belief.factor.mT
    turned = sigma @ jacobian
    assert torch.allclose(optimism(belief.factor, moved), turned.diagonal(dim1=-2, dim2=-1).sum(-1))
    each = prompt_variances(belief.factor, moved)
    assert torch.allclose(each, (turned @ turned).diagonal(dim1=-2, dim2=-1).sum(-1))
    for width in (30, 6):  # by the Gram matrix and by the factor's own
        factor = belief.factor[..., :width]
        rows = factor.flatten(0, 1)
        full = rows @ rows.T @ torch.block_diag(*jacobian)
        assert float(pool_variance(factor, moved)) == pytest.approx(float((full @ full).trace()))
        twice = Response(*(torch.stack([side, 2 * side]) for side in moved))
        batch = pool_variance(factor, twice)
        assert batch[0] == pytest.approx(float((full @ full).trace()))
        assert batch[1] == pytest.approx(float(pool_variance(factor, Response(*(2 * side for side in moved)))))


@pytest.mark.parametrize("method", ("vanilla", "proportional", "bregman"))
def test_promises_are_unbiased(world: tuple[torch.Tensor, Belief], method: str) -> None:
    """Equations (35), (38), (39)."""
    truth, belief = world
    generator = torch.Generator().manual_seed(1)
    gaps, squares, crossed, plug = [], [], [], []
    for eta in draw_deviations(belief, 250, generator):
        seen = belief._replace(reward=truth + eta)
        found = certify(seen, 1.0, method, quantile=1.645)
        policy = policy_of(seen, seen.reward, 1.0, method)
        real = float(((policy - belief.reference) * truth).sum(-1).mean())
        gaps.append(found.improvement - real)
        plug.append(found.plug_in - real)
        squares.append(found.deviation**2)
        omega = draw_deviations(belief, 1, generator)
        member = ((policy_of(seen, seen.reward + omega, 1.0, method) - belief.reference) * truth).sum(-1).mean()
        crossed.append(cross_fit(seen, omega, 1.0, method).improvement - float(member))
    for values in (gaps, crossed):
        found_gap = torch.tensor(values, dtype=torch.float64)
        assert abs(found_gap.mean()) < 4 * found_gap.std() / math.sqrt(len(found_gap))
    assert sum(plug) / len(plug) > 5 * torch.tensor(plug).std() / math.sqrt(len(plug))
    assert torch.tensor(gaps).square().mean().item() == pytest.approx(sum(squares) / len(squares), rel=0.25)


def test_members_and_their_factor() -> None:
    """Equation (34) for an ensemble: F F' is the members' sample covariance."""
    scores = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = torch.full((3, 4), 0.25, dtype=torch.float64)
    belief = belief_from_members(scores, reference)
    centred = scores - scores.mean(-1, keepdim=True)
    assert torch.allclose(belief.reward, centred.mean(0))
    covariance = torch.cov(centred.reshape(7, -1).T)
    rows = belief.factor.flatten(0, 1)
    assert torch.allclose(rows @ rows.T, covariance) and belief.freedom == 6
    assert (reference * belief.variance).sum(-1).mean().item() == pytest.approx(1, abs=0.05)
    found = certify(belief, 0.5, "bregman")
    assert math.isnan(found.uniform) and found.bound < found.improvement < found.plug_in
    assert 0 <= found.risk <= 1 and bool(((found.prompts["risk"] >= 0) & (found.prompts["risk"] <= 1)).all())
    assert found.improvement == pytest.approx(found.prompts["improvement"].mean().item())


def test_a_member_left_out_stands_beside_the_moments_of_the_others() -> None:
    scores = torch.randn(6, 3, 4, dtype=torch.float64)
    reference = torch.full((3, 4), 0.25, dtype=torch.float64)
    found = belief_from_members(scores, reference).left_out
    for k in range(6):
        others = belief_from_members(torch.cat([scores[:k], scores[k + 1 :]]), reference)
        torch.testing.assert_close(found.reward[k], others.reward)
        torch.testing.assert_close(found.variance[k], others.variance)


def test_masked_responses_never_matter(world: tuple[torch.Tensor, Belief]) -> None:
    """Equations (35) to (38) on pools of uneven size."""
    _, belief = world
    reward, factor = belief.reward.clone(), belief.factor.clone()
    reward[1, 4], factor[1, 4] = 1e6, 1e6
    again = belief_from_posterior(reward, factor, belief.reference)
    for method in RULES:
        assert certify(again, 0.7, method)[2:10] == pytest.approx(certify(belief, 0.7, method)[2:10])
        assert certify(belief, 0.7, method).uniform < certify(belief, 0.7, method).plug_in


def test_the_bound_s_quantile_is_that_of_the_error_itself() -> None:
    """A policy that follows noise alone: v = J m, whose error m' J R - ... is a known quadratic form in eta."""
    size, beta = 3, 0.7
    reference = torch.full((1, size), 1 / size, dtype=torch.float64)
    factor = torch.eye(size, dtype=torch.float64)[None]

    def linear(reward: torch.Tensor, prompts: slice) -> tuple[torch.Tensor, Response]:
        pull = torch.full_like(reward, 1 / beta)
        return reward / beta, Response(pull, torch.zeros_like(reward), torch.zeros_like(reward))

    found = error_quantile(torch.zeros_like(reference), factor, linear, 0.05)
    # With R = 0: (q - d) / sqrt(q + d) of q = |eta|^2, chi-square with d = 3 degrees of freedom, rising in q.
    square = stats.chi2.isf(0.05, size)
    assert found == pytest.approx((square - size) / math.sqrt(square + size), rel=0.1)
    with pytest.raises(PrudentError, match="delta"):
        error_quantile(torch.zeros_like(reference), factor, linear, 1e-4)


def test_few_members_and_skewed_errors_widen_the_bound(world: tuple[torch.Tensor, Belief]) -> None:
    _, belief = world
    normal = stats.norm.isf(0.05)
    wide = bound_quantile(belief, 0.1, "vanilla")
    assert wide > 1.05 * normal
    assert bound_quantile(belief._replace(freedom=4.0), 0.1, "vanilla") == pytest.approx(
        wide * stats.t.isf(0.05, 4) / normal
    )
    found = certify(belief, 0.1, "vanilla")
    assert found.bound == pytest.approx(found.improvement - wide * found.deviation)


def test_errors() -> None:
    reference = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    with pytest.raises(PrudentError, match="agree on every response"):
        belief_from_members(torch.ones(5, 2, 3), reference)
    with pytest.raises(PrudentError, match="shape"):
        belief_from_members(torch.ones(2, 3), reference)
    with pytest.raises(PrudentError, match="at least 5 members"):
        belief_from_members(torch.randn(4, 2, 3), reference)
    belief = belief_from_members(torch.randn(5, 2, 3), reference)
    with pytest.raises(PrudentError, match="method"):
        certify(belief, 1.0, "other")
