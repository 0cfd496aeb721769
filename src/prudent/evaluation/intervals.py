"""Intervals, paired tests and correlations on arrays.

Everything that can fail to exist (an accuracy of nothing, the correlation of a constant) is an ``Estimate`` whose
value is None and whose ``reason`` says why: never 0, never 1, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import special

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.resampling import resampled_means
from prudent.seeding import Seed, numpy_generator

SAME = "all values are equal: resampling them shows no variance"
EXACT_ROUNDS_LIMIT = 200_000_000  # draws a bootstrap of ranks may cost before the analytic interval takes over


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. value, low and high are None where they don't exist, and ``reason`` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    level: float = 0.95
    method: str = ""
    reason: str | None = None

    def fields(self, name: str = "value") -> dict[str, float | None]:
        """The value, by this name, and the ends of its interval, ``low`` and ``high``: fields of a row."""
        return {name: self.value, "low": self.low, "high": self.high}

    @property
    def text(self) -> str:
        """``0.812 [0.790, 0.833]``, or ``n/a`` with the reason."""
        if self.value is None:
            return f"n/a ({self.reason})"
        if self.low is None and self.high is None:
            return f"{self.value:.3f}"
        ends = ["unbounded" if end is None else f"{end:.3f}" for end in (self.low, self.high)]
        return f"{self.value:.3f} [{', '.join(ends)}]"


def array(values: ArrayLike, name: str) -> np.ndarray:
    """1-D float64 numpy array of ``values``; PrudentError naming the first entry that is not finite."""
    result = as_tensor(values, torch.float64).detach().cpu().numpy()
    if result.ndim != 1:
        raise PrudentError(f"{name} has shape {result.shape}, expected one dimension")
    bad = np.flatnonzero(~np.isfinite(result))
    if len(bad):
        raise PrudentError(
            f"{name} is {result[bad[0]]} at item {bad[0]} ({len(bad)} of {len(result)} are not finite); "
            "remove or fix them first"
        )
    return result


def cluster_codes(clusters: Any, n: int) -> np.ndarray | None:
    """Integer code per item from any labels (texts too), or None."""
    if clusters is None:
        return None
    labels = clusters.numpy() if isinstance(clusters, torch.Tensor) else np.asarray(clusters)
    if labels.shape != (n,):
        raise PrudentError(f"clusters has shape {labels.shape}, expected ({n},): one label an item")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def same_length(**arrays: np.ndarray) -> int:
    """The common length of arrays by name; PrudentError names the lengths where they differ."""
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise PrudentError("lengths differ: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
    return next(iter(lengths.values()))


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927). n = 0 gives (nan, nan): there is nothing to estimate.

    ``successes`` may hold halves (ties at half credit); the interval is then slightly wide, since a half varies less.
    """
    if n < 0 or not 0 <= successes <= max(n, 0):
        raise PrudentError(f"successes {successes} of {n} is no proportion; expected 0 <= successes <= n")
    if n == 0:
        return float("nan"), float("nan")
    z = float(special.ndtri(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n of n the interval touches the end exactly; rounding must not move it past or short of it.
    return (0.0 if p == 0 else max(0.0, float(centre - half))), (1.0 if p == 1 else min(1.0, float(centre + half)))


def newcombe(both: int, only_first: int, only_second: int, neither: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of two proportions of the same items, first minus second, from their four counts.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635): each proportion's Wilson interval, joined with their
    correlation. Unlike a bootstrap it neither collapses nor falls short where few items differ.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p, q = first / n, second / n
    (p_low, p_high), (q_low, q_high) = wilson(first, n, level), wilson(second, n, level)
    excess, product = float(both * neither - only_first * only_second), first * (n - first) * second * (n - second)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)  # Newcombe's continuity correction
    phi = excess / product**0.5 if product else 0.0
    down, up = (
        max(0.0, mine**2 - 2 * phi * mine * other + other**2) ** 0.5
        for mine, other in ((p - p_low, q_high - q), (p_high - p, q - q_low))
    )
    return max(-1.0, p - q - down), min(1.0, p - q + up)


def effective_size(values: np.ndarray, codes: np.ndarray) -> float:
    """How many independent items tell as much about the mean of ``values`` (n,) as these, which share clusters.

    p (1 - p) over the clustered variance of the mean, between 1 and n (Korn and Graubard 1998). Where all values are 0
    or all are 1 (or there is one cluster) the data can't say how alike a cluster's items are, and the number of
    clusters is taken: as if each held one item.
    """
    n, count, p = len(values), int(codes.max()) + 1, float(values.mean())
    if count < 2 or p in (0, 1):
        return float(count)
    sums = np.bincount(codes, weights=values - p)
    variance = float((sums**2).sum()) * count / (count - 1) / n**2
    return float(np.clip(p * (1 - p) / variance if variance > 0 else n, 1, n))


def proportion(credit: ArrayLike, level: float = 0.95, clusters: Any = None) -> Estimate:
    """Mean of credits in [0, 1] with a Wilson interval, which never has width 0; of no item: None with the reason.

    clusters: labels of items that share a prompt; the interval is then of the effective number of items
    (``effective_size``).
    """
    values = array(credit, "credit")
    codes = cluster_codes(clusters, len(values))
    if len(values) == 0:
        return Estimate(None, None, None, 0, level, "wilson", "no items")
    value = float(values.mean())
    size = float(len(values)) if codes is None else effective_size(values, codes)
    low, high = wilson(float(values.sum()) if codes is None else value * size, size, level)
    method = "wilson" if codes is None else f"wilson on an effective {size:.1f} items"
    return Estimate(value, low, high, len(values), level, method)


def bounded_mean(
    values: ArrayLike, *, rounds: int = 1000, level: float = 0.95, seed: Seed = 0, clusters: Any = None
) -> Estimate:
    """``bootstrap`` of the mean of values in [0, 1] (accuracy, reciprocal rank, recall) that can't collapse.

    Where all values are equal no resample differs from another, which proves nothing: the interval is then Wilson's for
    as many items as there are units to draw.
    """
    found = bootstrap(values, rounds=rounds, level=level, seed=seed, clusters=clusters)
    if found.value is None or (found.low is not None and found.low != found.high):
        return found
    codes = cluster_codes(clusters, found.n)
    units = found.n if codes is None else int(codes.max()) + 1
    low, high = wilson(found.value * units, units, level)
    return Estimate(found.value, low, high, found.n, level, f"wilson on {units} equal units")


def quantiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """Ends of the central ``level`` of draws (n,)."""
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], float] | Literal["mean"] = "mean",
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: Seed = 0,
    clusters: Any = None,
) -> Estimate:
    """Percentile bootstrap interval of a statistic of ``values`` (n,); whole clusters are drawn where labels are given.

    "mean" is exact and fast for any n (see ``resampling``). A callable gets each resample's values, a round at a time.
    Values that are all one number other than 0 have no interval: [0.5, 0.5] of three items would be certainty.
    """
    x = array(values, "values")
    codes = cluster_codes(clusters, len(x))
    n = len(x)
    drawn = n if codes is None else int(codes.max()) + 1 if n else 0
    method = "bootstrap" if codes is None else f"bootstrap of {drawn} clusters"
    if n == 0:
        return Estimate(None, None, None, 0, level, method, "no items")
    if drawn < 2:
        value = float(x.mean()) if statistic == "mean" else float(statistic(x))
        return Estimate(value, None, None, n, level, method, "one item or cluster has no variance to resample")
    if x[0] != 0 and np.ptp(x) == 0:
        value = float(x[0]) if statistic == "mean" else float(statistic(x))
        return Estimate(value, None, None, n, level, method, SAME)
    if statistic == "mean":
        draws = resampled_means(x[:, None], rounds, seed, codes)[:, 0]
        value = float(x.mean())
    else:
        draws = _callable_rounds(x, statistic, rounds, seed, codes)
        value = float(statistic(x))
    low, high = quantiles(draws, level)
    return Estimate(value, low, high, n, level, method)


