"""How many labels until the risk is low enough? By posterior simulation from what is labelled.

A simulation draws a reward from the posterior given the labelled pairs (``evaluation.posterior_risk``: its scale, and
whether the features say anything at all, are drawn too), lets it answer as many new pairs as are planned, with the
stated noise and ties, fits the head on all labels, solves the policy, and asks for the risk that preflight would then
state. So the forecast is a distribution of that risk at each number of labels, not a line through two points. It
assumes that the new pairs resemble those given and that people go on labelling as they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from prudent.acquisition.information import LabelModel
from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.posterior_risk import draw_rewards, reward_posterior, risk_without_gold
from prudent.evaluation.risk_estimate import LEAST_PAIRS
from prudent.policies.estimates import estimate
from prudent.policies.finite import solve
from prudent.policies.objectives import METHODS
from prudent.progress import meter
from prudent.rewards.draws import bootstrap_counts, choose_ridge, fit_resamples, standardisation
from prudent.rewards.uncertainty import centre
from prudent.seeding import Seed, numpy_generator, spawn

CERTAIN = 0.8  # share of simulations that must be under the wanted risk
INTERVAL = (0.1, 0.9)
FACTORS = (1.5, 2.0, 4.0, 8.0)


class ForecastSettings(NamedTuple):
    """beta and method (of ``policies.METHODS``) of the policy, ``members`` bootstrap heads where the method needs them,
    simulations, how people err and tie, and the risk that is low enough."""

    beta: float = 0.1
    method: str = "vanilla"
    members: int = 10
    simulations: int = 40
    labels: LabelModel = LabelModel()
    max_risk: float = 0.05


DEFAULTS = ForecastSettings()


class _Known(NamedTuple):
    """Standardised: labelled differences (n, d), planned ones (m, d), candidates (P, C, d) centred per prompt;
    reference (P, C); prior: ridge times pairs."""

    difference: torch.Tensor
    planned: torch.Tensor
    candidates: torch.Tensor
    reference: torch.Tensor
    prior: float


def forecast_risk(
    chosen: ArrayLike,
    rejected: ArrayLike,
    candidates: ArrayLike,
    reference: ArrayLike,
    planned: ArrayLike,
    sizes: Sequence[int],
    *,
    settings: ForecastSettings = DEFAULTS,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Risk and gain at numbers of labels, and the smallest number that is enough.

    chosen, rejected (n, d): features of the labelled pairs. candidates (P, C, d), reference (P, C): as in
    ``estimate_risk``. planned (m, d): feature differences of the pairs that would be labelled, in order; sizes: labels
    in all, each above n and up to n + m. Returns ``rows`` (labels, risk: median over simulations, low, high: its
    central 80 %, certain: share of simulations whose risk is at most max_risk, realised: share whose policy is truly
    no better than the reference, gain: mean of what preflight would state, in logits), the first row being today's,
    and ``enough``: the smallest of the sizes with certain >= CERTAIN, or None.
    Raises PrudentError for shapes and sizes.
    """
    cross, draw, fit = spawn(seed, 3)
    better, worse, features, weight, new = (
        as_tensor(x, torch.float64) for x in (chosen, rejected, candidates, reference, planned)
    )
    known = _prepare(better, worse, features, weight, new, cross)
    n, most = len(known.difference), len(known.difference) + len(known.planned)
    bad = [size for size in sizes if not n < size <= most]
    if bad or settings.simulations < 1 or settings.method not in METHODS:
        raise PrudentError(
            f"sizes {list(sizes)} must lie above the {n} labelled pairs and within {most} (with the planned ones), "
            f"simulations be at least 1 and the method one of {', '.join(METHODS)}"
        )
    posterior = reward_posterior(known.difference.numpy())
    generator = numpy_generator(draw)
    truth = draw_rewards(posterior, settings.simulations, generator)
    truth[generator.random(len(truth)) < posterior.no_signal] = 0.0
    answers = _answers(known.planned.numpy() @ truth.T, settings.labels, generator)
    today = _state(known, np.ones(0), settings, fit)
    rows = [_row(n, [today[:2]], [float(today[0])], settings)]
    wanted = sorted(set(map(int, sizes)))
    with meter("forecasting", len(wanted) * len(truth)) as advance:
        for size in wanted:
            stated, realised = [], []
            for number, weights in enumerate(truth):
                risk, gain, moved = _state(known, answers[: size - n, number], settings, fit)
                stated.append((risk, gain))
                value = float(moved @ weights)
                realised.append(0.5 if not weights.any() else float(value <= 0))
                advance()
            rows.append(_row(size, stated, realised, settings))
    enough = next((row["labels"] for row in rows if row["certain"] >= CERTAIN), None)
    return {"rows": rows, "enough": enough, "no_signal": posterior.no_signal, "settings": settings._asdict()}


