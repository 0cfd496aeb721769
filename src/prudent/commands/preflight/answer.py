"""From features to the answer: draws, policies and risks against the truth at hand. Arrays in, tables out.

Where gold is known, the cross-fit is run as well, so that a reader sees whether its estimate can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prudent.commands.preflight.core import (
    BASELINE,
    Outcomes,
    at_equal_beta,
    at_equal_kl,
    draw_scores,
    join,
    see,
    table,
)
from prudent.commands.preflight.outlook import compare, with_half_the_pairs
from prudent.commands.preflight.truth import Truth, cross_fit, inequality, link, ordering
from prudent.commands.preflight.verdict import Verdict, conclude
from prudent.evaluation.intervals import wilson
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.seeding import Seed, spawn

OUTLOOK_METHODS = (BASELINE, "mean", "proportional")
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How the draws are made and judged."""

    betas: Sequence[float]
    draws: int
    members: int
    ridge: float | str
    reward: str
    floor: float
    max_risk: float
    methods: Sequence[str] = tuple(METHODS)


@dataclass(frozen=True)
class Answer:
    """Everything that preflight found. equal_beta, equal_kl: rows of ``core.table``; outlook: rows of
    ``outlook.compare``; check: cross-fit beside gold, or None; facts: numbers about draws, variance and truth."""

    kind: str
    unit: str
    beta_outcomes: Outcomes
    kl_outcomes: Outcomes
    equal_beta: list[dict[str, Any]]
    equal_kl: list[dict[str, Any]]
    outlook: list[dict[str, Any]]
    verdict: Verdict
    facts: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] | None = None


@dataclass(frozen=True)
class Part:
    """Outcomes against one truth: the whole pairs, or one direction of a cross-fit."""

    beta: Outcomes
    kl: Outcomes
    less: Outcomes
    gold: Outcomes | None
    facts: dict[str, Any]


