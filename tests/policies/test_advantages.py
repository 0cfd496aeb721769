"""Policy-gradient arithmetic: field cases R17, R18, R19 and SPEC section 1, check 11."""

import math

import pytest
import torch

from prudent.errors import PrudentError
from prudent.policies.rl.advantages import (
    clipped_policy_loss,
    generalised_advantages,
    group_normalised,
    kl_estimates,
    leave_one_out,
    masked_mean,
    masked_variance,
    token_entropy,
    token_rewards,
    whiten,
)


def test_r17_equal_rewards_give_zero_advantage_and_are_counted():
    rewards = torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 0, 0.3, 0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    normalised = group_normalised(rewards, 4)
    assert torch.equal(normalised.advantages[:4], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(normalised.advantages[8:], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(
        normalised.advantages[4:8], torch.tensor([-0.8660254, 0.8660254, 0.8660254, -0.8660254], dtype=torch.float64)
    )
    assert normalised.equal_share == pytest.approx(2 / 3)
    plain = leave_one_out(rewards, 4)
    assert plain.equal_share == pytest.approx(2 / 3)
    torch.testing.assert_close(plain.advantages[4:8], torch.tensor([-2 / 3, 2 / 3, 2 / 3, -2 / 3], dtype=torch.float64))


def test_r17_one_valid_token_is_not_whitened():
    result = whiten(torch.tensor([[2.0, 99.0]]), torch.tensor([[1, 0]]))
    assert result.tolist() == [[2.0, 0.0]]


def test_leave_one_out_is_the_mean_of_the_others():
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert leave_one_out(rewards, 3).advantages.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


def test_groups_must_divide():
    with pytest.raises(PrudentError, match="5 rewards don't divide into groups of 4"):
        leave_one_out(torch.ones(5), 4)


def test_r18_small_ratios_and_overflow():
    minus_k1 = torch.tensor([0.0, 0.1, -0.1, 2.0], dtype=torch.float64)
    estimate = kl_estimates(-minus_k1, torch.zeros(4, dtype=torch.float64))
    assert estimate.k1.tolist() == pytest.approx([0, -0.1, 0.1, -2])
    assert estimate.k2.tolist() == pytest.approx([0, 0.005, 0.005, 2])
    assert estimate.k3.tolist() == pytest.approx([0, 0.0051709, 0.0048374, 4.3890561], abs=1e-7)
    log_policy = torch.tensor([-120.0], requires_grad=True)
    far = kl_estimates(log_policy, torch.tensor([-20.0]))
    far.k3.sum().backward()
    assert torch.isfinite(far.k3).all() and torch.isfinite(log_policy.grad).all()
    assert far.clamped == 1 and estimate.clamped == 0


def test_r19_padding_changes_nothing():
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for filler in (1.0, -7.0, float("nan")):
        logs = torch.tensor([[-0.5, -1.0, -0.25, filler, filler]])
        assert float(token_entropy(logs, mask)) == pytest.approx(1.75 / 3)
        values = torch.tensor([[2.0, -1.0, 0.5, filler, filler]])
        assert float(masked_mean(values, mask)) == pytest.approx(0.5)
        assert float(masked_variance(values, mask)) == pytest.approx(2.25)
        assert whiten(values, mask).tolist()[0] == pytest.approx([1, -1, 0, 0, 0])
        advantages, returns = generalised_advantages(values, values, mask)
        clean, clean_returns = generalised_advantages(values[:, :3], values[:, :3], mask[:, :3])
        torch.testing.assert_close(advantages[:, :3], clean)
        torch.testing.assert_close(returns[:, :3], clean_returns)
        loss, _ = clipped_policy_loss(logs, logs, values, mask)
        assert float(loss) == pytest.approx(-1.5)


def test_r19_a_positive_log_probability_is_a_bug():
    with pytest.raises(PrudentError, match="padding or a marker"):
        token_entropy(torch.tensor([[-0.5, 1.0]]), torch.tensor([[1, 1]]))


def test_check_11_token_rewards_with_unit_variance_are_vanilla_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    log_policy, log_reference = -torch.rand(2, 3, 5, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    score = torch.randn(3, generator=generator)
    vanilla = token_rewards(score, log_policy, log_reference, mask, 0.3)
    assert torch.equal(vanilla, token_rewards(score, log_policy, log_reference, mask, 0.3, torch.ones(3)))
    scaled = token_rewards(score, log_policy, log_reference, mask, 0.1, torch.full((3,), 3.0))
    torch.testing.assert_close(scaled, token_rewards(score, log_policy, log_reference, mask, 0.1 * 3.0))
    assert float(vanilla[1, 1]) == pytest.approx(float(score[1] - 0.3 * (log_policy - log_reference)[1, 1]))
    assert vanilla[1, 2:].abs().sum() == 0


def test_generalised_advantages_against_the_definition():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    gamma, gae_lambda = 0.9, 0.8
    deltas = [1 + 0.9 * 1.0 - 0.5, 0 + 0.9 * -1.0 - 1.0, 2 + 1.0]
    expected = [sum((gamma * gae_lambda) ** k * deltas[t + k] for k in range(3 - t)) for t in range(3)]
    advantages, returns = generalised_advantages(rewards, values, torch.ones(1, 3), gamma, gae_lambda)
    assert advantages[0].tolist() == pytest.approx(expected)
    torch.testing.assert_close(returns, advantages + values)


def test_clip_stops_the_gradient_beyond_the_ratio():
    new = torch.tensor([[math.log(1.5)]], requires_grad=True)
    loss, active = clipped_policy_loss(new, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    loss.backward()
    assert float(loss) == pytest.approx(-1.2) and active == 1.0 and float(new.grad) == 0.0
