"""Each objective's fixed point under policy gradients is the exact policy of ``policies.solve`` (SPEC 1, check 12)."""

import pytest
import torch

from prudent.errors import PrudentError
from prudent.policies.finite import solve
from prudent.policies.methods import METHODS, estimate
from prudent.rewards.aggregation import aggregate
from prudent.rewards.objectives import (
    OBJECTIVES,
    PESSIMISM_RULES,
    UTILITY_RULES,
    VARIANCE_OBJECTIVES,
    ReferenceStatistics,
    reference_statistics,
    shape,
)
from prudent.rewards.quantiles import utility

CHECK_6 = {"reward": [1, 0.8, 0.2, 0], "variance": [2, 0.5, 0.5, 1.0]}


def members(reward, variance, count=5):
    """Scores of ``count`` members with the given mean and sample variance exactly."""
    noise = torch.linspace(-1, 1, count, dtype=torch.float64)
    noise = noise / noise.std()
    reward, variance = (torch.tensor(v, dtype=torch.float64) for v in (reward, variance))
    return reward + noise[:, None] * variance.sqrt()


def fixed_point(shaped, reference, beta, steps=6000, rate=0.5):
    """Exact score-function gradient ascent on the logits, reward and KL weight detached as a trainer sees them."""
    logits = reference.log().clone()
    for _ in range(steps):
        policy = logits.softmax(0)
        signal = shaped.reward - beta * shaped.kl_weight * (policy.log() - reference.log())
        logits = logits + rate * policy * (signal - (policy * signal).sum())
    return logits.softmax(0)


def total_variation(a, b):
    return 0.5 * float((a - b).abs().sum())


def shaped_of(objective, scores, beta, seed=0):
    n = scores.shape[1]
    sizes = torch.cat([scores, scores.mean(0, keepdim=True)]).square().mean(1).sqrt()
    centre = torch.zeros(len(scores), 1, dtype=torch.float64)
    statistics = ReferenceStatistics(centre, scale=1.0, floor=1e-3, sizes=sizes)
    return shape(objective, scores, torch.zeros(n, dtype=torch.long), statistics, beta, seed=seed)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reference", [[0.25] * 4, [0.4, 0.3, 0.2, 0.1]])
def test_fixed_point_is_the_exact_policy(objective, reference):
    reference, beta = torch.tensor(reference, dtype=torch.float64), 1.0
    scores = members(**CHECK_6)
    shaped = shaped_of(objective, scores, beta)
    found = fixed_point(shaped, reference, beta)
    reward, variance = torch.tensor(CHECK_6["reward"], dtype=torch.float64), torch.tensor(CHECK_6["variance"])
    expected = {
        "vanilla": lambda: solve(reward, reference, beta),
        "proportional": lambda: solve(reward, reference, beta, variance=variance, form="proportional"),
        "bregman": lambda: solve(reward, reference, beta, variance=variance, form="bregman"),
        "exact": lambda: solve(reward, reference, beta, variance=variance, form="exact"),
        "variance-only": lambda: solve(reward.square().mean().sqrt().expand(4), reference, beta, variance=variance),
        "permuted": lambda: solve(shaped.reward, reference, beta),
    }
    rule = {name: lambda: solve(aggregate(scores, objective), reference, beta) for name in PESSIMISM_RULES}
    rule |= {name: lambda: solve(utility(scores, objective), reference, beta) for name in UTILITY_RULES}
    policy = {**expected, **rule}[objective]()
    assert total_variation(found, policy) < 1e-3


def test_exact_maximises_j_as_in_check_6():
    found = fixed_point(shaped_of("exact", members(**CHECK_6), 1.0), torch.full((4,), 0.25, dtype=torch.float64), 1.0)
    assert found.tolist() == pytest.approx([0.160136, 0.566626, 0.170665, 0.102574], abs=1e-4)


def test_unit_variance_makes_every_form_vanilla():
    scores = members([1, 0.8, 0.2, 0], [1.0] * 4)
    reward = shaped_of("vanilla", scores, 0.3).reward
    for objective in ("proportional", "bregman"):
        shaped = shaped_of(objective, scores, 0.3)
        torch.testing.assert_close(shaped.reward / shaped.kl_weight, reward)


