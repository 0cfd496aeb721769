"""From features to the answer: policies and their risk by the truth at hand. Arrays in, tables out.

The risk is that of the policies which these pairs give (``given_pairs``). With gold or a judge the pairs are resampled
too: the share of resamples whose policy is no better is the procedure risk, and methods are compared draw by draw.
Where gold is known, what would have been promised without it stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prudent.commands.preflight.core import (
    BASELINE,
    Outcomes,
    at_equal_beta,
    at_equal_kl,
    draw_scores,
    estimate_of,
    kind_of,
    table,
)
from prudent.commands.preflight.explore import Grid, explore
from prudent.commands.preflight.given_pairs import (
    POSTERIOR_UNIT,
    Plan,
    Trained,
    check_against,
    posterior_table,
    risk_rows,
    trained_on,
    valued,
)
from prudent.commands.preflight.outlook import compare, with_half_the_pairs
from prudent.commands.preflight.truth import Truth, inequality, link, ordering
from prudent.commands.preflight.verdict import Verdict, conclude
from prudent.evaluation.risk_estimate import NO_PROCEDURE
from prudent.policies.finite import kl
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.seeding import Seed, spawn

OUTLOOK_METHODS = (BASELINE, "mean", "proportional")
Advance = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Everything that preflight found. equal_beta, equal_kl: rows of ``core.table``; outlook: rows of
    ``outlook.compare``; check: what would have been promised without gold, beside gold, or None; grid: of
    the explorer; facts: numbers about draws, variance and truth."""

    kind: str
    unit: str
    beta_outcomes: Outcomes
    kl_outcomes: Outcomes
    equal_beta: list[dict[str, Any]]
    equal_kl: list[dict[str, Any]]
    outlook: list[dict[str, Any]]
    verdict: Verdict
    grid: Grid
    facts: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] | None = None


class Found(NamedTuple):
    """Policies valued by one truth, at equal beta and at equal KL: outcomes and their tables. less: with half of the
    pairs. facts: as in ``Answer``."""

    beta: Outcomes
    kl: Outcomes
    equal_beta: list[Row]
    equal_kl: list[Row]
    less: Outcomes
    facts: dict[str, Any]


def answer(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    truth: Truth | None,
    plan: Plan,
    *,
    check: bool = True,
    seed: Seed = 0,
    advance: Advance = lambda message: None,
) -> Answer:
    """The answer for n pairs and a pool of candidates. truth None: by the posterior of the reward given the pairs.

    check: beside gold, what would have been promised without it.
    """
    fit_seed, draw_seed, promise_seed, half_seed, grid_seed = spawn(seed, 5)
    advance(f"fitting the reward model and {plan.members} members on {len(pairs)} pairs")
    trained = trained_on(pairs, candidates, plan, fit_seed)
    settings = [(method, float(beta)) for method in plan.methods for beta in plan.betas]
    estimates = risk_rows(trained, settings, None if truth is None else truth.values, plan.draws, promise_seed)
    if plan.reward == "mean":  # the procedure's draws fit one reward model each
        estimates = [{**row, **NO_PROCEDURE} if "procedure_risk" in row else row for row in estimates]
    checked = None
    if truth is None:
        found = _by_posterior(pairs, candidates, trained, plan, (draw_seed, half_seed, promise_seed), advance)
        kind, unit = "posterior", POSTERIOR_UNIT
    else:
        found = _by_truth(pairs, candidates, truth, plan, (draw_seed, half_seed), advance)
        kind, unit = truth.kind, truth.unit
        if check and kind == "gold":
            advance("the promise that would have been made without gold")
            checked = check_against(trained, found.equal_beta, estimates, plan.draws, draw_seed)
    equal_beta = [_with_estimate(row, known) for row, known in zip(found.equal_beta, estimates, strict=True)]
    outlook = compare(found.beta, found.less, "pairs")
    verdict = conclude(
        equal_beta,
        found.equal_kl,
        outlook,
        max_risk=plan.max_risk,
        unit=unit,
        kind=kind,
        judge=found.facts["judge"],
        order=found.facts["order"],
    )
    facts = {"truth": kind, "pairs": len(pairs), "draws": plan.draws, **found.facts}
    advance("the grid of the explorer")
    grid = explore(pairs, candidates, truth, plan, trained, grid_seed)
    return Answer(kind, unit, found.beta, found.kl, equal_beta, found.equal_kl, outlook, verdict, grid, facts, checked)


