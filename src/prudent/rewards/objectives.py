"""What a policy is trained on: scores of K members turned into one reward and one KL weight per response.

Every objective is KL-regularised RL, ``E[reward] - beta E[weight * log(pi / pi0)]`` with both numbers detached, so
any trainer can run it. Their fixed points (tested on tabular policies against ``policies.solve``):

==============  ==================================  ========  =========================================================
objective       reward                              weight    fixed point
==============  ==================================  ========  =========================================================
vanilla         r                                   1         pi0 exp(r / beta)
proportional    (r - c) / s                         1         pi0 exp((r - c) / (beta s)), the authors' closed form
bregman         r                                   s         pi0 exp((r - lam) / (beta s)): weighted L2 ball locally
exact           r - beta s                          s         the maximiser of J = E[r - beta s log(pi / pi0)]
lcb ...         aggregate(scores, rule)             1         pi0 exp(rule / beta): pessimism about the reward itself
steeper ...     utility(quantiles, kind)            1         pi0 exp(utility / beta): for quantiles of one reward
variance-only   a / s                               1         proportional with a constant in the reward's place
permuted        proportional, s shuffled per group  1         the reward's own, with the link between s and response cut
==============  ==================================  ========  =========================================================

r is the reward (the mean over members, or one member), a its root mean square over samples of the *reference*, once
centred, and c its mean over those of the same prompt,
s the members' variance in units of its mean over samples of the reference, floored. c and the scale of s stay fixed in
training: the policy's own samples move, and a leave-one-out baseline is no centring. Source: 2410.23726 (objective and
closed form); the extra term of ``exact`` is derived in docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.rewards.aggregation import aggregate
from prudent.rewards.quantiles import UTILITIES, utility
from prudent.seeding import Seed, torch_generator

VARIANCE_OBJECTIVES = ("proportional", "bregman", "exact", "variance-only", "permuted")
PESSIMISM_RULES = ("lcb", "min", "uwo", "entropic")
KL_RULES = ("bregman", "exact")  # the KL penalty is weighted per response
UTILITY_RULES = tuple(kind for kind in UTILITIES if kind != "expected")
OBJECTIVES = ("vanilla", *VARIANCE_OBJECTIVES, *PESSIMISM_RULES, *UTILITY_RULES)


@dataclass(frozen=True)
class ReferenceStatistics:
    """What training keeps fixed, taken from samples of the reference policy.

    centre: (K, P) each member's mean score per prompt. scale: mean over prompts of the centred members' mean variance
    (ddof=1). floor: smallest variance allowed, in units of the scale. sizes: (K + 1,) root mean square of each member's
    centred score and, last, of the members' mean: the constant that ``variance-only`` puts in the reward's place.
    """

    centre: torch.Tensor
    scale: float
    floor: float
    sizes: torch.Tensor


class Shaped(NamedTuple):
    """reward (N,) and kl_weight (N,) for the trainer; mean and variance (N,) for the log (variance in scale units)."""

    reward: torch.Tensor
    kl_weight: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


def reference_statistics(
    scores: ArrayLike, prompts: ArrayLike, *, floor: float = 1e-2, together: bool = False
) -> ReferenceStatistics:
    """Statistics of K members' scores of samples from the reference policy.

    scores: (K, N). prompts: (N,) index of each sample's prompt, 0..P-1, each prompt with at least one sample.
    together: the members share one origin (they are quantiles of one reward), so that their mean alone is centred and
    the spread between them stays whole; else each member has an offset of its own, which means nothing.
    Raises PrudentError where every member agrees everywhere (there is no variance to heed) or a prompt has no sample.
    """
    scores, prompts = as_tensor(scores, torch.float64), as_tensor(prompts, torch.long)
    require_finite(scores, "reference scores", ("member", "sample"))
    count = torch.bincount(prompts)
    if bool((count == 0).any()):
        raise PrudentError(
            f"prompt {int((count == 0).nonzero()[0])} has no sample of the reference policy to centre on"
        )
    centre = _prompt_means(scores, prompts, count)
    if together:
        centre = centre.mean(0).expand_as(centre)
    centred = scores - centre[:, prompts]
    scale = float(_prompt_means(centred.var(dim=0), prompts, count).mean()) if len(scores) > 1 else float("nan")
    rewards = torch.cat([centred, centred.mean(dim=0, keepdim=True)])
    # The mean over prompts, whatever their number of samples: as policies.methods.estimate weighs them.
    sizes = _prompt_means(rewards.square(), prompts, count).mean(1).sqrt()
    return ReferenceStatistics(centre, scale, floor, sizes)


def _prompt_means(values: torch.Tensor, prompts: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """(..., N) averaged over each prompt's samples: (..., P). prompts (N,) index, count (P,) samples of each."""
    sums = torch.zeros(*values.shape[:-1], len(count), dtype=values.dtype)
    return sums.index_add_(-1, prompts, values) / count


