"""Has a policy left what samples of its reference can show? Limits from the reference's samples alone.

A healthy policy that has raised its reward looks like the reference's own samples *reweighted* towards that reward
(the exact policy over them). So a batch is compared with the pool tilted until its mean reward is the batch's: more
disagreement, novelty or repetition, or another length, than those samples have is what the reward does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_EFFECTIVE = 30  # samples that a tilted pool must still hold (1 / sum of squared weights)
TILTS = 65
BATCHES = 4000  # simulated to find the limit
MARGIN = 1.3  # on it: a pool is nearer to its own samples than to fresh ones, and some pools are unlucky


@dataclass(frozen=True)
class TiltedPool:
    """The reference's samples at TILTS strengths of tilt, from none to what LEAST_EFFECTIVE allows.

    reward (T,): their mean reward, rising. expected, variance (S, T): of each signal. effective (T,): samples that they
    still hold. both_ways (S,) bool: signals that may not fall either.
    """

    reward: np.ndarray
    expected: np.ndarray
    variance: np.ndarray
    effective: np.ndarray
    both_ways: np.ndarray

    @classmethod
    def fit(cls, reward: np.ndarray, signals: np.ndarray, both_ways: np.ndarray) -> TiltedPool:
        """reward (n,) and signals (S, n) of the reference's samples; weights are proportional to exp(k reward)."""
        centred = (reward - reward.max()) / max(float(reward.std()), 1e-12)

        def weights(k: float) -> np.ndarray:
            found = np.exp(k * centred)
            return found / found.sum()

        low, high = 0.0, 64.0
        for _ in range(40):
            middle = (low + high) / 2
            found = weights(middle)
            low, high = (middle, high) if 1 / (found @ found) >= LEAST_EFFECTIVE else (low, middle)
        table = np.stack([weights(k) for k in np.linspace(0.0, low, TILTS)])  # (T, n)
        expected = signals @ table.T
        variance = np.maximum((signals**2) @ table.T - expected**2, 0.0)
        return cls(table @ reward, expected, variance, 1 / (table**2).sum(1), both_ways)

    def at(self, reward: np.ndarray, values: np.ndarray) -> np.ndarray:
        """``values`` (..., T) at the tilts whose mean reward is ``reward`` (B,): (..., B); at the ends beyond them."""
        position = np.interp(reward, self.reward, np.arange(len(self.reward)))
        below = np.minimum(position.astype(int), len(self.reward) - 2)
        share = position - below
        return values[..., below] * (1 - share) + values[..., below + 1] * share

    def excess(self, reward: np.ndarray, signals: np.ndarray, batch: int) -> np.ndarray:
        """How many standard errors each signal (S, B) of B batches lies beyond the pool tilted to the batches' mean
        rewards (B,): (S, B)."""
        away = signals - self.at(reward, self.expected)
        error = np.sqrt(self.at(reward, self.variance) * (1 / batch + 1 / self.at(reward, self.effective)))
        found = away / np.maximum(error, 1e-9)
        return np.where(self.both_ways[:, None], np.abs(found), found)


def simulated_limit(
    pool: TiltedPool, reward: np.ndarray, signals: np.ndarray, owner: np.ndarray, groups: list[int], level: float
) -> float:
    """The excess that the worst signal of a batch of the reference passes with probability ``level``.

    Batches are drawn from the samples (reward (n,), signals (S, n), prompt owner (n,)) as the trainer draws them:
    ``groups`` completions of so many prompts. Both are already less their prompt's mean, in which the completions took
    part: they are held against the mean of its other samples. Beyond what BATCHES of them resolve, an exponential tail
    is assumed.
    """
    generator = np.random.default_rng(0)
    rows = [np.flatnonzero(owner == prompt) for prompt in np.unique(owner)]
    both = np.concatenate([reward[None], signals])
    total = np.zeros((len(both), BATCHES))
    for size in groups:
        prompts = generator.integers(len(rows), size=BATCHES)
        for prompt, mine in enumerate(rows):
            wanted = np.flatnonzero(prompts == prompt)
            order = generator.random((len(wanted), len(mine))).argsort(1)[:, :size]
            apart = len(mine) / (len(mine) - order.shape[1]) if len(mine) > order.shape[1] else 1.0
            total[:, wanted] += apart * both[:, mine[order]].sum(-1)
    means = total / sum(groups)
    worst = pool.excess(means[0], means[1:], sum(groups)).max(0)
    if level >= 0.01:
        return MARGIN * float(np.quantile(worst, 1 - level))
    near, far = np.quantile(worst, [0.99, 0.999])
    return MARGIN * float(near + (far - near) * np.log(0.01 / level) / np.log(10))


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

    @classmethod
    def of_others(cls, features: np.ndarray, folds: int = 10) -> np.ndarray:
        """(n,) of samples (n, d) from fits on the other folds' ones: of its own fit a sample looks less novel than a
        fresh one does."""
        fold = np.arange(len(features)) % folds
        found = np.empty(len(features))
        for k in range(folds):
            found[fold == k] = cls.fit(features[fold != k]).of(features[fold == k])
        return found

    def of(self, features: np.ndarray) -> np.ndarray:
        """(n,) from features (n, d)."""
        return (((features - self.mean) @ self.whitening) ** 2).mean(1)
