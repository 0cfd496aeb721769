"""Where the limit lies: few noisy pairs can't tell a world with a signal from one without, whoever looks at them.

    python benchmarks/promise_limit.py [--sets 200]

Half of the worlds have margins of root mean square .6 logits along one of 60 equal directions, in the other half the
features say nothing about the reward. An oracle that knows this mixture stands beside ``estimate_risk``'s posterior, as
it is and with the mixture's own share of worlds without signal, on data sets drawn from it.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from prudent.evaluation.posterior_risk import NO_SIGNAL, reward_posterior, risk_without_gold

SIZES = (50, 100, 200, 400, 800, 1600, 3200)
NONE, MARGIN, WIDTH = 0.5, 0.6, 60


def oracle(pairs: int, draws: int = 200_000) -> dict[str, float]:
    """What an oracle can promise that knows the mixture of two worlds, but not in which of them it is.

    With probability NONE the features say nothing about the reward, else margins have root mean square MARGIN along a
    direction w ~ N(0, MARGIN^2 / WIDTH I). ``pairs`` pairs measure w as u ~ N(w, 4 / pairs I) (the information of
    answers near 1/2), the policy follows u, and the oracle promises P(gain <= 0 | u), which nothing that sees the pairs
    alone can beat in Brier score.
    """
    g = np.random.default_rng(pairs)
    noise, prior = 4 / pairs, MARGIN**2 / WIDTH
    empty = g.random(draws) < NONE
    square = np.where(empty, noise, noise + prior) * g.chisquare(WIDTH, draws)
    trust = prior / (prior + noise)
    risk = norm.cdf(-np.sqrt(trust * square / noise))  # w'u given u is N(trust u'u, trust noise u'u)
    odds = np.log(NONE / (1 - NONE)) + 0.5 * (WIDTH * np.log1p(prior / noise) - trust * square / noise)
    chance = expit(odds)
    promise = 0.5 * chance + (1 - chance) * risk
    truth = np.where(empty, 0.5, risk)
    sides = {"none": empty, "signal": ~empty}
    found = {f"{name}_promised": float(promise[side].mean()) for name, side in sides.items()}
    came = {f"{name}_realised": float(truth[side].mean()) for name, side in sides.items()}
    off = np.mean([abs(found[f"{name}_promised"] - came[f"{name}_realised"]) for name in sides])
    return {
        "pairs": pairs,
        **found,
        **came,
        "absolute": float(off),
        "brier": float((promise * (1 - promise)).mean()),
        "brier_knowing": float((truth * (1 - truth)).mean()),
    }


def ours(pairs: int, sets: int, no_signal: float) -> dict[str, float]:
    """What ``posterior_risk`` promises on data sets of the same mixture, ``sets`` of each world, for a policy that
    follows the reward fitted on them; without signal the gain is a coin's."""
    g = np.random.default_rng(pairs)
    promised: dict[str, list[float]] = {"none": [], "signal": []}
    failed: dict[str, list[float]] = {"none": [], "signal": []}
    for name in promised:
        for _ in range(sets):
            direction = g.normal(0, MARGIN / WIDTH**0.5, WIDTH) * (name == "signal")
            rows = g.normal(size=(pairs, WIDTH))
            rows *= np.where(g.random(pairs) < expit(rows @ direction), 1.0, -1.0)[:, None]
            posterior = reward_posterior(rows, no_signal)
            fitted = posterior.residual[posterior.weight[1:].argmax()] @ posterior.rows
            promised[name].append(float(risk_without_gold(posterior, fitted[None]).risk[0]))
            failed[name].append(float(fitted @ direction <= 0) if name == "signal" else 0.5)
    squares = [
        truth * (1 - said) ** 2 + (1 - truth) * said**2
        for name in promised
        for said, truth in zip(promised[name], failed[name])
    ]
    return {
        **{f"{name}_promised": float(np.mean(values)) for name, values in promised.items()},
        "signal_realised": float(np.mean(failed["signal"])),
        "brier": float(np.mean(squares)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=200, help="data sets of each world and size")
    options = parser.parse_args()
    columns = ["pairs", "oracle: without signal", "with", "realised with", "off, points", "Brier", "knowing the world"]
    columns += ["ours: without", "with", "Brier", "ours, half without: without", "with", "Brier"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    names = ("none_promised", "signal_promised", "signal_realised", "absolute")
    for size in SIZES:
        best = oracle(size)
        cells = [
            *(
                f"{100 * best[name]:.0f}"
                for name in ("none_promised", "signal_promised", "signal_realised", "absolute")
            ),
            *(f"{best[name]:.3f}" for name in ("brier", "brier_knowing")),
        ]
        for share in (NO_SIGNAL, NONE):
            mine = ours(size, options.sets, share)
            cells += [
                f"{100 * mine['none_promised']:.0f}",
                f"{100 * mine['signal_promised']:.0f}",
                f"{mine['brier']:.3f}",
            ]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