def _part(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    truth: Truth,
    plan: Plan,
    draws: int,
    seed: Seed,
    tick: Tick,
    gold: torch.Tensor | None = None,
    outlook: bool = True,
) -> Part:
    fit_seed, less_seed = spawn(seed, 2)
    reference = candidates.reference
    tick(f"fitting {draws} draws of {plan.members} members on {len(pairs)} pairs")
    drawn = draw_scores(pairs, candidates, draws=draws, members=plan.members, ridge=plan.ridge, seed=fit_seed)
    seen = see(drawn, reference, reward=plan.reward, floor=plan.floor)
    tick("solving policies at equal beta and at equal KL")
    beta = at_equal_beta(seen, reference, truth.values, plan.betas, methods=plan.methods, judges=truth.resampled)
    equal = at_equal_kl(seen, reference, truth.values, beta, methods=plan.methods, judges=truth.resampled)
    by_gold = None if gold is None else at_equal_beta(seen, reference, gold, plan.betas, methods=plan.methods)
    less = beta
    if outlook:
        tick("repeating with half of the pairs")
        less = with_half_the_pairs(
            pairs,
            candidates,
            truth.values,
            plan.betas,
            methods=OUTLOOK_METHODS,
            draws=max(4, draws // 2),
            members=plan.members,
            ridge=drawn.ridge,
            reward=plan.reward,
            floor=plan.floor,
            seed=less_seed,
        )
    facts = {
        "pairs": len(pairs),
        "draws": draws,
        "ridge": drawn.ridge,
        "inequality": inequality(seen.variance, reference),
        "link": link(seen.variance, truth.values, reference),
        "order": ordering(seen.reward, truth.values, reference),
        "variance_floored": float((reference * (seen.variance <= plan.floor)).sum(-1).mean()),
        "quality": truth.quality,
    }
    return Part(beta, equal, less, by_gold, facts)


def answer(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    truth: Truth | None,
    plan: Plan,
    *,
    check: bool = True,
    seed: Seed = 0,
    tick: Tick = lambda message: None,
) -> Answer:
    """The answer for n pairs and a pool of candidates. truth None: a cross-fit. check: beside gold, cross-fit too."""
    own, crossed = spawn(seed, 2)
    if truth is None:
        parts = _crossed(pairs, candidates, plan, crossed, tick)
        return _conclude(parts, "cross-fit", "standard deviations of the judge within a prompt", plan, None)
    part = _part(pairs, candidates, truth, plan, plan.draws, own, tick)
    found = None
    if check and truth.kind == "gold":
        tick("cross-fit, to see whether it would have told the same")
        found = _checked(_crossed(pairs, candidates, plan, crossed, tick, truth.values, outlook=False), part)
    return _conclude([part], truth.kind, truth.unit, plan, found)


def _crossed(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    plan: Plan,
    seed: Seed,
    tick: Tick,
    gold: torch.Tensor | None = None,
    outlook: bool = True,
) -> list[Part]:
    fit_seed, *seeds = spawn(seed, 3)
    tick("cross-fit: a judge from each half of the pairs")
    directions = cross_fit(pairs, candidates.features, candidates.reference, ridge=plan.ridge, seed=fit_seed)
    each = max(2, plan.draws // 2)
    return [
        _part(direction.learns, candidates, direction.truth, plan, each, child, tick, gold, outlook)
        for direction, child in zip(directions, seeds)
    ]


def _judge_quality(parts: Sequence[Part]) -> dict[str, Any]:
    """The judges' accuracy on the halves that they did not learn from, pooled, with its interval."""
    found = [part.facts["quality"] for part in parts]
    if not all("accuracy" in quality and quality.get("pairs") for quality in found):
        return {}
    pairs = sum(quality["pairs"] for quality in found)
    right = sum(quality["accuracy"] * quality["pairs"] for quality in found)
    low, high = wilson(min(right, pairs), pairs)
    return {
        "pairs": pairs,
        "accuracy": right / pairs,
        "low": float(low),
        "high": float(high),
        "trained_on": [quality.get("trained_on") for quality in found],
    }


def _conclude(parts: Sequence[Part], kind: str, unit: str, plan: Plan, check: dict[str, Any] | None) -> Answer:
    beta, equal, less = join([p.beta for p in parts]), join([p.kl for p in parts]), join([p.less for p in parts])
    equal_beta, equal_kl = table(beta), table(equal)
    outlook = compare(beta, less, "pairs")
    quality = _judge_quality(parts)
    facts: dict[str, Any] = {
        "truth": kind,
        "judge": quality or None,
        "draws": sum(part.facts["draws"] for part in parts),
        "pairs_a_reward_model": [part.facts["pairs"] for part in parts],
        "ridge": [part.facts["ridge"] for part in parts],
        "inequality": sum(part.facts["inequality"] for part in parts) / len(parts),
        "link": sum(part.facts["link"] for part in parts) / len(parts),
        "order": sum(part.facts["order"] for part in parts) / len(parts),
        "variance_floored": sum(part.facts["variance_floored"] for part in parts) / len(parts),
        "spread_within_prompt": parts[0].facts["quality"].get("spread_within_prompt"),
        "reference_value": parts[0].facts["quality"].get("reference_value", 0.0),
    }
    verdict = conclude(
        equal_beta,
        equal_kl,
        outlook,
        max_risk=plan.max_risk,
        unit=unit,
        kind=kind,
        judge=quality or None,
        order=facts["order"],
    )
    return Answer(kind, unit, beta, equal, equal_beta, equal_kl, outlook, verdict, facts, check)


def _checked(parts: Sequence[Part], full: Part) -> dict[str, Any]:
    """The cross-fit's estimate beside the truth of the same policies, and beside the truth with all pairs."""
    estimated = table(join([part.beta for part in parts]))
    true_half = table(join([part.gold for part in parts if part.gold is not None]))
    true_full = {(row["method"], row["setting"]): row for row in table(full.beta)}
    rows = []
    for guess, truth in zip(estimated, true_half):
        whole = true_full[(guess["method"], guess["setting"])]
        rows.append(
            {
                "method": guess["method"],
                "beta": guess["setting"],
                "kind": guess["kind"],
                "estimated_risk": guess["risk"],
                "estimated_low": guess["low"],
                "estimated_high": guess["high"],
                "judge_risk_low": guess.get("judge_risk_low"),
                "judge_risk_high": guess.get("judge_risk_high"),
                "true_risk": truth["risk"],
                "true_low": truth["low"],
                "true_high": truth["high"],
                "true_risk_all_pairs": whole["risk"],
                "estimated_gain": guess["gain"],
                "true_gain": truth["gain"],
                "true_gain_all_pairs": whole["gain"],
            }
        )
    return {"rows": rows, "judge": _judge_quality(parts), **_agreement(rows)}


def _agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How well the estimate orders methods, and how far its risks are off."""
    from scipy.stats import spearmanr

    estimated, true = ([row[name] for row in rows] for name in ("estimated_gain", "true_gain"))
    errors = [row["estimated_risk"] - row["true_risk"] for row in rows]
    inside = [
        row["judge_risk_low"] is not None and row["judge_risk_low"] <= row["true_risk"] <= row["judge_risk_high"]
        for row in rows
    ]
    order = spearmanr(estimated, true).statistic if len(set(estimated)) > 1 and len(set(true)) > 1 else float("nan")
    return {
        "rank_correlation_of_gain": float(order),
        "mean_risk_error": sum(errors) / len(errors),
        "mean_absolute_risk_error": sum(abs(error) for error in errors) / len(errors),
        "inside_judge_range": sum(inside) / len(inside),
    }
