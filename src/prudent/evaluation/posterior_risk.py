"""The probability that a policy is no better than its reference, given the preference pairs alone.

Model. A response's true reward is w' z with z its standardised features, and a pair is a Bradley-Terry comparison. The
prior of w in the eigenbasis of the features' covariance within prompts (eigenvalues lam) is N(0, s^2 D / c) with
D = lam^alpha and c such that a pair's reward difference has root mean square s over the pairs given. alpha runs over
ALPHAS (equal weight), s over SCALES (log-normal weight, SCALE_MEDIAN, SCALE_SIGMA, in logits), and with probability
NO_SIGNAL the features say nothing about the reward at all: then the gain is symmetric about 0 and its risk 1/2.

For each (alpha, s) the evidence and the posterior of w are by Laplace's method (MacKay 1992) with the mean curvature
b = mean p (1 - p) in place of each pair's own. The gain of a policy is linear in w, a'w with a = sum (pi - pi0) z / P,
so that given (alpha, s) it is normal with, for rows X (n, q) in units of the prior and residuals g = 1 - p at the mode,

    mean     = s^2 a' X' g
    variance = s^2 (a'a - a' X' (X X' + I / (b s^2))^-1 X a)

and the risk is the average of Phi(-mean / deviation) over the posterior of (alpha, s, no signal): Bayesian model
averaging (Hoeting et al. 1999). low, high: the central 95 % of that posterior of the risk: how far the answer hangs on
what the pairs can't settle. They are not an interval of the share realised over data sets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit
from scipy.stats import norm
from scipy.stats import t as student

ALPHAS = (-0.5, 0.0, 0.5, 1.0, 2.0)
SCALES = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.3, 5.0])
SCALE_MEDIAN, SCALE_SIGMA = 0.7, 0.7
NO_SIGNAL = 0.15  # least log loss over the planted worlds, of which a quarter hold no signal
SMALLEST = 1e-5  # eigenvalues below this share of the largest are left out
STEPS, TOLERANCE = 80, 1e-4


class Conditional(NamedTuple):
    """Given each scale: log evidence (S,) over that of no signal; mean and variance of M gains, (S, M)."""

    evidence: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Risks(NamedTuple):
    """risk, low, high, gain (M,): gain in logits of the preference model; no_signal: posterior probability."""

    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gain: np.ndarray
    no_signal: float


def eigenbasis(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (q,) and vectors (d, q) of the second moment of responses (N, d), centred per prompt."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = values > SMALLEST * values[-1]
    return values[kept], vectors[:, kept]


def _spectrum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-zero eigenvalues (r,) of rows rows' and its eigenvectors (n, r)."""
    if len(rows) <= rows.shape[1]:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        return values.clip(0.0), vectors
    values, right = np.linalg.eigh(rows.T @ rows)
    values = values.clip(1e-12 * values[-1])
    return values, (rows @ right) / np.sqrt(values)


def conditional(pairs: np.ndarray, moves: np.ndarray, prior: np.ndarray, scales: np.ndarray = SCALES) -> Conditional:
    """Evidence and gains under w ~ N(0, s^2 diag(prior) / c), for every s of ``scales`` (S,).

    pairs (n, q): chosen minus rejected. moves (M, q): sum over prompts and responses of (pi - pi0) z / P. prior (q,).
    """
    root = np.sqrt(prior)
    rows = pairs * root
    unit = np.sqrt((rows**2).sum(1).mean())
    rows, moves = rows / unit, moves * root / unit
    values, vectors = _spectrum(rows)
    square = scales[:, None] ** 2
    shrink = square * values / (square * values + 4.0)  # curvature is at most 1/4: each step raises the posterior
    logit = np.zeros((len(scales), len(rows)))
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
    image = rows @ moves.T
    along = (vectors.T @ image) ** 2
    explained = (1.0 / (values + 1.0 / (curvature * square))) @ along
    variance = square * ((moves**2).sum(1) - explained)
    return Conditional(evidence, square * (residual @ image), variance.clip(1e-300))


def average(parts: list[Conditional], no_signal: float = NO_SIGNAL, level: float = 0.95) -> Risks:
    """Average over the priors of ``parts`` (equal weight), the scales and no signal, by their evidence."""
    weight = np.exp(-0.5 * (np.log(SCALES / SCALE_MEDIAN) / SCALE_SIGMA) ** 2)
    prior = np.log((1.0 - no_signal) * weight / weight.sum() / len(parts))
    logs = np.concatenate([[np.log(no_signal)], *(part.evidence + prior for part in parts)])
    posterior = np.exp(logs - logs.max())
    posterior /= posterior.sum()
    mean, variance = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "variance"))
    risks = np.concatenate([np.full((1, mean.shape[1]), 0.5), norm.cdf(-mean / np.sqrt(variance))])
    order = np.argsort(risks, axis=0)
    below = np.cumsum(posterior[order], axis=0)
    places = [(below >= end - 1e-12).argmax(0) for end in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (np.take_along_axis(risks, order, 0)[place, np.arange(mean.shape[1])] for place in places)
    return Risks(posterior @ risks, low, high, posterior[1:] @ mean, float(posterior[0]))


def risk_without_gold(pairs: np.ndarray, candidates: np.ndarray, change: np.ndarray) -> Risks:
    """pairs (n, d): differences of standardised features. candidates (P, C, d): standardised, centred per prompt.
    change (M, P, C): policy minus reference of each method."""
    flat = candidates.reshape(-1, candidates.shape[-1])
    values, basis = eigenbasis(flat)
    moves = change.reshape(len(change), -1) @ flat @ basis / change.shape[1]
    rows = pairs @ basis
    return average([conditional(rows, moves, values**alpha) for alpha in ALPHAS])


def risk_with_gold(gains: np.ndarray, level: float = 0.95) -> Risks:
    """Gold known on prompts that are a sample: gains (M, P) of the data set's own policies, prompt by prompt.

    risk: Student's t probability that the mean over all prompts is at most 0. low, high: whether it is (0 or 1) as far
    as the mean's interval settles it: 0 to 1 where that interval holds 0.
    """
    mean, error = gains.mean(1), gains.std(1, ddof=1) / np.sqrt(gains.shape[1])
    freedom = gains.shape[1] - 1
    risk = np.where(error > 0, student.sf(mean / np.where(error > 0, error, 1.0), freedom), mean <= 0)
    half = student.ppf((1 + level) / 2, freedom) * error
    return Risks(risk, (mean + half <= 0).astype(float), (mean - half <= 0).astype(float), mean, float("nan"))