def _prepare(
    better: torch.Tensor,
    worse: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    planned: torch.Tensor,
    seed: Seed,
) -> _Known:
    if better.ndim != 2 or better.shape != worse.shape or planned.ndim != 2 or planned.shape[1] != better.shape[1]:
        raise PrudentError(
            f"chosen, rejected (n, d) and planned (m, d) must fit, got {tuple(better.shape)}, {tuple(worse.shape)} and "
            f"{tuple(planned.shape)}"
        )
    if features.ndim != 3 or features.shape[:2] != weight.shape or features.shape[2] != better.shape[1]:
        raise PrudentError(
            f"candidates (P, C, d) and reference (P, C) must fit features of width {better.shape[1]}, got "
            f"{tuple(features.shape)} and {tuple(weight.shape)}"
        )
    if len(better) < LEAST_PAIRS:
        raise PrudentError(f"{len(better)} labelled pairs; a forecast needs {LEAST_PAIRS} to start from")
    mean, scale = standardisation(better.float(), worse.float())
    difference = (better - worse) / scale
    ridge, _ = choose_ridge(difference.float(), seed=seed)
    standard = centre(((features - mean) / scale).movedim(-1, 0), weights=weight).movedim(0, -1)
    return _Known(difference, planned / scale, standard, weight, ridge * len(better))


def _answers(logit: np.ndarray, labels: LabelModel, generator: np.random.Generator) -> np.ndarray:
    """Labels (m, S): 1 for the first side, -1 for the second, 0 for a tie."""
    chance = labels.noise + (1 - 2 * labels.noise) / (1 + np.exp(-logit))
    sign = np.where(generator.random(logit.shape) < chance, 1.0, -1.0)
    return np.where(generator.random(logit.shape) < labels.ties, 0.0, sign)


def _state(
    known: _Known, answers: np.ndarray, settings: ForecastSettings, seed: Seed
) -> tuple[float, float, np.ndarray]:
    """What preflight would state with these further answers: risk, gain; and the policy's move in features (d,)."""
    signs = torch.from_numpy(answers)[:, None]
    fresh = known.planned[: len(answers)] * signs
    rows = torch.cat([known.difference, fresh[signs[:, 0] != 0]])
    ridge = known.prior / len(rows)
    reference = known.reference
    members = 0 if settings.method == "vanilla" else settings.members
    counts = torch.ones(1, len(rows))
    if members:
        counts = torch.cat([counts, bootstrap_counts(len(rows), spawn(seed, members))])
    heads = fit_resamples(rows.float(), counts, ridge=ridge, tolerance=1e-4).weights.double()
    scores = (heads @ known.candidates.flatten(0, 1).T).reshape(-1, *reference.shape)
    if members:
        found = estimate(scores[1:], reference, reward=scores[0])
        policy = METHODS[settings.method](found, reference, settings.beta)
    else:
        policy = solve(scores[0], reference, settings.beta)
    moved = ((policy.reshape(reference.shape) - reference).flatten() @ known.candidates.flatten(0, 1)) / len(reference)
    risks = risk_without_gold(reward_posterior(rows.numpy()), moved.numpy()[None])
    return float(risks.risk[0]), float(risks.gain[0]), moved.numpy()


def _row(
    labels: int, stated: Sequence[tuple[float, float]], realised: Sequence[float], settings: ForecastSettings
) -> dict[str, Any]:
    risk, gain = np.array(stated).T
    low, high = np.quantile(risk, INTERVAL)
    return {
        "labels": labels,
        "risk": float(np.median(risk)),
        "low": float(low),
        "high": float(high),
        "certain": float((risk <= settings.max_risk).mean()),
        "realised": float(np.mean(realised)),
        "gain": float(gain.mean()),
    }
