"""What the page and the terminal of the evaluate commands share: metrics by name, and numbers with their intervals."""

from __future__ import annotations

from prudent.evaluation.benchmarks.contest import Result
from prudent.evaluation.intervals import Estimate
from prudent.reporting.numbers import interval

TITLES = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rewardmath": "RewardMATH",
    "preferences": "Preference pairs",
}
COLUMNS = {
    "rewardbench": ("overall", "Chat", "Chat Hard", "Safety", "Reasoning", "micro", "micro, ties half"),
    "rewardbench2": ("overall", "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties", "micro"),
    "rewardmath": ("accuracy", "accuracy_with_ties", "accuracy_expected", "mrr", "mrr_tie_averaged"),
    "preferences": ("accuracy", "accuracy, ties half"),
}
NAMES = {
    "accuracy_with_ties": "accuracy, ties won",
    "accuracy_expected": "accuracy, ties at random",
    "mrr": "MRR, ties lost",
    "mrr_tie_averaged": "MRR, ties averaged",
    "micro": "accuracy over all items",
    "micro, ties half": "the same, ties half",
    "overall": "overall score",
}


def shown(value: Estimate | None) -> str:
    """``0.812 [0.790, 0.833]``, or a dash."""
    return "–" if value is None else interval(value.value, value.low, value.high)


def brief(value: Estimate | float | None) -> float | None:
    """The value alone."""
    return value.value if isinstance(value, Estimate) else value


def columns(benchmark: str, results: list[Result]) -> list[str]:
    """Metrics of the table; a section is followed by what is known of a part of it ("Safety, 4 of 5 subsets")."""
    found = list(dict.fromkeys(name for result in results for name in result.view.metrics))
    named = [
        name
        for metric in COLUMNS[benchmark]
        for name in [metric, *(n for n in found if n.startswith(f"{metric}, ") and n.endswith(" subsets"))]
    ]
    return [name for name in named if any(brief(metric_of(r, name)) is not None for r in results)]


def metric_of(result: Result, name: str) -> Estimate | None:
    """A metric of the view that a scorer is judged by, or None."""
    return result.view.metrics.get(name)
