"""Finite policies: policies a second over draws x prompts x candidates, beside a loop that solves one prompt at a time;
and what preflight's statistics cost, features being there, per thousand draws.

Both sides run in one process, several repetitions each, in turn; the loop solves a part and is scaled up. The loop is
what one writes without this package: softmax by NumPy, and scipy's brentq for the multiplier of the Bregman and exact
forms.

    python benchmarks/finite.py [--short]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import results
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


def statistics_stage(draws: int, pairs: int = 400, prompts: int = 64, candidates: int = 16, width: int = 576) -> float:
    """Processor seconds of all that preflight does between features and report: draws, policies at equal beta and at
    equal KL, half the pairs, and the cross-fit beside gold."""
    from prudent.commands.preflight.answer import Plan, answer
    from prudent.commands.preflight.options import PreflightOptions
    from prudent.commands.preflight.truth import gold_truth
    from prudent.rewards.containers import CandidateFeatures, PairFeatures, uniform_reference

    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(width, generator=generator) / width**0.5
    one, other = torch.randn(2, pairs, width, generator=generator)
    first = (torch.rand(pairs, generator=generator) < torch.sigmoid((one - other) @ truth))[:, None]
    data = PairFeatures(torch.where(first, one, other), torch.where(first, other, one), list(range(pairs)))
    pool = torch.randn(prompts, candidates, width, generator=generator)
    reference = uniform_reference([candidates] * prompts, candidates)
    usual = PreflightOptions(out=Path("unused"))
    plan = Plan(usual.betas, draws, usual.members, usual.ridge_value, usual.reward_rule, usual.floor, usual.max_risk)
    gold = gold_truth(pool @ truth, reference)
    return seconds(lambda: answer(data, CandidateFeatures(pool, reference), gold, plan))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer draws and repetitions")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "finite.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws, repeats = (50, 3) if options.short else (200, 7)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(draws, 10, 150, 16, generator=generator, dtype=torch.float64)
    reference = torch.full((150, 16), 1 / 16, dtype=torch.float64)
    seen = estimate(scores, reference)
    count, part = draws * 150, 300
    at = f"{draws} draws x 150 prompts x 16 candidates; processor time of one thread"
    figures, rows = [], []
    for form in FORMS:
        ours, theirs = [], []
        small = [(r.numpy(), v.numpy()) for r, v in zip(seen.reward.flatten(0, 1)[:part], seen.variance.flatten(0, 1))]
        solve(seen.reward, reference, 0.3, variance=seen.variance, form=form)  # the first call pays for loading
        for _ in range(repeats):
            ours.append(seconds(lambda f=form: solve(seen.reward, reference, 0.3, variance=seen.variance, form=f)))  # type: ignore[misc]
            loop = seconds(lambda f=form, s=small: [looped(r, v, 0.3, f) for r, v in s])  # type: ignore[misc]
            theirs.append(loop * count / part)
        whole = solve(seen.reward, reference, 0.3, variance=seen.variance, form=form).flatten(0, 1)
        gap = max(float(np.abs(looped(r, v, 0.3, form) - p.numpy()).max()) for (r, v), p in zip(small, whole))
        figures += [
            results.figure(f"{form} policies", [count / one for one in ours], unit="policies a second", note=at),
            results.ratio(f"a loop of NumPy and scipy over {form} policies", theirs, ours, note=f"{part} in the loop"),
        ]
        rows.append({"form": form, "largest difference to the loop": gap})
    sweep = seconds(lambda: [method(seen, reference, beta) for method in METHODS.values() for beta in (0.1, 0.3, 1.0)])
    match = seconds(lambda: method_beta_for_kl("bregman", seen, reference, 0.5, tolerance=1e-4))
    few = 20 if options.short else 100
    stage = [statistics_stage(few) * 1000 / few for _ in range(repeats)]
    figures += [
        results.figure(f"all {len(METHODS)} methods at three betas", sweep, unit="s", note=at),
        results.figure("the beta of every draw at a given KL (Bregman form)", match, unit="s", note=at),
        results.figure(
            "preflight's statistics, per thousand draws",
            stage,
            unit="s",
            note=f"400 pairs, 64 prompts x 16 candidates, 10 members, all methods, cross-fit too; from {few} draws",
        ),
    ]
    results.write(options.out, "Finite policies", figures, rows=rows)


if __name__ == "__main__":
    main()
