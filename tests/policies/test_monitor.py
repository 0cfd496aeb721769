"""The monitor: level and power of its tests, what it sees of text and scores, and that trainers stop at its alarm."""

import asyncio

import numpy as np
import pytest
import torch

import prudent
from prudent.errors import PrudentError
from prudent.policies.monitoring.drift import Distance, TiltedPool, repeated_share, simulated_limit
from prudent.policies.monitoring.monitor import Monitor, Probe, no_signal_share, scored
from prudent.policies.monitoring.turns import TurnTest


def alarms(path, rounds, labels=24, false_alarm=0.1, seed=0):
    """Share of rounds with an alarm when the mean of labels in {0, 1} follows ``path``."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(rounds):
        test = TurnTest(len(path), false_alarm, 0.0, 1.0)
        found += any(test.add((generator.random(labels) < mean).astype(float)) for mean in path)
    return found / rounds


def test_a_mean_that_never_falls_raises_few_alarms_and_one_that_turns_many():
    assert alarms([0.5] * 10, 200) <= 0.1
    assert alarms(np.linspace(0.3, 0.7, 10), 100) <= 0.05
    assert alarms([0.3, 0.5, 0.8, 0.8, 0.4, 0.3, 0.2, 0.2], 50) >= 0.9


def test_the_peak_is_named_and_the_alarm_stays():
    test = TurnTest(6, 0.05, 0.0, 1.0)
    steps = [test.add(np.full(30, value)) for value in (0.2, 0.9, 0.1, 0.1, 0.9)]
    assert steps == [False, False, True, True, True] and test.peak == 1
    test.add([1.0])
    with pytest.raises(PrudentError, match="more than the 6 probes"):
        test.add([1.0])


@pytest.mark.parametrize("labels", [[1.5], [float("nan")], [-0.1]])
def test_labels_outside_the_stated_range_are_refused(labels):
    with pytest.raises(PrudentError, match=r"outside 0\.0 to 1\.0"):
        TurnTest(3, 0.05, 0.0, 1.0).add(labels)


def test_the_tilted_pool_has_the_reward_asked_for_and_keeps_enough_samples():
    generator = np.random.default_rng(0)
    reward = generator.standard_normal(2000)
    pool = TiltedPool.fit(reward, reward[None], np.array([False]))
    assert (np.diff(pool.reward) > 0).all() and pool.effective[-1] >= 29 and pool.effective[0] == pytest.approx(2000)
    wanted = np.array([0.1, 0.5, 1.0])
    np.testing.assert_allclose(pool.at(wanted, pool.expected)[0], wanted, atol=1e-9)
    assert pool.at(np.array([99.0]), pool.reward)[0] == pool.reward[-1]


def test_an_alarm_is_as_rare_as_it_should_be_on_batches_of_few_prompts_and_skewed_signals():
    generator = np.random.default_rng(1)
    owner = np.repeat(np.arange(40), 25)
    reward, skewed = generator.standard_normal(1000), generator.exponential(size=1000)
    monitor = Monitor(steps=20, false_alarm=0.2)
    scores = torch.from_numpy(reward + skewed * generator.standard_normal((3, 1000)))
    texts = ["a b c d"] * 1000
    monitor.set_reference(texts, torch.from_numpy(owner), scores=scores, features=skewed[:, None])
    above = []
    for _ in range(400):
        rows = np.concatenate([generator.choice(np.flatnonzero(owner == p), 4) for p in generator.integers(40, size=6)])
        found = monitor.observe(
            owner[rows].tolist(), ["a b c d"] * 24, scores=scores[:, rows], features=skewed[rows, None]
        )
        above.append(found["drift"] >= 1)
    assert np.mean(above) < 0.03  # a level of .2 / 20 a step


def test_a_signal_that_rises_with_the_reward_is_in_order_and_one_that_rises_alone_is_not():
    generator = np.random.default_rng(1)
    reward = generator.standard_normal(4000)
    signals = np.stack([reward + generator.standard_normal(4000)])
    pool = TiltedPool.fit(reward, signals, np.array([False]))
    limit = simulated_limit(pool, reward, signals, np.arange(4000) % 40, [4] * 6, 0.001)
    assert pool.excess(np.array([0.8]), np.array([[0.8]]), 24)[0, 0] < limit
    assert pool.excess(np.array([0.0]), np.array([[1.8]]), 24)[0, 0] > limit


def test_novelty_is_one_for_samples_like_the_reference():
    features = np.random.default_rng(2).standard_normal((500, 6)) @ np.diag([5, 3, 1, 1, 0.1, 0.1])
    distance = Distance.fit(features)
    assert distance.of(features).mean() == pytest.approx(1)
    assert distance.of(features + np.array([0, 0, 9, 0, 0, 0])).mean() > 5


def test_repetition_and_groups_without_signal():
    assert repeated_share("a b c d e") == 0 and repeated_share("so good so good so good so good") > 0.5
    assert no_signal_share(["p", "p", "q", "q", "r"], np.array([1.0, 1.0, 0.0, 2.0, 3.0])) == 0.5


class Lengths:
    """Three members that score by length, the third of them less and less."""

    def score(self, prompts, responses):
        length = torch.tensor([float(len(text.split())) for text in responses])
        return torch.stack([length, length + 0.1 * torch.sin(length), 2 * length.sqrt()])


def reference(count=40):
    generator = np.random.default_rng(3)
    texts = [
        [" ".join(f"w{generator.integers(99)}" for _ in range(generator.integers(3, 12))) for _ in range(count)]
        for _ in "ab"
    ]
    return ["a", "b"], texts


def test_more_of_the_reference_is_in_order_and_loops_are_not():
    prompts, texts = reference()
    monitor = prudent.Monitor(Lengths(), (prompts, texts), steps=20, stop="drift")
    other = reference(30)[1]
    for step in range(10):
        found = monitor.observe(["a"] * 8, other[0][step : step + 8], rewards=[0.0] * 8, kl=0.1)
    assert monitor.alarm is None and found["no_signal"] == 1 and found["kl"] == 0.1 and found["drift"] < 1
    for _ in range(2):
        assert monitor.alarm is None
        monitor.observe(["a"] * 8, ["good good good good good good good good"] * 8)
    assert monitor.alarm is not None and monitor.alarm.cause == "drift" and "ALARM at step 12" in monitor.line()


def test_a_watched_function_gives_its_own_rewards_and_logs_the_monitor_s_metrics():
    monitor = Monitor(Lengths(), reference(), steps=9)
    logged = {}
    watched = monitor.watch(lambda prompts, completions, **columns: [1.0, 2.0])
    messages = [[{"role": "assistant", "content": "one two three four"}], [{"role": "assistant", "content": "five"}]]
    assert watched(["a", "b"], messages, log_metric=logged.__setitem__) == [1.0, 2.0]
    assert {"monitor/disagreement", "monitor/length", "monitor/repetition", "monitor/drift"} <= set(logged)

    async def remote(prompts, completions, **columns):
        return [3.0]

    assert asyncio.run(monitor.watch(remote)(["a"], ["one two"])) == [3.0] and len(monitor.history) == 2


def test_members_come_from_a_service_s_results_too():
    class Client:
        def score(self, prompts, responses):
            return [{"reward": 1.0, "members": [1.0, 2.0, float(len(text))]} for text in responses]

    assert scored(Client(), ["a", "a"], ["x", "xyz"]).tolist() == [[1, 1], [2, 2], [1, 3]]


def test_a_gold_probe_stops_at_the_turn_and_says_which_step_to_keep():
    quality = iter([0.2, 0.9, 0.9, 0.1, 0.1, 0.1])
    probe = Probe(lambda prompts, responses: [next(quality)] * 20, labels=20, every=2)
    monitor = Monitor(steps=11, probe=probe, stop="gold")
    for _ in range(11):
        monitor.observe([0] * 4, ["a b"] * 4)
        if monitor.alarm:
            break
    assert monitor.alarm.step == 7 and monitor.alarm.keep in (3, 5) and monitor.alarm.cause == "gold"


@pytest.mark.parametrize("wrong", [{"stop": "gold"}, {"stop": "never"}, {"steps": 0}, {"false_alarm": 1.5}])
def test_settings_that_can_t_be_kept_are_refused(wrong):
    with pytest.raises(PrudentError):
        Monitor(**{"steps": 5, **wrong})


def test_too_few_samples_of_the_reference_are_refused():
    with pytest.raises(PrudentError, match="limits need at least"):
        Monitor(Lengths(), (["a"], [["x"] * 9]), steps=5)
