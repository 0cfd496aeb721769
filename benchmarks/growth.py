"""Does the time grow linearly with the pairs, and does memory stay flat? Ten heads on features that lie on disk.

    python benchmarks/growth.py [--short] [--sizes 1000 10000 100000 1000000] [--width 576] [--folder SCRATCH]
        [--shards] [--family laplace]

Synthetic vectors are written to two memory-mapped files, or with --shards to the feature cache's Parquet shards (labels
by Bradley-Terry from a linear truth), and ten bootstrap heads, or the Laplace family, are fitted on them, ridge by
cross-validation, each size in a process of its own, so that its peak of memory is its own. The peak counts everything:
Python, torch, and pages of the files that were in memory when it was taken. Then a million responses are scored from
disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from prudent.features.cache import FeatureCache

CHUNK = 20_000
MEMBERS = 10


def names(folder: Path) -> list[Path]:
    return [folder / "chosen.npy", folder / "rejected.npy"]


def keys_of(rows: range, side: int) -> np.ndarray:
    """Keys (n, 2) of rows of a side in the cache's shards."""
    return np.stack([2 * np.arange(rows.start, rows.stop) + side, np.zeros(len(rows), np.int64)], 1)


def make(folder: Path, pairs: int, width: int, shards: bool) -> None:
    """chosen.npy and rejected.npy, (pairs, width) float32 each, written piece by piece, or shards in cache/."""
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(width, generator=torch.Generator().manual_seed(99)) / width**0.5
    cache = FeatureCache(folder / "cache", width) if shards else None
    sides = (
        []
        if shards
        else [
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(pairs, width)) for path in names(folder)
        ]
    )
    for start in range(0, pairs, CHUNK):
        one, other = torch.randn(2, min(CHUNK, pairs - start), width, generator=generator)
        first = torch.rand(len(one), generator=generator) < torch.sigmoid((one - other) @ truth)
        for number, better in enumerate((first, ~first)):
            vectors = torch.where(better[:, None], one, other)
            if cache is not None:
                cache.add(keys_of(range(start, start + len(one)), number), vectors)
            else:
                sides[number][start : start + len(one)] = vectors.numpy()
    if cache is not None:
        cache.flush()


def measure(folder: Path, pairs: int, width: int, shards: bool, family: str) -> dict[str, Any]:
    """One size, in this process: seconds and the peak."""
    from prudent.rewards.heads import HeadEnsemble
    from prudent.rewards.laplace import LaplacePosterior

    before = results.peak_gib()
    if shards:
        cache = FeatureCache(folder / "cache", width)
        chosen, rejected = (cache.rows(keys_of(range(pairs), side)) for side in (0, 1))
    else:
        chosen, rejected = (np.load(path, mmap_mode="r")[:pairs] for path in names(folder))
    clock, processor = time.perf_counter(), time.process_time()
    kinds: dict[str, Any] = {"heads": HeadEnsemble, "laplace": LaplacePosterior}
    heads = kinds[family].fit(chosen, rejected, members=MEMBERS)
    fitted = time.perf_counter() - clock
    processor = time.process_time() - processor
    peak = results.peak_gib()
    clock, began = time.perf_counter(), time.process_time()
    good = heads.scores(chosen) - heads.scores(rejected)
    return {
        "pairs": pairs,
        "width": width,
        "fit_s": fitted,
        "fit_processor_s": processor,
        "peak_gib": peak,
        "peak_before_gib": before,
        "features_gib": 8 * pairs * width / 2**30,
        "ridge": heads.info["ridge"],
        "score_s": time.perf_counter() - clock,
        "score_processor_s": time.process_time() - began,
        "peak_after_scoring_gib": results.peak_gib(),
        "training_accuracy": float((good.mean(0) > 0).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="up to 100,000 pairs, once")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--folder", type=Path, help="where the files go for the time of the run")
    parser.add_argument("--shards", action="store_true", help="from the feature cache's shards")
    parser.add_argument("--family", choices=("heads", "laplace"), default="heads")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.folder, given.measure, given.width, given.shards, given.family)))
        return
    form = f"{'_shards' if given.shards else ''}{'_laplace' if given.family == 'laplace' else ''}"
    out = given.out or results.FOLDER / f"growth{form}.json"
    sizes = sorted(given.sizes or [10**3, 10**4, 10**5, *([] if given.short else [10**6])])
    repeats = given.repeats or (1 if given.short else 3)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        make(Path(name), sizes[-1], given.width, given.shards)
        for _ in range(repeats):
            for pairs in sizes:
                command = [sys.executable, __file__, "--measure", str(pairs), "--folder", name]
                command += ["--width", str(given.width), "--family", given.family, *(["--shards"] * given.shards)]
                rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)

    def at(size: int, key: str) -> list[float]:
        return [row[key] for row in rows if row["pairs"] == size]

    figures = []
    for low, high in itertools.pairwise(sizes):
        figures.append(
            results.ratio(
                f"processor time a pair at {high:,} pairs, against {low:,}",
                at(high, "fit_processor_s"),
                at(low, "fit_processor_s"),
                low / high,
            )
        )
    last, what = sizes[-1], "ten heads" if given.family == "heads" else "a Laplace posterior"
    figures += [
        results.figure(f"fitting {what} on {last:,} pairs", at(last, "fit_processor_s"), unit="s of processor"),
        results.figure(f"peak memory at {last:,} pairs", at(last, "peak_gib"), unit="GiB", at_most=2),
        results.figure(
            f"scoring {2 * last:,} responses from disk", at(last, "score_processor_s"), unit="s of processor"
        ),
    ]
    where = "the cache's shards" if given.shards else "disk"
    results.write(out, f"Growth: {what} from features {'in' if given.shards else 'on'} {where}", figures, rows=rows)


if __name__ == "__main__":
    main()
