"""The probability that a policy is no better than its reference, given the preference pairs alone.

Model. A response's true reward is w' z with z its standardised features, and a pair is a Bradley-Terry comparison.
w ~ N(0, s^2 I / c) with c such that a pair's reward difference has root mean square s over the pairs given. s runs over
SCALES (log-normal weight, SCALE_MEDIAN, SCALE_SIGMA, in logits), and with probability NO_SIGNAL the features say
nothing about the reward at all: then the gain is symmetric about 0 and its risk 1/2.

For each s the evidence and the posterior of w are by Laplace's method (MacKay 1992) with the mean curvature
b = mean p (1 - p) in place of each pair's own. The gain of a policy is linear in w, a'w with a = sum (pi - pi0) z / P,
so that given s it is normal with, for rows X (n, q) in units of the prior and residuals g = 1 - p at the mode,

    mean     = s^2 a' X' g
    variance = s^2 (a'a - a' X' (X X' + I / (b s^2))^-1 X a)

and the risk is the average of Phi(-mean / deviation) over the posterior of (s, no signal): Bayesian model averaging
(Hoeting et al. 1999). high: the upper end of the central 95 % of that posterior of the risk. low: 0, since pairs alone
never exclude a world in which policies like this one are all better (docs/calibration.md: the posterior's lower end was
above the share that came more often than not).

The model takes what the features don't say about a response for noise of its pair. Where a response stands in several
pairs that noise is the same in each, and passes for signal, so the posterior is that of ``separate_pairs``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit, ndtr, stdtr, stdtrit

SCALES = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.3, 5.0])
SCALE_MEDIAN, SCALE_SIGMA = 0.7, 0.7
NO_SIGNAL = 0.15  # docs/calibration.md: what other values promise
STEPS, TOLERANCE = 80, 1e-4
LEVERAGE_ROWS = 1000
SHARED = 1.5  # pairs a response up to which all pairs are taken; docs/calibration.md


class Posterior(NamedTuple):
    """Given each scale (S,), the reward's posterior: see the module's formulas.

    rows (n, q): pairs over ``unit``. values (r,), vectors (n, r): spectrum of rows rows'. residual (S, n). curvature
    (S, 1). weight (S + 1,): posterior probability of no signal, then of each scale.
    """

    rows: np.ndarray
    unit: float
    values: np.ndarray
    vectors: np.ndarray
    residual: np.ndarray
    curvature: np.ndarray
    weight: np.ndarray

    @property
    def no_signal(self) -> float:
        """Probability that the pairs hold no signal."""
        return float(self.weight[0])


class Risks(NamedTuple):
    """risk, low, high, gain (M,): gain in logits of the preference model without gold, in gold's units with it."""

    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gain: np.ndarray


def _spectrum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-zero eigenvalues (r,) of rows rows' and its eigenvectors (n, r)."""
    if len(rows) <= rows.shape[1]:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        return values.clip(0.0), vectors
    values, right = np.linalg.eigh(rows.T @ rows)
    kept = values > 1e-12 * values[-1]
    return values[kept], (rows @ right[:, kept]) / np.sqrt(values[kept])


