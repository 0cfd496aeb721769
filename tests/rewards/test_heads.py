import math

import numpy as np
import pytest
import torch

from prudent import HeadEnsemble, PrudentError, moments
from prudent.rewards.containers import PairFeatures
from prudent.rewards.convex import fit_heads
from prudent.rewards.draws import (
    PairDifference,
    bootstrap_counts,
    choose_ridge,
    draw_counts,
    draw_heads,
    fit_resamples,
    standard_difference,
    standardisation,
)
from prudent.rewards.heads import DIVERSITIES
from prudent.rewards.training import member_seeds
from prudent.rewards.uncertainty import margin_moments
from prudent.seeding import spawn


def world(pairs: int, width: int = 16, seed: int = 0, truth: torch.Tensor | None = None):
    """Gaussian features, Bradley-Terry labels from a linear truth N(0, I)/2."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(width, generator=generator) / 2 if truth is None else truth
    first, second = torch.randn(2, pairs, width, generator=generator) / math.sqrt(2)
    better = torch.rand(pairs, generator=generator) < torch.sigmoid((first - second) @ truth)
    chosen = torch.where(better[:, None], first, second)
    return chosen, torch.where(better[:, None], second, first), truth


@pytest.mark.parametrize("diversity", DIVERSITIES)
def test_members_differ_share_an_origin_and_repeat(diversity):
    chosen, rejected, _ = world(120)
    options = {"members": 4, "diversity": diversity, "ridge": 0.05}
    ensemble = HeadEnsemble.fit(chosen, rejected, **options, seed=3)
    scores = ensemble.scores(torch.cat([chosen, rejected]))
    assert scores.shape == (4, 240) and scores.dtype == torch.float32
    assert float(scores.mean(1).abs().max()) < 1e-5
    assert float(moments(scores)[1].min()) > 0
    assert torch.equal(HeadEnsemble.fit(chosen, rejected, **options, seed=3).weights, ensemble.weights)
    assert not torch.equal(HeadEnsemble.fit(chosen, rejected, **options, seed=4).weights, ensemble.weights)


@pytest.mark.parametrize("diversity", DIVERSITIES)
def test_members_fitted_together_equal_each_alone(diversity):
    chosen, rejected, _ = world(75, width=9)
    columns = {"weight": torch.rand(75) + 0.1, "soft_label": torch.rand(75), "margin": torch.randn(75)}
    options = {"diversity": diversity, "ridge": 0.02, "epochs": 3, **columns}
    seeds = member_seeds(11, 5)
    joint = HeadEnsemble.fit(chosen, rejected, members=5, seed=seeds, **options).weights
    for member, seed in enumerate(seeds):
        # what members share (common order or start) comes from the first seed, so it leads here too
        shared = [seeds[0], seed] if member else [seed]
        alone = HeadEnsemble.fit(chosen, rejected, members=len(shared), seed=shared, **options).weights[-1]
        assert float((joint[member] - alone).abs().max()) < 1e-6
    first = HeadEnsemble.fit(chosen, rejected, members=5, seed=11, **options).weights
    assert torch.equal(first[:2], HeadEnsemble.fit(chosen, rejected, members=2, seed=11, **options).weights)


def test_more_pairs_give_less_spread_at_equal_accuracy():
    """Check 10 of the specification: K = 10 bootstrap heads on 16 Gaussian features, 200 and 2,000 pairs."""
    test_chosen, test_rejected, truth = world(4000, seed=9)
    spread, ratio = {}, {}
    for pairs in (200, 2000):
        chosen, rejected, _ = world(pairs, seed=1, truth=truth)
        ensemble = HeadEnsemble.fit(chosen, rejected, members=10, ridge=0.01)
        good, bad = ensemble.scores(test_chosen), ensemble.scores(test_rejected)
        accuracy = (good > bad).float().mean(1)
        mean, variance = margin_moments(good, bad)
        assert float(accuracy.max() - accuracy.min()) < 0.1
        assert float((mean > 0).float().mean()) >= float(accuracy.median()) - 0.01
        spread[pairs] = float(variance.mean())
        ratio[pairs] = float((variance.sqrt() / mean.abs()).median())
    assert spread[200] / spread[2000] > 6
    assert ratio[200] > 2 * ratio[2000]


def test_ridge_is_chosen_where_held_out_loss_is_lowest():
    chosen, rejected, _ = world(300, width=40)
    ridge, table = choose_ridge(chosen - rejected)
    assert ridge == table["grid"][int(np.argmin(table["held_out_loss"]))]
    # the table is what one fit per fold and value gives
    generator = np.random.default_rng(np.random.SeedSequence(0))
    fold = torch.from_numpy(generator.permutation(300) % 5)
    total = 0.0
    for k in range(5):
        head = fit_heads((chosen - rejected)[fold != k], ridge=table["grid"][4]).weights[0]
        held = (chosen - rejected)[fold == k].double() @ head
        total += float(torch.nn.functional.softplus(-held).sum())
    assert table["held_out_loss"][4] == pytest.approx(total / 300, abs=1e-5)


def test_ridge_grows_with_noise():
    chosen, rejected, _ = world(400, width=60)
    coin = torch.rand(400, 1, generator=torch.Generator().manual_seed(5)) < 0.5
    clean, _ = choose_ridge(chosen - rejected)
    noisy, _ = choose_ridge(torch.where(coin, 1, -1) * (chosen - rejected))
    assert noisy > clean


def test_whole_prompts_are_resampled_together():
    groups = [f"prompt {row // 3}" for row in range(30)]
    counts = draw_counts(30, 5, 4, seed=0, groups=groups)
    assert counts.shape == (5, 1 + 4, 30)
    assert torch.equal(counts[..., ::3], counts[..., 1::3]) and torch.equal(counts[..., ::3], counts[..., 2::3])
    assert torch.equal(counts.sum(-1), torch.full((5, 5), 30.0))


def test_members_resample_their_draw():
    counts = draw_counts(50, 6, 8, seed=1)
    own, members = counts[:, 0], counts[:, 1:]
    assert bool((members.sum(1)[own == 0] == 0).all())  # a draw's members know nothing that it lacks
    assert 0.3 < float((own == 0).float().mean()) < 0.45  # (1 - 1/n)^n = .364
    assert torch.equal(counts[:3], draw_counts(50, 3, 8, seed=1))


def test_a_draws_reward_model_is_fitted_on_all_that_it_drew_and_varies_as_one_resample_does():
    chosen, rejected, _ = world(120, width=5)
    pairs = PairFeatures(chosen, rejected, list(range(120)))
    drawn = draw_heads(pairs, 60, 6, ridge=0.05, seed=2)
    _, count_seed = spawn(2, 2)
    difference = standard_difference(chosen, rejected, drawn.scale)
    counts = draw_counts(120, 60, 6, count_seed)
    alone = fit_resamples(difference, counts[7, :1], ridge=0.05).weights[0]
    assert torch.allclose(drawn.weights[7, 0].double(), alone.double(), atol=1e-3)
    once = fit_resamples(difference, bootstrap_counts(120, spawn(9, 60)), ridge=0.05).weights
    own, twice = drawn.weights[:, 0].var(0).sum(), drawn.weights[:, 1].var(0).sum()
    assert 0.7 < float(own / once.var(0).sum()) < 1.4
    assert float(twice / own) > 1.5  # a member of a draw is a resample of a resample
    ensembles = HeadEnsemble.of_draws(drawn)
    assert len(ensembles) == 60 and torch.equal(ensembles[3].weights, drawn.weights[3])


def test_scale_and_shift_of_features_do_not_matter():
    chosen, rejected, _ = world(80, width=6)
    factor, shift = torch.tensor([1e-3, 1.0, 50.0, 2.0, 7.0, 1.0]), torch.tensor([5.0, -3.0, 1e3, 0.0, 0.0, 2.0])
    plain = HeadEnsemble.fit(chosen, rejected, ridge=0.1, members=3)
    moved = HeadEnsemble.fit(chosen * factor + shift, rejected * factor + shift, ridge=0.1, members=3)
    assert torch.allclose(plain.scores(chosen), moved.scores(chosen * factor + shift), atol=1e-3)


def test_constant_features_do_no_harm():
    chosen, rejected, _ = world(60, width=5)
    chosen[:, 2] = rejected[:, 2] = 4.0
    mean, scale = standardisation(chosen, rejected)
    assert float(mean[2]) == pytest.approx(4.0) and float(scale[2]) == 1.0
    assert bool(torch.isfinite(HeadEnsemble.fit(chosen, rejected, members=2).scores(chosen)).all())


def test_memory_maps_are_fitted_like_arrays(tmp_path):
    chosen, rejected, _ = world(70, width=8)
    paths = []
    for name, values in (("chosen", chosen), ("rejected", rejected)):
        np.save(tmp_path / f"{name}.npy", values.numpy())
        paths.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    assert isinstance(paths[0], np.memmap)
    assert torch.equal(HeadEnsemble.fit(*paths).weights, HeadEnsemble.fit(chosen, rejected).weights)
    lazy = PairDifference(*paths, torch.ones(8))
    assert torch.equal(lazy[torch.tensor([3, 5])], (chosen - rejected)[[3, 5]])


def test_centred_on_a_reference_set():
    chosen, rejected, _ = world(50)
    ensemble = HeadEnsemble.fit(chosen, rejected, members=3).centred_on(chosen)
    assert float(ensemble.scores(chosen).mean(1).abs().max()) < 1e-6
    assert "50" in ensemble.info["centred_on"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": "magic"}, "unknown diversity"),
        ({"members": 0}, "at least 1"),
        ({"ridge": "auto"}, "ridge must be"),
        ({"rejected": torch.zeros(9, 4)}, "rejected"),
        ({"chosen": torch.full((10, 4), torch.nan)}, "not finite"),
        ({"groups": ["a"] * 10}, "at least 2 prompts"),
        ({"groups": ["a"]}, "1 groups for 10 pairs"),
        ({"seed": [1, 2, 3]}, "3 seeds for 10 members"),
    ],
)
def test_bad_input_is_named(options, message):
    given = {"chosen": torch.randn(10, 4), "rejected": torch.randn(10, 4), **options}
    with pytest.raises(PrudentError, match=message):
        HeadEnsemble.fit(given.pop("chosen"), given.pop("rejected"), **given)


def test_exploding_training_stops_before_the_step():
    chosen, rejected, _ = world(64)
    with pytest.raises(PrudentError, match=r"the loss of member \d is (nan|inf) at step"):
        HeadEnsemble.fit(chosen * 1e30, rejected, diversity="init", ridge=1e200, epochs=3, learning_rate=1e200)


def test_one_member_scores_but_has_no_spread():
    chosen, rejected, _ = world(30)
    ensemble = HeadEnsemble.fit(chosen, rejected, members=1, seed=spawn(0, 1)[0])
    with pytest.raises(PrudentError, match="1 member"):
        moments(ensemble.scores(chosen))
