"""The RL testbed: a run in a batch is the run by itself, the policy follows its reward, and a study goes on."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import rl_causes
import rl_testbed
import rl_text

from prudent.policies.estimates import reference_statistics
from prudent.rewards.heads import HeadEnsemble

SETTINGS = rl_testbed.Settings(steps=3, prompts=2, completions=3)


@pytest.fixture(scope="module")
def base():
    return rl_testbed.new_base(0)


@pytest.fixture(scope="module")
def pool(base):
    return rl_testbed.pool_of(base, 4, 1)


def runs_on(pool, objectives):
    features = pool[1]
    owner = torch.arange(len(features)).repeat_interleave(features.shape[1])
    found = []
    for number, objective in enumerate(objectives):
        heads = HeadEnsemble.fit(features[:, 0], features[:, 1], members=3, ridge=1.0, seed=number)
        statistics = reference_statistics(heads.scores(features.flatten(0, 1)), owner)
        found.append(rl_testbed.Run(objective, 0.05, heads, statistics, 0, 10 + number))
    return found


def trained(base, runs, settings=SETTINGS):
    batch = rl_testbed.Batch(base, runs, settings)
    return batch, [batch.step() for _ in range(settings.steps)]


def test_a_run_in_a_batch_is_bit_for_bit_the_run_by_itself(base, pool):
    runs = runs_on(pool, ["vanilla", "proportional", "exact", "permuted", "lcb"])
    together, measured = trained(base, runs)
    judged = together.judge(2)
    for number, run in enumerate(runs):
        alone, steps = trained(base, [run])
        for name, tensor in alone.adapters.items():
            assert torch.equal(tensor[0], together.adapters[name][number]), name
        for mine, all_of_them in zip(steps, measured):
            for name in ("ids", "reward", "kl", "scores", "features"):
                assert torch.equal(mine[name][0], all_of_them[name][number]), name
        assert torch.equal(alone.judge(2)["gold"][0], judged["gold"][number])
    assert any(float(t.detach().abs().max()) > 0 for n, t in together.adapters.items() if n.endswith(".b"))


def test_without_a_step_the_policy_is_the_reference(base, pool):
    batch = rl_testbed.Batch(base, runs_on(pool, ["vanilla"]), SETTINGS)
    first = batch.step()
    assert float(first["kl"]) == pytest.approx(0, abs=1e-5) and float(first["log_ratio"].abs().max()) < 1e-4


def test_the_reward_rises_under_training(base, pool):
    settings = replace(SETTINGS, steps=10, prompts=8, completions=8, rate=1e-3)
    _, steps = trained(base, runs_on(pool, ["vanilla"]), settings)
    early, late = (torch.stack([step["reward"] for step in part]).mean() for part in (steps[:4], steps[-4:]))
    assert late > early and steps[-1]["kl"] > 0.05


def test_the_cache_gives_the_states_of_whole_texts(base):
    """Texts drawn token by token are draws from the distribution that training computes on whole texts."""
    merged = rl_testbed.of_base(base, 1)
    ids = torch.randint(1, len(rl_text.vocabulary()), (1, 5, 1 + rl_testbed.LENGTH))
    whole = rl_testbed.states(base, merged, ids[..., :-1])
    shape = (1, 5, rl_testbed.HEADS, rl_testbed.LENGTH, rl_testbed.WIDTH // rl_testbed.HEADS)
    cache = [(torch.empty(shape), torch.empty(shape)) for _ in range(rl_testbed.LAYERS)]
    for at in range(rl_testbed.LENGTH):
        one = rl_testbed.states(base, merged, ids[..., at : at + 1], cache, at)
        torch.testing.assert_close(one[:, :, 0], whole[:, :, at], atol=1e-5, rtol=1e-4)


def test_features_read_the_words_and_nothing_behind_them(base):
    ids = torch.tensor([rl_text.encode("lamp", "The lamp looks great ."), rl_text.encode("lamp", "The lamp looks")])[
        None
    ]
    ids[0, 1, 4] = 0
    tail = ids.clone()
    tail[0, 1, 6:] = 9  # behind the end mark
    merged = rl_testbed.of_base(base, 1)
    found = [rl_testbed.features_of(rl_testbed.log_probabilities(base, merged, x)[1], x) for x in (ids, tail)]
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0][0, 0], found[0][0, 1])


def test_every_review_fits_and_reads_back():
    import numpy as np

    generator = np.random.default_rng(0)
    for product in rl_text.PRODUCTS:
        for _ in range(20):
            words = rl_text.write(product, generator)
            ids = rl_text.encode(product, words)
            assert len(ids) == 1 + rl_testbed.LENGTH and ids[-1] == 0
            assert rl_text.decode(ids[1:]) == rl_text.joined(words)
    assert rl_text.gold(tuple(rl_text.encode("lamp", "The lamp is great .")[1:])) > 0.9


def test_a_policy_on_its_reference_s_samples_is_uniform_before_training_and_moves_with_its_reward(
    base, pool, monkeypatch
):
    monkeypatch.setattr(rl_causes, "candidate_ids", lambda: pool[0])
    monkeypatch.setattr(rl_causes, "world", lambda: SimpleNamespace(gold=pool[2]))
    runs = runs_on(pool, ["vanilla", "vanilla"])
    untrained = rl_testbed.Batch(base, runs, SETTINGS)
    torch.testing.assert_close(rl_causes.reweighted(untrained, 1), torch.full_like(pool[2], 0.25), atol=1e-4, rtol=0)
    trained_batch, _ = trained(base, runs, replace(SETTINGS, steps=10, prompts=8, completions=8, rate=1e-3))
    for number, run in enumerate(runs):
        moved = rl_causes.reweighted(trained_batch, number) - 0.25
        scores = run.heads.scores(pool[1].flatten(0, 1))[0].double().view(moved.shape)
        assert moved.sum(-1).abs().max() < 1e-9 and float((moved * scores).sum(-1).mean()) > 0.1


def test_judged_features_are_the_mean_of_the_judged_samples_states(base, pool):
    batch = rl_testbed.Batch(base, runs_on(pool, ["vanilla"]), SETTINGS)
    found = batch.judge(64, features=True)["features"][0]
    assert "features" not in batch.judge(2)
    mean, spread = pool[1].flatten(0, 1).double().mean(0), pool[1].flatten(0, 1).double().std(0)
    assert float(((found - mean) / spread).abs().max()) < 0.5  # an untrained policy's samples are the reference's
