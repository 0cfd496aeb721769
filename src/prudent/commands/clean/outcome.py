"""What a cleaning run found and did, for its files and its page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prudent.commands.clean.inputs import Inputs
from prudent.commands.clean.options import CleanOptions
from prudent.data.cleaning import Change, Cleaned
from prudent.rewards.strength import Strength


@dataclass
class Judged:
    """Strength of the pairs that rules keep. indices: number (from 0) of each in the file; decile: 1 = weakest."""

    strength: Strength
    indices: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    decile: np.ndarray
    table: list[dict[str, Any]]
    shares: dict[str, float]
    second: dict[str, Any] | None = None


@dataclass
class Outcome:
    """All that a run found and did."""

    settings: CleanOptions
    inputs: Inputs
    actions: dict[str, str]
    changes: list[Change]
    cleaned: Cleaned
    length: dict[str, Any]
    ceiling: dict[str, Any]
    prompts: dict[str, int]
    judged: Judged | None = None
    proof: dict[str, Any] | None = None
    planted: list[dict[str, Any]] = field(default_factory=list)
    features: str | None = None
    depth: dict[str, Any] | None = None
    shown: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)
