"""The Ties domain of RewardBench 2 (arXiv 2506.01937), and the published counts and weights of both benchmarks."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.evaluation.intervals import array
from prudent.evaluation.resampling import resampled_means
from prudent.seeding import Seed


@functools.cache
def published() -> dict[str, Any]:
    """The benchmarks' sections, subsets, counts and weights."""
    text = (
        importlib.resources.files("prudent.evaluation.benchmarks").joinpath("data/reward_bench.json").read_text("utf-8")
    )
    return json.loads(text)


@dataclass(frozen=True)
class TiesScore:
    """Score of the Ties domain and its five parts. pairs: prompts that have both a ``ref`` and a ``tied`` item."""

    score: float | None
    tied_accuracy: float | None
    reference_accuracy: float | None
    preferred: float | None
    preferred_hard: float | None
    margin: float | None
    pairs: int
    reason: str | None = None


def tie_statistics(scores: np.ndarray, correct: int) -> tuple[float, float, float]:
    """(accurate, range of the correct scores, worst correct - best wrong) of one Ties item."""
    right, wrong = scores[:correct], scores[correct:]
    gap = float(right.min() - wrong.max())
    return float(gap > 0), float(right.max() - right.min()), gap


def ties_score(
    reference: dict[str, tuple[float, float, float]], tied: dict[str, tuple[float, float, float]]
) -> TiesScore:
    """RewardBench 2's Ties: 0.3 tied accuracy + 0.3 reference accuracy + 0.2 mean[gap_tied > spread] + 0.2
    mean[min gap > spread] + 0.01 mean tanh(min gap / spread - 1), NaN (0 / 0) counted as 0."""
    if not reference or not tied:
        return TiesScore(None, None, None, None, None, None, 0, "it needs both 'ref:' and 'tied:' items")
    pairs = [key for key in tied if key in reference]
    accuracy = [float(np.mean([entry[0] for entry in group.values()])) for group in (tied, reference)]
    if not pairs:
        reason = "no prompt has both a 'ref:' and a 'tied:' item"
        return TiesScore(None, accuracy[0], accuracy[1], None, None, None, 0, reason)
    tied_range = np.array([tied[key][1] for key in pairs])
    gap = np.array([tied[key][2] for key in pairs])
    least = np.minimum(gap, np.array([reference[key][2] for key in pairs]))
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(least / tied_range - 1), nan=0.0)
    preferred, hard, soft = float((gap > tied_range).mean()), float((least > tied_range).mean()), float(margin.mean())
    parts = (accuracy[0], accuracy[1], preferred, hard, soft)
    weights = published()["rewardbench2"]["ties_weights"]
    total = sum(weights[name] * part for name, part in zip(weights, parts))
    return TiesScore(total, accuracy[0], accuracy[1], preferred, hard, soft, len(pairs))


def split_ties(
    scores: Sequence[ArrayLike], correct: Sequence[int], ids: Sequence[str]
) -> tuple[dict[str, tuple[float, float, float]], dict[str, tuple[float, float, float]]]:
    """Statistics of the Ties items by prompt: (ref items, tied items). Ids are ``ref:KEY`` and ``tied:KEY``."""
    groups: dict[str, dict[str, tuple[float, float, float]]] = {"ref": {}, "tied": {}}
    for item, (values, right, name) in enumerate(zip(scores, correct, ids)):
        kind, _, key = str(name).partition(":")
        if kind not in groups or not key:
            raise PrudentError(f"Ties item {item} has id {name!r}; expected 'ref:KEY' or 'tied:KEY'")
        if key in groups[kind]:
            raise PrudentError(f"Ties id {name!r} occurs twice (again at Ties item {item})")
        x = array(values, f"scores of Ties item {name}")
        if not 0 < right < len(x):
            raise PrudentError(f"Ties item {name} has {right} correct of {len(x)} candidates; it needs both kinds")
        groups[kind][key] = tie_statistics(x, right)
    return groups["ref"], groups["tied"]


def ties_draws(
    reference: dict[str, tuple[float, float, float]],
    tied: dict[str, tuple[float, float, float]],
    rounds: int,
    seed: Seed,
) -> np.ndarray | None:
    """Bootstrap of the Ties score over prompts. Every part is a mean over prompts, so means of columns suffice."""
    pairs = [key for key in tied if key in reference]
    if len(pairs) < 2 or len(pairs) != len(tied) or len(pairs) != len(reference):
        return None  # prompts with one item only have no common draw
    alone = [ties_score({key: reference[key]}, {key: tied[key]}).score for key in pairs]
    return resampled_means(np.array(alone, dtype=np.float64)[:, None], rounds, seed)[:, 0]