def separate_pairs(chosen: np.ndarray, rejected: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Indices, ascending, of the pairs to learn from: all n, or, where a response stands in more than SHARED of them on
    average, pairs of which no two share a response, as many as a greedy choice finds.

    chosen, rejected: features (n, d); groups: the n pairs' prompts. Responses of one prompt with the same features are
    one. Pairs of rare responses come first, then the order of the features' digests: the rows' order changes nothing.
    """
    sides = [
        [(group, blake2b(row.tobytes(), digest_size=16).digest()) for group, row in zip(groups, side)]
        for side in (np.ascontiguousarray(chosen), np.ascontiguousarray(rejected))
    ]
    often = Counter(sides[0] + sides[1])
    if 2 * len(groups) <= SHARED * len(often):
        return np.arange(len(groups))
    order = sorted(
        range(len(sides[0])), key=lambda i: (often[sides[0][i]] + often[sides[1][i]], sides[0][i][1], sides[1][i][1])
    )
    used: set[tuple[Hashable, bytes]] = set()
    kept = []
    for i in order:
        if used.isdisjoint((sides[0][i], sides[1][i])):
            used.update((sides[0][i], sides[1][i]))
            kept.append(i)
    return np.sort(np.array(kept, int))


def reward_posterior(pairs: np.ndarray, no_signal: float = NO_SIGNAL) -> Posterior:
    """pairs (n, q): chosen minus rejected, in standardised features, not all 0."""
    unit = float(np.sqrt((pairs**2).sum(1).mean()))
    rows = pairs / unit
    values, vectors = _spectrum(rows)
    square = SCALES[:, None] ** 2
    shrink = square * values / (square * values + 4.0)  # curvature is at most 1/4: each step raises the posterior
    logit = np.zeros((len(SCALES), len(rows)))
    for _ in range(STEPS):
        moved = ((logit + 4.0 * expit(-logit)) @ vectors * shrink) @ vectors.T
        change = float(np.abs(moved - logit).max())
        logit = moved
        if change < TOLERANCE:
            break
    residual = expit(-logit)
    curvature = (residual * (1.0 - residual)).mean(1, keepdims=True)
    evidence = log_expit(logit).sum(1) - 0.5 * (logit * residual).sum(1)
    evidence -= 0.5 * np.log1p(curvature * square * values).sum(1) + len(rows) * np.log(0.5)
    prior = np.exp(-0.5 * (np.log(SCALES / SCALE_MEDIAN) / SCALE_SIGMA) ** 2)
    logs = np.append(np.log(no_signal), evidence + np.log((1.0 - no_signal) * prior / prior.sum()))
    weight = np.exp(logs - logs.max())
    return Posterior(rows, unit, values, vectors, residual, curvature, weight / weight.sum())


def component_risks(posterior: Posterior, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Risks (S + 1, M) given no signal and given each scale, and mean gains (S, M) given each scale.

    moves (M, q): sum over prompts and responses of (pi - pi0) z / P of each policy.
    """
    square, moves = SCALES[:, None] ** 2, moves / posterior.unit
    image = posterior.rows @ moves.T
    explained = (1.0 / (posterior.values + 1.0 / (posterior.curvature * square))) @ (posterior.vectors.T @ image) ** 2
    variance = (square * ((moves**2).sum(1) - explained)).clip(1e-300)
    mean = square * (posterior.residual @ image)
    return np.concatenate([np.full((1, len(moves)), 0.5), ndtr(-mean / np.sqrt(variance))]), mean


def risk_without_gold(posterior: Posterior, moves: np.ndarray, level: float = 0.95) -> Risks:
    """Risk, its interval and gain of policies with ``moves`` (M, q) as in ``component_risks``."""
    return averaged(posterior, *component_risks(posterior, moves), level)


def averaged(posterior: Posterior, risks: np.ndarray, mean: np.ndarray, level: float = 0.95) -> Risks:
    """Risk, its interval and gain over what ``component_risks`` gives."""
    high = weighted_interval(risks, posterior.weight, level)[1]
    return Risks(posterior.weight @ risks, np.zeros_like(high), high, posterior.weight[1:] @ mean)


def weighted_interval(values: np.ndarray, weight: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Central ``level`` of the distribution of values (N, M) with probabilities weight (N,): (M,) each."""
    order = np.argsort(values, axis=0)
    below = np.cumsum(weight[order], axis=0)
    ends = [(below >= end - 1e-12).argmax(0) for end in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (np.take_along_axis(values, order, 0)[end, np.arange(values.shape[1])] for end in ends)
    return low, high


def draw_rewards(posterior: Posterior, count: int, generator: np.random.Generator) -> np.ndarray:
    """w (count, q) from the posterior given that there is a signal, in units of the features (Matheron's rule)."""
    share = posterior.weight[1:] / posterior.weight[1:].sum()
    index = generator.choice(len(SCALES), count, p=share)
    scale, curvature = SCALES[index][:, None], posterior.curvature[index]
    prior = scale * generator.standard_normal((count, posterior.rows.shape[1]))
    noise = generator.standard_normal((count, len(posterior.rows))) / np.sqrt(curvature)
    off = (prior @ posterior.rows.T + noise) @ posterior.vectors / (scale**2 * posterior.values + 1.0 / curvature)
    toward = posterior.residual[index] - off @ posterior.vectors.T
    return (prior + scale**2 * (toward @ posterior.rows)) / posterior.unit


def risk_with_gold(gains: np.ndarray, level: float = 0.95) -> Risks:
    """Gold known on prompts that are a sample: gains (M, P) of the data set's own policies, prompt by prompt.

    risk: Student's t probability that the mean over all prompts is at most 0. low, high: whether it is (0 or 1) as far
    as the mean's interval settles it: 0 to 1 where that interval holds 0.
    """
    mean, error = gains.mean(1), gains.std(1, ddof=1) / np.sqrt(gains.shape[1])
    freedom = gains.shape[1] - 1
    risk = np.where(error > 0, stdtr(freedom, -mean / np.where(error > 0, error, 1.0)), mean <= 0)
    half = stdtrit(freedom, (1 + level) / 2) * error
    return Risks(risk, (mean + half <= 0).astype(float), (mean - half <= 0).astype(float), mean)


def leverage_ratio(pairs: np.ndarray, unit: np.ndarray, responses: np.ndarray) -> float:
    """How far two responses of a candidate lie outside what the pairs span, over how far other pairs do: 1 for equals.

    pairs (n, d): differences. unit (n,): number of each pair's prompt. responses (N, d): candidates, centred by prompt;
    two of them differ by twice their variance. The mean of z' (X'X / m + e I)^-1 z, X the pairs of every other prompt
    and e a tenth of their mean eigenvalue, is compared between the responses and the pairs of the remaining prompts.
    """
    _, order = np.unique(unit, return_inverse=True)
    seen, held = (pairs[order % 2 == part][:LEVERAGE_ROWS] for part in (0, 1))
    responses = responses[:: max(1, len(responses) // (2 * LEVERAGE_ROWS))]
    values, vectors = _spectrum(seen)
    kept = values > 1e-10 * values[-1]
    basis = (seen.T @ vectors[:, kept]) / np.sqrt(values[kept])
    values = values[kept] / len(seen)
    floor = 0.1 * values.sum() / seen.shape[1]

    def leverage(rows: np.ndarray) -> float:
        inside = (rows @ basis) ** 2
        outside = ((rows**2).sum(1) - inside.sum(1)).clip(0.0)
        return float(((inside / (values + floor)).sum(1) + outside / floor).mean())

    return 2.0 * leverage(responses) / leverage(held)
