"""Generative judges: placement of the answers, what their verdicts say, and what counts as none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate, proportion
from prudent.files import hash_text

VERDICT = re.compile(r"\[\[\s*([A-Za-z])\s*\]\]")
RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
RATINGS = (1.0, 10.0)  # the scale of ratings
OUTCOMES = ("right", "wrong", "tie", "invalid")
RULES = {
    "decided_only": "right / (right + wrong)",
    "invalid_wrong": "tie counts half, invalid counts as wrong",
    "rewardbench": "tie counts half, invalid counts half (RewardBench's convention)",
}


def placement(seed: int, item: object, slots: str = "AB") -> str:
    """Slot of the chosen answer: a function of (seed, item id) alone, whatever the order, batch or thread count."""
    return slots[int(hash_text(str(int(seed)), str(item))[:12], 16) % len(slots)]


def parse_verdict(text: str, slots: str = "AB", tie: str = "C") -> str | None:
    """Slot named by a judge's text (``[[A]]``), "tie", or None for no verdict or for two different ones."""
    named = {letter.upper() for letter in VERDICT.findall(text or "")}
    if len(named) != 1:
        return None
    (letter,) = named
    if letter in slots:
        return letter
    return "tie" if letter == tie else None


def parse_rating(text: str, low: float = RATINGS[0], high: float = RATINGS[1]) -> float | None:
    """Number in a judge's text (``[[7]]``), None for none, two different ones, or one outside [low, high]."""
    named = {float(number) for number in RATING.findall(text or "")}
    if len(named) != 1:
        return None
    (number,) = named
    return number if low <= number <= high else None


def outcome(verdict: str | None, chosen_slot: str) -> str:
    """right | wrong | tie | invalid."""
    if verdict is None:
        return "invalid"
    return verdict if verdict == "tie" else "right" if verdict == chosen_slot else "wrong"


def swapped_outcome(first: str, second: str) -> str:
    """Outcome of one item judged in both orders: what both say; a tie where they contradict each other or one is a tie.

    Invalid where either is invalid.
    """
    if "invalid" in (first, second):
        return "invalid"
    return first if first == second else "tie"


@dataclass(frozen=True)
class JudgeScore:
    """Counts of every outcome, and accuracy by rule (``RULES`` says what each counts)."""

    right: int
    wrong: int
    tie: int
    invalid: int
    accuracy: dict[str, Estimate]

    @property
    def n(self) -> int:
        """Number of verdicts, unreadable ones included."""
        return self.right + self.wrong + self.tie + self.invalid


def credit(outcomes: Sequence[str], rule: str = "invalid_wrong") -> torch.Tensor:
    """Credits of outcomes by rule, (items,) float64; "decided_only" leaves out what isn't decided."""
    if rule not in RULES:
        raise PrudentError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    unknown = [item for item, name in enumerate(outcomes) if name not in OUTCOMES]
    if unknown:
        raise PrudentError(f"outcome {outcomes[unknown[0]]!r} at item {unknown[0]}, expected {', '.join(OUTCOMES)}")
    points: Mapping[str, float] = {
        "right": 1.0,
        "wrong": 0.0,
        "tie": 0.5,
        "invalid": 0.5 if rule == "rewardbench" else 0.0,
    }
    kept = [name for name in outcomes if rule != "decided_only" or name in ("right", "wrong")]
    return torch.tensor([points[name] for name in kept], dtype=torch.float64)


def judge_score(outcomes: Sequence[str]) -> JudgeScore:
    """All four counts, and accuracy by each rule with a Wilson interval (None where nothing was decided)."""
    accuracy = {rule: proportion(credit(outcomes, rule)) for rule in RULES}
    counts = Counter(outcomes)
    return JudgeScore(counts["right"], counts["wrong"], counts["tie"], counts["invalid"], accuracy)
