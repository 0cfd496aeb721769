"""Best-of-n curves at scale: 1,000 prompts by 256 responses, 200 reward models drawn from noisy pairs, 20 values of n.

    python benchmarks/overoptimize.py [--prompts 1000] [--samples 256] [--draws 200] [--width 64] [--pairs 2000]

Features are random, gold is linear in them plus noise, so nothing is read from anywhere. Prints seconds by stage,
processor time beside the clock's (which other work on the machine stretches), and how the unbiased estimator compares,
at equal precision, with drawing subsets: both on one draw, side by side.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np
import torch

from prudent.evaluation.goodhart import Setting, World, member_scores, reward_of
from prudent.evaluation.goodhart_curves import curve
from prudent.evaluation.overoptimization import best_of_n_curves


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


def compare(reward: torch.Tensor, gold: torch.Tensor, n: int = 16) -> dict[str, float]:
    """Seconds of the exact mean over all subsets, and of sampling subsets until its error is 1 % of the spread."""
    started = time.perf_counter()
    exact = best_of_n_curves(reward, [gold], [n])[0][0]
    exact_s = time.perf_counter() - started
    started = time.perf_counter()
    few = by_subsets(reward, gold, n, 20)
    one = (time.perf_counter() - started) / 20
    error = float((few - exact).std()) * 20**0.5  # of one subset a prompt
    needed = (error / (0.01 * float(gold.std()))) ** 2
    return {"n": n, "exact_s": exact_s, "subsets_s": one * needed, "subsets_over_exact": one * needed / exact_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 1000), ("samples", 256), ("draws", 200), ("width", 64), ("pairs", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    world = build(given.prompts, given.samples, given.width)
    gold, present = world.gold[world.test], world.present[world.test]
    n = sorted({round(float(k)) for k in np.geomspace(1, given.samples, 24)})[:20]
    started, busy = time.perf_counter(), time.process_time()
    setting = Setting(pairs=given.pairs, slope=2.0, members=1, ridge=0.01)
    rewards = [reward_of(m, world.reference, setting).float() for m in member_scores(world, setting, given.draws, 0)]
    drawn = time.perf_counter()
    made = curve("all", rewards, gold, present, [*n, given.samples], rounds=1000)
    done, busy = time.perf_counter(), time.process_time() - busy
    result: dict[str, Any] = {
        "prompts": given.prompts, "samples": given.samples, "draws": given.draws, "values_of_n": len(made.points),
        "threads": torch.get_num_threads(), "fit_and_score_s": drawn - started, "curves_and_intervals_s": done - drawn,
        "total_s": done - started, "processor_s": busy,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gold_at_last_n": made.points[-1].gold.text, "one_draw": compare(rewards[0].double(), gold),
    }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
