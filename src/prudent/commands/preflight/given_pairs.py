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
from prudent.evaluation.posterior_risk import (
    Posterior,
    component_risks,
    reward_posterior,
    risk_with_gold,
    weighted_interval,
)
from prudent.evaluation.risk_estimate import (
    LEAST_PAIRS,
    LEAST_PROMPTS,
    Fit,
    drawn_truths,
    feature_moves,
    fit_policies,
    promised,
)
from prudent.policies.estimates import Estimate, estimate
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.seeding import Seed, numpy_generator, spawn

LEVEL = 0.95
POSTERIOR_UNIT = "logits of preference"
Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """The reward fitted on all pairs and its members: fit, and what methods see of it (one draw)."""

    fit: Fit
    estimate: Estimate
    weight: torch.Tensor
    groups: Sequence[Any]

    def policies(self, rows: Sequence[tuple[str, float]]) -> torch.Tensor:
        """The policy of each (method, beta), minus the reference: (rows, P, C)."""
        found = [METHODS[method](self.estimate, self.weight, beta) - self.weight for method, beta in rows]
        return torch.cat(found)


def trained_on(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    *,
    members: int,
    ridge: float | str,
    reward: str,
    floor: float,
    seed: Seed,
) -> Trained:
    """The reward model fitted on all of the pairs, with ``members`` resamples for mean and variance."""
    weight = as_tensor(candidates.reference, torch.float64)
    sides = (as_tensor(side, torch.float64) for side in (pairs.chosen, pairs.rejected, candidates.features))
    better, worse, features = sides
    features = torch.where(weight[..., None] > 0, features, 0.0)
    fit = fit_policies(
        better,
        worse,
        pairs.groups,
        features,
        weight,
        [],
        members=members,
        seed=seed,
        ridge=ridge,
        columns=pairs.columns,
    )
    own: str | torch.Tensor = "mean" if reward == "mean" else fit.full
    return Trained(fit, estimate(fit.ensemble[None], weight, reward=own, floor=floor), weight, pairs.groups)


def unknown(pairs: int, groups: int, prompts: int, with_truth: bool) -> str | None:
    """Why there is no estimate for so many pairs, of so many prompts, and candidates' prompts; None where there is."""
    if pairs < LEAST_PAIRS or groups < LEAST_PROMPTS:
        return f"{pairs} pairs of {groups} prompts; an estimate needs {LEAST_PAIRS} of {LEAST_PROMPTS}"
    if with_truth and prompts < LEAST_PROMPTS:
        return f"candidates of {prompts} prompts; an estimate needs {LEAST_PROMPTS}"
    return None


def risk_rows(
    trained: Trained, settings: Sequence[tuple[str, float]], truth: torch.Tensor | None, draws: int, seed: Seed
) -> list[Row]:
    """risk, low, high, gain and reason of each (method, beta); without a truth also procedure_risk and its interval."""
    weight = trained.weight
    reason = unknown(len(trained.fit.difference), len(set(map(str, trained.groups))), len(weight), truth is not None)
    moved = trained.policies(settings)
    if reason is not None:
        nothing = {"procedure_risk": None, "procedure_low": 0.0, "procedure_high": 1.0}
        return [{"risk": None, "low": 0.0, "high": 1.0, "gain": None, "reason": reason, **nothing} for _ in settings]
    if truth is None:
        rows = [{"method": method, "beta": beta} for method, beta in settings]
        return promised(trained.fit._replace(moved=moved), trained.groups, weight, rows, draws=draws, seed=seed)
    gold = torch.where(weight > 0, as_tensor(truth, torch.float64), 0.0)
    found = risk_with_gold((moved * gold).sum(-1).numpy())
    names = ("risk", "low", "high", "gain")
    return [{**{name: float(getattr(found, name)[k]) for name in names}, "reason": None} for k in range(len(settings))]


@dataclass(frozen=True)
class Valued:
    """Policies of all methods valued by rewards from the posterior, at equal beta and at equal KL."""

    posterior: Posterior
    beta: Outcomes
    kl: Outcomes


def valued(trained: Trained, betas: Sequence[float], methods: Sequence[str], draws: int, seed: Seed) -> Valued:
    """Every method at every beta and at vanilla's KL, each policy valued by ``draws`` rewards from the posterior."""
    posterior = reward_posterior(trained.fit.difference.double().numpy())
    truths = drawn_truths(trained.fit, posterior, trained.weight, draws, numpy_generator(seed))
    beta = at_equal_beta(trained.estimate, trained.weight, truths, betas, methods=methods)
    equal = at_equal_kl(trained.estimate, trained.weight, truths, beta, methods=methods)
    return Valued(posterior, beta, equal)


def posterior_table(trained: Trained, posterior: Posterior, outcomes: Outcomes) -> list[Row]:
    """``core.table`` with what the posterior says exactly in place of what its draws show.

    risk and its interval as in ``estimate_risk``; gain and the difference from vanilla with their 95 % over rewards
    from the posterior; vs_risk's interval is over what the pairs can't settle. Everything else is the draws'.
    """
    rows = table(outcomes)
    known = [row for row in rows if row.get("risk") is not None]
    if not known:
        return rows
    moved = trained.policies([(row["method"], row["beta"]) for row in known])
    risks, means = component_risks(posterior, feature_moves(trained.fit._replace(moved=moved), trained.weight))
    low, high = weighted_interval(risks, posterior.weight, LEVEL)
    gains = posterior.weight[1:] @ means
    at = {(row["method"], row["setting"]): k for k, row in enumerate(known)}
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    for k, row in enumerate(known):
        gain = outcomes.gain[outcomes.of(row["method"], row["setting"])]
        ends = torch.quantile(gain, tails).tolist()
        row |= {"risk": float(posterior.weight @ risks[:, k]), "low": float(low[k]), "high": float(high[k])}
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
    trained: Trained, rows: Sequence[Row], truth: torch.Tensor, draws: int, seed: Seed
) -> dict[str, Any] | None:
    """What would have been promised without the truth, beside what the truth says; None where no estimate can be made.

    rows: of ``core.table`` at equal beta over draws, whose risk is the procedure's.
    """
    settings = [(row["method"], row["setting"]) for row in rows if row.get("risk") is not None]
    (own,) = spawn(seed, 1)
    guesses = risk_rows(trained, settings, None, draws, own)
    if not guesses or guesses[0]["risk"] is None:
        return None
    told = risk_rows(trained, settings, truth, draws, own)
    found = []
    for (method, beta), row, guess, true in zip(
        settings, (r for r in rows if r.get("risk") is not None), guesses, told
    ):
        found.append(
            {
                "method": method,
                "beta": beta,
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
        )
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
