"""What a series says: value over runs, risk with its interval, KL, beside what preflight promised."""

from __future__ import annotations

from typing import Any

import torch

from prudent.commands.align.options import AlignOptions
from prudent.commands.align.problem import Problem
from prudent.commands.align.series import reference_values
from prudent.evaluation.resampling import resampled_means
from prudent.evaluation.risk import paired_risk, policy_risk
from prudent.seeding import spawn


def run_rows(problem: Problem, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a run: the gain over the reference on the same prompts, and what preflight promised of it."""
    rows = []
    references: dict[int, torch.Tensor] = {}
    for found in results:
        run = found["run"]
        if run not in references:
            references[run] = reference_values(problem, run)
        final, promised = found["final"], found["promised"]
        gains = torch.tensor(final["value_by_prompt"], dtype=torch.float64) - references[run]
        row = {"run": run, "objective": found["objective"], "gain": float(gains.mean()), "value": final["value"]}
        row |= {"reference": float(references[run].mean()), "prompts_worse": float((gains < 0).double().mean())}
        row |= {name: final[name] for name in ("kl", "length_tokens", "entropy_per_token", "truncated_share")}
        row |= {"promised_gain": promised["gain"], "promised_kl": promised["kl"], "seconds": found["seconds"]}
        rows.append(row)
    return rows


def prompt_interval(problem: Problem, results: list[dict[str, Any]], objective: str, seed: Any) -> tuple[float, float]:
    """95 % interval of the mean gain over prompts (bootstrap over prompts, runs averaged within each)."""
    mine = [found for found in results if found["objective"] == objective]
    reached = [torch.tensor(found["final"]["value_by_prompt"], dtype=torch.float64) for found in mine]
    pairs = zip(reached, mine)
    gains = torch.stack([own - reference_values(problem, found["run"]) for own, found in pairs]).mean(0)
    means = resampled_means(gains[:, None].numpy(), 2000, seed)[:, 0]
    low, high = torch.quantile(torch.as_tensor(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def summarise(problem: Problem, results: list[dict[str, Any]], settings: AlignOptions) -> dict[str, Any]:
    """Rows by objective (gain, variance, risk with Wilson interval, KL, promised and got) and paired differences."""
    runs = run_rows(problem, results)
    table = []
    for index, objective in enumerate(settings.objectives):
        mine = [row for row in runs if row["objective"] == objective]
        risk = policy_risk(torch.tensor([row["gain"] for row in mine]), seed=settings.seed)
        promised = policy_risk(torch.tensor([row["promised_gain"] for row in mine]), seed=settings.seed)
        low, high = prompt_interval(problem, results, objective, spawn(settings.seed, index + 1)[-1])
        row = {"objective": objective, **risk.row(), "gain_low_prompts": low, "gain_high_prompts": high}
        row |= {name: _mean(mine, name) for name in ("kl", "prompts_worse", "length_tokens")}
        row |= {"promised_gain": promised.gain, "promised_risk": promised.risk}
        table.append({**row, "promised_kl": _mean(mine, "promised_kl")})
    return {
        "truth": {"kind": problem.judged[0].kind, "unit": problem.judged[0].unit, "quality": problem.judged[0].quality},
        "reference_value": _mean(runs, "reference"),
        "objectives": table,
        "paired": _paired(runs, settings),
        "runs": runs,
        "improved": [row["objective"] for row in table if row["gain_low_prompts"] > 0],
    }


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _paired(runs: list[dict[str, Any]], settings: AlignOptions) -> list[dict[str, Any]]:
    """Every other objective minus vanilla (or the first one given), on the same draws."""
    base = "vanilla" if "vanilla" in settings.objectives else settings.objectives[0]
    gains = {
        objective: torch.tensor([row["gain"] for row in runs if row["objective"] == objective])
        for objective in settings.objectives
    }
    return [
        {"first": objective, "second": base, **vars(paired_risk(gains[objective], gains[base], seed=settings.seed))}
        for objective in settings.objectives
        if objective != base
    ]