def test_permuted_keeps_each_prompts_variances_and_cuts_the_link():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    prompts = torch.tensor([0, 1, 2] * 4)
    statistics = reference_statistics(scores, prompts)
    plain = shape("proportional", scores, prompts, statistics, 0.1)
    mixed = shape("permuted", scores, prompts, statistics, 0.1, seed=5)
    used = mixed.mean / mixed.reward
    for prompt in range(3):
        torch.testing.assert_close(
            used[prompts == prompt].sort().values, plain.variance[prompts == prompt].sort().values
        )
    assert not torch.allclose(used, plain.variance)


def test_statistics_centre_each_member_on_the_reference():
    scores = torch.tensor([[1.0, 3.0, 10.0], [0.0, 4.0, 20.0]])
    statistics = reference_statistics(scores, torch.tensor([0, 0, 1]))
    assert statistics.centre.tolist() == [[2.0, 10.0], [2.0, 20.0]]
    assert statistics.scale == pytest.approx((0.5 + 0) / 2)  # the mean over prompts


def test_quantiles_of_one_reward_are_centred_together():
    """Two arms of equal mean: the narrow one must keep the smaller variance, and the better utility."""
    wide, narrow = [-3.0, 0.0, 3.0], [-1.0, 0.0, 1.0]
    scores = torch.tensor([wide, narrow]).T + 7
    prompts = torch.zeros(2, dtype=torch.long)
    statistics = reference_statistics(scores, prompts, together=True)
    assert statistics.centre.tolist() == [[7.0]] * 3 and statistics.scale == pytest.approx((9 + 1) / 2)
    shaped = shape("steeper", scores, prompts, statistics, 0.1, rule_options={"aversion": 1.0})
    assert shaped.reward.tolist() == [-1.0, pytest.approx(-1 / 3)]
    assert shaped.variance.tolist() == [pytest.approx(9 / 5), pytest.approx(1 / 5)]
    apart = shape("proportional", scores, prompts, reference_statistics(scores, prompts), 0.1)
    assert apart.variance[0] == apart.variance[1]  # as an ensemble's members, whose offsets mean nothing


@pytest.mark.parametrize("objective", VARIANCE_OBJECTIVES)
def test_r16_identical_members_or_one_member_refuse_a_variance_objective(objective):
    for scores in (torch.ones(3, 4), torch.ones(1, 4)):
        statistics = reference_statistics(scores, torch.zeros(4, dtype=torch.long))
        with pytest.raises(PrudentError, match="needs a variance"):
            shape(objective, scores, torch.zeros(4, dtype=torch.long), statistics, 0.1)


def test_a_score_that_is_not_finite_is_named():
    scores = torch.ones(2, 3)
    statistics = reference_statistics(scores, torch.zeros(3, dtype=torch.long))
    scores[1, 2] = float("nan")
    with pytest.raises(PrudentError, match="member 1, response 2"):
        shape("vanilla", scores, torch.zeros(3, dtype=torch.long), statistics, 0.1)


def test_a_prompt_without_reference_samples_is_named():
    with pytest.raises(PrudentError, match="prompt 1 has no sample"):
        reference_statistics(torch.ones(2, 2), torch.tensor([0, 2]))


@pytest.mark.parametrize("member", [None, 1])
@pytest.mark.parametrize("objective", sorted(set(METHODS) - {"permuted", "mean"}))  # permuted: each draws a shuffle
def test_the_policy_of_preflight_is_the_fixed_point_of_training(objective, member):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    reference = torch.full((4, 6), 1 / 6, dtype=torch.float64)
    prompts = torch.arange(4).repeat_interleave(6)
    seen = estimate(scores, reference, reward="mean" if member is None else f"member:{member}")
    flat = scores.flatten(1)
    shaped = shape(objective, flat, prompts, reference_statistics(flat, prompts), 0.3, member=member)
    trained = solve(
        shaped.reward.reshape(4, 6), reference, 0.3, variance=shaped.kl_weight.reshape(4, 6), form="bregman"
    )
    torch.testing.assert_close(METHODS[objective](seen, reference, 0.3), trained, rtol=0, atol=1e-9)
