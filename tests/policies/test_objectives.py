"""Each objective's fixed point under policy gradients is the exact policy of ``policies.solve`` (SPEC 1, check 12)."""

import pytest
import torch

from prudent.errors import PrudentError
from prudent.policies.estimates import ReferenceStatistics, estimate, reference_statistics
from prudent.policies.finite import solve
from prudent.policies.objectives import OBJECTIVES, VARIANCE_OBJECTIVES, shape
from prudent.rewards.aggregation import RULES, aggregate
from prudent.rewards.quantiles import utility

CHECK_6 = {"reward": [1, 0.8, 0.2, 0], "variance": [2, 0.5, 0.5, 1.0]}


def members(reward, variance, count=5):
    """Scores of ``count`` members with the given mean and sample variance exactly."""
    noise = torch.linspace(-1, 1, count, dtype=torch.float64)
    noise = noise / noise.std()
    reward, variance = (torch.tensor(v, dtype=torch.float64) for v in (reward, variance))
    return reward + noise[:, None] * variance.sqrt()


def fixed_point(reward, weight, reference, beta, steps=6000, rate=0.5):
    """Exact score-function gradient ascent on the logits, reward and KL weight detached as a trainer sees them."""
    logits = reference.log().clone()
    for _ in range(steps):
        policy = logits.softmax(0)
        signal = reward - beta * weight * (policy.log() - reference.log())
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
    found = fixed_point(shaped.reward, shaped.kl_weight, reference, beta)
    reward, variance = torch.tensor(CHECK_6["reward"], dtype=torch.float64), torch.tensor(CHECK_6["variance"])
    if objective == "permuted":
        variance = reward / shaped.reward  # whatever the shuffle; where the reward is 0 the variance is of no account
    if objective == "variance-only":
        reward = reward.square().mean().sqrt().expand(4)
    if OBJECTIVES[objective].variance is not None:
        policy = solve(reward, reference, beta, variance=variance.nan_to_num(1.0), form=OBJECTIVES[objective].form)
    elif OBJECTIVES[objective].kind == "utility":
        policy = solve(utility(scores, objective), reference, beta)
    elif objective in RULES:
        policy = solve(aggregate(scores, objective), reference, beta)
    else:
        policy = solve(reward, reference, beta)
    assert total_variation(found, policy) < 1e-3


def test_exact_maximises_j_as_in_check_6():
    shaped = shaped_of("exact", members(**CHECK_6), 1.0)
    found = fixed_point(shaped.reward, shaped.kl_weight, torch.full((4,), 0.25, dtype=torch.float64), 1.0)
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
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_exact_policy_is_the_fixed_point_of_training(objective, member):
    """A pool scored whole, and the same responses as a trainer gets them: one row, one policy, for every name."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    reference = torch.full((4, 6), 1 / 6, dtype=torch.float64)
    prompts = torch.arange(4).repeat_interleave(6)
    known = estimate(scores, reference, reward="mean" if member is None else f"member:{member}")
    flat = scores.flatten(1)
    shaped = shape(objective, flat, prompts, reference_statistics(flat, prompts), 0.3, member=member, seed=9)
    reward, weight = shaped.reward.reshape(4, 6), shaped.kl_weight.reshape(4, 6)
    exact = OBJECTIVES[objective](known, reference, 0.3, seed=9)
    # bregman's solution is the fixed point of any reward and KL weight: pi0 exp((r - lam) / (beta w))
    trained = solve(reward, reference, 0.3, variance=weight, form="bregman")
    torch.testing.assert_close(exact, trained, rtol=0, atol=1e-9)
    torch.testing.assert_close(exact[0], fixed_point(reward[0], weight[0], reference[0], 0.3), rtol=0, atol=1e-3)


def test_an_option_that_an_objective_hasn_t_got_is_refused():
    for objective, option in (("vanilla", "coefficient"), ("lcb", "aversion"), ("steeper", "level")):
        with pytest.raises(PrudentError, match=f"{objective}' has no option {option}"):
            shape(*_two_responses(objective), 0.1, rule_options={option: 1.0})
    half = shape(*_two_responses("lcb"), 0.1, rule_options={"coefficient": 0.5})
    torch.testing.assert_close(
        half.reward, torch.stack([s.reward for s in map(_shaped_twice, ("lcb", "mean"))]).mean(0)
    )


def _two_responses(objective):
    scores, prompts = torch.tensor([[1.0, 2.0], [0.0, 4.0], [0.5, 3.0]]), torch.zeros(2, dtype=torch.long)
    return objective, scores, prompts, reference_statistics(scores, prompts)


def _shaped_twice(objective):
    return shape(*_two_responses(objective), 0.1)


def test_the_controls_look_at_nothing_but_what_they_control():
    """Variance-only rewards low variance whatever the scores' signs; permuted at equal variances is proportional."""
    scores = members(**CHECK_6)
    torch.testing.assert_close(
        shaped_of("variance-only", scores, 0.3).reward, shaped_of("variance-only", -scores, 0.3).reward
    )
    even = members(CHECK_6["reward"], [0.7] * 4)
    for seed in range(3):
        torch.testing.assert_close(
            shaped_of("permuted", even, 0.3, seed).reward, shaped_of("proportional", even, 0.3).reward
        )
