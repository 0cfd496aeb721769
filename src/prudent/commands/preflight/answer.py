"""From features to the answer: policies and their risk by the truth at hand. Arrays in, tables out.

The risk is that of the policies which these pairs give (``given_pairs``). With gold or a judge the pairs are resampled
too: the share of resamples whose policy is no better is the procedure risk, and methods are compared draw by draw.
Where gold is known, what would have been promised without it stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from prudent.commands.preflight.given_pairs import (
    POSTERIOR_UNIT,
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
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.rewards.draws import halves
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
    ``outlook.compare``; check: what would have been promised without gold, beside
    gold, or None; facts: numbers about draws, variance and truth."""

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
    """The answer for n pairs and a pool of candidates. truth None: by the posterior of the reward given the pairs.

    check: beside gold, what would have been promised without it.
    """
    fit_seed, draw_seed, promise_seed, half_seed = spawn(seed, 4)
    tick(f"fitting the reward model and {plan.members} members on {len(pairs)} pairs")
    trained = _trained(pairs, candidates, plan, fit_seed)
    settings = [(method, float(beta)) for method in plan.methods for beta in plan.betas]
    estimates = risk_rows(trained, settings, None if truth is None else truth.values, plan.draws, promise_seed)
    if plan.reward == "mean":  # the procedure's draws fit one reward model each
        estimates = [{**row, **_NO_PROCEDURE} if "procedure_risk" in row else row for row in estimates]
    if truth is None:
        return _by_posterior(pairs, candidates, trained, plan, estimates, (draw_seed, half_seed), tick)
    return _by_truth(pairs, candidates, trained, truth, plan, estimates, (draw_seed, half_seed), check, tick)


_NO_PROCEDURE: dict[str, Any] = {"procedure_risk": None, "procedure_low": 0.0, "procedure_high": 1.0}


def _trained(pairs: PairFeatures, candidates: CandidateFeatures, plan: Plan, seed: Seed) -> Trained:
    return trained_on(
        pairs, candidates, members=plan.members, ridge=plan.ridge, reward=plan.reward, floor=plan.floor, seed=seed
    )


def _by_posterior(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    trained: Trained,
    plan: Plan,
    estimates: Sequence[dict[str, Any]],
    seeds: Sequence[Seed],
    tick: Tick,
) -> Answer:
    """Without a truth: one policy a method and beta, valued by rewards from the posterior."""
    tick("valuing policies by rewards from the posterior, at equal beta and at equal KL")
    found = valued(trained, plan.betas, plan.methods, plan.draws, seeds[0])
    tick("repeating with half of the pairs")
    split, *children = spawn(seeds[1], 3)
    parts = []
    for rows, child in zip(halves(pairs.groups, split), children):
        part, own = pairs.take(rows), spawn(child, 2)
        half = _trained(part, candidates, plan, own[0])
        parts.append(valued(half, plan.betas, OUTLOOK_METHODS, max(2, plan.draws // 2), own[1]).beta)
    facts: dict[str, Any] = {
        "truth": "posterior",
        "judge": None,
        "probability_of_no_signal": found.posterior.no_signal,
        "ridge": [trained.fit.ridge],
        **_variances(trained.estimate.variance, candidates, plan),
        **dict.fromkeys(("link", "order", "spread_within_prompt")),
        "reference_value": 0.0,
    }
    return _conclude(
        "posterior",
        POSTERIOR_UNIT,
        (found.beta, found.kl),
        (posterior_table(trained, found.posterior, found.beta), posterior_table(trained, found.posterior, found.kl)),
        join(parts),
        estimates,
        plan,
        {**facts, "pairs": len(pairs)},
    )


def _by_truth(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    trained: Trained,
    truth: Truth,
    plan: Plan,
    estimates: Sequence[dict[str, Any]],
    seeds: Sequence[Seed],
    check: bool,
    tick: Tick,
) -> Answer:
    """With gold or a judge: draws of the reward model, each from resampled pairs, valued by it."""
    reference = candidates.reference
    tick(f"fitting {plan.draws} draws of {plan.members} members on {len(pairs)} pairs")
    drawn = draw_scores(pairs, candidates, draws=plan.draws, members=plan.members, ridge=plan.ridge, seed=seeds[0])
    known = see(drawn, reference, reward=plan.reward, floor=plan.floor)
    tick("solving policies at equal beta and at equal KL")
    beta = at_equal_beta(known, reference, truth.values, plan.betas, methods=plan.methods, judges=truth.resampled)
    equal = at_equal_kl(known, reference, truth.values, beta, methods=plan.methods, judges=truth.resampled)
    tick("repeating with half of the pairs")
    less = with_half_the_pairs(
        pairs,
        candidates,
        truth.values,
        plan.betas,
        methods=OUTLOOK_METHODS,
        draws=max(4, plan.draws // 2),
        members=plan.members,
        ridge=drawn.ridge,
        reward=plan.reward,
        floor=plan.floor,
        seed=seeds[1],
    )
    facts = {
        "truth": truth.kind,
        "judge": truth.quality if "accuracy" in truth.quality else None,
        "pairs": len(pairs),
        "ridge": [drawn.ridge],
        **_variances(known.variance, candidates, plan),
        "link": link(known.variance, truth.values, reference),
        "order": ordering(known.reward, truth.values, reference),
        "spread_within_prompt": truth.quality.get("spread_within_prompt"),
        "reference_value": truth.quality.get("reference_value", 0.0),
    }
    rows = table(beta)
    found = None
    if check and truth.kind == "gold":
        tick("the promise that would have been made without gold")
        found = check_against(trained, rows, truth.values, plan.draws, seeds[0])
    return _conclude(truth.kind, truth.unit, (beta, equal), (rows, table(equal)), less, estimates, plan, facts, found)


def _variances(variance: Any, candidates: CandidateFeatures, plan: Plan) -> dict[str, float]:
    reference = candidates.reference
    return {
        "draws": plan.draws,
        "inequality": inequality(variance, reference),
        "variance_floored": float((reference * (variance <= plan.floor)).sum(-1).mean()),
    }


def _conclude(
    kind: str,
    unit: str,
    outcomes: tuple[Outcomes, Outcomes],
    tables: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    less: Outcomes,
    estimates: Sequence[dict[str, Any]],
    plan: Plan,
    facts: dict[str, Any],
    check: dict[str, Any] | None = None,
) -> Answer:
    (beta, equal), (equal_beta, equal_kl) = outcomes, tables
    for row, known in zip(equal_beta, estimates):
        over_draws = {f"procedure_{name}": row.get(name) for name in ("risk", "low", "high")}
        row |= {**over_draws, **known}
        if known["gain"] is None:
            row["gain"] = None
    outlook = compare(beta, less, "pairs")
    verdict = conclude(
        equal_beta,
        equal_kl,
        outlook,
        max_risk=plan.max_risk,
        unit=unit,
        kind=kind,
        judge=facts["judge"],
        order=facts["order"],
    )
    return Answer(kind, unit, beta, equal, equal_beta, equal_kl, outlook, verdict, facts, check)
