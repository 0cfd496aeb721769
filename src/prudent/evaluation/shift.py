"""Do pairs and candidates come from the same kind of prompts and responses? A permutation test of their features."""

from __future__ import annotations

import numpy as np

ROUNDS = 499
MOST = 500  # points a side: more can't be told apart any better in practice, and cost their square


def mean_shift(first: np.ndarray, second: np.ndarray, generator: np.random.Generator) -> float:
    """P-value that two samples (n, d), (m, d) share one mean: (1 + permutations at least as far apart) / (1 + all).

    The squared distance of the two means, held against that of random splits of all points: exact where the two samples
    are exchangeable, and the linear-kernel case of the two-sample test of Gretton et al. (2012).
    """
    first, second = (side[:: -(-len(side) // MOST)] for side in (first, second))
    points = np.concatenate([first, second]).astype(np.float64)
    points -= points.mean(0)
    gram = points @ points.T
    sides = np.repeat([1.0 / len(first), -1.0 / len(second)], [len(first), len(second)])
    splits = np.concatenate([sides[None], generator.permuted(np.tile(sides, (ROUNDS, 1)), axis=1)])
    apart = ((splits @ gram) * splits).sum(1)
    return float((apart[1:] >= apart[0] * (1 - 1e-9)).sum() + 1) / (ROUNDS + 1)


def candidate_midpoints(features: np.ndarray, weight: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mean (P, d) of two of each prompt's candidates (P, C, d), drawn by their probabilities (P, C): as far from
    the prompt's own mean as a pair of them is. A prompt's only candidate stands for itself."""
    with np.errstate(divide="ignore"):
        keys = np.log(weight) + generator.gumbel(size=weight.shape)  # the two largest are drawn without replacement
    drawn = np.argsort(-keys, axis=1)[:, :2]
    several = (weight > 0).sum(1) > 1
    second = np.where(several, drawn[:, -1], drawn[:, 0])
    prompt = np.arange(len(weight))
    return (features[prompt, drawn[:, 0]] + features[prompt, second]) / 2
