"""Why the proportional and the Bregman form differ: one level, and what follows from it.

To first order in 1 / beta a policy is pi0 (1 + u - E u) with the tilt u. With precision w = 1 / sigma2, rewards r
centred on their plain mean under pi0, and r_w their precision-weighted mean, the two forms' tilts are

    Bregman        u = w (r - r_w) / beta
    proportional   u = w r / beta = Bregman's + link,    link = r_w w / beta        (docs/theory.md, equations (30) to
    (33))

The link never looks at which response is better: it prefers low variance with a strength r_w that is positive where the
estimate says that low variance goes with reward. Exactly, at every beta, log pi_prop = log pi_breg + lam w / beta -
const. So at equal KL the forms differ by two things (equation (40)): the link's worth, and what the Bregman form gives
up when it leaves the link's share of the KL to it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.policies.finite import beta_for_kl, kl, solve, value


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


class AtKL(NamedTuple):
    """Why the forms differ at equal KL, means over prompts, equation (40): proportional = bregman + given_up + link.

    bregman, proportional: gains at the KL. given_up: what the Bregman form loses when it moves only as far as it does
    inside the proportional form (<= 0 as a rule). link: what is gained on top by counting rewards from their plain
    mean. kl_within: nats that the Bregman part keeps. first_order: the gap's prediction from (31) and (32), which it
    approaches as the KL goes to 0.
    """

    bregman: float
    given_up: float
    link: float
    proportional: float
    kl_within: float
    first_order: float


def split_at_kl(
    reward: ArrayLike, reference: ArrayLike, variance: ArrayLike, gold: ArrayLike, target: float
) -> AtKL | None:
    """Equation (40) for one draw at ``target`` nats; None where a form can't reach that KL. Rewards are centred here.

    reward, variance, reference, gold: (prompts, candidates).
    """
    r, pi0, spread, truth = (as_tensor(x, torch.float64) for x in (reward, reference, variance, gold))
    r = r - (pi0 * r).sum(-1, keepdim=True)

    def policy(form: str, beta: torch.Tensor) -> torch.Tensor:
        return solve(r, pi0, beta, variance=spread, form=form)

    forms = ("bregman", "proportional")
    betas = {form: beta_for_kl(partial(policy, form), pi0, target, strict=False) for form in forms}
    if not all(bool(torch.isfinite(beta)) for beta in betas.values()):
        return None
    start = value(pi0, truth)

    def gain(chosen: torch.Tensor) -> float:
        return float((value(chosen, truth) - start).mean())

    within = policy("bregman", betas["proportional"])
    whole, both = (gain(policy(form, betas[form])) for form in forms)
    left = gain(within)
    parts = tilts(r, pi0, 1.0, spread)

    def predicted(tilt: torch.Tensor) -> float:
        size = float(tilt_kl(tilt, pi0).mean())
        return math.sqrt(target / size) * float(tilt_gain(tilt, pi0, truth).mean()) if size > 0 else math.nan

    return AtKL(
        bregman=whole,
        given_up=left - whole,
        link=both - left,
        proportional=both,
        kl_within=float(kl(within, pi0).mean()),
        first_order=predicted(parts.proportional) - predicted(parts.bregman),
    )
