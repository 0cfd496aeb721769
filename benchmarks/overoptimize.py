"""Best-of-n curves at scale: 1,000 prompts by 256 responses, 200 reward models drawn from noisy pairs, 20 values of n.

    python benchmarks/overoptimize.py [--prompts 1000] [--samples 256] [--draws 200] [--width 64] [--pairs 2000]

Features are random, gold is linear in them plus noise, so nothing is read from anywhere. Beside the seconds: how the
unbiased estimator compares, at equal precision, with drawing subsets, both on one draw, in turn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import results
import torch

from prudent.evaluation.overoptimization.curves import curve
from prudent.evaluation.overoptimization.fits import best_of_n_curves
from prudent.evaluation.overoptimization.goodhart import Setting, World, member_scores, reward_of


def build(prompts: int, samples: int, width: int, seed: int = 0) -> World:
    """A world whose first 500 prompts give preferences and whose other ``prompts`` are judged on."""
    generator = torch.Generator().manual_seed(seed)
    train = 500
    features = torch.randn(train + prompts, samples, width, generator=generator)
    truth = features @ (torch.randn(width, generator=generator) / width**0.5)
    gold = (truth + 0.5 * torch.randn(truth.shape, generator=generator)).double()
    there = torch.ones(gold.shape, dtype=torch.bool)
    return World(features, gold, there, torch.arange(train), torch.arange(train, train + prompts))


def by_subsets(reward: torch.Tensor, gold: torch.Tensor, n: int, draws: int) -> torch.Tensor:
    """The plain way: draw subsets of n without replacement, keep the best, average."""
    total = torch.zeros(len(gold), dtype=torch.float64)
    for _ in range(draws):
        order = torch.rand(reward.shape).argsort(1)[:, :n]
        best = reward.gather(1, order).argmax(1, keepdim=True)
        total += gold.gather(1, order.gather(1, best))[:, 0]
    return total / draws


def estimators(reward: torch.Tensor, gold: torch.Tensor, repeats: int, n: int = 16) -> tuple[list[float], list[float]]:
    """Seconds of the exact mean over all subsets, and of sampling subsets until its error is 1 % of gold's spread."""
    found: dict[str, torch.Tensor] = {}
    sides = {
        "exact": lambda: found.update(exact=best_of_n_curves(reward, [gold], [n])[0][0]),
        "subsets": lambda: found.update(subsets=by_subsets(reward, gold, n, 20)),
    }
    times = results.interleaved(sides, repeats)
    error = float((found["subsets"] - found["exact"]).std()) * 20**0.5  # of one subset a prompt
    needed = (error / (0.01 * float(gold.std()))) ** 2
    return times["exact"], [seconds * needed / 20 for seconds in times["subsets"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 1000), ("samples", 256), ("draws", 200), ("width", 64), ("pairs", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "overoptimize.json")
    given = parser.parse_args()
    world = build(given.prompts, given.samples, given.width)
    gold, present = world.gold[world.test], world.present[world.test]
    values = sorted({round(float(k)) for k in np.geomspace(1, given.samples, 22)})  # 20 of 256
    started, busy = time.perf_counter(), time.process_time()
    setting = Setting(pairs=given.pairs, slope=2.0, members=1, ridge=0.01)
    rewards = [reward_of(m, world.reference, setting).float() for m in member_scores(world, setting, given.draws, 0)]
    drawn = time.perf_counter()
    made = curve("all", rewards, gold, present, values, rounds=1000)
    done, busy = time.perf_counter(), time.process_time() - busy
    exact, subsets = estimators(rewards[0].double(), gold, 3)
    what = f"{given.prompts:,} prompts x {given.samples} responses, {given.draws} draws, {len(made.points)} values of n"
    results.write(
        given.out,
        "Best-of-n curves at scale",
        [
            results.figure(what, done - started, unit="s", at_most=60),
            results.figure("of it curves and intervals", done - drawn, unit="s"),
            results.figure("processor time", busy, unit="s"),
            results.figure("peak memory", results.peak_gib(), unit="GiB", at_most=4),
            results.ratio("sampling subsets over the exact mean, n = 16, equal precision", subsets, exact),
        ],
        rows=[{"n": p.n, "gold": p.gold.value, "low": p.gold.low, "high": p.gold.high} for p in made.points],
    )


if __name__ == "__main__":
    main()
