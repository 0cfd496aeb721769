"""What preflight can be told, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prudent.commands.preflight.core import BETAS
from prudent.errors import PrudentError
from prudent.features.models import DEFAULT_MODEL

REWARDS = {"member": "member:0", "mean": "mean"}


@dataclass(frozen=True)
class Settings:
    """Options of one preflight; the names and meanings are those of ``prudent preflight --help``."""

    preferences: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    policy: str = DEFAULT_MODEL
    pool: str | None = None
    judge: str | None = None
    gold: str | None = None
    encoder: str = DEFAULT_MODEL
    pooling: str = "last+mean"
    max_length: int = 1024
    dtype: str | None = None
    betas: tuple[float, ...] = BETAS
    draws: int = 200
    members: int = 10
    reward: str = "member"
    ridge: str = "cv"
    floor: float = 1e-2
    max_risk: float = 0.05
    max_pairs: int | None = None
    max_test_pairs: int | None = None
    holdout: float = 0.2
    prompts: int = 40
    samples: int = 16
    max_new_tokens: int = 48
    on_error: str = "raise"
    check: bool = True
    images: bool = True
    demo: bool = False
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Everything but the seed, as the manifest keeps it."""
        return {key: value for key, value in asdict(self).items() if key != "seed"}

    @property
    def reward_rule(self) -> str:
        return REWARDS[self.reward]

    @property
    def ridge_value(self) -> float | str:
        return "cv" if self.ridge == "cv" else float(self.ridge)


def check(settings: Settings) -> Settings:
    """The settings, or PrudentError naming the first that can't be used."""
    problems = []
    if not settings.preferences and not settings.demo:
        problems.append("no preference file was given; name one with --preferences, or try --demo")
    if settings.demo and (settings.preferences or settings.pool or settings.judge or settings.test):
        problems.append(
            "--demo brings its own preferences, pool and gold; leave --preferences, --pool, --judge, --test out"
        )
    if settings.gold and settings.judge:
        problems.append("--gold and --judge both say what is true; give one of them")
    if settings.gold and not settings.pool and not settings.demo:
        problems.append(f"--gold {settings.gold} names a column of the pool; give the pool with --pool FILE")
    if not settings.betas or any(not (b > 0 and math.isfinite(b)) for b in settings.betas):
        problems.append(
            f"--betas must be positive numbers, got {', '.join(f'{b:g}' for b in settings.betas) or 'none'}"
        )
    if len(set(settings.betas)) != len(settings.betas):
        problems.append("--betas names a value twice")
    least = {
        "draws": 4,
        "members": 2,
        "prompts": 1,
        "samples": 2,
        "max_new_tokens": 1,
        "max_length": 8,
        "max_pairs": 8,
        "max_test_pairs": 8,
        "floor": 0.0,
    }
    problems += too_small(settings, least)
    for name, low, high in (("max_risk", 0.0, 1.0), ("holdout", 0.0, 1.0)):
        if not low < getattr(settings, name) < high:
            problems.append(f"--{name.replace('_', '-')} is {getattr(settings, name)}, it must lie between 0 and 1")
    if settings.reward not in REWARDS:
        problems.append(f"--reward is {settings.reward!r}, must be one of {', '.join(REWARDS)}")
    problems += bad_ridge(settings.ridge)
    if problems:
        raise PrudentError("; ".join(problems))
    return settings


def too_small(settings: Any, least: Mapping[str, float]) -> list[str]:
    """What is wrong with options that lie below the least value they can have; options that are None are left out."""
    given = {name: getattr(settings, name) for name in least}
    return [
        f"--{name.replace('_', '-')} is {value}, it must be at least {least[name]}"
        for name, value in given.items()
        if value is not None and not value >= least[name]
    ]


def bad_ridge(ridge: str) -> list[str]:
    """What is wrong with --ridge, if anything."""
    try:
        usable = ridge == "cv" or 0 < float(ridge) < math.inf
    except ValueError:
        usable = False
    return [] if usable else [f'--ridge is {ridge!r}, must be "cv" or a positive number']
