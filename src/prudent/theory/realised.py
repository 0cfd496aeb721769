"""Promised risks held against what happened: how often policies that were given a chance p of failing did fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.evaluation.risk import at_or_below
from prudent.evaluation.statistics import bounded_mean
from prudent.seeding import Seed


def realised_gain(policy: ArrayLike, reference: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """True improvement <pi - pi0, gold> of each prompt, (..., P), from policies (..., P, n) and gold (P, n)."""
    pi, pi0, truth = (as_tensor(x, torch.float64) for x in (policy, reference, gold))
    truth = torch.where(pi0 > 0, truth - (pi0 * truth).sum(-1, keepdim=True), 0.0)
    return ((pi - pi0) * truth).sum(-1)


def can_fail(reference: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """Prompts (P,) whose gold differs among the responses: elsewhere no policy is better, whatever was promised."""
    pi0, truth = (as_tensor(x, torch.float64) for x in (reference, gold))
    inside = pi0 > 0
    return truth.masked_fill(~inside, -torch.inf).amax(-1) > truth.masked_fill(~inside, torch.inf).amin(-1)


def risk_curve(
    promised: ArrayLike, realised: ArrayLike, *, bins: int = 10, rounds: int = 1000, seed: Seed = 0
) -> list[dict[str, Any]]:
    """Promised chance of being no better than the reference against the share that was none, in equal-width bins.

    promised, realised: (draws, P), or (P,) for one reward model; realised is the true improvement. Rows: promised
    (mean), realised (share at or below 0) with a bootstrap interval over prompts, n. Empty bins are left out. Prompts
    of one reward model err together, so with one draw the intervals are too narrow.
    """
    chance = np.atleast_2d(as_tensor(promised, torch.float64).numpy())
    failed = np.atleast_2d(at_or_below(realised).numpy()).astype(np.float64)
    prompts = np.broadcast_to(np.arange(chance.shape[1]), chance.shape)
    code = np.minimum((chance * bins).astype(np.int64), bins - 1)
    rows = []
    for number in np.unique(code).tolist():
        inside = code == number
        found = bounded_mean(failed[inside], clusters=prompts[inside], rounds=rounds, seed=seed)
        rows.append(
            {
                "promised": float(chance[inside].mean()),
                "realised": found.value,
                "low": found.low,
                "high": found.high,
                "n": int(inside.sum()),
            }
        )
    return rows
