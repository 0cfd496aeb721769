"""One epoch of every stage on synthetic interactions, with seconds and peak memory; no dense user-item matrix is held.

python benchmarks/recommend_scale.py # 100,000 users, 50,000 items, 10 million pairs python
benchmarks/recommend_scale.py --scale 0.2 # a fifth of each, a twenty-fifth of the work python
benchmarks/recommend_scale.py --stages uncertainty # some stages only

Each stage runs in a process of its own, so that its peak is its own. The uncertainty stage stands on an untrained
matrix factorisation: its cost doesn't depend on what the scores are. Seconds of an epoch include one validation on
2,000 users.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from prudent.recommend.models import Backbone, BackboneOptions, embeddings, factor_scores
from prudent.recommend.pipeline import fit_backbone
from prudent.recommend.ranking import recommend
from prudent.recommend.splits import Data, Truth, pattern
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty
from prudent.runs import dumps, write_atomic

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


def run_stage(name: str, scale: float, seed: int = 0) -> dict[str, float]:
    """Seconds of the data and of one epoch, and the peak memory of this process in GiB."""
    users, items, pairs = (int(size * scale) for size in (100_000, 50_000, 10_000_000))
    started = time.perf_counter()
    data = synthetic(users, items, pairs, seed)
    made = time.perf_counter() - started
    plan = Schedule(batch=BATCH[name], epochs=1)
    started = time.perf_counter()
    if name == "uncertainty":
        user, item = (part.detach() for part in embeddings(data, 128, seed))
        backbone = Backbone("mf", "factors", factor_scores(user, item), {"user": user, "item": item})
        fitted = fit_uncertainty(data, backbone, UncertaintyOptions(), plan, seed)
    else:
        fitted = fit_backbone(data, name, BackboneOptions(), plan, seed)
    epoch = time.perf_counter() - started
    started = time.perf_counter()
    some = np.arange(min(users, 2000))
    recommend(fitted.scores, data.seen, some, 50)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "users": users, "items": items, "pairs": int(data.train.nnz), "batch": plan.batch, "seconds, data": made,
        "seconds, one epoch": epoch, "seconds, top 50 of 2,000 users": time.perf_counter() - started, "peak GiB": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.here:
        print(json.dumps(run_stage(arguments.stages[0], arguments.scale)))
        return
    found = {}
    for name in arguments.stages:
        command = [sys.executable, __file__, "--here", "--stages", name, "--scale", str(arguments.scale)]
        done = subprocess.run([*command, "--threads", str(arguments.threads)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout)
        print(name, {key: round(value, 2) for key, value in found[name].items()}, flush=True)
    if arguments.out:
        write_atomic(arguments.out, dumps({"threads": arguments.threads, "stages": found}))


if __name__ == "__main__":
    main()
