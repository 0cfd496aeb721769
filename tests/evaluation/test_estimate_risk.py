"""The risk of the policy trained on given pairs, held to planted worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import prudent
from prudent.errors import PrudentError
from prudent.evaluation.posterior_risk import draw_rewards, reward_posterior, risk_without_gold, separate_pairs
from prudent.evaluation.risk_estimate import _moves
from prudent.evaluation.shift import candidate_midpoints, mean_shift
from prudent.policies import METHODS, estimate


def world(seed: int, signal: float, pairs: int = 150, width: int = 8, prompts: int = 12, candidates: int = 6):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = signal * normal(width) / width**0.5
    left, right = normal(pairs, width), normal(pairs, width)
    wins = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid((left - right) @ truth)
    chosen, rejected = torch.where(wins[:, None], left, right), torch.where(wins[:, None], right, left)
    features = normal(prompts, candidates, width)
    reference = torch.full((prompts, candidates), 1 / candidates, dtype=torch.float64)
    return chosen, rejected, [number // 3 for number in range(pairs)], features, reference, features @ truth


def test_a_clear_signal_is_a_small_risk_and_none_is_a_large_one() -> None:
    def promised(seed: int, signal: float) -> float:
        return prudent.estimate_risk(*world(seed, signal)[:5], methods=("vanilla",))[0]["risk"]

    assert np.mean([promised(seed, 2.0) for seed in range(4)]) < 0.05
    assert np.mean([promised(seed, 0.0) for seed in range(6)]) > 0.15


def test_with_gold_the_risk_is_of_this_data_set_and_the_procedures_stands_beside_it() -> None:
    *arrays, gold = world(1, 2.0)
    rows = prudent.estimate_risk(*arrays, betas=(0.1, 1.0), draws=20, gold=gold)
    assert [row["method"] for row in rows] == ["vanilla"] * 2 + ["lcb"] * 2 + ["proportional"] * 2
    for row in rows:
        assert row["risk"] < 0.05 and row["gain"] > 0
        assert row["procedure_low"] <= row["procedure_risk"] <= row["procedure_high"]
    assert all(row["risk"] > 0.95 for row in prudent.estimate_risk(*arrays, draws=20, gold=-gold))
    assert rows == prudent.estimate_risk(*arrays, betas=(0.1, 1.0), draws=20, gold=gold)


def test_too_few_pairs_give_the_widest_interval_and_a_reason() -> None:
    rows = prudent.estimate_risk(*world(1, 1.0, pairs=12)[:5])
    assert all(
        row["risk"] is None and (row["low"], row["high"]) == (0, 1) and "12 pairs" in row["reason"] for row in rows
    )


def test_gold_on_few_prompts_gives_no_risk_and_the_share_of_resamples_with_the_widest_interval() -> None:
    *arrays, gold = world(1, 2.0)
    pool, reference = arrays[3][:5], arrays[4][:5]
    row = prudent.estimate_risk(*arrays[:3], pool, reference, methods=("vanilla",), draws=20, gold=gold[:5])[0]
    assert row["risk"] is None and row["gain"] is None and "5 prompts" in row["reason"]
    assert (row["low"], row["high"]) == (row["procedure_low"], row["procedure_high"]) == (0.0, 1.0)
    full = prudent.estimate_risk(*arrays, methods=("vanilla",), draws=20, gold=gold)[0]
    assert 0 <= row["procedure_risk"] <= 1 and full["procedure_high"] < 1


def test_the_procedure_risk_without_gold_falls_with_the_signal_and_needs_draws() -> None:
    def row(seed: int, signal: float, draws: int = 200) -> dict:
        return prudent.estimate_risk(*world(seed, signal)[:5], methods=("vanilla",), draws=draws)[0]

    clear, none = row(0, 2.0), [row(seed, 0.0) for seed in range(4)]
    assert clear["procedure_low"] <= clear["procedure_risk"] < 0.05
    assert np.mean([one["procedure_risk"] for one in none]) > 0.15
    assert all(one["procedure_high"] >= 0.5 and "signal from none" in one["reason"] for one in none)
    assert clear["reason"] is None
    few = row(0, 2.0, draws=79)
    assert few["procedure_risk"] is None and (few["procedure_low"], few["procedure_high"]) == (0, 1)


def test_candidates_outside_the_pairs_widen_the_interval_and_are_named() -> None:
    chosen, rejected, groups, features, reference, _ = world(0, 2.0)
    chosen, rejected = chosen.clone(), rejected.clone()
    rejected[:, :4] = chosen[:, :4] + 0.01 * rejected[:, :4]  # four of eight directions in which pairs hardly differ
    chosen[:, 0], rejected[:, 0] = torch.arange(150.0) % 7, torch.arange(150.0) % 7 + 0.001 * torch.arange(150.0)
    row = prudent.estimate_risk(chosen, rejected, groups, 3 * features, reference, methods=("vanilla",))[0]
    assert "outside what the pairs span" in row["reason"] and row["high"] >= 0.5 and row["procedure_high"] >= 0.5
    with pytest.raises(PrudentError, match="equal in all 150 pairs"):
        prudent.estimate_risk(chosen, chosen, groups, features, reference)


def test_pairs_of_another_kind_than_the_candidates_widen_the_interval_and_are_named() -> None:
    chosen, rejected, groups, features, reference, _ = world(0, 2.0, prompts=40)
    same = prudent.estimate_risk(chosen, rejected, groups, features, reference, methods=("vanilla",))[0]
    assert same["reason"] is None and same["high"] < 0.5
    moved = features + torch.tensor([1.0] + [0.0] * 7)  # no policy differs: the prompts alone do
    row = prudent.estimate_risk(chosen, rejected, groups, moved, reference, methods=("vanilla",))[0]
    assert row["risk"] == pytest.approx(same["risk"], abs=1e-9)
    assert "of another kind" in row["reason"] and row["high"] >= 0.5 and row["procedure_high"] >= 0.5


def test_the_test_of_one_kind_is_exact_where_both_are_alike_and_sees_a_shift() -> None:
    generator = np.random.default_rng(0)

    def p(apart: float) -> float:
        features, weight = generator.normal(size=(40, 3, 20)), np.tile([0.6, 0.4, 0.0], (40, 1))
        features[:, 2] = np.nan  # masked: never drawn
        return mean_shift(
            generator.normal(size=(60, 20)) * 0.5**0.5 + apart,
            candidate_midpoints(features, weight, generator),
            generator,
        )

    alike = np.array([p(0.0) for _ in range(200)])
    assert 0.005 <= (alike <= 0.1).mean() <= 0.17 and (alike <= 0.01).mean() <= 0.03
    assert np.mean([p(0.3) for _ in range(20)]) < 0.01
    only = candidate_midpoints(np.ones((2, 3, 1)) * [[[1.0], [2.0], [3.0]]], np.array([[0, 1.0, 0]] * 2), generator)
    assert only.tolist() == [[2.0], [2.0]]


def test_drawn_rewards_have_the_posteriors_mean_and_variance() -> None:
    better, worse, *_ = world(3, 1.0)
    pairs, moves = (better - worse).numpy(), np.eye(8)
    posterior = reward_posterior(pairs, no_signal=1e-9)
    only = np.zeros_like(posterior.weight)
    only[4] = 1.0
    posterior = posterior._replace(weight=only)
    drawn = draw_rewards(posterior, 4000, np.random.default_rng(0))
    found = risk_without_gold(posterior, moves)
    np.testing.assert_allclose(drawn.mean(0), found.gain, atol=0.02)
    np.testing.assert_allclose((drawn <= 0).mean(0), found.risk, atol=0.04)


def test_bad_input_is_named() -> None:
    arrays = list(world(1, 1.0)[:5])
    with pytest.raises(PrudentError, match="must be of"):
        prudent.estimate_risk(*arrays, methods=("nonsense",))
    with pytest.raises(PrudentError, match="betas"):
        prudent.estimate_risk(*arrays, betas=(0.0,))
    with pytest.raises(PrudentError, match="draws"):
        prudent.estimate_risk(*arrays, draws=-3)
    for gold in (torch.zeros(12, 1), torch.zeros(11, 6)):
        with pytest.raises(PrudentError, match="gold must be"):
            prudent.estimate_risk(*arrays, gold=gold)
    with pytest.raises(PrudentError, match="prompt names"):
        prudent.estimate_risk(arrays[0][:-1], *arrays[1:])
    arrays[0][3, 2] = float("nan")
    with pytest.raises(PrudentError, match="pair 3"):
        prudent.estimate_risk(*arrays)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"permuted"}))  # permuted: a shuffle for each of a batch
def test_a_draw_is_taken_about_the_fit_on_all_pairs_whatever_the_others_are(method: str) -> None:
    generator = torch.Generator().manual_seed(5)
    ensemble, full, fresh = (torch.randn(k, 4, 6, generator=generator, dtype=torch.float64) for k in (5, 1, 3))
    reference = torch.full((4, 6), 1 / 6, dtype=torch.float64)
    found = _moves(ensemble, full, fresh, reference, method, 0.3)
    alone = torch.cat([_moves(ensemble, full, draw[None], reference, method, 0.3) for draw in fresh])
    torch.testing.assert_close(found, alone)
    own = METHODS[method](estimate(ensemble, reference, reward=full[0]), reference, 0.3) - reference
    torch.testing.assert_close(_moves(ensemble, full, full, reference, method, 0.3)[0], own)


def test_pairs_that_share_a_response_count_once():
    generator = np.random.default_rng(3)
    responses = generator.normal(size=(6, 4))  # of two prompts, three each
    groups = ["a", "a", "a", "b", "b", "b"]
    chosen, rejected = responses[[0, 0, 1, 3, 3, 4]], responses[[1, 2, 2, 4, 5, 5]]
    kept = separate_pairs(chosen, rejected, groups)
    assert {groups[k] for k in kept} == {"a", "b"} and len(kept) == 2
    order = np.array([4, 2, 0, 3, 1, 5])
    again = order[separate_pairs(chosen[order], rejected[order], [groups[k] for k in order])]
    assert set(again) == set(kept)  # whatever the rows' order
    # The same text under another prompt is another response; responses that seldom recur leave all pairs.
    assert len(separate_pairs(chosen[[0, 0]], rejected[[0, 0]], ["a", "b"])) == 2
    assert len(separate_pairs(chosen[[0, 1, 3]], rejected[[0, 1, 3]], ["a", "a", "b"])) == 3


def test_answers_without_signal_about_few_responses_promise_nothing():
    """A response's own reward, of which the features say nothing, comes back in each of its pairs."""
    generator = np.random.default_rng(0)
    promised = []
    for _ in range(6):
        features, gold = generator.normal(size=(60, 4, 40)), 2 * generator.normal(size=(60, 4))
        first, second = (side.ravel() for side in np.triu_indices(4, 1))
        prompts = np.repeat(np.arange(60), 6)
        one, other = np.tile(first, 60), np.tile(second, 60)
        wins = generator.random(360) < 1 / (1 + np.exp(gold[prompts, other] - gold[prompts, one]))
        better, worse = np.where(wins, one, other), np.where(wins, other, one)
        candidates = generator.normal(size=(30, 8, 40))
        rows = prudent.estimate_risk(
            features[prompts, better],
            features[prompts, worse],
            prompts.tolist(),
            candidates,
            np.full((30, 8), 1 / 8),
            methods=("vanilla",),
            draws=0,
        )
        promised.append(rows[0]["risk"])
    assert np.mean(promised) > 0.2  # .12 by all 360 pairs, 2 % and less in three data sets of twelve
