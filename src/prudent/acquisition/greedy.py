"""Greedy batches: after each pick the posterior's covariance takes a rank-one update, exactly.

With rows z (m, r) such that the covariance of the pairs' logits is z z', picking pair i, whose label has Fisher
information w_i, leaves z (I - q q') z' with q = u sqrt(w_i / (1 + w_i v_i)), u = z_i less its part along earlier q's,
and v_i = u'z_i its variance so far. The mean stays: it moves only when labels come.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prudent.progress import track

BLOCK = 512  # candidates brought up to date together

Value = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (variance (b,), index (b,)) -> score (b,)


class Reduced:
    """The picks so far, as directions q (picks, r) along which the covariance has shrunk."""

    def __init__(self, factor: np.ndarray, most: int) -> None:
        self.factor = factor
        self.directions = np.zeros((most, factor.shape[1]), dtype=np.float64)
        self.count = 0

    def row(self, index: int) -> np.ndarray:
        """u (r,): the pair's row less its part along the directions."""
        known = self.directions[: self.count]
        own = self.factor[index].astype(np.float64)
        return own - (known @ own) @ known

    def variance(self, index: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Variance now of these pairs' logits, from their variance before any pick, ``total``."""
        along = self.factor[index] @ self.directions[: self.count].T.astype(self.factor.dtype)
        return np.maximum(total - np.einsum("br,br->b", along, along, dtype=np.float64), 0.0)

    def pick(self, index: int, weight: float) -> tuple[np.ndarray, float]:
        """Take the pair's label into account; u, and the share w / (1 + w v) by which u u' shrinks the covariance."""
        u = self.row(index)
        share = weight / (1.0 + weight * max(float(u @ self.factor[index]), 0.0))
        self.directions[self.count] = u * np.sqrt(share)
        self.count += 1
        return u, share


def squares(rows: np.ndarray) -> np.ndarray:
    """Squared length (m,) float64 of every row."""
    return np.einsum("mr,mr->m", rows, rows).astype(np.float64)


def lazy_greedy(
    factor: np.ndarray,
    weight: np.ndarray,
    value: Value,
    picks: int,
    *,
    repeat: int = 1,
    picked: Callable[[int], None] = lambda index: None,
) -> tuple[np.ndarray, np.ndarray]:
    """``picks`` pairs, each the best by ``value`` given those before it: index (picks,) and score (picks,).

    factor (m, r): rows whose inner products are the logits' covariance. weight (m,): Fisher information of a label.
    value must never grow as picks are made: an old score is then a bound, and only candidates whose bound could win
    are computed anew (Minoux 1978); the result is that of computing all. repeat: most labels of one pair. picked: is
    called after each pick.
    """
    total = squares(factor)
    reduced = Reduced(factor, picks)
    everyone = np.arange(len(factor))
    bound = value(total, everyone).astype(np.float64)
    stamp = np.zeros(len(factor), dtype=np.int64)
    left = np.full(len(factor), repeat)
    index, score = np.empty(picks, dtype=np.int64), np.empty(picks)
    for turn in track(range(picks), "choosing pairs"):
        best = int(bound.argmax())
        while stamp[best] != turn:
            stale = np.where(stamp != turn, bound, -np.inf)
            block = np.argpartition(-stale, BLOCK)[:BLOCK] if len(stale) > BLOCK else everyone
            block = np.union1d(block[stale[block] > -np.inf], [best])
            bound[block] = value(reduced.variance(block, total[block]), block)
            stamp[block] = turn
            best = int(bound.argmax())
        index[turn], score[turn] = best, bound[best]
        reduced.pick(best, float(weight[best]))
        left[best] -= 1
        if not left[best]:
            bound[best] = -np.inf
        picked(best)
    return index, score


def directed_greedy(
    factor: np.ndarray, weight: np.ndarray, direction: np.ndarray, picks: int, *, repeat: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """``picks`` pairs, each the one that lowers the variance along ``direction`` (r,) most; the scores are the shares
    of the first variance that each takes away. Arguments and results else as those of ``lazy_greedy``."""
    variance = squares(factor)
    along = (factor @ direction.astype(factor.dtype)).astype(np.float64)
    whole = float(direction @ direction)
    reduced = Reduced(factor, picks)
    left = np.full(len(factor), repeat)
    index, score = np.empty(picks, dtype=np.int64), np.empty(picks)
    for turn in track(range(picks), "choosing pairs"):
        less = np.where(left > 0, weight * along**2 / (1.0 + weight * variance), -np.inf)
        best = int(less.argmax())
        index[turn], score[turn] = best, less[best] / max(whole, np.finfo(float).tiny)
        u, share = reduced.pick(best, float(weight[best]))
        shared = (factor @ u.astype(factor.dtype)).astype(np.float64)
        along = along - share * along[best] * shared
        variance = np.maximum(variance - share * shared**2, 0.0)
        left[best] -= 1
    return index, score
