"""What a label says about a pair's logit, when people err, tie and are asked again.

A label is wrong with probability ``noise`` and a tie, which says nothing, with probability ``ties``. With p the
Bradley-Terry probability, a label reads q = noise + (1 - 2 noise) p, and its Fisher information about the logit is

    (1 - ties) ((1 - 2 noise) p (1 - p))^2 / (q (1 - q))         p (1 - p) without noise and ties

BALD (Houlsby et al., arXiv 1112.5745) is the mutual information of the label and the logit, h(E q) - E h(q), with the
logit N(mean, variance). It is tabulated once by numerical integration; its logarithm is nearly straight in the mean and
in the logarithm of the variance, so that interpolating between the table's knots errs by less than 1 %.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy.special import entr, expit

MEANS = np.linspace(0.0, 20.0, 161)
LOG_VARIANCES = np.linspace(-5.0, 7.0, 121)  # below, half the Fisher information times the variance is exact to 1 %
NODES = np.linspace(-8.0, 8.0, 801)


class LabelModel(NamedTuple):
    """noise: probability in [0, 1/2) that a label is the wrong way round. ties: probability in [0, 1) of a tie."""

    noise: float = 0.0
    ties: float = 0.0

    def fisher(self, logit: np.ndarray) -> np.ndarray:
        """Fisher information (...) of a label about its pair's logit (...)."""
        chance = expit(logit)
        slope = (1.0 - 2.0 * self.noise) * chance * expit(-logit)
        read = self.noise + (1.0 - 2.0 * self.noise) * chance
        return (1.0 - self.ties) * slope**2 / np.maximum(read * (1.0 - read), np.finfo(float).tiny)

    def bald(self, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Nats that a label is expected to say about logits N(mean, variance), (n,) each."""
        mean = np.abs(mean)
        small = 0.5 * self.fisher(mean) * variance
        low, high = LOG_VARIANCES[0], LOG_VARIANCES[-1]
        row = np.clip(mean / MEANS[1], 0.0, len(MEANS) - 1.000001)
        column = np.log(np.maximum(variance, np.exp(low))).clip(low, high)
        column = np.clip((column - low) / (LOG_VARIANCES[1] - low), 0.0, len(LOG_VARIANCES) - 1.000001)
        i, j = row.astype(int), column.astype(int)
        a, b = row - i, column - j
        table = _log_information(self.noise)
        across = (1 - a) * ((1 - b) * table[i, j] + b * table[i, j + 1])
        across += a * ((1 - b) * table[i + 1, j] + b * table[i + 1, j + 1])
        return np.where(variance > np.exp(low), (1.0 - self.ties) * np.exp(across), small)


def _entropy(chance: np.ndarray) -> np.ndarray:
    return entr(chance) + entr(1.0 - chance)


@functools.cache
def _log_information(noise: float) -> np.ndarray:
    """log BALD at (MEANS, LOG_VARIANCES)."""
    weight = np.exp(-0.5 * NODES**2)
    weight /= weight.sum()
    deviation = np.exp(0.5 * LOG_VARIANCES)
    found = np.empty((len(MEANS), len(LOG_VARIANCES)))
    for row, mean in enumerate(MEANS):
        # Of the rarer answer: its probability keeps its digits where that of the likelier one rounds to 1.
        read = noise + (1.0 - 2.0 * noise) * expit(-(mean + deviation[:, None] * NODES))
        found[row] = _entropy(read @ weight) - _entropy(read) @ weight
    return np.log(np.maximum(found, np.finfo(float).tiny))
