"""Strength finds planted flips, labels repaired by it train better models, and a model's accuracy predicts its use."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from prudent.data.repairs import Plan, plan_repairs
from prudent.errors import PrudentError
from prudent.evaluation.label_noise import Labels, compare_labels, find_flips, plant_flips
from prudent.evaluation.reward_uses import best_of_reference, reward_uses, win_shares
from prudent.rewards.losses import bradley_terry
from prudent.rewards.strength import decile_groups, decile_table, shares, strength, strength_of_differences


def world(n: int = 2000, d: int = 16, seed: int = 0, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(chosen, rejected) features whose true reward is linear; noise: spread added to the margin before labelling."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(d, generator=torch.Generator().manual_seed(99))
    one, other = torch.randn(2, n, d, generator=generator)
    margin = (one - other) @ truth + noise * torch.randn(n, generator=generator)
    first = (margin > 0)[:, None]
    return torch.where(first, one, other), torch.where(first, other, one)


def flipped(chosen: torch.Tensor, rejected: torch.Tensor, wrong: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    turn = torch.from_numpy(wrong)[:, None]
    return torch.where(turn, rejected, chosen), torch.where(turn, chosen, rejected)


@pytest.mark.parametrize("in_sample", [False, True])
def test_planted_flips_are_found(in_sample: bool) -> None:
    wrong = plant_flips(2000, 0.2, seed=1)
    found = strength(*flipped(*world(), wrong), members=10, in_sample=in_sample, seed=0)
    assert found.mode == ("in-sample" if in_sample else "cross-fitted")
    result = find_flips(found.mean, wrong, [0.2])
    assert result["auroc"].value > 0.9 and result["base_rate"] == pytest.approx(0.2)
    row = result["by_share"][0]
    assert row["wrong_after_flipping"] < 0.06 and row["precision"] == row["recall"] > 0.85
    weak = shares(found.mean, found.std)
    assert 0.15 < weak["below_zero"] < 0.3 and weak["opposed"] < weak["below_zero"]


def test_agreement_rises_over_deciles() -> None:
    wrong = plant_flips(2000, 0.2, seed=2)
    found = strength(*flipped(*world(seed=3), wrong), seed=0)
    table = decile_table(found.mean, found.std, (~wrong).astype(float))
    agreement = [row["agreement"] for row in table]
    assert [row["pairs"] for row in table] == [200] * 10 and all(row["labelled"] == 200 for row in table)
    assert all(b >= a - 0.02 for a, b in itertools.pairwise(agreement)) and agreement[0] < 0.1 and agreement[-1] > 0.98
    strengths = [row["mean"] for row in table]
    assert strengths == sorted(strengths)


def test_no_member_judges_a_pair_it_trained_on() -> None:
    """Labels drawn by a coin can't be foretold: cross-fitted strength is centred at zero, in-sample it is not."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 200, 80, generator=generator)
    honest = strength(chosen, rejected, ridge=1e-3, seed=0).mean
    fitted = strength(chosen, rejected, ridge=1e-3, in_sample=True, seed=0).mean
    assert abs(float((honest > 0).double().mean()) - 0.5) < 0.12
    assert float((fitted > 0).double().mean()) > 0.75


def test_pairs_of_one_prompt_share_a_fold_and_order_does_not_matter() -> None:
    chosen, rejected = world(300)
    groups = [f"prompt {i // 3}" for i in range(300)]
    found = strength(chosen, rejected, groups, ridge=0.1, seed=4)
    assert all(len(set(found.fold[i : i + 3].tolist())) == 1 for i in range(0, 300, 3))
    assert found.margins.shape == (10, 300) and found.info["prompts"] == 100
    turned = strength(rejected, chosen, groups, ridge=0.1, seed=4)
    flipped_back = strength_of_differences(torch.zeros(300, 2) + 1.0, groups, ridge=0.1, seed=4)
    assert turned.mode == flipped_back.mode and bool(torch.isfinite(flipped_back.mean).all())
    with pytest.raises(PrudentError, match="5 folds need"):
        strength(chosen, rejected, ["one"] * 300)
    with pytest.raises(PrudentError, match="at least 2"):
        strength(chosen, rejected, members=1)


def test_soft_labels_and_margins_as_the_paper_writes_them() -> None:
    for p in (0.0, 0.1, 0.4):
        assert bradley_terry(torch.zeros(1), soft_label=torch.tensor([1 - p])).item() == pytest.approx(math.log(2))
    one = torch.ones(1, dtype=torch.float64)
    assert bradley_terry(one, soft_label=0.9 * one).item() == pytest.approx(0.413262, abs=1e-6)
    assert bradley_terry(one, margin=one).item() == pytest.approx(math.log(2))
    difference = torch.linspace(0, 5, 50_001, dtype=torch.float64)
    losses = bradley_terry(difference, soft_label=torch.full_like(difference, 0.9))
    assert difference[losses.argmin()].item() == pytest.approx(math.log(9), abs=1e-3)