def _callable_rounds(
    x: np.ndarray, statistic: Callable[[np.ndarray], float], rounds: int, seed: Seed, codes: np.ndarray | None
) -> np.ndarray:
    generator = numpy_generator(seed)
    members = None
    if codes is not None:
        order = np.argsort(codes, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    draws = np.empty(rounds)
    for number in range(rounds):
        if members is None:
            index = generator.integers(0, len(x), len(x))
        else:
            index = np.concatenate([members[c] for c in generator.integers(0, len(members), len(members))])
        draws[number] = statistic(x[index])
    return draws


@dataclass(frozen=True)
class Paired:
    """Difference of two means on the same items: a minus b, its interval and a two-sided p."""

    difference: Estimate
    p: float | None


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, rounds: int = 1000, level: float = 0.95, seed: Seed = 0, clusters: Any = None
) -> Paired:
    """Bootstrap of mean(a) - mean(b) over the same items.

    p = 2 min(share of rounds <= 0, share >= 0), never below 2/(rounds+1).
    """
    x, y = array(a, "a"), array(b, "b")
    n = same_length(a=x, b=y)
    difference = bootstrap(x - y, rounds=rounds, level=level, seed=seed, clusters=clusters)
    if difference.low is None:
        return Paired(difference, None)
    draws = resampled_means((x - y)[:, None], rounds, seed, cluster_codes(clusters, n))[:, 0]
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Paired(difference, min(1.0, 2 * (tail + 1) / (rounds + 1)))


