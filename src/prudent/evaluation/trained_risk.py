"""How likely is the policy that training has produced no better than its reference, given the pairs alone?

``estimate_risk`` answers before training, for the policy that an objective aims at. A short or noisy training goes
elsewhere: part of its KL is spent on directions that the reward doesn't ask for, and its risk lies nearer to 1/2. What
it did do can be measured on samples of its own, without gold (docs/rl-study.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.posterior_risk import reward_posterior, risk_without_gold, separate_pairs
from prudent.evaluation.risk_estimate import check_pairs, too_few
from prudent.rewards.draws import standardisation


def estimate_trained_risk(
    chosen: ArrayLike, rejected: ArrayLike, groups: Sequence[Any], samples: ArrayLike, reference: ArrayLike
) -> dict[str, Any]:
    """risk, low, high and gain (as ``estimate_risk`` gives them without gold) of a trained policy, and reason.

    chosen, rejected: features (n, d) of the pairs; groups: their prompts. samples (P, S, d) and reference (P, C, d):
    features of the trained policy's and of its reference's answers to the same P prompts. The reward's posterior is
    ``estimate_risk``'s; the shift of the mean features is taken as measured, so that few samples put the risk too near
    1/2: take some hundred of each. reason: why risk and gain are None (too few pairs or prompts), or None.
    Raises PrudentError for shapes that don't fit, values that aren't finite, and sides that are all equal.
    """
    better, worse, own, base = (as_tensor(x, torch.float64) for x in (chosen, rejected, samples, reference))
    check_pairs(better, worse, groups)
    if (
        own.ndim != 3
        or base.ndim != 3
        or {own.shape[-1], base.shape[-1]} != {better.shape[-1]}
        or len(own) != len(base)
    ):
        shapes = f"{tuple(own.shape)} and {tuple(base.shape)} beside pairs of width {better.shape[-1]}"
        raise PrudentError(f"samples and reference must be (P, S, d) and (P, C, d) of the same prompts, got {shapes}")
    require_finite(own, "samples", ("prompt", "sample", "feature"))
    require_finite(base, "reference", ("prompt", "sample", "feature"))
    separate = separate_pairs(better.numpy(), worse.numpy(), groups)
    reason = too_few(groups) or too_few(groups, separate)
    if reason is not None:
        return {"risk": None, "low": 0.0, "high": 1.0, "gain": None, "reason": reason}
    scale = standardisation(better.float(), worse.float())[1].double()
    posterior = reward_posterior(((better - worse) / scale)[separate].numpy())
    shift = ((own.mean(1) - base.mean(1)) / scale).mean(0)
    found = risk_without_gold(posterior, shift[None].numpy())
    numbers = {name: float(getattr(found, name)[0]) for name in ("risk", "low", "high", "gain")}
    return {**numbers, "reason": None}
