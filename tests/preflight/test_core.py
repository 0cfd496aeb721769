"""Draws, policies and outcomes on a synthetic world: held to brute force, to the theory's risk and to each other."""

from __future__ import annotations

import math

import pytest
import torch

from prudent.commands.preflight import core
from prudent.errors import PrudentError
from prudent.policies.finite import kl, solve
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import uniform_reference


@pytest.fixture(scope="module")
def drawn(world):
    pairs, candidates, truth = world()
    return core.draw_scores(pairs, candidates, draws=12, members=5, seed=3), candidates, truth


def test_same_seed_same_bits_and_draws_differ(drawn, world) -> None:
    pairs, candidates, _ = world()
    again = core.draw_scores(pairs, candidates, draws=12, members=5, seed=3)
    assert torch.equal(again.scores, drawn[0].scores)
    assert float((again.scores[0] - again.scores[1]).abs().max()) > 1e-3
    assert again.scores.shape == (12, 5, 12, 8)


def test_ridge_is_cross_validated_or_taken_as_given(drawn, world) -> None:
    pairs, candidates, _ = world()
    fixed = core.draw_scores(pairs, candidates, draws=2, members=2, ridge=0.25, seed=3)
    assert fixed.ridge == 0.25 and fixed.ridge_table is None
    assert drawn[0].ridge > 0 and len(drawn[0].ridge_table["held_out_loss"]) == len(drawn[0].ridge_table["grid"])


def test_uniform_reference_leaves_missing_places_out() -> None:
    reference = uniform_reference([2, 4], 4)
    assert reference.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.25] * 4]