def simultaneous_bootstrap(
    differences: ArrayLike, *, rounds: int = 1000, level: float = 0.95, seed: Seed = 0, clusters: Any = None
) -> list[Paired]:
    """Bootstrap of several mean differences (n, m) of the same items: intervals and p values that hold for all m.

    Each resample's largest studentised deviation sets the width of every interval and the p value of every difference
    (single-step max-t; Westfall and Young 1993), so an interval leaves out 0 where p is below 1 - level, and with
    probability ``level`` all intervals hold at once. p is never below 1/(rounds+1); a difference that is 0 on every
    item has p 1. Fewer than two items or clusters, or one and the same difference other than 0: no interval and no p,
    with the reason.
    """
    table = as_tensor(differences, torch.float64).numpy()
    n, many = table.shape
    codes = cluster_codes(clusters, n)
    drawn = n if codes is None else int(codes.max()) + 1 if n else 0
    method = f"max-t bootstrap of {drawn} {'items' if codes is None else 'clusters'}, {many} differences together"
    if drawn < 2:
        reason = "one item or cluster has no variance to resample"
        return [Paired(Estimate(float(v), None, None, n, level, method, reason), None) for v in table.mean(0)]
    value = table.mean(0)
    same = (np.ptp(table, axis=0) == 0) & (value != 0)
    draws = resampled_means(table, rounds, seed, codes)
    error = np.where(same, 0.0, draws.std(0, ddof=1))
    scale = np.where(error > 0, error, np.inf)
    largest = (np.abs(draws - value) / scale).max(1)
    reach = float(np.quantile(largest, level)) * error
    p = np.where(error > 0, (1 + (largest[:, None] >= np.abs(value) / scale).sum(0)) / (rounds + 1), 1.0)
    return [
        Paired(Estimate(float(v), None, None, n, level, method, SAME), None)
        if alike
        else Paired(Estimate(float(v), float(v - r), float(v + r), n, level, method), float(q))
        for v, r, q, alike in zip(value, reach, p, same)
    ]


