"""Has a policy left what samples of its reference can show? Limits from the reference's samples alone.

A healthy policy that has raised its reward looks like the reference's own samples *reweighted* towards that reward
(the exact policy over them). So a batch is compared with the pool tilted until its mean reward is the batch's: more
disagreement, novelty or repetition, or another length, than those samples have is what the reward does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

LEAST_EFFECTIVE = 30  # samples that a tilted pool must still hold (1 / sum of squared weights)


@dataclass(frozen=True)
class Limits:
    """What a tilted pool expects of a batch's mean, by signal, and the highest and lowest still in order. effective:
    samples that the tilted pool holds. attained: whether it reaches the batch's reward."""

    expected: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    effective: float
    attained: bool


def tilt(reward: np.ndarray, target: float) -> np.ndarray:
    """Weights (n,) proportional to exp(k reward), k >= 0, under which the mean of ``reward`` (n,) is ``target``, or as
    near as LEAST_EFFECTIVE samples allow."""
    centred = reward - reward.max()
    scale = max(float(reward.std()), 1e-12)

    def weights(k: float) -> np.ndarray:
        found = np.exp(k * centred / scale)
        return found / found.sum()

    low, high = 0.0, 64.0
    for _ in range(40):
        middle = (low + high) / 2
        found = weights(middle)
        if found @ reward < target and 1 / (found @ found) >= LEAST_EFFECTIVE:
            low = middle
        else:
            high = middle
    return weights(low)


def limits(signals: dict[str, np.ndarray], reward: np.ndarray, target: float, batch: int, level: float) -> Limits:
    """Limits of a batch of ``batch`` samples whose mean reward is ``target``.

    signals: name -> (n,) of the reference's samples; reward: (n,) of the same. level: chance that a signal of a batch
    drawn from the tilted pool lies above (and the same below), by the normal approximation of its mean.
    """
    weights = tilt(reward, target)
    effective = 1 / float(weights @ weights)
    near = float(np.sqrt(weights @ (reward - weights @ reward) ** 2 * (1 / batch + 1 / effective)))
    width = -ndtri(level)
    expected: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name, values in signals.items():
        mean = float(weights @ values)
        error = float(np.sqrt(weights @ (values - mean) ** 2 * (1 / batch + 1 / effective)))
        expected[name], low[name], high[name] = mean, mean - width * error, mean + width * error
    return Limits(expected, low, high, effective, bool(target <= weights @ reward + width * near))


def repeated_share(text: str) -> float:
    """Share of a text's word triples that occurred before in it: 0 in ordinary prose, near 1 in a loop."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:]))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


@dataclass(frozen=True)
class Distance:
    """Squared Mahalanobis distance a dimension from the reference's samples: 1 on average for those like them."""

    mean: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> Distance:
        """From features (n, d); a tenth of the mean variance is added in every direction."""
        centred = features - features.mean(0)
        values, directions = np.linalg.eigh(centred.T @ centred / max(1, len(features) - 1))
        spectrum = values + 0.1 * values.mean() + 1e-12
        whitening = directions / np.sqrt(spectrum)
        unit = np.sqrt(np.mean((centred @ whitening) ** 2))
        return cls(features.mean(0), whitening / unit)

    def of(self, features: np.ndarray) -> np.ndarray:
        """(n,) from features (n, d)."""
        return (((features - self.mean) @ self.whitening) ** 2).mean(1)
