"""One epoch of every stage on synthetic interactions, with seconds and peak memory; no dense user-item matrix is held.

    python benchmarks/recommend_scale.py              # 100,000 users, 50,000 items, 10 million pairs
    python benchmarks/recommend_scale.py --scale 0.2  # a fifth of each, a twenty-fifth of the work
    python benchmarks/recommend_scale.py --stages uncertainty --threads 1

Each stage runs in a process of its own, so that its peak is its own; stages that the result file holds already and
that aren't asked for are kept. The uncertainty stage stands on an untrained matrix factorisation: its cost doesn't
depend on what the scores are. --batches runs only the first of an epoch's batches (all cost the same) and multiplies;
the result says so. The peak includes making the synthetic pairs and the libraries themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from prudent.recommend import models, uncertainty
from prudent.recommend.models import Backbone, BackboneOptions, embeddings, factor_scores
from prudent.recommend.pipeline import fit_backbone
from prudent.recommend.ranking import recommend
from prudent.recommend.splits import Data, Truth, pattern
from prudent.recommend.training import Curve, Schedule, train
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty

STAGES = ("mf", "lightgcn", "vae", "uncertainty")
BATCH = {"mf": 2048, "lightgcn": 8192, "vae": 256, "uncertainty": 512}


def synthetic(users: int, items: int, pairs: int, seed: int = 0) -> Data:
    """Distinct pairs, users by a log-normal activity, items by a Zipf law (exponent 0.8); 1 % of the pairs are held
    out.
    """
    generator = np.random.default_rng(seed)
    activity = generator.lognormal(0, 0.7, users)
    weight = 1 / np.arange(1, items + 1) ** 0.8
    keys = np.zeros(0, dtype=np.int64)
    while len(keys) < pairs:
        wanted = int((pairs - len(keys)) * 1.2) + 1000
        user = np.searchsorted(np.cumsum(activity / activity.sum()), generator.random(wanted)).clip(max=users - 1)
        item = np.searchsorted(np.cumsum(weight / weight.sum()), generator.random(wanted)).clip(max=items - 1)
        keys = np.unique(np.r_[keys, user.astype(np.int64) * items + item])
    keys = generator.permutation(keys)[:pairs]
    user, item = keys // items, keys % items
    held = (user < 2000) & (generator.random(pairs) < 0.1)
    shape = (users, items)
    train = pattern(user[~held], item[~held], shape)
    empty = pattern(np.zeros(0, dtype=int), np.zeros(0, dtype=int), (0, items))
    valid = Truth(pattern(user[held], item[held], shape), np.zeros(users, dtype=int), empty, np.zeros(0, dtype=int))
    names = ([str(place) for place in range(count)] for count in shape)
    return Data(*names, train, train, valid)


def run_stage(name: str, scale: float, batches: int | None = None, seed: int = 0) -> dict[str, float]:
    """Seconds of the data and of one epoch (or of its first ``batches``), and the peak memory of this process."""
    users, items, pairs = (int(size * scale) for size in (100_000, 50_000, 10_000_000))
    started = time.perf_counter()
    data = synthetic(users, items, pairs, seed)
    made = time.perf_counter() - started
    plan = Schedule(batch=BATCH[name], epochs=1)
    every = -(-users // plan.batch)
    done = min(batches or every, every)
    curves: list[Curve] = []

    def some(stage: str, parameters: Any, step: Any, validate: Any, places: np.ndarray, *rest: Any) -> Curve:
        curves.append(train(stage, parameters, step, lambda: float("nan"), places[: done * plan.batch], *rest))
        started = time.perf_counter()
        validate()
        validated.append(time.perf_counter() - started)
        return curves[-1]

    validated: list[float] = []
    models.train = uncertainty.train = some  # type: ignore[attr-defined]
    if name == "uncertainty":
        user, item = (part.detach() for part in embeddings(data, 128, seed))
        backbone = Backbone("mf", "factors", factor_scores(user, item), {"user": user, "item": item})
        fitted = fit_uncertainty(data, backbone, UncertaintyOptions(), plan, seed)
    else:
        fitted = fit_backbone(data, name, BackboneOptions(), plan, seed)
    started = time.perf_counter()
    recommend(fitted.scores, data.seen, np.arange(min(users, 2000)), 50)
    return {
        "users": users,
        "items": items,
        "pairs": int(data.train.nnz),
        "batch": plan.batch,
        "seconds, data": made,
        "batches": every,
        "batches run": done,
        "seconds of these": curves[0].seconds,
        "seconds, one epoch": curves[0].seconds * every / done,
        "seconds, validation of 2,000 users": validated[0],
        "seconds, top 50 of 2,000 users": time.perf_counter() - started,
        "peak GiB": results.peak_gib(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, help="run only so many batches of an epoch, and multiply")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "recommend_scale.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.here:
        print(json.dumps(run_stage(arguments.stages[0], arguments.scale, arguments.batches)))
        return
    found = {}
    if arguments.out.is_file():
        found = {row["stage"]: row for row in json.loads(arguments.out.read_text())["rows"]}
    for name in arguments.stages:
        command = [sys.executable, __file__, "--here", "--stages", name, "--scale", str(arguments.scale)]
        command += ["--threads", str(arguments.threads)]
        command += ["--batches", str(arguments.batches)] if arguments.batches else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        found[name] = {"stage": name, **json.loads(done.stdout)}
        print(found[name], flush=True)
    figures = []
    for name, row in found.items():
        note = f"{row['users']:,} users, {row['items']:,} items, {row['pairs']:,} pairs, {row['threads']} threads"
        if row["batches run"] < row["batches"]:
            note += f"; {row['batches run']} of {row['batches']} batches run, multiplied"
        figures.append(results.figure(f"one epoch, {name}", row["seconds, one epoch"], unit="s", note=note))
        figures.append(results.figure(f"peak memory, {name}", row["peak GiB"], unit="GiB", at_most=6))
    results.write(
        arguments.out,
        "What does an epoch of each stage cost at ten million interactions?",
        figures,
        rows=list(found.values()),
    )


if __name__ == "__main__":
    main()