def rough(
    pairs: PairFeatures, candidates: CandidateFeatures, truth: Truth | None, plan: Plan, *, seed: Seed = 0
) -> Verdict:
    """The verdict from the risk at equal beta alone, without draws: seconds."""
    fit_seed, _, promise_seed, _ = spawn(seed, 4)
    trained = trained_on(pairs, candidates, plan, fit_seed)
    settings = [(method, float(beta)) for method in plan.methods for beta in plan.betas]
    known = risk_rows(trained, settings, None if truth is None else truth.values, 0, promise_seed)
    weight = trained.fit.weight
    distances = kl(trained.policies(settings) + weight, weight).mean(-1).tolist()
    rows = [
        {**row, "method": method, "setting": beta, "kind": kind_of(method), "kl": distance}
        for row, (method, beta), distance in zip(known, settings, distances, strict=True)
    ]
    kind, unit = ("posterior", POSTERIOR_UNIT) if truth is None else (truth.kind, truth.unit)
    judge = None if truth is None or "accuracy" not in truth.quality else truth.quality
    return conclude(rows, [], [], max_risk=plan.max_risk, unit=unit, kind=kind, judge=judge)


def _with_estimate(row: Row, known: Row) -> Row:
    """A row over draws with its risk, which is the procedure's, under that name, and the estimate in its place."""
    over_draws = {f"procedure_{name}": row.get(name) for name in ("risk", "low", "high")}
    return {**row, **over_draws, **known}


def _by_posterior(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    trained: Trained,
    plan: Plan,
    seeds: Sequence[Seed],
    advance: Advance,
) -> Found:
    """Without a truth: one policy a method and beta, valued by rewards from the posterior."""
    advance("valuing policies by rewards from the posterior, at equal beta and at equal KL")
    beta, equal = valued(trained, plan.betas, plan.methods, plan.draws, seeds[0])

    def half(part: PairFeatures, seed: Seed) -> Outcomes:
        fit_seed, draw_seed = spawn(seed, 2)
        own = trained_on(part, candidates, plan, fit_seed)
        return valued(own, plan.betas, OUTLOOK_METHODS, max(2, plan.draws // 2), draw_seed)[0]

    advance("repeating with half of the pairs")
    less = with_half_the_pairs(pairs, half, seeds[1])
    facts: dict[str, Any] = {
        "judge": None,
        "probability_of_no_signal": trained.fit.posterior.no_signal,
        "ridge": [trained.fit.ridge],
        **_variances(trained.estimate.variance, candidates, plan),
        **dict.fromkeys(("link", "order", "deviation_within_prompt")),
        "reference_value": 0.0,
    }
    at_beta, at_kl = (posterior_table(trained, outcomes, seeds[2]) for outcomes in (beta, equal))
    return Found(beta, equal, at_beta, at_kl, less, facts)


def _by_truth(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    truth: Truth,
    plan: Plan,
    seeds: Sequence[Seed],
    advance: Advance,
) -> Found:
    """With gold or a judge: draws of the reward model, each from resampled pairs, valued by it."""
    reference = candidates.reference
    advance(f"fitting {plan.draws} draws of {plan.members} members on {len(pairs)} pairs")
    drawn = draw_scores(pairs, candidates, draws=plan.draws, members=plan.members, ridge=plan.ridge, seed=seeds[0])
    known = estimate_of(drawn, reference, reward=plan.reward, floor=plan.floor)
    advance("solving policies at equal beta and at equal KL")
    beta = at_equal_beta(known, reference, truth.values, plan.betas, methods=plan.methods, judges=truth.resampled)
    equal = at_equal_kl(known, reference, truth.values, beta, methods=plan.methods, judges=truth.resampled)

    def half(part: PairFeatures, seed: Seed) -> Outcomes:
        draws = max(4, plan.draws // 2) // 2
        own = draw_scores(part, candidates, draws=draws, members=plan.members, ridge=drawn.ridge, seed=seed)
        estimate = estimate_of(own, reference, reward=plan.reward, floor=plan.floor)
        return at_equal_beta(estimate, reference, truth.values, plan.betas, methods=OUTLOOK_METHODS)

    advance("repeating with half of the pairs")
    less = with_half_the_pairs(pairs, half, seeds[1])
    facts = {
        "judge": truth.quality if "accuracy" in truth.quality else None,
        "ridge": [drawn.ridge],
        **_variances(known.variance, candidates, plan),
        "link": link(known.variance, truth.values, reference),
        "order": ordering(known.reward, truth.values, reference),
        "deviation_within_prompt": truth.quality.get("deviation_within_prompt"),
        "reference_value": truth.quality.get("reference_value", 0.0),
    }
    return Found(beta, equal, table(beta), table(equal), less, facts)


def _variances(variance: Any, candidates: CandidateFeatures, plan: Plan) -> dict[str, float]:
    reference = candidates.reference
    return {
        "inequality": inequality(variance, reference),
        "variance_floored": float((reference * (variance <= plan.floor)).sum(-1).mean()),
    }
