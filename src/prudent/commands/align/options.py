"""What ``prudent align`` can be told, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from prudent.commands.preflight.options import bad_ridge, too_small
from prudent.demo.world import SIDES
from prudent.errors import PrudentError
from prudent.features.models import DEFAULT_MODEL
from prudent.policies.objectives import OBJECTIVES

DEFAULT_OBJECTIVES = ("vanilla", "proportional")
ENGINES = ("own", "trl")


@dataclass(frozen=True)
class Settings:
    """Options of one series; the names and meanings are those of ``prudent align --help``."""

    preferences: tuple[str, ...] = ()
    prompts: str | None = None
    policy: str = DEFAULT_MODEL
    judge: str | None = None
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    algorithm: str = "rloo"
    beta: float = 0.1
    runs: int = 1
    members: int = 10
    reward: str = "member"
    ridge: str = "cv"
    floor: float = 1e-2
    steps: int = 40
    prompts_per_step: int = 8
    completions: int = 4
    max_new_tokens: int = 48
    learning_rate: float = 3e-4
    epochs: int = 1
    minibatches: int = 1
    lora_rank: int = 16
    lora_layers: int | None = None
    full: bool = False
    train_prompts: int = 32
    eval_prompts: int = 32
    reference_samples: int = 16
    eval_samples: int = 8
    pooling: str = "last+mean"
    max_length: int = 1024
    dtype: str | None = None
    max_pairs: int | None = None
    on_error: str = "raise"
    holdout: float = 0.3
    save_every: int = 10
    images: bool = True
    demo: bool = False
    demo_side: str = "demand"
    demo_pairs: int = 400
    demo_slope: float = 4.0  # of the Bradley-Terry labels, as in the preflight demonstration
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Everything but the seed, as the manifest keeps it."""
        return {key: value for key, value in asdict(self).items() if key != "seed"}

    @property
    def ridge_value(self) -> float | str:
        return "cv" if self.ridge == "cv" else float(self.ridge)


def check(settings: Settings) -> Settings:
    """The settings, or PrudentError naming everything that can't be used."""
    problems = []
    if not settings.preferences and not settings.demo:
        problems.append("no preference file was given; name one with --preferences, or try --demo")
    if settings.demo and (settings.preferences or settings.prompts or settings.judge):
        problems.append(
            "--demo brings its own preferences, prompts and gold; leave --preferences, --prompts, --judge out"
        )
    if settings.demo_side not in SIDES:
        problems.append(f"--demo-side is {settings.demo_side!r}, must be one of {', '.join(SIDES)}")
    unknown = [name for name in settings.objectives if name not in OBJECTIVES]
    if unknown or not settings.objectives:
        problems.append(f"--objective {', '.join(unknown) or '(none)'}: choose among {', '.join(OBJECTIVES)}")
    if len(set(settings.objectives)) != len(settings.objectives):
        problems.append("--objective names one twice")
    problems += [
        f"--{name.replace('_', '-')} is {getattr(settings, name):g}, it must be positive"
        for name in ("beta", "learning_rate")
        if not 0 < getattr(settings, name) < math.inf
    ]
    if settings.reward not in ("member", "mean"):
        problems.append(f"--reward is {settings.reward!r}, must be member or mean")
    least = {
        "runs": 1,
        "members": 2,
        "steps": 1,
        "prompts_per_step": 1,
        "completions": 2,
        "max_new_tokens": 1,
        "lora_rank": 1,
        "train_prompts": 1,
        "eval_prompts": 2,
        "reference_samples": 2,
        "eval_samples": 1,
        "save_every": 1,
        "epochs": 1,
        "minibatches": 1,
        "demo_pairs": 20,
        "demo_slope": 0.0,
        "floor": 0.0,
        "max_length": 16,
        "max_pairs": 8,
        "lora_layers": 1,
    }
    problems += too_small(settings, least) + bad_ridge(settings.ridge)
    if not 0 < settings.holdout < 1:
        problems.append(f"--holdout is {settings.holdout}, it must lie between 0 and 1")
    if problems:
        raise PrudentError("; ".join(problems))
    return settings
