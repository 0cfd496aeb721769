"""Prudent's own RLHF engine: PPO and RLOO on a CPU, a single GPU, or several under ``accelerate launch``.

What makes a step cheap: a prompt is computed once for all its completions, rows carry no padding, adapters are merged
while sampling, the reference shares the layers below the first adapter with the policy, a single epoch needs no second
pass for old log-probabilities, and where the reward model reads the reference's hidden states its scores come out of
that pass. Every random draw is a function of (seed, step, prompt): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.policies.estimates import ReferenceStatistics
from prudent.policies.monitoring.monitor import Monitor
from prudent.policies.objectives import KL_RULES, Shaped, shape
from prudent.policies.rl.advantages import leave_one_out, ordering_agreement, weighted_rewards
from prudent.policies.rl.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from prudent.policies.rl.policy import Policy
from prudent.policies.rl.rollouts import Rollouts, ScoredRollouts, Scorer, pack_and_score, roll_out
from prudent.policies.rl.updates import (
    Meter,
    Scored,
    UpdateOptions,
    ppo_backward,
    ppo_targets,
    rloo_again,
    rloo_backward,
)
from prudent.seeding import Seed, numpy_generator, spawn

__all__ = ["Step", "TrainOptions", "Trainer", "TrainingPrompts", "TrueValues", "UpdateOptions"]


@dataclass(frozen=True)
class TrainOptions:
    """How a policy is trained. objective: a name of ``policies.objectives``. prompts: per step, over all processes."""

    objective: str = "proportional"
    update: UpdateOptions = field(default_factory=UpdateOptions)
    steps: int = 50
    prompts: int = 8
    max_new_tokens: int = 64
    learning_rate: float = 2e-4
    value_learning_rate: float = 1e-3
    warmup: int = 5
    member: int | None = None
    rule_options: dict[str, float] | None = None
    pack_tokens: int = 1024
    sampling_batch: int = 64
    save_every: int = 10
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.objective in KL_RULES and self.update.beta == 0:
            raise PrudentError(f"objective {self.objective!r} weights the KL penalty; at beta 0 there is none")
        if self.update.advantages == "members" and self.objective not in ("vanilla", "mean"):
            raise PrudentError(
                f"advantages 'members' take the members' own scores apart; objective {self.objective!r} would be lost: "
                "take vanilla or mean"
            )


@dataclass(frozen=True)
class Step:
    """What one step measured: means over completions (or tokens, where the name says so), and seconds by part; a
    monitor's line."""

    step: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class TrainingPrompts:
    """ids: (P) token ids, each ending where the completion begins. names: (P) one short text a prompt, for errors."""

    ids: Sequence[list[int]]
    names: Sequence[str]


@dataclass(frozen=True)
class TrueValues:
    """What is known of the truth, for the log alone. of: the true value (N,) of rollouts, from the texts or the
    features (N, d). reference: (P,) the reference's on each prompt; the log then holds ``truth_gain`` too, which
    prompts of unequal value don't move."""

    of: Callable[[Rollouts, torch.Tensor | None], torch.Tensor]
    reference: torch.Tensor


