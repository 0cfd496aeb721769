"""How likely is the policy trained on these pairs no better than its reference? Arrays in, rows out.

``docs/calibration.md`` holds what was promised and what came, world by world.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.intervals import wilson
from prudent.evaluation.posterior_risk import Risks, risk_with_gold, risk_without_gold
from prudent.evaluation.risk import at_or_below
from prudent.policies.estimates import estimate
from prudent.policies.objectives import METHODS
from prudent.rewards.heads import bootstrap_counts, choose_ridge, fit_heads, standardisation
from prudent.rewards.uncertainty import centre
from prudent.seeding import spawn

LEAST_PAIRS, LEAST_PROMPTS = 30, 8


def estimate_risk(
    chosen: ArrayLike,
    rejected: ArrayLike,
    groups: Sequence[Any],
    candidates: ArrayLike,
    reference: ArrayLike,
    *,
    betas: Sequence[float] = (0.1,),
    methods: Sequence[str] = ("vanilla", "lcb", "proportional"),
    draws: int = 200,
    members: int = 10,
    gold: ArrayLike | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The probability that the policy trained on THESE pairs is no better than the reference: a row a method and beta.

    chosen, rejected: features (n, d) of the pairs; groups: the n pairs' prompts. candidates (P, C, d) and reference
    (P, C): features and probabilities of sampled responses, 0 masks one. methods: names of ``policies.METHODS``. The
    reward is the head fitted on all pairs; ``members`` bootstrap heads serve the mean and the variance.

    risk, low, high, gain: without ``gold`` by the posterior of the reward given the pairs (``posterior_risk``; gain in
    logits of the preference model; low and high are that posterior's 95 %, not an interval of a realised share). With
    ``gold`` (P, C), the true reward, by Student's t over prompts; then also procedure_risk with its Wilson interval:
    the share of ``draws`` resamples of the pairs (each fitted once, variance of the given data) whose policy is no
    better. It is None without gold. Fewer than LEAST_PAIRS pairs or LEAST_PROMPTS prompts give risk None, low 0, high 1
    and a reason. Raises PrudentError for shapes, values that aren't finite, and unknown methods.
    """
    better, worse, features, weight = (as_tensor(x, torch.float64) for x in (chosen, rejected, candidates, reference))
    _check(better, worse, groups, features, weight, betas, methods)
    truth = _truth(gold, weight, draws)
    rows: list[dict[str, Any]] = [{"method": name, "beta": float(beta)} for name in methods for beta in betas]
    if len(better) < LEAST_PAIRS or len(set(groups)) < LEAST_PROMPTS:
        reason = f"{len(better)} pairs of {len(set(groups))} prompts; needs {LEAST_PAIRS} of {LEAST_PROMPTS}"
        return [{**row, "risk": None, "low": 0.0, "high": 1.0, "gain": None, "reason": reason} for row in rows]
    mean, scale = standardisation(better.float(), worse.float())
    difference = ((better - worse) / scale).float()
    standard = (features - mean) / scale
    ridge, _ = choose_ridge(difference, groups=groups, seed=seed)
    # One resample each: a draw stands beside the fit on all pairs, and is not resampled again.
    resamples = bootstrap_counts(len(better), spawn(seed, members + (draws if truth is not None else 0)), groups)
    counts = torch.cat([torch.ones(1, len(better)), resamples])
    weights = fit_heads(difference, counts, ridge=ridge, tolerance=1e-5).weights.double()
    scores = (weights @ standard.flatten(0, 1).T).reshape(-1, *weight.shape)
    full, ensemble, fresh = scores[:1], scores[1 : members + 1], scores[members + 1 :]
    moved = torch.cat([_moves(ensemble, full, full, weight, row["method"], row["beta"]) for row in rows])
    if truth is None:
        centred = centre(standard.movedim(-1, 0), weights=weight).movedim(0, -1)
        found = risk_without_gold(difference.double().numpy(), centred.numpy(), moved.numpy())
        return [{**row, **_numbers(found, k), "procedure_risk": None} for k, row in enumerate(rows)]
    found = risk_with_gold((moved * truth).sum(-1).numpy())
    out = []
    for k, row in enumerate(rows):
        shares: dict[str, Any] = {"procedure_risk": None, "procedure_low": 0.0, "procedure_high": 1.0}
        if draws:
            gains = (_moves(ensemble, full, fresh, weight, row["method"], row["beta"]) * truth).sum(-1).mean(-1)
            below = int(at_or_below(gains, float(truth.abs().max())).sum())
            low, high = wilson(below, draws)
            shares = {"procedure_risk": below / draws, "procedure_low": low, "procedure_high": high}
        out.append({**row, **_numbers(found, k), **shares})
    return out


