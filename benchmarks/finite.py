"""Finite policies: policies a second over draws x prompts x candidates, beside a loop that solves one prompt at a time.

Both sides run in one process, several repetitions each, in turn; the loop solves a part and is scaled up. The loop is
what one writes without this package: softmax by NumPy, and scipy's brentq for the multiplier of the Bregman and exact
forms.

    python benchmarks/finite.py [--short]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.optimize import brentq

from prudent.policies import METHODS, estimate, method_beta_for_kl, solve

FORMS = ("proportional", "bregman", "exact")


def looped(reward: np.ndarray, variance: np.ndarray, beta: float, form: str) -> np.ndarray:
    """One prompt: the same policy by NumPy and scipy."""
    heat, log_reference = beta * variance, -np.log(len(reward))
    if form == "proportional":
        exponent = log_reference + reward / heat
        weight = np.exp(exponent - exponent.max())
        return weight / weight.sum()
    start = log_reference - (form == "exact")

    def excess(level: float) -> float:
        return float(np.log(np.exp(np.minimum(start + (reward - level) / heat, 700)).sum()))

    low = float((reward + heat * start).max())
    high = float((reward + heat * (start + np.log(len(reward)))).max()) + 1e-9
    level = brentq(excess, low - 1e-9, high, xtol=1e-13)
    return np.exp(start + (reward - level) / heat)


def seconds(function: Callable[[], object]) -> float:
    """Processor seconds; both sides run on one thread, so that what else runs on the machine counts less."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer draws and repetitions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "finite.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws, repeats = (50, 3) if options.short else (200, 7)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(draws, 10, 150, 16, generator=generator, dtype=torch.float64)
    reference = torch.full((150, 16), 1 / 16, dtype=torch.float64)
    seen = estimate(scores, reference)
    count, part = draws * 150, 300
    rows = []
    for form in FORMS:
        ratios, ours, theirs = [], [], []
        small = [(r.numpy(), v.numpy()) for r, v in zip(seen.reward.flatten(0, 1)[:part], seen.variance.flatten(0, 1))]
        for _ in range(repeats):
            ours.append(seconds(lambda f=form: solve(seen.reward, reference, 0.3, variance=seen.variance, form=f)))  # type: ignore[misc]
            loop = seconds(lambda f=form, s=small: [looped(r, v, 0.3, f) for r, v in s])  # type: ignore[misc]
            theirs.append(loop * count / part)
            ratios.append(theirs[-1] / ours[-1])
        whole = solve(seen.reward, reference, 0.3, variance=seen.variance, form=form).flatten(0, 1)
        gap = max(float(np.abs(looped(r, v, 0.3, form) - p.numpy()).max()) for (r, v), p in zip(small, whole))
        rows.append({
            "form": form, "policies_per_s": count / statistics.median(ours),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "largest_difference": gap,
        })  # fmt: skip
    sweep = seconds(lambda: [method(seen, reference, beta) for method in METHODS.values() for beta in (0.1, 0.3, 1.0)])
    match = seconds(lambda: method_beta_for_kl("bregman", seen, reference, 0.5, tolerance=1e-4))
    result = {
        "draws": draws, "prompts": 150, "candidates": 16, "repetitions": repeats, "forms": rows,
        "all_methods_three_betas_s": sweep, "bregman_beta_for_kl_s": match, "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['form']:13s} {row['policies_per_s']:12,.0f} policies/s, {row['ratio']:.0f} times the loop "
            f"({row['low']:.0f} to {row['high']:.0f}), largest difference {row['largest_difference']:.1e}"
        )
    print(f"{len(METHODS)} methods at three betas, {draws} draws x 150 prompts x 16 candidates: {sweep:.2f} s")
    print(f"one search for the beta of every draw at a given KL (Bregman form): {match:.2f} s")


if __name__ == "__main__":
    main()