def shape(
    objective: str,
    scores: ArrayLike,
    prompts: ArrayLike,
    reference: ReferenceStatistics,
    beta: float,
    *,
    member: int | None = None,
    rule_options: dict[str, float] | None = None,
    seed: Seed = 0,
) -> Shaped:
    """Reward and KL weight of each response under ``objective`` (the table above).

    scores: (K, N) members' scores of the policy's responses. prompts: (N,) index into ``reference.centre``.
    member: take this member as the reward; None takes the mean. seed: of ``permuted`` alone.
    Raises PrudentError for an unknown objective, non-finite scores, or a variance objective without a variance.
    """
    if objective not in OBJECTIVES:
        raise PrudentError(f"unknown objective {objective!r}; one of {', '.join(OBJECTIVES)}")
    scores, prompts = as_tensor(scores, torch.float64), as_tensor(prompts, torch.long)
    require_finite(scores, "scores", ("member", "response"))
    centred = scores - reference.centre[:, prompts]
    reward = centred.mean(dim=0) if member is None else centred[member]
    one = torch.ones_like(reward)
    variance = _scaled_variance(objective, centred, reference)
    if objective in PESSIMISM_RULES:
        return Shaped(aggregate(centred, objective, **(rule_options or {})), one, reward, variance)
    if objective in UTILITY_RULES:
        return Shaped(utility(centred, objective, **(rule_options or {})), one, reward, variance)
    if objective == "vanilla":
        return Shaped(reward, one, reward, variance)
    if objective == "proportional":
        return Shaped(reward / variance, one, reward, variance)
    if objective == "permuted":
        return Shaped(reward / _shuffle_within(variance, prompts, seed), one, reward, variance)
    if objective == "variance-only":
        return Shaped(reference.sizes[-1 if member is None else member] / variance, one, reward, variance)
    if objective == "bregman":
        return Shaped(reward, variance, reward, variance)
    return Shaped(reward - beta * variance, variance, reward, variance)


def _scaled_variance(objective: str, centred: torch.Tensor, reference: ReferenceStatistics) -> torch.Tensor:
    usable = len(centred) > 1 and reference.scale > 0
    if usable:
        return (centred.var(dim=0) / reference.scale).clamp_min(reference.floor)
    if objective in VARIANCE_OBJECTIVES:
        cause = (
            "one member has no spread" if len(centred) < 2 else "the members are identical on the reference's samples"
        )
        raise PrudentError(
            f"objective {objective!r} needs a variance, but {cause}; fit at least 2 members that differ "
            "(diversity='bootstrap' for heads), or use objective 'vanilla'"
        )
    return torch.full_like(centred[0], float("nan"))


def _shuffle_within(values: torch.Tensor, prompts: torch.Tensor, seed: Seed) -> torch.Tensor:
    """``values`` permuted at random among the responses of each prompt."""
    noise = torch.rand(len(values), generator=torch_generator(seed), dtype=torch.float64)
    order = torch.argsort(noise)
    by_prompt = order[torch.argsort(prompts[order], stable=True)]  # grouped by prompt, random within
    target = torch.argsort(prompts, stable=True)  # grouped by prompt, in place
    shuffled = torch.empty_like(values)
    shuffled[target] = values[by_prompt]
    return shuffled
