"""Are our bootstraps faster than scipy.stats.bootstrap? Means of few and of many distinct values, and a callable.

python benchmarks/resampling.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
from scipy import stats

from prudent.evaluation.intervals import bootstrap

ROUNDS = 1000


def theirs(values: np.ndarray, statistic: Any, vectorized: bool) -> None:
    """scipy's percentile bootstrap, a batch of rounds at a time so that memory stays bounded."""
    batch = max(1, 4_000_000 // len(values))
    stats.bootstrap(
        (values,), statistic, n_resamples=ROUNDS, method="percentile", vectorized=vectorized, batch=batch, rng=0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "resampling.json")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    figures = []
    for n in (200, 2_000, 100_000):
        for kind, values in (
            ("correct or not", random.integers(0, 2, n).astype(float)),
            ("real", random.normal(size=n)),
        ):
            times = results.interleaved(
                {
                    "ours": lambda v=values: bootstrap(v, rounds=ROUNDS),
                    "scipy": lambda v=values: theirs(v, np.mean, True),
                },
                given.repeats,
                time.process_time,
            )
            figures.append(
                results.ratio(f"scipy over ours, mean of {n:,} values, {kind}", times["scipy"], times["ours"])
            )
    values = random.normal(size=2_000)
    times = results.interleaved(
        {
            "ours": lambda: bootstrap(values, lambda x: float(np.median(x)), rounds=ROUNDS),
            "scipy": lambda: theirs(values, np.median, False),
        },
        given.repeats,
        time.process_time,
    )
    figures.append(results.ratio("scipy over ours, a callable (median) on 2,000 values", times["scipy"], times["ours"]))
    results.write(given.out, "Bootstraps", figures)


if __name__ == "__main__":
    main()
