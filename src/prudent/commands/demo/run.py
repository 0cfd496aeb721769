"""Promised and realised risk in the world of friendly tone: arrays in the middle, the run folder at the edge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prudent.commands.common import say
from prudent.commands.demo.options import DemoOptions
from prudent.commands.demo.page import report
from prudent.demo.shipped import load_features
from prudent.demo.tone import tone_world
from prudent.demo.world import World, draw_preferences, split
from prudent.evaluation.intervals import Estimate, bootstrap, wilson
from prudent.evaluation.risk import at_or_below
from prudent.evaluation.risk_estimate import estimate_risk
from prudent.policies.objectives import CONTROLS
from prudent.runs import new_run
from prudent.seeding import Seed, spawn

FORMS = ("proportional", "bregman", "exact")
METHODS = ("vanilla", "mean", "lcb", *FORMS, *CONTROLS)
SIZES = (50, 800)  # preference pairs: too few to be safe, and enough
SLOPE = 2.0  # of the Bradley-Terry labels: about a third of them contradict gold, as people's contradict each other
BETA, LEARN_SHARE = 0.1, 0.5
PROMISES, FRESH = 4, 40  # data sets whose promise is averaged; data sets that say what comes, the former among them
ACCEPTED, ALIKE = 0.05, 0.02  # risk that may be taken; promises that differ by less count as the same


def outcomes(world: World, features: torch.Tensor, pairs: int, seeds: Sequence[Seed], promises: int) -> dict[str, Any]:
    """Fresh data sets of ``pairs`` preferences, each with a split of the prompts of its own, one a seed.

    promised (promises, M): risk by ``estimate_risk`` without gold, of the first data sets. gains (len(seeds), M): gold
    of each method's policy over the reference's, on prompts that no pair is from. agree: share of pairs that agree
    with gold, equal gold at a half.
    """
    promised, gains, agree = [], [], []
    for number, seed in enumerate(seeds):
        parts, labels = spawn(seed, 2)
        learn, held = split(world, LEARN_SHARE, parts)
        prompt, better, worse = draw_preferences(world, learn, pairs, SLOPE, labels)
        margin = world.gold[prompt, better] - world.gold[prompt, worse]
        agree.append(float((0.5 + 0.5 * margin.sign()).mean()))
        truth = world.gold[held]
        known = (features[prompt, better], features[prompt, worse], prompt.tolist(), features[held])
        reference = torch.full_like(truth, 1 / truth.shape[1])
        asked: dict[str, Any] = {"betas": (BETA,), "methods": METHODS, "draws": 0}
        rows = estimate_risk(*known, reference, gold=truth, **asked)
        gains.append([row["gain"] for row in rows])
        if number < promises:
            promised.append([row["risk"] for row in estimate_risk(*known, reference, **asked)])
    return {"promised": torch.tensor(promised), "gains": torch.tensor(gains), "agree": sum(agree) / len(agree)}


def table(pairs: int, found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a method: mean promise, share of data sets whose policy is no better with Wilson's interval, mean gain."""
    rows = []
    for position, name in enumerate(METHODS):
        gains = found["gains"][:, position]
        below = int(at_or_below(gains, 1.0).sum())
        low, high = wilson(below, len(gains))
        gain = bootstrap(gains, "mean")
        rows.append(
            {
                "pairs": pairs,
                "method": name,
                "promised": float(found["promised"][:, position].mean()),
                "came": below / len(gains),
                "low": low,
                "high": high,
                "gain": gain.value,
                "gain_low": gain.low,
                "gain_high": gain.high,
            }
        )
    return rows


def advice(few: list[dict[str, Any]], many: list[dict[str, Any]], beyond: Estimate) -> list[str]:
    """Which setting to take, from the promises, and what the control says, in two sentences.

    beyond: paired interval of proportional's gain over that of permuted, its control.
    """
    real = [row for row in many if row["method"] not in CONTROLS]
    least = min(row["promised"] for row in real)
    choice = next(row for row in real if row["promised"] <= least + ALIKE)  # the simplest of those that are alike
    first = next(row for row in few if row["method"] == choice["method"])
    reason = (
        "no other promises less" if choice is real[0] else f"{real[0]['method']} promises {real[0]['promised']:.0%}"
    )
    size, promise = choice["pairs"], f"{choice['promised']:.0%}, against {first['promised']:.0%} at {first['pairs']}"
    if choice["promised"] <= ACCEPTED:
        take = f"Take {choice['method']} at beta {BETA:g} with {size} pairs: it promises {promise}; {reason}."
    else:
        take = f"Take none yet: at {size} pairs {choice['method']} promises {promise}; {choice['came']:.0%} came."
    more = beyond.low is not None and beyond.low > 0
    interval = f"by {beyond.value:+.3f} [{beyond.low:+.3f}, {beyond.high:+.3f}]"
    if more:
        return [take, f"proportional gains more than its control permuted, {interval}: its variances matter."]
    return [take, f"proportional gains no more than its control permuted, {interval}: no use of its variances shows."]


def printed(found: dict[str, Any]) -> list[str]:
    """The answer in at most eleven lines of at most 120 characters."""
    few, many = (found["rows"][k :: len(found["sizes"])] for k in range(2))
    a, b = found["sizes"]
    head = f"{'Risk, % (gain)':<16}{f'{a} pairs: promised':>20}{'came':>8}{f'{b} pairs: promised':>22}{'came':>8}"
    lines = [f"{head}{'gain':>10}"]
    for x, y in zip(few, many, strict=True):
        name = f"{x['method']}*" if x["method"] in CONTROLS else x["method"]
        lines.append(
            f"{name:<16}{100 * x['promised']:>20.0f}{100 * x['came']:>8.0f}{100 * y['promised']:>22.0f}"
            f"{100 * y['came']:>8.0f}{y['gain']:>+10.3f}"
        )
    return [*lines, *found["advice"]]


def run(
    out: str | Path, *, seed: int = 0, overwrite: bool = False, images: bool = False, sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """Compute everything, write the folder ``out``, return what results.json holds."""
    options = {"sizes": list(sizes), "slope": SLOPE, "beta": BETA, "promises": PROMISES, "fresh": FRESH}
    with new_run(out, "demo", options, seed, overwrite) as folder:
        start = time.perf_counter()
        world = tone_world()
        features, origin = load_features(world, say=say)
        found = [
            outcomes(world, features, size, spawn(child, FRESH), PROMISES)
            for size, child in zip(sizes, spawn(seed, len(sizes)), strict=True)
        ]
        tables = [table(size, part) for size, part in zip(sizes, found, strict=True)]
        gains = found[-1]["gains"]
        beyond = bootstrap(gains[:, METHODS.index("proportional")] - gains[:, METHODS.index("permuted")], "mean")
        result = {
            **options,
            "rows": [row for rows in zip(*tables, strict=True) for row in rows],
            "advice": advice(tables[0], tables[-1], beyond),
            "agree": found[-1]["agree"],
            "features": origin,
            "seconds": round(time.perf_counter() - start, 1),
        }
        report(result, world).write(folder, images=images)
        folder.write_json("results.json", result)
    return result


def demo(options: DemoOptions) -> dict[str, Any]:
    """The command: ``run`` in one thread, as the matrices are small and threads would mostly wait for each other."""
    torch.set_num_threads(1)
    return run(options.out, seed=options.seed, overwrite=options.overwrite, images=options.images)


def show(found: dict[str, Any], options: DemoOptions) -> None:
    """Print the answer and where the report is."""
    print("\n".join([*printed(found), f"Report: {options.out / 'report.html'}"]))