@dataclass(frozen=True)
class McNemar:
    """Paired test of two scorers' correctness. a_only: items where a does better; p: exact, two-sided."""

    a_only: int
    b_only: int
    same: int
    p: float


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact McNemar test (binomial on the discordant items). With credits of 1/2 it is the sign test on a - b."""
    from scipy import stats  # takes three times as long to import as special, which everything else here needs

    x, y = array(a, "a"), array(b, "b")
    n = same_length(a=x, b=y)
    more, less = int((x > y).sum()), int((x < y).sum())
    p = float(stats.binomtest(more, more + less, 0.5).pvalue) if more + less else 1.0
    return McNemar(more, less, n - more - less, p)


def holm(p: ArrayLike) -> torch.Tensor:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given. NaN (no test) stays NaN and isn't counted."""
    values = as_tensor(p, torch.float64).clone()
    if bool(((values < 0) | (values > 1)).any()):
        raise PrudentError("p holds values outside [0, 1]")
    tested = torch.nonzero(~torch.isnan(values)).reshape(-1)
    ordered, order = torch.sort(values[tested])
    scale = torch.arange(len(tested), 0, -1, dtype=torch.float64)
    if len(tested):
        adjusted = torch.cummax((ordered * scale).clamp(max=1.0), dim=0).values
        values[tested[order]] = adjusted
    return values


def ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks along the last axis."""
    from scipy import stats

    return stats.rankdata(values, axis=-1)


def row_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where a row is constant."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (x * y).sum(-1) / np.where(scale > 0, scale, 1), np.nan)


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    kind: Literal["pearson", "spearman"] = "pearson",
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: Seed = 0,
) -> Estimate:
    """Pearson or Spearman correlation of paired values (n,), with a percentile bootstrap interval over the pairs.

    Spearman's ranks are taken anew in each resample. Where rounds x n would be too many draws, Fisher's z interval
    takes over (for Spearman with the variance of Bonett and Wright 2000) and ``method`` says so. Fewer than three
    pairs or a constant side: None with the reason.
    """
    if kind not in ("pearson", "spearman"):
        raise PrudentError(f"kind is {kind!r}, expected 'pearson' or 'spearman'")
    a, b = array(x, "x"), array(y, "y")
    n = same_length(x=a, y=b)
    for name, values in (("x", a), ("y", b)):
        if n < 3 or np.ptp(values) == 0:
            reason = f"only {n} pairs" if n < 3 else f"{name} is constant"
            return Estimate(None, None, None, n, level, kind, reason)
    pair = (ranks(a), ranks(b)) if kind == "spearman" else (a, b)
    value = float(np.clip(row_correlation(*pair), -1, 1))
    if rounds * n > EXACT_ROUNDS_LIMIT:
        variance = (1 + value**2 / 2) / (n - 3) if kind == "spearman" else 1 / (n - 3)
        half = float(special.ndtri(0.5 + level / 2)) * np.sqrt(variance)
        z = np.arctanh(np.clip(value, -1 + 1e-15, 1 - 1e-15))
        return Estimate(value, float(np.tanh(z - half)), float(np.tanh(z + half)), n, level, f"{kind}, Fisher z")
    generator, draws, step = numpy_generator(seed), [], max(1, 1_000_000 // n)
    for start in range(0, rounds, step):
        index = generator.integers(0, n, size=(min(step, rounds - start), n))
        left, right = a[index], b[index]
        draws.append(row_correlation(ranks(left), ranks(right)) if kind == "spearman" else row_correlation(left, right))
    kept = np.concatenate(draws)
    kept = kept[~np.isnan(kept)]  # a resample that happens to be constant has no correlation
    if len(kept) < rounds / 2:
        return Estimate(value, None, None, n, level, f"{kind}, bootstrap", "most resamples are constant")
    low, high = quantiles(kept, level)
    return Estimate(value, low, high, n, level, f"{kind}, bootstrap")
