"""Does length give the label away? How well "pick the longer" does, and how far the sides' lengths lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from prudent.data.messages import Message

SEVERE_ACCURACY = 0.7
SEVERE_GAP = 0.1


def answer_text(answer: Sequence[Message]) -> str:
    """Text of an answer's assistant turns: what length and leaks are judged by."""
    turns = [message["content"] for message in answer if message["role"] == "assistant"]
    return "\n\n".join(turns or [message["content"] for message in answer])


def word_counts(answers: Sequence[Sequence[Message]]) -> np.ndarray:
    """Number of words (runs without white space) of each answer, (n,) int64."""
    return np.array([len(answer_text(answer).split()) for answer in answers], dtype=np.int64)


def length_report(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """What length alone says about the label. chosen, rejected: (n,) lengths, in words.

    longer_accuracy: share of pairs whose chosen answer is longer, equal lengths counted half, with its 95 % Wilson
    interval (half counts rounded down). cohen_d_pooled: difference of means over the pooled sample standard deviation;
    cohen_d_paired: mean over standard deviation of the differences; null with a reason where that deviation is zero.
    relative_gap: difference of means over their mean. severe: the better of "longer" and "shorter" is right in at least
    70 % of pairs, above one half beyond its interval, and the means lie at least 10 % apart; d alone never makes it so.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    n = len(chosen)
    if n == 0:
        return {"pairs": 0, "longer_accuracy": None, "severe": False, "reasons": {"longer_accuracy": "no pairs"}}
    difference = chosen - rejected
    wins, ties = int((difference > 0).sum()), int((difference == 0).sum())
    accuracy = (wins + ties / 2) / n
    interval = stats.binomtest(int(wins + ties / 2), n).proportion_ci(method="wilson")
    means = float(chosen.mean()), float(rejected.mean())
    middle = (means[0] + means[1]) / 2
    reasons: dict[str, str] = {}
    found: dict[str, float | None] = {}
    pooled = float(np.sqrt((chosen.var(ddof=1) + rejected.var(ddof=1)) / 2)) if n > 1 else 0.0
    paired = float(difference.std(ddof=1)) if n > 1 else 0.0
    for name, deviation in (("cohen_d_pooled", pooled), ("cohen_d_paired", paired)):
        found[name] = (means[0] - means[1]) / deviation if deviation > 0 else None
        if deviation == 0:
            reasons[name] = "lengths do not vary" if n > 1 else "one pair has no variance"
    gap = (means[0] - means[1]) / middle if middle > 0 else None
    best = max(accuracy, 1 - accuracy)
    low = interval.low if accuracy >= 0.5 else 1 - interval.high
    severe = best >= SEVERE_ACCURACY and low > 0.5 and gap is not None and abs(gap) >= SEVERE_GAP
    return {
        "pairs": n,
        "unit": "words",
        "longer_accuracy": accuracy,
        "longer_accuracy_interval": [float(interval.low), float(interval.high)],
        "equal_lengths": ties,
        "mean_chosen": means[0],
        "mean_rejected": means[1],
        **found,
        "relative_gap": gap,
        "severe": bool(severe),
        "reasons": reasons,
    }