def test_repairs_regain_what_planted_faults_cost() -> None:
    chosen, rejected = world(600, noise=1.0)
    test_chosen, test_rejected = world(800, seed=5)
    wrong = plant_flips(600, 0.3, seed=0)
    bad = flipped(chosen, rejected, wrong)
    found = strength(*bad, seed=0)
    plan = plan_repairs(
        found.mean.numpy(), found.probability.numpy(), decile_groups(found.mean).numpy(), Plan(flip=0.3)
    )
    every, none = np.ones(600, dtype=bool), np.zeros(600, dtype=bool)
    variants = {"bad": Labels(none, every), "clean": Labels(wrong, every), "repaired": Labels(plan.flip, every)}
    table = compare_labels(
        bad[0] - bad[1],
        test_chosen - test_rejected,
        variants,
        groups=list(range(600)),
        test_groups=list(range(800)),
        seeds=20,
        ridge=0.05,
    )
    assert len(table["bad"].by_seed) == 20 and table["bad"].gain is None
    assert table["clean"].gain is not None and table["clean"].gain.low > 0
    assert table["repaired"].gain is not None and table["repaired"].gain.low > 0
    assert table["repaired"].accuracy.value < table["clean"].accuracy.value + 0.01
    same = compare_labels(
        bad[0] - bad[1],
        test_chosen - test_rejected,
        {"a": variants["bad"], "b": variants["bad"]},
        groups=list(range(600)),
        test_groups=list(range(800)),
        seeds=3,
        ridge=0.05,
    )
    assert same["b"].gain is not None and same["b"].gain.value == 0 and same["b"].seeds_better == 0.5


def test_variants_share_the_first_ones_ridge_and_show_their_own() -> None:
    chosen, rejected = world(200, noise=2.0)
    wrong = plant_flips(200, 0.4, seed=1)
    every, none = np.ones(200, dtype=bool), np.zeros(200, dtype=bool)
    table = compare_labels(
        chosen - rejected,
        torch.randn(80, 16),
        {"given": Labels(none, every), "noise": Labels(wrong, every)},
        groups=list(range(200)),
        test_groups=list(range(80)),
        seeds=3,
    )
    given, noise = table["given"], table["noise"]
    assert noise.ridge == given.ridge and given.own_ridge is None
    assert noise.own_ridge is not None and noise.own_ridge > noise.ridge  # labels that say little want a larger one
    assert noise.own_gain is not None and noise.gain is not None and noise.own_gain != noise.gain.value


def test_dropping_pairs_equals_never_having_had_them() -> None:
    chosen, rejected = world(120, noise=2.0)
    keep = np.arange(120) % 2 == 0
    test = torch.randn(50, 16)
    full = compare_labels(
        chosen - rejected,
        test,
        {"x": Labels(np.zeros(120, bool), keep)},
        groups=list(range(120)),
        test_groups=list(range(50)),
        seeds=2,
        ridge=0.1,
    )["x"]
    assert full.pairs == 60
    weighted = compare_labels(
        chosen - rejected,
        test,
        {"x": Labels(np.zeros(120, bool), np.ones(120, bool), weight=keep.astype(float))},
        groups=list(range(120)),
        test_groups=list(range(50)),
        seeds=2,
        ridge=0.1,
    )["x"]
    assert np.allclose(full.by_seed, weighted.by_seed)


def test_better_reward_models_lead_to_better_policies() -> None:
    """Ten reward models of graded noise in a Gaussian toy: Spearman of accuracy and true value above 0.9."""
    generator = torch.Generator().manual_seed(0)
    gold = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    noise = torch.linspace(0.2, 4, 10, dtype=torch.float64)[:, None, None]
    scores = gold + noise * torch.randn(10, 200, 16, generator=generator, dtype=torch.float64)
    policies = torch.softmax(torch.linspace(-1, 2, 9)[:, None, None] * gold, -1)
    uses = reward_uses(scores, gold, policies)
    for name in ("best_of_n", "rl", "ranking"):
        assert uses.correlations[name].value > 0.9, name
    assert uses.accuracy[0] > 0.9 > uses.accuracy[-1] > 0.5
    assert uses.rl[0] > uses.rl[-1] > -0.2 and uses.judge[0] > 0.95


def test_uses_against_brute_force() -> None:
    reward = torch.tensor([[3.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    reference = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    wins = win_shares(reward, reference)[0]
    assert wins.tolist() == pytest.approx([0.95, 0.65, 0.65, 0.2])
    generator = np.random.default_rng(0)
    draws = generator.choice(4, size=(100_000, 3), p=reference[0].numpy())
    noise = generator.random(draws.shape) * 1e-6  # ties at random
    best = draws[np.arange(len(draws)), np.argmax(reward[0].numpy()[draws] + noise, axis=1)]
    exact = best_of_reference(reward, reference, 3)[0]
    assert exact.sum().item() == pytest.approx(1.0)
    assert np.bincount(best, minlength=4) / len(best) == pytest.approx(exact.numpy(), abs=0.006)
    with pytest.raises(PrudentError, match="at least 3"):
        reward_uses(torch.zeros(2, 1, 4), torch.zeros(1, 4), torch.zeros(3, 1, 4))


def test_pairs_of_equal_strength_share_a_decile() -> None:
    mean = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    assert decile_groups(mean).tolist() == [1, *[5] * 8, 10]
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(0))
    assert torch.equal(decile_groups(mean[order]), decile_groups(mean)[order])
    assert decile_groups(torch.arange(20.0)).tolist() == [number // 2 + 1 for number in range(20)]
