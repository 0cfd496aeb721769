"""Policy-gradient arithmetic: field cases R17, R18, R19 and SPEC section 1, check 11."""

import math

import pytest
import torch

from prudent.errors import PrudentError
from prudent.policies.finite import kl, solve
from prudent.policies.rl.advantages import (
    clipped_policy_loss,
    columns_apart,
    generalised_advantages,
    group_normalised,
    kl_estimates,
    leave_one_out,
    masked_mean,
    masked_variance,
    ordering_agreement,
    token_entropy,
    token_rewards,
    weighted_rewards,
    whiten,
)
from prudent.rewards.aggregation import aggregate


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


def test_an_orders_sureness_is_kendalls_tau_averaged_over_pairs_of_members():
    from itertools import combinations

    from scipy.stats import kendalltau

    scores = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) + torch.arange(12) % 4
    found = ordering_agreement(scores, 4)
    for group, part in enumerate(scores.reshape(5, 3, 4).unbind(1)):
        tau = [kendalltau(a, b).statistic for a, b in combinations(part.numpy(), 2)]
        assert float(found[group]) == pytest.approx(max(0.0, sum(tau) / len(tau)))
    noise = torch.randn(6, 4 * 4000, generator=torch.Generator().manual_seed(1))
    signs = torch.sign(noise.reshape(6, -1, 4)[..., :, None] - noise.reshape(6, -1, 4)[..., None, :])
    raw = (signs.sum(0).square() - signs.square().sum(0)).sum((-1, -2)) / (6 * 5 * 4 * 3)
    assert float(raw.mean()) == pytest.approx(0.0, abs=0.01)  # before it is raised to 0, noise has none
    alike = torch.tensor([0.0, 1, 1, 3, 7, 7, 7, 7]).expand(3, 8) * torch.tensor([[1.0], [2], [9]])
    assert ordering_agreement(alike, 4).tolist() == [1, 1]  # equal completions say nothing
    with pytest.raises(PrudentError, match="2 of each"):
        ordering_agreement(torch.ones(1, 4), 4)


def test_members_who_agree_leave_advantages_as_they_are_and_a_scale_is_theirs_alone():
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scores = rewards * torch.tensor([[1.0], [3.0], [0.5]], dtype=torch.float64) + torch.tensor([[0.0], [9], [-4]])
    assert torch.equal(weighted_rewards("reliability", rewards, scores, 4), rewards)
    apart = columns_apart(scores, 4)
    torch.testing.assert_close(apart, group_normalised(rewards, 4).advantages)
    torch.testing.assert_close(weighted_rewards("members", rewards, scores, 4), apart)
    opposed = torch.stack([rewards, -rewards])
    assert weighted_rewards("reliability", rewards, opposed, 4).tolist() == [0.0] * 8
    torch.testing.assert_close(columns_apart(opposed, 4), torch.zeros(8, dtype=torch.float64))


def trained(scores, *, weighting="plain", rule="mean", beta=0.0, steps=400, rate=0.5, group=8, batch=64):
    """Tabular softmax policies (P, C) after RLOO on members' scores (K, P, C), ``batch`` groups a prompt and step."""
    prompts, candidates = scores.shape[1:]
    logits = torch.zeros(prompts, candidates, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    reference = torch.full_like(logits, 1 / candidates)
    rewards = aggregate(scores, rule)
    for _ in range(steps):
        policy = torch.softmax(logits, -1)
        drawn = torch.multinomial(policy, batch * group, replacement=True, generator=generator)
        mine = rewards.gather(1, drawn).flatten()
        members = scores.gather(2, drawn.expand(len(scores), -1, -1)).flatten(1)
        penalty = (policy / reference).log().gather(1, drawn).flatten()
        shaped = weighted_rewards(weighting, mine, members, group) - beta * penalty
        advantages = leave_one_out(shaped, group).advantages.reshape(prompts, -1)
        step = torch.zeros_like(logits).scatter_add(1, drawn, advantages) / (batch * group)
        logits = logits + rate * (step - policy * step.sum(1, keepdim=True))
    return torch.softmax(logits, -1)


RULED = torch.tensor([[[1.0, 0.8, 0.0]], [[1.0, 0.8, 0.0]], [[-2.0, 0.6, 0.1]], [[4.2, 0.6, 0.1]]], dtype=torch.float64)


@pytest.mark.parametrize("rule", ["mean", "lcb", "min", "entropic"])
def test_without_kl_a_policy_ends_at_the_rules_best_candidate(rule):
    policy = trained(RULED, rule=rule)
    assert aggregate(RULED, rule).argmax() == (0 if rule == "mean" else 1)
    assert float(policy[0, aggregate(RULED, rule).argmax()]) > 0.95


def test_reliability_moves_noise_less_and_what_members_agree_on_as_before():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(6, 1, 4, generator=generator, dtype=torch.float64)
    agreed = torch.tensor([0.9, 0.1, -0.4, -0.6], dtype=torch.float64).expand(6, 1, 4)
    scores = torch.cat([noise, agreed], 1)
    reference = torch.full((2, 4), 0.25, dtype=torch.float64)
    plain, weighted = (kl(trained(scores, weighting=w, steps=40), reference) for w in ("plain", "reliability"))
    assert float(weighted[0]) < 0.2 * float(plain[0])
    assert float(weighted[1]) == pytest.approx(float(plain[1]))


@pytest.mark.parametrize("weighting", ["plain", "reliability"])
def test_the_fixed_point_is_the_exact_policy_where_members_agree_on_the_order(weighting):
    scores = torch.tensor([0.9, 0.1, -0.4, -0.6], dtype=torch.float64).expand(3, 1, 4)
    exact = solve(scores[0], torch.full((1, 4), 0.25, dtype=torch.float64), 0.5)
    found = trained(scores, weighting=weighting, beta=0.5, steps=600, rate=1.0, batch=256)
    assert float((found - exact).abs().sum() / 2) < 0.02
