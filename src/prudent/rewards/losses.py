"""Bradley-Terry losses as pure functions of score differences. Shapes are checked: nothing broadcasts by accident.

With z = r_chosen - r_rejected - margin and s = probability that chosen is the better answer,

    L = -[s log sg(z) + (1 - s) log sg(-z)] = -log sg(z) + (1 - s) z          sg(z) = 1 / (1 + exp(-z))

s = 1 and margin = 0 give the ordinary loss -log sg(r_chosen - r_rejected). In the notation of "Secrets of RLHF II"
(arXiv 2401.06080) the smoothing p of the soft-label loss is 1 - s, and the adaptive margin is the pair's strength mu.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prudent.errors import PrudentError


def _per_pair(values: torch.Tensor | None, name: str, difference: torch.Tensor) -> torch.Tensor | None:
    """``values`` checked to be one number a pair ((B,)) or one a member and pair (the shape of ``difference``)."""
    if values is None:
        return None
    if values.shape not in (difference.shape, difference.shape[-1:]):
        raise PrudentError(
            f"{name} has shape {tuple(values.shape)}, expected {tuple(difference.shape[-1:])} (one a pair) "
            f"or {tuple(difference.shape)}; a column of shape (B, 1) against (B,) would silently become (B, B)"
        )
    return values.to(difference.dtype)


def pair_difference(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Score differences ``chosen - rejected``. Both (B,) or both (K, B); unequal shapes raise PrudentError."""
    if chosen.shape != rejected.shape:
        raise PrudentError(
            f"chosen scores have shape {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}; they must be equal, "
            "one score a pair: (B,) or (members, B)"
        )
    return chosen - rejected


def bradley_terry(
    difference: torch.Tensor, *, soft_label: torch.Tensor | None = None, margin: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of every pair, in nats; the shape of ``difference`` ((B,) or (members, B)).

    difference: r_chosen - r_rejected. soft_label: probability in [0, 1] that chosen is the better answer (default 1).
    margin: subtracted from the difference first. Both (B,) or the shape of ``difference``.
    Minimised over the difference at margin + ln(s / (1 - s)). Source: Bradley-Terry; soft labels and margins as in
    arXiv 2401.06080, section "adaptive margin" and "label smoothing".
    """
    soft_label = _per_pair(soft_label, "soft_label", difference)
    margin = _per_pair(margin, "margin", difference)
    logit = difference if margin is None else difference - margin
    loss = -logsigmoid(logit)
    return loss if soft_label is None else loss + (1 - soft_label) * logit
