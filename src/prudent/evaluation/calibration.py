"""Does a score know when it errs? Calibration, ranking of errors by uncertainty, and risk against coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate, array, cluster_codes, quantiles, ranks, same_length, wilson
from prudent.evaluation.resampling import blocked_sums
from prudent.seeding import Seed


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve: confidences in [low, high), their mean, the accuracy and its Wilson interval."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Calibration:
    """Brier score, expected calibration error and the reliability curve (bins without items are left out)."""

    brier: Estimate
    ece: Estimate
    curve: list[Bin]
    folded: bool


def calibration(
    probability: ArrayLike,
    outcome: ArrayLike | None = None,
    *,
    bins: int = 15,
    rounds: int = 1000,
    level: float = 0.95,
    seed: Seed = 0,
) -> Calibration:
    """Calibration of ``probability`` (n,) against ``outcome`` (n,) in [0, 1], with bootstrap intervals.

    A preference pair's probability is sigmoid(score of chosen - score of rejected) and its outcome is always 1, so
    without ``outcome`` the curve is folded: confidence = max(p, 1 - p), right = p > 1/2 (a tie counts half). Brier is
    mean (p - outcome)^2, the same folded or not. ECE: sum over equal-width bins of share x |accuracy - confidence|
    (Naeini et al. 2015); it is biased upwards in small samples, and its interval with it.
    """
    p = array(probability, "probability")
    folded = outcome is None
    y = np.ones_like(p) if outcome is None else array(outcome, "outcome")
    n = same_length(probability=p, outcome=y)
    if np.any((p < 0) | (p > 1)) or np.any((y < 0) | (y > 1)):
        raise PrudentError("probability and outcome must lie in [0, 1]; apply the sigmoid to margins first")
    if n == 0:
        nothing = Estimate(None, None, None, 0, level, "bootstrap", "no items")
        return Calibration(nothing, nothing, [], folded)
    square = (p - y) ** 2
    if folded:
        y = np.where(p > 0.5, 1.0, np.where(p < 0.5, 0.0, 0.5))
        p = np.maximum(p, 1 - p)
    bottom = 0.5 if folded else 0.0
    edges = np.linspace(bottom, 1, bins + 1)
    code = np.minimum(((p - bottom) / (1 - bottom) * bins).astype(np.int64), bins - 1)
    return Calibration(
        *calibration_estimates(p, y, square, code, rounds, level, seed), reliability(p, y, code, edges, level), folded
    )


def calibration_estimates(
    p: np.ndarray, y: np.ndarray, square: np.ndarray, code: np.ndarray, rounds: int, level: float, seed: Seed
) -> tuple[Estimate, Estimate]:
    """Brier and ECE with intervals from one stratified pass.

    Given how many draws fall into a bin (multinomial over the bins), the draws within it are uniform, so bin sums are
    resampled bin by bin, exactly as the plain bootstrap would.
    """
    n, gap = len(p), p - y
    counts = np.unique(code, return_counts=True)[1]
    brier, ece = float(square.mean()), float(np.abs(np.bincount(code, weights=gap)).sum() / n)
    if n < 2:
        reason = "one item has no variance to resample"
        return (
            Estimate(brier, None, None, n, level, "bootstrap", reason),
            Estimate(ece, None, None, n, level, "bootstrap", reason),
        )
    order = np.argsort(code, kind="stable")
    table = np.stack([gap[order], square[order]], axis=1)
    drawn = blocked_sums(table, counts.tolist(), rounds, seed) / n
    low, high = quantiles(np.abs(drawn[:, :, 0]).sum(axis=1), level)
    low_brier, high_brier = quantiles(drawn[:, :, 1].sum(axis=1), level)
    return (
        Estimate(brier, low_brier, high_brier, n, level, "bootstrap"),
        Estimate(ece, low, high, n, level, "bootstrap"),
    )


def reliability(p: np.ndarray, y: np.ndarray, code: np.ndarray, edges: np.ndarray, level: float) -> list[Bin]:
    """Bins that hold any item, with Wilson intervals. p, y, code: (n,) confidences, outcomes in [0, 1] and bins; edges:
    of the bins."""
    counts = np.bincount(code, minlength=len(edges) - 1)
    confidence = np.bincount(code, weights=p, minlength=len(counts))
    right = np.bincount(code, weights=y, minlength=len(counts))
    curve = []
    for b in np.flatnonzero(counts):
        n = int(counts[b])
        low, high = wilson(float(min(right[b], n)), n, level)
        curve.append(
            Bin(float(edges[b]), float(edges[b + 1]), n, float(confidence[b] / n), float(right[b] / n), low, high)
        )
    return curve


def auroc(score: ArrayLike, positive: ArrayLike, *, level: float = 0.95, clusters: object = None) -> Estimate:
    """Area under the ROC curve of ``score`` for ``positive`` in {0, 1}; a tie counts half.

    Interval by placement values (DeLong et al. 1988), by clusters where given (Obuchowski 1997): no resampling needed.
    Only one class present: None with the reason.
    """
    x, y = array(score, "score"), array(positive, "positive")
    n = same_length(score=x, positive=y)
    if np.any((y != 0) & (y != 1)):
        raise PrudentError("positive holds values other than 0 and 1")
    yes = y == 1
    m, k = int(yes.sum()), int((~yes).sum())
    if m == 0 or k == 0:
        return Estimate(None, None, None, n, level, "auroc", f"{m} positives and {k} negatives")
    whole = ranks(x)
    up = (whole[yes] - ranks(x[yes])) / k  # share of negatives below each positive
    down = 1 - (whole[~yes] - ranks(x[~yes])) / m  # share of positives above each negative
    value = float(up.mean())
    if m < 2 or k < 2:
        return Estimate(value, None, None, n, level, "auroc, DeLong", "one item in a class has no variance")
    codes = cluster_codes(clusters, n)
    if codes is None:
        variance = up.var(ddof=1) / m + down.var(ddof=1) / k
    else:
        part = np.zeros(n)
        part[yes], part[~yes] = (up - value) / m, (down - value) / k
        total = np.bincount(codes, weights=part)
        variance = float((total**2).sum()) * len(total) / max(1, len(total) - 1)
    half = float(special.ndtri(0.5 + level / 2) * np.sqrt(variance))
    if 0 < value < 1:  # on the logit scale, so that the interval stays inside (0, 1)
        centre, half = float(special.logit(value)), half / (value * (1 - value))
        low, high = float(special.expit(centre - half)), float(special.expit(centre + half))
    else:
        low = high = value
    return Estimate(value, low, high, n, level, "auroc, DeLong")


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the share of items with the least uncertainty. area: mean risk over coverages; ``best`` and
    ``random`` are the areas of a perfect and of a blind ordering, ``gain`` places area between them (1 is perfect)."""

    coverage: torch.Tensor
    risk: torch.Tensor
    area: float | None
    best: float | None
    random: float | None
    gain: float | None
    reason: str | None = None


def risk_coverage(uncertainty: ArrayLike, error: ArrayLike) -> RiskCoverage:
    """Risk against coverage (El-Yaniv and Wiener 2010) of ``uncertainty`` (n,) for ``error`` (n,) in [0, 1].

    Items of equal uncertainty enter in every order alike: their errors are shared evenly among their ranks.
    """
    u, e = array(uncertainty, "uncertainty"), array(error, "error")
    n = same_length(uncertainty=u, error=e)
    if n == 0:
        return RiskCoverage(torch.empty(0), torch.empty(0), None, None, None, None, "no items")
    indices = np.arange(1, n + 1)
    _, code = np.unique(u, return_inverse=True)
    sizes = np.bincount(code)
    shared = np.repeat(np.bincount(code, weights=e) / sizes, sizes)
    risk = np.cumsum(shared) / indices
    area, random = float(risk.mean()), float(e.mean())
    best = float((np.cumsum(np.sort(e)) / indices).mean())
    gain = (random - area) / (random - best) if random > best else None
    reason = None if gain is not None else "every item errs alike, so no order is better than another"
    return RiskCoverage(torch.from_numpy(indices / n), torch.from_numpy(risk), area, best, random, gain, reason)
