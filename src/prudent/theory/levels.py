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
from prudent.policies.finite import kl, multiplier, solve, value


class Tilts(NamedTuple):
    """First-order tilts (..., prompts, candidates); proportional = bregman + link."""

    bregman: torch.Tensor
    link: torch.Tensor

    @property
    def proportional(self) -> torch.Tensor:
        return self.bregman + self.link


def precision_mean(reward: torch.Tensor, reference: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Precision-weighted mean of the rewards under the reference, (..., prompts, 1)."""
    weight = reference / variance
    return (weight * reward).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)


def tilts(reward: ArrayLike, reference: ArrayLike, beta: float, variance: ArrayLike) -> Tilts:
    """First-order tilts of the two forms, equation (30). Rewards are centred on their plain mean here."""
    r, pi0, spread = (as_tensor(x, torch.float64) for x in (reward, reference, variance))
    r = r - (pi0 * r).sum(-1, keepdim=True)
    level = precision_mean(r, pi0, spread)
    return Tilts((r - level) / (beta * spread), level / (beta * spread))


def tilt_gain(tilt: torch.Tensor, reference: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """First-order gain in true reward, (..., prompts): the covariance of tilt and truth under pi0, equation (31)."""
    pi0, truth = as_tensor(reference, torch.float64), as_tensor(gold, torch.float64)
    return (pi0 * tilt * (truth - (pi0 * truth).sum(-1, keepdim=True))).sum(-1)


def tilt_kl(tilt: torch.Tensor, reference: ArrayLike) -> torch.Tensor:
    """Second-order KL of the tilted policy, (..., prompts): half the tilt's variance under pi0, equation (32)."""
    pi0 = as_tensor(reference, torch.float64)
    return 0.5 * (pi0 * (tilt - (pi0 * tilt).sum(-1, keepdim=True)).square()).sum(-1)


class Split(NamedTuple):
    """What the level does at one beta, means over draws and prompts.

    bregman, proportional, gap: gains. blind: gain of the link alone, pi0 exp(lam w / beta), which never looks at which
    response is better. kl_*: nats. level: mean of lam. agree: share of prompts where the level's sign is that of the
    true covariance of precision and reward.
    """

    bregman: float
    proportional: float
    gap: float
    blind: float
    kl_bregman: float
    kl_proportional: float
    kl_blind: float
    level: float
    agree: float


def split(reward: ArrayLike, reference: ArrayLike, beta: float, variance: ArrayLike, gold: ArrayLike) -> Split:
    """Both forms and the part between them at one beta, exactly (no expansion). Rewards are centred on their plain
    mean.

    reward, variance: (..., prompts, candidates); gold, reference: (prompts, candidates).
    """
    r, pi0, spread, truth = (as_tensor(x, torch.float64) for x in (reward, reference, variance, gold))
    r = r - (pi0 * r).sum(-1, keepdim=True)
    level = multiplier(r, pi0, beta, spread)
    policies = {
        "bregman": solve(r, pi0, beta, variance=spread, form="bregman"),
        "proportional": solve(r, pi0, beta, variance=spread),
        "blind": solve(level[..., None].expand(spread.shape), pi0, beta, variance=spread),
    }
    start = value(pi0, truth)
    gain = {name: float((value(policy, truth) - start).mean()) for name, policy in policies.items()}
    spent = {name: float(kl(policy, pi0).mean()) for name, policy in policies.items()}
    link = tilt_gain(1.0 / spread, pi0, truth)
    return Split(
        **gain,
        gap=gain["proportional"] - gain["bregman"],
        **{f"kl_{name}": number for name, number in spent.items()},
        level=float(level.mean()),
        agree=float((torch.sign(level) == torch.sign(link)).double().mean()),
    )
