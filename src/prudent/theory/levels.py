"""Why the proportional and the Bregman form differ: one level, and what follows from it.

To first order in 1 / beta a policy is pi0 (1 + u - E u) with the tilt u. With precision w = 1 / sigma2, rewards r
centred on their plain mean under pi0, and r_w their precision-weighted mean, the two forms' tilts are

    Bregman        u = w (r - r_w) / beta
    proportional   u = w r / beta = Bregman's + link,    link = r_w w / beta        (docs/theory.md, equations (30) to
    (33))

The link never looks at which response is better: it prefers low variance with a strength r_w that is positive where the
estimate says that low variance goes with reward. Exactly, at every beta, log pi_prop = log pi_breg + lam w / beta -
const.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor


class Tilts(NamedTuple):
    """First-order tilts (..., prompts, candidates); proportional = bregman + link."""

    bregman: torch.Tensor
    link: torch.Tensor

    @property
    def proportional(self) -> torch.Tensor:
        """Log-tilt of the proportional form: the Bregman tilt plus the link."""
        return self.bregman + self.link


def precision_mean(reward: torch.Tensor, reference: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Precision-weighted mean of the rewards under the reference, (..., prompts, 1)."""
    weight = reference / variance
    return (weight * reward).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)


def tilts(reward: ArrayLike, reference: ArrayLike, beta: float, variance: ArrayLike) -> Tilts:
    """First-order tilts of the two forms, equation (30). Rewards are centred on their plain mean here."""
    r, pi0, sigma2 = (as_tensor(x, torch.float64) for x in (reward, reference, variance))
    r = r - (pi0 * r).sum(-1, keepdim=True)
    level = precision_mean(r, pi0, sigma2)
    return Tilts((r - level) / (beta * sigma2), level / (beta * sigma2))


def tilt_gain(tilt: torch.Tensor, reference: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """First-order gain in true reward, (..., prompts): the covariance of tilt and truth under pi0, equation (31)."""
    pi0, truth = as_tensor(reference, torch.float64), as_tensor(gold, torch.float64)
    return (pi0 * tilt * (truth - (pi0 * truth).sum(-1, keepdim=True))).sum(-1)


def tilt_kl(tilt: torch.Tensor, reference: ArrayLike) -> torch.Tensor:
    """Second-order KL of the tilted policy, (..., prompts): half the tilt's variance under pi0, equation (32)."""
    pi0 = as_tensor(reference, torch.float64)
    return 0.5 * (pi0 * (tilt - (pi0 * tilt).sum(-1, keepdim=True)).square()).sum(-1)