def test_outcomes_agree_with_policies_solved_one_by_one(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    found = core.at_equal_beta(estimate, candidates.reference, truth, (0.1, 1.0))
    m, b = found.of("vanilla", 0.1)
    for draw in (0, 7):
        raw = scores.own[draw]
        centred = raw - raw.mean(-1, keepdim=True)  # the reference is uniform
        policy = torch.softmax(centred / 0.1, -1)
        gain = ((policy - 1 / 8) * truth).sum(-1)
        assert float(found.gain[m, b, draw]) == pytest.approx(float(gain.mean()), rel=1e-9)
        assert float(found.worse[m, b, draw]) == pytest.approx(float((gain < 0).double().mean()))
        assert float(found.kl[m, b, draw]) == pytest.approx(float(kl(policy, candidates.reference).mean()), rel=1e-9)
    # proportional: variance over members of centred scores, divided by its mean, floored
    members = scores.scores[4] - scores.scores[4].mean(-1, keepdim=True)
    variance = members.var(0)
    variance = (variance / variance.mean()).clamp_min(1e-2)
    own = scores.own[4] - scores.own[4].mean(-1, keepdim=True)
    policy = solve(own, candidates.reference, 0.1, variance=variance, form="proportional")
    m, b = found.of("proportional", 0.1)
    assert float(found.gain[m, b, 4]) == pytest.approx(float(((policy - 1 / 8) * truth).sum(-1).mean()), rel=1e-9)


def test_every_method_spends_vanillas_kl_in_every_draw(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    anchor = core.at_equal_beta(estimate, candidates.reference, truth, (0.1, 1.0))
    equal = core.at_equal_kl(estimate, candidates.reference, truth, anchor)
    target = anchor.kl[0]
    for m, method in enumerate(equal.methods):
        reached = torch.isfinite(equal.kl[m])
        assert float(reached.double().mean()) > 0.9, method
        assert torch.allclose(equal.kl[m][reached], target[reached], rtol=3e-3), method
    assert torch.equal(equal.gain[0], anchor.gain[0])


def test_beta_0_takes_each_prompts_best_candidate_by_the_rule_at_one_kl(drawn) -> None:
    scores, candidates, truth = drawn
    seen = core.estimate_of(scores, candidates.reference)
    found = core.at_equal_beta(seen, candidates.reference, truth, (0.0,))
    equal = core.at_equal_kl(seen, candidates.reference, truth, found)
    rules = {
        "vanilla": seen.reward,
        "mean": seen.mean,
        "min": seen.scores.min(-3).values,
        "lcb": seen.mean - seen.standard_deviation,
        "proportional": seen.reward / seen.variance,
        "bregman": seen.reward,
        "exact": seen.reward,
        "variance-only": -seen.variance,
    }
    for method, rule in rules.items():
        best = rule.argmax(-1, keepdim=True)
        gain = (truth.expand(rule.shape).gather(-1, best)[..., 0] - truth.mean(-1)).mean(-1)
        m, _ = found.of(method, 0.0)
        assert torch.allclose(found.gain[m, 0], gain, atol=1e-12), method
        assert torch.allclose(found.kl[m, 0], torch.tensor(math.log(8.0), dtype=torch.float64)), method
    assert torch.equal(found.gain, equal.gain) and torch.equal(equal.beta, torch.zeros_like(equal.beta))


def test_at_beta_0_equal_candidates_share() -> None:
    estimate = core.estimate_of(
        core.DrawnScores(torch.tensor([[[[1.0, 1, 0]], [[3, 3, 1]]]]), 0.0, None), uniform_reference([3], 3)
    )
    reference = torch.tensor([[0.2, 0.6, 0.2]], dtype=torch.float64)
    policy = METHODS["mean"](estimate, reference, 0.0)
    assert policy[0, 0].tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_a_shift_of_the_truth_per_prompt_changes_no_gain(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    shift = torch.arange(len(truth), dtype=torch.float64)[:, None] * 10
    plain = core.at_equal_beta(estimate, candidates.reference, truth, (0.3,))
    moved = core.at_equal_beta(estimate, candidates.reference, truth + shift, (0.3,))
    assert torch.allclose(plain.gain, moved.gain, atol=1e-10)


def test_the_blind_control_is_blind_and_the_shuffled_one_keeps_the_variances(drawn) -> None:
    scores, candidates, truth = drawn
    negated = core.DrawnScores(-scores.scores, scores.ridge, None, -scores.own)
    methods = ("vanilla", "variance-only")
    a, b = (
        core.at_equal_beta(
            core.estimate_of(s, candidates.reference), candidates.reference, truth, (0.3,), methods=methods
        )
        for s in (scores, negated)
    )
    assert torch.allclose(a.gain[1], b.gain[1], atol=1e-12)  # the reward's sign is nothing to it
    assert float((a.gain[0] - b.gain[0]).abs().min()) > 1e-6


def test_risk_of_vanilla_at_large_beta_is_the_theorys() -> None:
    """One prompt, R_hat = R* + N(0, Sigma): for small steps risk is Phi(-R*'PR* / ||PR*||_Sigma), P centring."""
    truth = torch.tensor([[0.1, 0.25, 0.1, -0.4, 0.27, 0.13]], dtype=torch.float64)
    variance = torch.tensor([[0.05, 0.4, 0.05, 0.05, 0.6, 0.05]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    draws = 6000
    noise = torch.randn((draws, 3, *truth.shape), generator=generator, dtype=torch.float64)
    reference = torch.full_like(truth, 1 / 6)
    estimate = core.estimate_of(core.DrawnScores(truth + noise * variance.sqrt(), 0.0, None), reference)
    found = core.table(core.at_equal_beta(estimate, reference, truth, (1e4,), methods=("vanilla",)))[0]
    centred = truth - truth.mean()
    expected = 0.5 * math.erfc(float((centred**2).sum() / (centred**2 * variance).sum().sqrt()) / math.sqrt(2))
    assert 0.05 < expected < 0.3
    assert found["risk"] == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / draws))


def test_table_counts_and_pairs(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    found = core.at_equal_beta(
        estimate, candidates.reference, truth, (0.3,), methods=("vanilla", "mean", "variance-only")
    )
    found.gain[2, 0, 0] = float("nan")
    rows = {row["method"]: row for row in core.table(found)}
    assert rows["variance-only"]["unreached"] == 1 and rows["variance-only"]["draws"] == 11
    assert rows["mean"]["vs_gain"] == pytest.approx(float((found.gain[1, 0] - found.gain[0, 0]).mean()))
    assert rows["vanilla"].get("vs_gain") is None
    assert [rows[name]["kind"] for name in rows] == ["baseline", "rival", "control"]
    assert rows["vanilla"]["risk"] == float((found.gain[0, 0] <= 0).double().mean())


def test_resampled_judges_give_a_range(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    judges = torch.stack([truth, -truth])
    found = core.at_equal_beta(estimate, candidates.reference, truth, (0.3,), methods=("vanilla",), judges=judges)
    assert torch.allclose(found.by_judge[0, 0, 0], found.gain[0, 0], atol=1e-10)
    row = core.table(found)[0]
    assert row["judge_gain_low"] < 0 < row["judge_gain_high"]
    joined = core.join([found, found])
    assert joined.gain.shape[-1] == 24 and joined.by_judge.shape == (1, 1, 2, 24)


def test_unusable_betas_are_refused(drawn) -> None:
    scores, candidates, truth = drawn
    estimate = core.estimate_of(scores, candidates.reference)
    for betas in ((), (-1.0,), (float("nan"),)):
        with pytest.raises(PrudentError, match="betas"):
            core.at_equal_beta(estimate, candidates.reference, truth, betas)
