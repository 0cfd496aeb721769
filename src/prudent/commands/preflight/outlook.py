"""What would lower the risk most: more pairs, more members, another beta. Measured by having less, then extrapolated.

A method's gain over draws is taken as roughly normal with mean m and standard deviation s; then risk = Phi(-m / s). The
change of m / s from half the pairs (or members) to all of them is continued for one more doubling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from prudent.commands.preflight.core import Outcomes, join
from prudent.rewards.containers import PairFeatures
from prudent.rewards.draws import halves
from prudent.seeding import Seed, spawn

MOST_GROWTH = 1.0  # a doubling of the pairs can't do more than double m / s: m saturates, s falls no faster than 1/n


def signal(gain: torch.Tensor) -> float | None:
    """m / s of gains over draws (D,), or None where it doesn't exist."""
    kept = gain[torch.isfinite(gain)]
    if len(kept) < 2:
        return None
    deviation = float(kept.std(correction=1))
    return float(kept.mean()) / deviation if deviation > 0 else None


def normal_risk(ratio: float | None) -> float | None:
    """Phi(-m / s)."""
    return None if ratio is None else 0.5 * math.erfc(ratio / math.sqrt(2))


def continued(half: float | None, full: float | None) -> float | None:
    """Risk after one more doubling, from m / s at half and at full size; None unless both are positive."""
    if half is None or full is None or half <= 0 or full <= 0:
        return None
    growth = min(MOST_GROWTH, max(0.0, math.log2(full / half)))
    return normal_risk(full * 2**growth)


def with_half_the_pairs(
    pairs: PairFeatures, outcomes: Callable[[PairFeatures, Seed], Outcomes], seed: Seed
) -> Outcomes:
    """``outcomes`` of reward models that see half of the pairs only: both halves (by prompt), joined."""
    split, *seeds = spawn(seed, 3)
    return join([outcomes(pairs.take(rows), child) for rows, child in zip(halves(pairs.groups, split), seeds)])


def compare(full: Outcomes, less: Outcomes, what: str) -> list[dict[str, Any]]:
    """One row a method and beta that both have: risk with less, with all, and the extrapolation to twice as much."""
    rows = []
    for method in less.methods:
        for setting in less.settings:
            m, b = full.of(method, setting)
            i, j = less.of(method, setting)
            gains = {"half": less.gain[i, j], "full": full.gain[m, b]}
            risks = {key: float((values[torch.isfinite(values)] <= 0).double().mean()) for key, values in gains.items()}
            ratio = {key: signal(values) for key, values in gains.items()}
            rows.append(
                {
                    "change": what,
                    "method": method,
                    "beta": setting,
                    "risk_half": risks["half"],
                    "risk_full": risks["full"],
                    "gain_half": float(gains["half"].nanmean()),
                    "gain_full": float(gains["full"].nanmean()),
                    "risk_double_extrapolated": continued(ratio["half"], ratio["full"]),
                }
            )
    return rows
