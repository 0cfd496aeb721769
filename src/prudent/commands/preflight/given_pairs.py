"""The data-set risk: the policies that these very pairs give, and how likely each is no better than the reference.

Without a truth, rewards are drawn from the posterior given the pairs (``evaluation.posterior_risk``), and the policy of
each method is valued by each of them. With gold or a judge, prompts are the sample (Student's t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import as_tensor
from prudent.commands.preflight.core import BASELINE, Outcomes, at_equal_beta, at_equal_kl, table
from prudent.evaluation.posterior_risk import averaged, component_risks, weighted_interval
from prudent.evaluation.risk_estimate import (
    Fit,
    by_gold,
    drawn_truths,
    fit_rewards,
    limits,
    promised,
    too_few,
    too_few_valued,
    unknown,
)
from prudent.policies.estimates import Estimate, estimate
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.seeding import Seed, numpy_generator, spawn

LEVEL = 0.95
POSTERIOR_UNIT = "logits of preference"
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How the reward model is fitted and drawn, and what its policies are judged by."""

    betas: Sequence[float]
    draws: int
    members: int
    ridge: float | str
    reward: str
    floor: float
    max_risk: float
    methods: Sequence[str] = tuple(METHODS)


@dataclass(frozen=True)
class Trained:
    """The reward fitted on all pairs and its members: fit, and what methods see of it (one draw)."""

    fit: Fit
    estimate: Estimate
    groups: Sequence[Any]

    def policies(self, rows: Sequence[tuple[str, float]]) -> torch.Tensor:
        """The policy of each (method, beta), minus the reference: (rows, P, C)."""
        weight = self.fit.weight
        return torch.cat([METHODS[method](self.estimate, weight, beta) - weight for method, beta in rows])


def trained_on(pairs: PairFeatures, candidates: CandidateFeatures, plan: Plan, seed: Seed) -> Trained:
    """The reward model fitted on all of the pairs, with members on resamples of them for mean and variance."""
    weight = as_tensor(candidates.reference, torch.float64)
    better, worse, features = (
        as_tensor(side, torch.float64) for side in (pairs.chosen, pairs.rejected, candidates.features)
    )
    features = torch.where(weight[..., None] > 0, features, 0.0)
    fit = fit_rewards(
        better,
        worse,
        pairs.groups,
        features,
        weight,
        members=plan.members,
        seed=seed,
        ridge=plan.ridge,
        columns=pairs.columns,
    )
    own: str | torch.Tensor = "mean" if plan.reward == "mean" else fit.full
    return Trained(fit, estimate(fit.ensemble[None], weight, reward=own, floor=plan.floor), pairs.groups)


def risk_rows(
    trained: Trained, settings: Sequence[tuple[str, float]], truth: torch.Tensor | None, draws: int, seed: Seed
) -> list[Row]:
    """risk, low, high, gain and reason of each (method, beta); without a truth also procedure_risk and its interval.

    With a truth and too few pairs or prompts the procedure risk has the widest interval, and its value is the draws'.
    """
    weight = trained.fit.weight
    reason = too_few(trained.groups) or (None if truth is None else too_few_valued(len(weight)))
    if reason is not None:
        row = unknown(reason)
        if truth is not None:
            del row["procedure_risk"]
        return [dict(row) for _ in settings]
    moved = trained.policies(settings)
    if truth is not None:
        return by_gold(moved, torch.where(weight > 0, as_tensor(truth, torch.float64), 0.0))
    rows = [{"method": method, "beta": beta} for method, beta in settings]
    return promised(trained.fit, moved, trained.groups, rows, draws=draws, seed=seed)


def valued(
    trained: Trained, betas: Sequence[float], methods: Sequence[str], draws: int, seed: Seed
) -> tuple[Outcomes, Outcomes]:
    """Every method at every beta, and at vanilla's KL, each policy valued by ``draws`` rewards from the posterior."""
    weight, truths = trained.fit.weight, drawn_truths(trained.fit, draws, numpy_generator(seed))
    beta = at_equal_beta(trained.estimate, weight, truths, betas, methods=methods)
    return beta, at_equal_kl(trained.estimate, weight, truths, beta, methods=methods)


