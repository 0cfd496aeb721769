"""``prudent.Monitor``: watches a policy in training, says each step how far it has gone, and when to stop.

It sees what the trainer sees: completions, members' scores, rewards; and, where they are given, features, the KL and a
few gold labels. ``watch`` wraps any reward function; ``callback`` stops transformers' and TRL's trainers; Prudent's own
engine takes the monitor itself. docs/align.md says how good its alarms are where the truth is known.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prudent.data.messages import last_text
from prudent.errors import PrudentError
from prudent.policies.estimates import ReferenceStatistics, reference_statistics
from prudent.policies.monitoring.drift import Distance, TiltedPool, repeated_share, simulated_limit
from prudent.policies.monitoring.turns import TurnTest
from prudent.policies.reward_function import RewardFunction, flat_reference, prompt_key

LEAST_REFERENCE = 60  # samples of the reference; limits from fewer would be noise
STOPS = ("auto", "gold", "drift", "both", "none")
Gold = Callable[[Sequence[Any], Sequence[str]], Any]


@dataclass(frozen=True)
class Alarm:
    """step: when it was raised. cause: "gold" or "drift". keep: the step whose policy to keep. text: for a person."""

    step: int
    cause: str
    keep: int
    text: str


@dataclass(frozen=True)
class Probe:
    """labels of gold every so many steps, each within low to high. of: (prompts, responses) -> (n,) labels; None where
    ``observe`` is given them."""

    of: Gold | None = None
    labels: int = 32
    every: int = 5
    low: float = 0.0
    high: float = 1.0


class Monitor:
    """model: scores text, (prompts, responses) -> (K, N), or a ``RewardClient`` (its service returns members); None
    where ``observe`` is given scores. reference: samples of the reference policy, as ``flat_reference`` takes them.
    steps: the most that will be observed, among which the false-alarm rate is shared. features: (prompts, responses) ->
    (N, d), for novelty. stop: "gold", "drift", "both" or "none"; "auto" is gold where there is a probe, else
    none: drift says that a policy has left its reference, not that gold has turned (docs/rl-study.md).
    """

    def __init__(
        self,
        model: Any = None,
        reference: Any = None,
        *,
        steps: int,
        false_alarm: float = 0.05,
        features: Callable[..., Any] | None = None,
        probe: Probe | None = None,
        stop: str = "auto",
    ) -> None:
        if stop not in STOPS or (stop in ("gold", "both") and probe is None):
            raise PrudentError(
                f"stop is {stop!r}: choose one of {', '.join(STOPS)}; gold and both need probe=Probe(...)"
            )
        if steps < 1 or not 0 < false_alarm < 1:
            raise PrudentError(f"steps is {steps} and false_alarm {false_alarm}; need at least 1 and a share of 1")
        self.model, self.features, self.probe, self.steps = model, features, probe, steps
        self.stop = ("gold" if probe else "none") if stop == "auto" else stop
        self.level = false_alarm / (2 if self.stop == "both" else 1)
        self.turns: TurnTest | None = None
        if probe is not None:
            probes = max(2, 1 + (steps - 1) // probe.every)
            self.turns = TurnTest(probes, self.level, probe.low, probe.high)
        self.index: dict[str, int] = {}
        self.statistics: ReferenceStatistics | None = None
        self.pool: dict[str, np.ndarray] = {}
        self.owner = np.zeros(0, dtype=int)
        self.means: dict[str, np.ndarray] = {}
        self.tilted: dict[tuple[str, ...], TiltedPool] = {}
        self.limits: dict[tuple[Any, ...], float] = {}
        self.distance: Distance | None = None
        self.alarm: Alarm | None = None
        self.history: list[dict[str, float]] = []
        self.labels: list[list[float] | None] = []
        if reference is not None:
            self._take_reference(reference)

    def _take_reference(self, reference: Any) -> None:
        self.index, asked, texts, owner = flat_reference(reference)
        scores = None if self.model is None else scored(self.model, asked, texts)
        features = None if self.features is None else np.asarray(self.features(asked, texts), dtype=float)
        self.set_reference(texts, owner, scores=scores, features=features)

    def set_reference(
        self, texts: Sequence[str], owner: torch.Tensor, *, scores: Any = None, features: Any = None
    ) -> Monitor:
        """Samples of the reference: texts (n), prompt index of each (n,), members' scores (K, n), features (n, d)."""
        if len(texts) < LEAST_REFERENCE:
            raise PrudentError(f"{len(texts)} samples of the reference; limits need at least {LEAST_REFERENCE}")
        self.pool = _of_texts(texts)
        if features is not None:
            values = np.asarray(features, dtype=float)
            self.distance = Distance.fit(values)
            self.pool["novelty"] = Distance.of_others(values)
        if scores is not None:
            found = reference_statistics(scores, owner)
            overall = found.centre.mean(1, keepdim=True)  # for prompts that the reference has no samples of
            self.statistics = ReferenceStatistics(
                torch.cat([found.centre, overall], 1), found.scale, found.floor, found.sizes
            )
            self.pool |= self._of_scores(scores, owner)
        self.owner = owner.numpy()
        count = np.bincount(self.owner)
        for name, values in self.pool.items():
            by_prompt = np.bincount(self.owner, values) / count
            self.means[name] = np.append(by_prompt, by_prompt.mean())  # last: prompts that it has no samples of
        return self

    def _of_scores(self, scores: Any, owner: torch.Tensor) -> dict[str, np.ndarray]:
        assert self.statistics is not None
        found = self.statistics.estimate(scores, owner)
        signals = {"reward": found.reward[0].numpy()}
        if len(found.scores) > 1:
            signals["disagreement"] = found.standard_deviation[0].numpy()
        return signals

    def observe(
        self,
        prompts: Sequence[Any],
        responses: Sequence[str],
        *,
        scores: Any = None,
        features: Any = None,
        rewards: Any = None,
        kl: float | None = None,
        gold: Any = None,
    ) -> dict[str, float]:
        """One step's completions (N); what isn't given is computed by ``model`` and ``features`` where they exist.

        prompts: texts, messages, or indices into the reference's prompts. rewards (N,): what the trainer gets. gold:
        (n,) labels, in place of the probe's own. Returns the metrics of the step; ``alarm`` is set where one is raised.
        """
        if scores is None and self.model is not None:
            scores = scored(self.model, prompts, responses)
        if features is None and self.features is not None and self.distance is not None:
            features = self.features(prompts, responses)
        signals = _of_texts(responses)
        if self.distance is not None and features is not None:
            signals["novelty"] = self.distance.of(np.asarray(features, dtype=float))
        unknown = len(self.means["length"]) - 1 if self.means else 0
        owner = np.array([p if isinstance(p, int) else self.index.get(prompt_key(p), unknown) for p in prompts])
        if self.statistics is not None and scores is not None:
            signals |= self._of_scores(scores, torch.from_numpy(owner))
        metrics = {name: float(values.mean()) for name, values in signals.items()}
        if rewards is not None:
            metrics["no_signal"] = no_signal_share(prompts, np.asarray(rewards, dtype=float))
        if kl is not None:
            metrics["kl"] = float(kl)
        metrics |= self._drift(signals, owner)
        labels = None
        if self.probe is not None and self.due():
            count = self.probe.labels
            if gold is None and self.probe.of is not None:
                gold = self.probe.of(prompts[:count], responses[:count])
            labels = None if gold is None else [float(value) for value in gold[:count]]
        return self.record(metrics, labels)

    def due(self) -> bool:
        """Whether the step to come is one of a probe."""
        return self.probe is not None and len(self.history) % self.probe.every == 0

    def record(self, metrics: dict[str, float], labels: Sequence[float] | None = None) -> dict[str, float]:
        """One step from its metrics and gold labels: how ``observe`` ends, and how an interrupted run is replayed."""
        step = len(self.history) + 1
        kept = dict(metrics)
        self.history.append(kept)
        self.labels.append(None if labels is None else list(labels))
        if labels is not None and self.turns is not None and len(self.turns.labels) < self.turns.probes:
            self.turns.add(labels)
            share = max(self.turns.evidence(), default=0.0) / self.turns.limit
            kept |= {"gold": float(np.mean(labels)), "turn": share}
        self.alarm = self.alarm or self._alarm(step, kept)
        return kept

    def _alarm(self, step: int, metrics: dict[str, float]) -> Alarm | None:
        if self.stop in ("gold", "both") and self.turns is not None and self.turns.peak is not None:
            assert self.probe is not None
            keep = 1 + self.turns.peak * self.probe.every
            return Alarm(step, "gold", keep, f"gold has fallen since step {keep}: keep that step's policy")
        before = self.history[-2].get("drift", 0.0) if len(self.history) > 1 else 0.0
        if self.stop in ("drift", "both") and min(before, metrics.get("drift", 0.0)) >= 1:  # one step may be chance
            gone = [f"{n} {metrics[n]:.3g} (expected {metrics[f'{n}_expected']:.3g})" for n in _tested(metrics)]
            text = f"the policy has left what the reference's samples of this reward show: {', '.join(gone)}"
            return Alarm(step, "drift", max(1, step - 1), text)
        return None

    def _drift(self, signals: dict[str, np.ndarray], owner: np.ndarray) -> dict[str, float]:
        """How far the worst signal lies beyond what the tilted reference expects: 1 is the alarm's limit."""
        names = tuple(name for name in self.pool if name in signals and name != "reward")
        if "reward" not in signals or not names:
            return {}
        every = ("reward", *names)
        # Less its prompt's mean on the reference: a batch of few prompts says little about the others.
        kept = np.stack([self.pool[name] - self.means[name][self.owner] for name in every])
        if names not in self.tilted:
            both_ways = np.array([name == "length" for name in names])
            self.tilted[names] = TiltedPool.fit(kept[0], kept[1:], both_ways)
        tilted = self.tilted[names]
        groups = tuple(sorted(np.unique(owner, return_counts=True)[1].tolist()))
        if (names, groups) not in self.limits:
            level = self.level / self.steps
            self.limits[names, groups] = simulated_limit(tilted, kept[0], kept[1:], self.owner, list(groups), level)
        now = np.array([(signals[name] - self.means[name][owner]).mean() for name in every])
        beyond = tilted.excess(now[:1], now[1:, None], len(owner))[:, 0] / self.limits[names, groups]
        usual = tilted.at(now[:1], tilted.expected)[:, 0]
        expected = {
            f"{name}_expected": float(value + self.means[name][owner].mean()) for name, value in zip(names, usual)
        }
        return {**expected, "drift": float(max(0.0, beyond.max()))}

    def line(self) -> str:
        """The last step in one line for the console."""
        if not self.history:
            return "monitor: nothing observed yet"
        last = self.history[-1]
        said = [
            f"{name} {last[name]:.3g}"
            + (f" (expected {last[f'{name}_expected']:.3g})" if f"{name}_expected" in last else "")
            for name in ("disagreement", "novelty", "length", "repetition", "kl", "no_signal", "gold")
            if name in last
        ]
        shares = [f"{name} {last[name]:.0%} of its alarm" for name in ("drift", "turn") if name in last]
        end = f"; ALARM at step {self.alarm.step}: {self.alarm.text}" if self.alarm else ""
        return "monitor: " + ", ".join(said + shares) + end

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` of TRL's contract (prompts, completions, **columns), observed: each call is one step.

        Metrics go to the trainer's own log (``log_metric``). A ``RewardFunction`` is returned itself, observed, so that
        Prudent's trainers take it; its members' scores are used again.
        """
        if isinstance(function, RewardFunction):
            function.observer = self._seen
            return function
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waiting(prompts: Any, completions: Any, **columns: Any) -> Any:
                rewards = await function(prompts, completions, **columns)
                self._seen(prompts, completions, rewards, None, columns.get("log_metric"))
                return rewards

            return waiting

        @functools.wraps(function)
        def watched(prompts: Any, completions: Any, **columns: Any) -> Any:
            rewards = function(prompts, completions, **columns)
            self._seen(prompts, completions, rewards, None, columns.get("log_metric"))
            return rewards

        return watched

    def _seen(self, prompts: Any, completions: Any, rewards: Any, scores: Any, log: Callable | None) -> None:
        texts = [last_text(text) for text in completions]
        for name, value in self.observe(prompts, texts, scores=scores, rewards=rewards).items():
            if log is not None:
                log(f"monitor/{name}", value)

    def alarmed_anywhere(self) -> bool:
        """Whether any process has an alarm: each watches its own share of a step, and all must stop together."""
        distributed, flag = torch.distributed, self.alarm is not None
        if not (distributed.is_available() and distributed.is_initialized()):
            return flag
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        found = torch.tensor(float(flag), device=device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found > 0)

    def callback(self, say: Callable[[str], None] | None = print) -> Any:
        """For transformers' and TRL's trainers: says a line a log, saves and stops when an alarm is raised."""
        from prudent.policies.monitoring.callback import MonitorCallback

        return MonitorCallback(self, say)


def _tested(metrics: dict[str, float]) -> list[str]:
    return [name for name in metrics if f"{name}_expected" in metrics]


def _of_texts(texts: Sequence[str]) -> dict[str, np.ndarray]:
    return {
        "length": np.array([float(len(text.split())) for text in texts]),
        "repetition": np.array([repeated_share(text) for text in texts]),
    }


def no_signal_share(prompts: Sequence[Any], rewards: np.ndarray) -> float:
    """Share of prompts with several completions whose rewards are all equal: they teach nothing."""
    groups: dict[Any, list[float]] = {}
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        groups.setdefault(prompt if isinstance(prompt, int) else prompt_key(prompt), []).append(reward)
    several = [values for values in groups.values() if len(values) > 1]
    return float(np.mean([max(values) == min(values) for values in several])) if several else 0.0


def scored(model: Any, prompts: Sequence[Any], responses: Sequence[str]) -> torch.Tensor:
    """Members' scores (K, N) of a reward model, or of a service's client."""
    found = model.score(list(prompts), list(responses))
    if isinstance(found, torch.Tensor):
        return found
    return torch.tensor([result["members"] for result in found], dtype=torch.float64).T
