"""Metrics over a million scored pairs with a thousand bootstrap rounds; published reward models from their own scores.

    python benchmarks/evaluate.py                                      # speed: seconds, memory, ratio to the plain way
    python benchmarks/evaluate.py --scores rewardmath_scores.jsonl.gz  # every model's accuracy and MRR, by every rule

Speed: all metrics, and the fast bootstrap beside the plain one (draw n indices, take, average), in turn in one process;
the plain one for ten rounds, scaled to a thousand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results

from prudent.evaluation import statistics
from prudent.evaluation.benchmarks.pair_metrics import compare, disagreement, pair_score
from prudent.evaluation.benchmarks.reward_math import compare_reductions, rewardmath
from prudent.evaluation.benchmarks.score_files import read_scores


def plain_bootstrap(values: np.ndarray, rounds: int) -> np.ndarray:
    """The way it is usually written."""
    generator = np.random.default_rng(0)
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(rounds)])


def parts_of(pairs: int, rounds: int) -> tuple[dict[str, Callable[[], Any]], np.ndarray]:
    """Every metric as a call, on scored pairs of a ten-member ensemble's mean, and the pairs' margins."""
    generator = np.random.default_rng(0)
    margin = generator.normal(0.5, 1, pairs)
    chosen = margin + generator.normal(0, 1, pairs)
    rejected = chosen - margin
    right = (margin > 0).astype(np.float64)
    other = (generator.random(pairs) < 0.68).astype(np.float64)
    spread = np.abs(generator.normal(0, 1, pairs))
    prompts = np.arange(pairs) // 3
    return {
        "accuracy, ties, calibration": lambda: pair_score(chosen, rejected, rounds=rounds),
        "accuracy by prompt clusters": lambda: statistics.bootstrap(right, rounds=rounds, clusters=prompts),
        "mean margin": lambda: statistics.bootstrap(margin, rounds=rounds),
        "errors against disagreement": lambda: disagreement(spread, right, "deviation"),
        "paired comparison": lambda: compare(right, other, rounds=rounds),
    }, margin


def speed(pairs: int, rounds: int, repeats: int, out: Path) -> None:
    """Seconds of every metric, all together against the aim, memory, and the ratio to the plain bootstrap."""
    parts, margin = parts_of(pairs, rounds)
    before = results.peak_gib()
    plain = {"plain bootstrap, 10 rounds": lambda: plain_bootstrap(margin, 10)}
    busy = time.process_time()
    for part in parts.values():
        part()
    busy = time.process_time() - busy
    more = results.peak_gib() - before
    times = results.interleaved({**parts, **plain}, repeats)
    totals = [sum(times[name][turn] for name in parts) for turn in range(repeats)]
    what = f"{pairs:,} pairs, {rounds:,} rounds"
    results.write(
        out,
        "Metrics with intervals over scored pairs",
        [
            results.figure(f"processor time of all metrics, {what}", busy, unit="s", at_most=10),
            results.figure("the same by the clock, other work included", totals, unit="s"),
            results.figure("memory above the data", more, unit="GiB", at_most=1),
            results.ratio(
                "plain over fast bootstrap of a mean",
                times["plain bootstrap, 10 rounds"],
                times["mean margin"],
                rounds / 10,
            ),
        ],
        rows=[{"part": name, "seconds": seconds} for name, seconds in times.items()],
    )


def published(path: str) -> None:
    """A table of every model in a RewardMATH scores file: strict, tie-tolerant, MRR, and what process models need."""
    columns = ("strict", "ties won", "random", "MRR", "averaged", "tied")
    print(f"{'model':18} {'reduction':14}" + "".join(f"{name:>9}" for name in columns))
    for table in read_scores(path):
        rows = list(table.rows.values())
        how, note = "", ""
        scores: Any = rows
        if table.kind == "steps":
            choice = compare_reductions(rows)
            how = choice.best
            found = choice.scores[how]
            note = f"best in {choice.share[how]:.0%} of resamples, runner-up {choice.runner_up}"
        else:
            found = rewardmath(scores)
        values = (found.accuracy, found.accuracy_with_ties, found.accuracy_expected, found.mrr, found.mrr_tie_averaged)
        shown = "".join(f"{value:9.4f}" for value in values)
        print(f"{table.name:18} {how:14}{shown}{found.tied_problems:9d} {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "evaluate.json")
    parser.add_argument("--scores", help="RewardMATH scores file: print every model instead of measuring speed")
    given = parser.parse_args()
    if given.scores:
        published(given.scores)
    else:
        speed(given.pairs, given.rounds, given.repeats, given.out)


if __name__ == "__main__":
    main()
