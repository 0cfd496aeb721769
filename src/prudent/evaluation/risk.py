"""Empirical risk of policies: their expected reward over draws of the reward model, and how often that is too little.

The protocol of arXiv 2410.23726 and 2507.15906: one policy a draw, its true value beside the reference policy's, and
risk = share of draws whose policy is no better than the reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.intervals import newcombe, quantiles, wilson
from prudent.evaluation.resampling import resampled_means
from prudent.seeding import Seed

# A policy that did not move differs from the reference by rounding alone; relative to the size of the values.
ROUNDING = 1e-12


@dataclass(frozen=True)
class PolicyRisk:
    """One method's draws in numbers.

    draws: how many. gain: mean of value - reference value; gain_low, gain_high: bootstrap interval of that mean over
    draws. variance, deviation: of the gain over draws (ddof=1; None for one draw). gain_quantile_05: 5 % quantile of
    the gain.
    at_or_below: draws no better than the reference; risk: their share; low, high: its Wilson interval.
    """

    draws: int
    gain: float
    gain_low: float | None
    gain_high: float | None
    variance: float | None
    deviation: float | None
    gain_quantile_05: float
    at_or_below: int
    risk: float
    low: float
    high: float

    def row(self) -> dict[str, Any]:
        """The fields as a plain row."""
        return asdict(self)


@dataclass(frozen=True)
class PairedRisk:
    """Difference of two methods on the same draws, first minus second.

    gain, with a percentile-bootstrap interval over draws, None where fewer than two leave nothing to resample. risk,
    with Newcombe's interval of paired proportions. only_first, only_second: draws in which only that one is at or below
    the reference.
    """

    gain: float
    gain_low: float | None
    gain_high: float | None
    risk: float
    risk_low: float
    risk_high: float
    only_first: int
    only_second: int

    def row(self) -> dict[str, Any]:
        """The fields as a plain row."""
        return asdict(self)


def policy_gain(policy: ArrayLike, reference: ArrayLike, truth: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Value gained over the reference, and the share of prompts made worse.

    policy (..., prompts, candidates) and reference (prompts, candidates) are probabilities, truth (prompts, candidates)
    the true reward (anything where the reference is 0). Returns two tensors (...) in float64: the mean over prompts of
    sum_y (pi - pi0) r*, and the share of prompts for which that sum is negative (beyond rounding).
    """
    pi, pi0 = as_tensor(policy, torch.float64), as_tensor(reference, torch.float64)
    gold = torch.where(pi0 > 0, as_tensor(truth, torch.float64), 0.0)
    require_finite(gold, "truth", ("prompt", "candidate"))
    base = (pi0 * gold).sum(-1, keepdim=True)
    # Centred first: the difference of two large values would lose the digits that decide risk.
    change = ((pi - pi0) * (gold - base)).sum(-1)
    slack = ROUNDING * float(gold.abs().max()) if gold.numel() else 0.0
    return change.mean(-1), (change < -slack).to(torch.float64).mean(-1)


def at_or_below(gain: ArrayLike, scale: float = 1.0) -> torch.Tensor:
    """Which draws gained nothing, beyond rounding of values of size ``scale``: (...) bool."""
    return as_tensor(gain, torch.float64) <= ROUNDING * scale


def policy_risk(gain: ArrayLike, *, level: float = 0.95, rounds: int = 1000, seed: Seed = 0) -> PolicyRisk:
    """Summary of one method's gains over the reference, (draws,), each from its own draw of the reward model."""
    values = as_tensor(gain, torch.float64).reshape(-1)
    if len(values) == 0:
        raise PrudentError("gain holds no draws; give at least one")
    require_finite(values, "gain", ("draw",))
    below = int(at_or_below(values).sum())
    low, high = wilson(below, len(values), level)
    several = len(values) > 1
    variance = float(values.var(correction=1)) if several else None
    interval = _interval(values, level, rounds, seed) if several else (None, None)
    return PolicyRisk(
        draws=len(values),
        gain=float(values.mean()),
        gain_low=interval[0],
        gain_high=interval[1],
        variance=variance,
        deviation=None if variance is None else variance**0.5,
        gain_quantile_05=float(torch.quantile(values, 0.05)),
        at_or_below=below,
        risk=below / len(values),
        low=float(low),
        high=float(high),
    )


def paired_risk(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, rounds: int = 1000, seed: Seed = 0
) -> PairedRisk:
    """Two methods on the same draws: gains (draws,) each, in the same order of draws."""
    a, b = (as_tensor(values, torch.float64).reshape(-1) for values in (first, second))
    if len(a) != len(b) or len(a) == 0:
        raise PrudentError(f"paired methods have {len(a)} and {len(b)} draws; give the same draws of both")
    require_finite(torch.stack([a, b]), "gain", ("method", "draw"))
    fails_a, fails_b = at_or_below(a), at_or_below(b)
    only_first, only_second = int((fails_a & ~fails_b).sum()), int((fails_b & ~fails_a).sum())
    both = int((fails_a & fails_b).sum())
    risk_low, risk_high = newcombe(both, only_first, only_second, len(a) - both - only_first - only_second, level)
    interval = _interval(a - b, level, rounds, seed) if len(a) > 1 else (None, None)
    return PairedRisk(
        gain=float((a - b).mean()),
        gain_low=interval[0],
        gain_high=interval[1],
        risk=(only_first - only_second) / len(a),
        risk_low=risk_low,
        risk_high=risk_high,
        only_first=only_first,
        only_second=only_second,
    )


def _interval(values: torch.Tensor, level: float, rounds: int, seed: Seed) -> tuple[float, float]:
    return quantiles(resampled_means(values[:, None].numpy(), rounds, seed)[:, 0], level)