class Trainer:
    """A policy in training on prompts.

    scorer: members' scores of completions.
    statistics: centre per prompt (indexed as ``prompts``) and scale of the variance, from samples of the reference.
    folder: where checkpoints go, or None. truth: None where none is known. monitor: ends the training at its alarm.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        prompts: TrainingPrompts,
        scorer: Scorer,
        statistics: ReferenceStatistics,
        options: TrainOptions,
        *,
        folder: Path | None = None,
        truth: TrueValues | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.policy, self.prompts, self.scorer, self.statistics = policy, prompts, scorer, statistics
        self.options, self.folder, self.tokenizer, self.truth = options, folder, tokenizer, truth
        self.monitor = monitor
        self.accelerator = Accelerator()
        if options.prompts % self.accelerator.num_processes:
            raise PrudentError(
                f"{options.prompts} prompts a step don't divide over {self.accelerator.num_processes} processes"
            )
        self.value_head = nn.Linear(policy.width, 1).to(policy.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        groups = [{"params": list(policy.trainable().values()), "lr": options.learning_rate}]
        if options.update.algorithm == "ppo":
            groups.append({"params": list(self.value_head.parameters()), "lr": options.value_learning_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.history: list[Any] = []
        self.done = 0
        if folder is not None and (checkpoint := latest_checkpoint(folder)) is not None:
            self.done, self.history = load_checkpoint(checkpoint, self.weights(), self.optimizer)
            if monitor is not None:
                for entry in self.history:
                    monitor.record(entry["monitor"], entry["monitor_labels"])

    def weights(self) -> dict[str, torch.Tensor]:
        """Everything in training by name."""
        head = {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        return {**self.policy.trainable(), **(head if self.options.update.algorithm == "ppo" else {})}

    def train(self, report: Callable[[Step], None] = lambda step: None) -> list[Any]:
        """Run the steps that are left, up to a monitor's alarm; ``report`` is given each. Returns the history of all
        steps, resumed included."""
        while self.done < self.options.steps and not self._alarmed():
            step = self._step(self.done)
            self.done += 1
            self.history.append({"step": step.step, **step.metrics, "seconds": step.seconds})
            if self.monitor is not None:
                self.history[-1] |= {"monitor": self.monitor.history[-1], "monitor_labels": self.monitor.labels[-1]}
            last = self.done == self.options.steps or self._alarmed()
            if self.folder is not None and (last or self.done % self.options.save_every == 0):
                if self.accelerator.is_main_process:
                    save_checkpoint(self.folder, self.done, self.weights(), self.optimizer, self.history)
                self.accelerator.wait_for_everyone()
            report(step)
        return self.history

    def _alarmed(self) -> bool:
        return self.monitor is not None and self.monitor.alarmed_anywhere()

    def chosen(self, step: int) -> list[int]:
        """Prompts of a step: consecutive slices of one shuffle an epoch, the same whatever the number of processes."""
        size, count = self.options.prompts, len(self.prompts.ids)
        positions = range(step * size, (step + 1) * size)
        orders: dict[int, Any] = {}
        for epoch in {position // count for position in positions}:
            seed = spawn(spawn(self.options.seed, 2)[0], epoch + 1)[-1]
            orders[epoch] = numpy_generator(seed).permutation(count)
        return [int(orders[i // count][i % count]) for i in positions]

    def _step(self, number: int) -> Step:
        clock = Clock()
        options = self.options
        whole = self.chosen(number)
        share = len(whole) // self.accelerator.num_processes
        start = self.accelerator.process_index * share
        mine = whole[start : start + share]
        step_seed = spawn(spawn(options.seed, 2)[1], number + 1)[-1]
        sampling_seed, shuffle_seed = spawn(step_seed, 2)
        rollouts = roll_out(
            self.policy.sampler(),
            self.tokenizer,
            [self.prompts.ids[i] for i in mine],
            mine,
            completions=options.update.completions,
            max_new_tokens=options.max_new_tokens,
            seed=sampling_seed,
            batch_size=options.sampling_batch,
        )
        clock.lap("sampling")
        found = pack_and_score(self.policy, rollouts, self.scorer, options.pack_tokens)
        clock.lap("reference and reward")
        meter = Meter()
        shaped = self._shaped(rollouts, found.scores, shuffle_seed)
        update = options.update
        total = len(whole) * update.completions
        weighted = weighted_rewards(update.advantages, shaped.reward, found.scores, update.completions)
        taught = shaped._replace(reward=weighted)
        self._update(
            Scored(found.rows, found.references, taught, total, [self.prompts.names[i] for i in rollouts.prompts]),
            meter,
        )
        clock.lap("policy")
        self._note(meter, rollouts, shaped, found)
        note = ""
        if self.monitor is not None:
            self._watch(self.monitor, rollouts, shaped, found, meter)
            note = self.monitor.line()
        return Step(number + 1, self._means(meter), clock.seconds, note)

    def _watch(self, monitor: Monitor, rollouts: Rollouts, shaped: Shaped, found: ScoredRollouts, meter: Meter) -> None:
        gold = self.truth.of(rollouts, found.features) if self.truth is not None and monitor.due() else None
        seen = monitor.observe(
            list(rollouts.prompts),
            rollouts.texts,
            scores=found.scores,
            features=found.features,
            rewards=shaped.reward,
            kl=meter.means()["kl"],
            gold=gold,
        )
        for name in ("drift", "turn", "disagreement", "novelty"):
            if name in seen:
                meter.add(f"monitor_{name}", seen[name])

    def _shaped(self, rollouts: Rollouts, scores: torch.Tensor, seed: Seed) -> Shaped:
        options = self.options
        if not bool(torch.isfinite(scores).all()):
            bad = int((~torch.isfinite(scores)).any(dim=0).nonzero()[0])
            raise PrudentError(
                f"the reward of a completion to {self.prompts.names[rollouts.prompts[bad]]!r} is not finite; the step "
                "was not taken. Score that text with `prudent score` to see which member fails"
            )
        return shape(
            options.objective,
            scores,
            torch.tensor(rollouts.prompts),
            self.statistics,
            options.update.beta,
            member=options.member,
            rule_options=options.rule_options,
            seed=seed,
        )

    def _update(self, scored: Scored, meter: Meter) -> None:
        update = self.options.update
        order = numpy_generator(spawn(spawn(self.options.seed, 3)[2], self.done + 1)[-1])
        if update.algorithm == "rloo":
            kept = rloo_backward(self.policy, scored, update, meter)
            self._apply(meter)
            for _ in range(update.epochs - 1):
                rloo_again(self.policy, scored, kept, update, range(len(scored.rows)), meter)
                self._apply(meter)
            return
        targets = ppo_targets(self.policy, self.value_head, scored, update, meter)
        for _ in range(update.epochs):
            shuffled = order.permutation(len(scored.rows))
            for part in range(min(update.minibatches, len(shuffled))):
                chosen = [int(i) for i in shuffled[part :: update.minibatches]]
                tokens = self._sum(sum(int(targets[i].mask.sum()) for i in chosen))
                ppo_backward(self.policy, self.value_head, scored, targets, update, chosen, tokens, meter)
                self._apply(meter)

    def _sum(self, count: int) -> int:
        total = torch.tensor(float(count), device=self.policy.device)
        return max(1, int(self.accelerator.reduce(total, reduction="sum")))

    def _apply(self, meter: Meter) -> None:
        """Sum gradients over processes, stop where they are not finite, clip, and take the optimiser's step."""
        parameters = [p for p in self.weights().values() if isinstance(p, nn.Parameter)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum")
            gradients = [part.view_as(p) for p, part in zip(parameters, flat.split([p.numel() for p in parameters]))]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, self.options.update.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise PrudentError(f"the gradient's norm is {float(norm)}; the step was not taken. Lower the learning rate")
        factor = min(1.0, (self.done + 1) / max(1, self.options.warmup))
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        meter.add("gradient_norm", norm)

    def _note(self, meter: Meter, rollouts: Rollouts, shaped: Shaped, found: ScoredRollouts) -> None:
        count = len(rollouts.prompts)
        lengths = [len(ids) for ids in rollouts.completions]
        meter.add("reward", shaped.mean.sum(), count)
        meter.add("shaped_reward", shaped.reward.sum(), count)
        meter.add("variance", shaped.variance.sum(), count)
        meter.add("kl_weight", shaped.kl_weight.sum(), count)
        # Completions whose rewards are all equal teach nothing but the KL term, which they still feel.
        if self.options.update.completions > 1:
            if len(found.scores) > 1:
                agreement = ordering_agreement(found.scores, self.options.update.completions)
                meter.add("ordering_agreement", agreement.sum(), len(agreement))
            equal = leave_one_out(shaped.reward, self.options.update.completions).equal_share
            meter.add("equal_reward_groups", equal * count, count)
        meter.add("length_tokens", sum(lengths), count)
        meter.add("truncated_share", sum(not ended for ended in rollouts.ended), count)
        meter.add("empty", sum(not text.strip() for text in rollouts.texts), count)
        meter.add("retokenization_mismatch", found.mismatched, count)
        if self.truth is not None:
            true_value = float(self.truth.of(rollouts, found.features).sum())
            meter.add("truth", true_value, count)
            meter.add("truth_gain", true_value - float(self.truth.reference[rollouts.prompts].sum()), count)

    def _means(self, meter: Meter) -> dict[str, float]:
        """Means over all processes' completions."""
        if self.accelerator.num_processes > 1:
            names = sorted(meter.sums)
            stacked = torch.tensor([meter.sums[name] for name in names], dtype=torch.float64)
            stacked = self.accelerator.reduce(stacked.to(self.policy.device), reduction="sum").cpu()
            meter.sums = {name: stacked[i].tolist() for i, name in enumerate(names)}
        return meter.means()


class Clock:
    """Seconds by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last call as ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
