"""Equal scores in a ranking: the mean over every order of the tied, in closed form.

A ranking metric is a sum of gains by rank. An item with ``above`` items of a higher score in a group of ``equal`` items
of the same score (itself included) takes each of the ranks above + 1 ... above + equal equally often, so its expected
gain is the mean gain of those ranks. Recall@k, NDCG@k, reciprocal rank, "is it first" and "is it among the k picked"
differ in their gains alone.
"""

from __future__ import annotations

import numpy as np


def mean_over_orders(gains: np.ndarray, above: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """Expected gain (n,) of items over the orders of those with the same score.

    gains: (ranks,) gain of rank 1, 2, ...; 0 beyond the last. above, equal: (n,) whole numbers, see the module's text.
    """
    total = np.concatenate([[0.0], np.cumsum(gains)])
    first, last = (np.minimum(rank, len(gains)) for rank in (above, above + equal))
    # One rank alone is read from the gains: a difference of cumulated sums would lose its last digits.
    single = np.concatenate([gains, [0.0]])[first]
    return np.where(equal == 1, single, (total[last] - total[first]) / equal)


def same_choice(one: np.ndarray, other: np.ndarray) -> float:
    """Probability that two choices agree, each uniform over its own best candidates. one, other: (candidates,) bool."""
    return float((one & other).sum() / (one.sum() * other.sum()))