def posterior_table(trained: Trained, outcomes: Outcomes, seed: Seed) -> list[Row]:
    """``core.table`` with what the posterior says exactly in place of what its draws show.

    risk and its interval as in ``estimate_risk``; gain and the difference from vanilla with their 95 % over rewards
    from the posterior; vs_risk's interval is over what the pairs can't settle. Everything else is the draws'.
    """
    rows = table(outcomes)
    known = [row for row in rows if row.get("risk") is not None]
    if not known:
        return rows
    posterior = trained.fit.posterior
    moves = trained.fit.feature_moves(trained.policies([(row["method"], row["beta"]) for row in known]))
    risks, means = component_risks(posterior, moves)
    found = averaged(posterior, risks, means, LEVEL)
    gains, high = found.gain, found.high
    if limits(trained.fit, trained.groups, seed).beyond:
        high = high.clip(min=0.5)
    at = {(row["method"], row["setting"]): k for k, row in enumerate(known)}
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    for k, row in enumerate(known):
        gain = outcomes.gain[outcomes.of(row["method"], row["setting"])]
        ends = torch.quantile(gain, tails).tolist()
        row |= {"risk": float(found.risk[k]), "low": float(found.low[k]), "high": float(high[k])}
        row |= {"gain": float(gains[k]), "gain_low": ends[0], "gain_high": ends[1]}
        base = at.get((BASELINE, row["setting"]))
        if row.get("vs_risk") is None or base is None:
            continue
        apart = (risks[:, k] - risks[:, base])[:, None]
        ends = [float(end[0]) for end in weighted_interval(apart, posterior.weight, LEVEL)]
        row |= {"vs_risk": float(posterior.weight @ apart[:, 0]), "vs_risk_low": ends[0], "vs_risk_high": ends[1]}
        versus = gain - outcomes.gain[outcomes.of(BASELINE, row["setting"])]
        ends = torch.quantile(versus, tails).tolist()
        row |= {"vs_gain": float(gains[k] - gains[base]), "vs_gain_low": ends[0], "vs_gain_high": ends[1]}
    return rows


def check_against(
    trained: Trained, rows: Sequence[Row], by_truth: Sequence[Row], draws: int, seed: Seed
) -> dict[str, Any] | None:
    """What would have been promised without the truth, beside what the truth says; None where no estimate can be made.

    rows: of ``core.table`` at equal beta over draws, whose risk is the procedure's. by_truth: their ``risk_rows``.
    """
    known = [(row, true) for row, true in zip(rows, by_truth, strict=True) if row.get("risk") is not None]
    (own,) = spawn(seed, 1)
    guesses = risk_rows(trained, [(row["method"], row["setting"]) for row, _ in known], None, draws, own)
    if not guesses or guesses[0]["risk"] is None:
        return None
    found = [
        {
            "method": row["method"],
            "beta": row["setting"],
            "kind": row["kind"],
            "promised_risk": guess["risk"],
            "promised_low": guess["low"],
            "promised_high": guess["high"],
            "true_gain": true["gain"],
            "came_out_below": None if true["gain"] is None else true["gain"] <= 0,
            "promised_procedure_risk": guess["procedure_risk"],
            "procedure_risk": row["risk"],
            "procedure_low": row["low"],
            "procedure_high": row["high"],
            "promised_gain": guess["gain"],
        }
        for (row, true), guess in zip(known, guesses, strict=True)
    ]
    return {"rows": found, **_agreement(found)}


def _agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """How well the promise orders methods by gain, and how far it is from the share over resamples of the pairs."""
    from scipy.stats import spearmanr

    promised_gain, true = ([row[name] for row in rows] for name in ("promised_gain", "true_gain"))
    known = all(value is not None for value in true) and len(set(promised_gain)) > 1 and len(set(true)) > 1
    errors = [row["promised_risk"] - row["procedure_risk"] for row in rows]
    return {
        "rank_correlation_of_gain": float(spearmanr(promised_gain, true).statistic) if known else None,
        "mean_risk_error": sum(errors) / len(errors),
        "mean_absolute_risk_error": sum(map(abs, errors)) / len(errors),
    }
