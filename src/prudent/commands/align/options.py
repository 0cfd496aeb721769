"""Options of ``prudent align``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from prudent.commands.depth import DepthOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    MOST_TOKENS,
    SOURCE,
    PairOptions,
    ResumableOptions,
    command,
    number_or_cv,
    option,
    said,
)

RL, SERIES, DATA = "Reinforcement learning", "Series and judging", "Data"
DEFAULT_OBJECTIVES = ("vanilla", "proportional")
# Those of policies.objectives, which imports torch.
OBJECTIVES: tuple[str, ...] = ("vanilla", "mean", "proportional", "bregman", "exact", "lcb", "min", "uwo", "entropic")
OBJECTIVES += ("variance-only", "permuted", "steeper", "exponential", "cvar")
# Under twenty minutes on two cores; a rate at which so many steps go about as far as best of 16 does (2 nats).
DEMO: dict[str, Any] = {"demo_pairs": 1000, "train_prompts": 40, "eval_prompts": 40, "eval_samples": 16}
DEMO |= {"steps": 24, "learning_rate": 1e-3, "prompts_per_step": 8, "completions": 4, "max_new_tokens": 64}
KL_WEIGHTING = ("bregman", "exact")  # nothing is left of them at beta 0
# What --engine trl takes from these; everything else is TRL's own, by --trl-config.
TRL_TAKES = {"--advantages", "--algorithm", "--beta", "--column", "--config", "--engine", "--false-alarm", "--json"}
TRL_TAKES |= {"--max-new-tokens", "--monitor", "--objective", "--out", "--policy", "--prompts", "--reference-samples"}
TRL_TAKES |= {"--reward-model", "--seed", "--trl-config"}


@command(
    "align",
    run="align.run:run",
    show="align.page:show",
    interrupted="give the same command with --out {out} again: it goes on from its last checkpoint (--save-every)",
)
class AlignOptions(DepthOptions, PairOptions, ResumableOptions):
    """Fine-tune a policy so that it moves less where the reward is uncertain, and measure what that gains.

    An interrupted series goes on where it stopped when the same command is given again.

    Example: prudent align --preferences train.jsonl --objective vanilla --objective proportional --out runs/a
    """

    chooses: ClassVar[bool] = False
    preferences: Annotated[tuple[str, ...], option("Preference files or hub ids."), SOURCE] = ()
    demo: Annotated[bool, option("Train on the embedded prompts, whose gold is exact.", "--demo")] = False
    demo_side: Annotated[
        Literal["balanced", "restraint", "demand"],
        option("Embedded prompts that ask for more (demand), less (restraint), or both (balanced)."),
    ] = "demand"
    demo_pairs: Annotated[int, option("Preferences that each run of --demo draws.", min=20, max=1_000_000)] = 400
    demo_slope: Annotated[float, option("How sure those are; 0 is pure noise, 8 nearly clean.", min=0.0)] = 4.0
    policy: Annotated[str, option("Model to train: smollm2 (embedded), a folder or a hub id.")] = DEFAULT_MODEL
    objectives: Annotated[
        tuple[str, ...],
        option(
            "vanilla, proportional, bregman, exact, lcb, min, uwo, entropic, variance-only, permuted.",
            "--objective",
            panel=RL,
        ),
    ] = DEFAULT_OBJECTIVES
    algorithm: Annotated[str, option("rloo or ppo.", panel=RL)] = "rloo"
    advantages: Annotated[
        Literal["plain", "reliability", "members"],
        option(
            "A group's advantages: plain, scaled by how far members agree on its order (reliability), or each "
            "member's normalised apart, then averaged (members).",
            panel=RL,
        ),
    ] = "plain"
    beta: Annotated[float, option("KL coefficient; 0 trains without.", panel=RL)] = 0.1
    steps: Annotated[int, option("Policy updates a run.", min=1, max=1_000_000, panel=RL)] = 40
    prompts_per_step: Annotated[int, option("Prompts a step.", min=1, max=1_000_000, panel=RL)] = 8
    completions: Annotated[int, option("Completions a prompt.", min=2, max=10_000, panel=RL)] = 4
    max_new_tokens: Annotated[int, option("Length limit of a completion.", min=1, max=MOST_TOKENS, panel=RL)] = 48
    learning_rate: Annotated[float, option("AdamW's rate.", panel=RL)] = 3e-4
    epochs: Annotated[int, option("Passes over one set of rollouts.", min=1, max=1_000_000, panel=RL)] = 1
    minibatches: Annotated[int, option("PPO's minibatches a pass.", min=1, max=1_000_000, panel=RL)] = 1
    lora_rank: Annotated[int, option("Rank of the adapters.", min=1, max=10_000, panel=RL)] = 16
    lora_layers: Annotated[
        int | None,
        option("Adapters on so many layers from the top; fewer is faster. Default all.", min=1, max=10_000, panel=RL),
    ] = None
    full: Annotated[bool, option("Train every weight (float32).", "--full", panel=RL)] = False
    runs: Annotated[
        int, option("Policies per objective, each against its own reward-model draw.", min=1, max=10_000, panel=SERIES)
    ] = 1
    members: Annotated[int, option("Members of each reward model.", min=2, max=10_000, panel=SERIES)] = 10
    reward: Annotated[Literal["member", "mean"], option("Reward: one member, or the mean.", panel=SERIES)] = "member"
    ridge: Annotated[str, option("Ridge of the heads, or cv.", panel=SERIES)] = "cv"
    floor: Annotated[float, option("Least variance, in units of its mean.", min=0.0, panel=SERIES)] = 1e-2
    judge: Annotated[str | None, option("Reward model that says what is true; default a cross-fit.", panel=SERIES)] = (
        None
    )
    eval_prompts: Annotated[int, option("Held-out prompts to judge on.", min=2, max=1_000_000, panel=SERIES)] = 32
    eval_samples: Annotated[int, option("Samples a held-out prompt.", min=1, max=10_000, panel=SERIES)] = 8
    reference_samples: Annotated[int, option("Samples of the reference a prompt.", min=2, max=10_000, panel=SERIES)] = (
        16
    )
    save_every: Annotated[int, option("Steps between checkpoints.", min=1, max=1_000_000, panel=SERIES)] = 10
    monitor: Annotated[
        Literal["off", "watch", "gold", "drift"],
        option("Watch each run; gold, drift: stop it at that alarm (docs/align.md).", panel=RL),
    ] = "off"
    false_alarm: Annotated[float, option("The monitor's false-alarm rate over a whole run.", panel=RL)] = 0.05
    probe_labels: Annotated[
        int, option("Gold labels a probe of the monitor, in --demo.", min=0, max=10_000, panel=RL)
    ] = 0
    probe_every: Annotated[int, option("Steps from one probe to the next.", min=1, max=1_000_000, panel=RL)] = 5
    prompts: Annotated[str | None, option("File of training prompts; default those of the pairs.", panel=DATA)] = None
    train_prompts: Annotated[int, option("Training prompts at most.", min=1, max=1_000_000, panel=DATA)] = 32
    max_pairs: Annotated[int | None, option("Preference pairs at most.", min=8, panel=DATA)] = None
    holdout: Annotated[float, option("Share of prompts held out.", panel=DATA)] = 0.3
    on_error: Annotated[Literal["raise", "skip"], option("Bad rows: raise or skip.", panel=DATA)] = "raise"
    pooling: Annotated[str, option("Features: last, mean or last+mean.", panel=DATA)] = "last+mean"
    max_length: Annotated[int, option("Tokens kept of a text.", min=16, max=MOST_TOKENS, panel=DATA)] = 1024
    dtype: Annotated[str | None, option("float32, bfloat16; default by processor.")] = None
    images: Annotated[bool, option("Write the charts as PNG and SVG too.")] = True
    engine: Annotated[
        Literal["own", "trl"], option("own (one machine), or trl (RLOO or GRPO of TRL, at scale).", panel=RL)
    ] = "own"
    trl_config: Annotated[
        Path | None, option("YAML with TRL's own field names, for --engine trl.", exists=True, panel=RL)
    ] = None
    reward_model: Annotated[str | None, option("Folder of `prudent fit`, for --engine trl.", panel=RL)] = None

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that other options bring with them: --demo and --engine trl have their own."""
        if given.get("engine") == "trl":
            return {"objectives": ("proportional",)}
        return DEMO if given.get("demo") else {}

    @property
    def ridge_value(self) -> float | str:
        """The ridge as a number, or "cv"."""
        return number_or_cv("--ridge", self.ridge) or "cv"

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems() + [
            f"--objective {name} is unknown: choose among {', '.join(OBJECTIVES)}"
            for name in self.objectives
            if name not in OBJECTIVES
        ]
        if not self.objectives:
            problems.append("no --objective was given")
        if len(set(self.objectives)) != len(self.objectives):
            problems.append("--objective names one twice")
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"--learning-rate is {self.learning_rate:g}, it must be positive")
        if not 0 <= self.beta < math.inf:
            problems.append(f"--beta is {self.beta:g}, it must be at least 0")
        if self.beta == 0 and (lost := [name for name in self.objectives if name in KL_WEIGHTING]):
            problems.append(f"--objective {', '.join(lost)} weights the KL penalty, and at --beta 0 there is none")
        if self.advantages == "members" and (lost := [n for n in self.objectives if n not in ("vanilla", "mean")]):
            problems.append(
                f"--advantages members takes members' own scores apart and would lose --objective {', '.join(lost)}"
            )
        if not 0 < self.false_alarm < 1:
            problems.append(f"--false-alarm is {self.false_alarm:g}, it must lie between 0 and 1")
        if self.probe_labels and (self.monitor == "off" or not self.demo):
            problems.append("--probe-labels needs --monitor watch or gold and --demo, whose gold lies between 0 and 1")
        if self.monitor == "gold" and not self.probe_labels:
            problems.append("--monitor gold stops where gold labels say so: give --probe-labels (and --demo)")
        return problems + (self._own_problems() if self.engine == "own" else self._trl_problems())

    def _own_problems(self) -> list[str]:
        problems = []
        if self.algorithm == "ppo" and self.advantages != "plain":
            problems.append(
                f"--advantages {self.advantages} is of groups, which --algorithm ppo has none of: take rloo, or grpo "
                "on --engine trl"
            )
        problems += [
            f"{flag} is for --engine trl; leave it out"
            for flag, given in (("--trl-config", self.trl_config), ("--reward-model", self.reward_model))
            if given is not None
        ]
        if not self.preferences and not self.demo:
            problems.append("no preference file was given; name one with --preferences, or try --demo")
        if self.demo and (self.preferences or self.prompts or self.judge):
            problems.append(
                "--demo brings its own preferences, prompts and gold; leave --preferences, --prompts, --judge out"
            )
        if not 0 < self.holdout < 1:
            problems.append(f"--holdout is {self.holdout}, it must lie between 0 and 1")
        return problems + said(lambda: self.ridge_value)

    def _trl_problems(self) -> list[str]:
        """Every option given that TRL's engine wouldn't honour."""
        problems = [
            f"--engine trl doesn't take {flag}: name TRL's own field in --trl-config, or leave it out"
            for flag in self.changed()
            if flag not in TRL_TAKES
        ]
        if len(self.objectives) > 1:
            given = ", ".join(self.objectives)
            problems.append(f"--engine trl trains one --objective, got {len(self.objectives)}: {given}")
        return problems