def _moves(
    ensemble: torch.Tensor, full: torch.Tensor, rewards: torch.Tensor, weight: torch.Tensor, method: str, beta: float
) -> torch.Tensor:
    """Policy minus reference (draws, P, C) for each of ``rewards`` (draws, P, C), by a method's own definition.

    ensemble (K, P, C): the members. full (1, P, C): the fit on all pairs, which ``rewards`` are draws about.
    """
    known = estimate(ensemble, weight, reward=rewards)
    # A draw's own error moves what a rule over members reads as it moves the reward itself.
    shift = known.reward - estimate(ensemble, weight, reward=full).reward
    drawn = known._replace(mean=known.mean + shift, scores=known.scores + shift[:, None])
    return METHODS[method](drawn, weight, beta).expand(shift.shape) - weight


def _truth(gold: ArrayLike | None, weight: torch.Tensor, draws: int) -> torch.Tensor | None:
    """Gold (P, C), 0 where masked; None without gold. PrudentError for what can't be used."""
    if draws < 0:
        raise PrudentError(f"draws is {draws}, must be at least 0")
    if gold is None:
        return None
    values = as_tensor(gold, torch.float64)
    if values.shape != weight.shape:
        raise PrudentError(f"gold must be (P, C) = {tuple(weight.shape)} as the reference, got {tuple(values.shape)}")
    if len(weight) < LEAST_PROMPTS:
        raise PrudentError(f"gold is known on {len(weight)} prompts; Student's t over prompts needs {LEAST_PROMPTS}")
    truth = torch.where(weight > 0, values, 0.0)
    require_finite(truth, "gold", ("prompt", "candidate"))
    return truth


def _numbers(found: Risks, row: int) -> dict[str, float]:
    return {name: float(getattr(found, name)[row]) for name in ("risk", "low", "high", "gain")}


def _check(
    better: torch.Tensor,
    worse: torch.Tensor,
    groups: Sequence[Any],
    features: torch.Tensor,
    weight: torch.Tensor,
    betas: Sequence[float],
    methods: Sequence[str],
) -> None:
    if better.ndim != 2 or better.shape != worse.shape or len(groups) != len(better):
        shapes = f"{tuple(better.shape)}, {tuple(worse.shape)} and {len(groups)} prompts"
        raise PrudentError(f"chosen and rejected must be (n, d) with n prompt names, got {shapes}")
    if features.ndim != 3 or features.shape[:2] != weight.shape or features.shape[-1] != better.shape[-1]:
        shapes = f"{tuple(features.shape)} and {tuple(weight.shape)} for features of width {better.shape[-1]}"
        raise PrudentError(f"candidates must be (P, C, d) and reference (P, C), got {shapes}")
    require_finite(torch.stack([better, worse]), "pair features", ("side", "pair", "feature"))
    require_finite(torch.where(weight[..., None] > 0, features, 0.0), "candidates", ("prompt", "candidate", "feature"))
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise PrudentError(f"methods {', '.join(unknown) or 'none'}: must be of {', '.join(METHODS)}")
    if not betas or any(not (beta > 0 and math.isfinite(beta)) for beta in betas):
        raise PrudentError(f"betas must be positive numbers, got {list(betas)}")
    if not np.any(weight.numpy() > 0):
        raise PrudentError("reference gives no candidate a probability")
