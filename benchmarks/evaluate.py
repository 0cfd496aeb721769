"""Metrics over a million scored pairs with a thousand bootstrap rounds; published reward models from their own scores.

    python benchmarks/evaluate.py                                      # speed: seconds, memory, ratio to the plain way
    python benchmarks/evaluate.py --scores rewardmath_scores.jsonl.gz  # every model's accuracy and MRR, by every rule

Speed: the fast bootstrap and the plain one (draw n indices, take, average) run side by side in one process; the plain
one for ten rounds, scaled to a thousand. Processor time is given beside the clock's, which other work on the machine
stretches.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from prudent.evaluation import statistics
from prudent.evaluation.pair_metrics import compare, disagreement, pair_score
from prudent.evaluation.reward_math import compare_reductions, rewardmath
from prudent.evaluation.score_files import read_scores


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def plain_bootstrap(values: np.ndarray, rounds: int) -> np.ndarray:
    """The way it is usually written."""
    generator = np.random.default_rng(0)
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(rounds)])


def speed(pairs: int, rounds: int) -> dict[str, Any]:
    """Seconds of every metric on ``pairs`` scored pairs of a ten-member ensemble's mean, and the peak of memory."""
    generator = np.random.default_rng(0)
    margin = generator.normal(0.5, 1, pairs)
    chosen, rejected = margin + generator.normal(0, 1, pairs), generator.normal(0, 1, pairs)
    rejected = chosen - margin
    right = (margin > 0).astype(np.float64)
    other = (generator.random(pairs) < 0.68).astype(np.float64)
    spread = np.abs(generator.normal(0, 1, pairs))
    prompts = np.arange(pairs) // 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts = {
        "accuracy, ties, calibration": lambda: pair_score(chosen, rejected, rounds=rounds),
        "accuracy by prompt clusters": lambda: statistics.bootstrap(right, rounds=rounds, clusters=prompts),
        "mean margin": lambda: statistics.bootstrap(margin, rounds=rounds),
        "errors against disagreement": lambda: disagreement(spread, right, "deviation"),
        "paired comparison": lambda: compare(right, other, rounds=rounds),
    }
    busy = time.process_time()
    seconds = {name: timed(function)[0] for name, function in parts.items()}
    busy = time.process_time() - busy
    plain = timed(lambda: plain_bootstrap(margin, 10))[0] * rounds / 10
    return {
        "pairs": pairs, "rounds": rounds, "threads": torch.get_num_threads(), "seconds": seconds,
        "total_s": sum(seconds.values()), "processor_s": busy,
        "peak_mb_more": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "plain_mean_margin_s_scaled": plain, "plain_over_fast": plain / seconds["mean margin"],
    }  # fmt: skip


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
        values = (
            found.accuracy, found.accuracy_with_ties, found.accuracy_expected, found.mrr, found.mrr_tie_averaged
        )  # fmt: skip
        shown = "".join(f"{value:9.4f}" for value in values)
        print(f"{table.name:18} {how:14}{shown}{found.tied_problems:9d} {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--scores", help="RewardMATH scores file: print every model instead of measuring speed")
    given = parser.parse_args()
    if given.scores:
        published(given.scores)
    else:
        print(json.dumps(speed(given.pairs, given.rounds), indent=2))


if __name__ == "__main__":
    main()
