"""What objectives know of the reward models: members' scores centred per prompt, and the moments of the scores.

The samples may be those that the centre is taken from (`estimate`: exact policies over a pool), or later ones
(`reference_statistics`, then ``ReferenceStatistics.estimate``: training, where the centre and the variance's scale stay
those of the reference, since the policy's own samples move and a leave-one-out baseline is no centring).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.rewards import uncertainty


class Estimate(NamedTuple):
    """Members' scores and their moments, (..., prompts, candidates) each unless said otherwise.

    scores: members' scores, centred per prompt if asked, (..., members, prompts, candidates). reward: the designated
    member, or their mean. mean: over members. variance: over members (ddof=1), normalised and floored as asked.
    standard_deviation: over members, in units of the reward. scale: root mean square of the centred reward,
    (..., 1, 1). groups: which responses belong together, as integers; None is one prompt a row.
    """

    scores: torch.Tensor
    reward: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    standard_deviation: torch.Tensor
    scale: torch.Tensor
    groups: torch.Tensor | None = None


def estimate(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    reward: str | torch.Tensor = "member:0",
    centre: bool = True,
    normalise: bool = True,
    floor: float = 1e-2,
) -> Estimate:
    """Moments of scores (..., members, prompts, candidates) beside reference probabilities (..., prompts, candidates).

    reward: "mean" or "member:k", the reward that the policy is optimised against, or rewards of its own (..., prompts,
    candidates), such as those of a fit on all data. centre: subtract from each member (and such a reward) its
    mean under the reference, prompt by prompt, before anything else (the proportional form isn't invariant to a
    constant, and a member's arbitrary offset would count as variance). normalise: divide the variance by its mean over
    prompts (within a prompt, over the reference), one number a draw, so that beta means the same for every method.
    floor: least variance, as a share of that mean. Raises PrudentError for one member or for identical ones.
    """
    members = as_tensor(scores, torch.float64)
    reference = as_tensor(reference, torch.float64)
    if members.ndim < 3 or members.shape[-3] < 2:
        count = members.shape[-3] if members.ndim >= 3 else 1
        raise PrudentError(
            f"scores of shape {tuple(members.shape)} hold {count} member; a variance needs at least 2, "
            "on the axis before prompts and candidates"
        )
    weights, inside = reference.unsqueeze(-3), reference > 0
    members = torch.where(weights > 0, members, torch.zeros_like(members))
    require_finite(members, "scores")
    if centre:
        members = uncertainty.centre(members, weights=weights)
    raw = members.var(-3)
    average = (reference * raw).sum(-1, keepdim=True).mean(-2, keepdim=True)
    if not bool((average > 0).all()):
        raise PrudentError("members are identical: their scores have no variance; give them other seeds or resamples")
    variance = raw / average if normalise else raw
    variance = torch.maximum(variance, torch.as_tensor(floor) * (1.0 if normalise else average))
    mean = members.mean(-3)
    if isinstance(reward, str):
        chosen = mean if reward == "mean" else _member(members, reward)
    else:
        chosen = as_tensor(reward, torch.float64)
        chosen = uncertainty.centre(chosen, weights=reference) if centre else chosen
    scale = uncertainty.deviation_within(chosen, reference)[..., None, None]
    rows = torch.arange(reference.shape[-2])[:, None]
    groups = torch.where(inside, rows, len(rows))  # what is masked is a group of its own
    return Estimate(members, chosen, mean, variance, raw.sqrt(), scale, groups)


def _member(members: torch.Tensor, reward: str) -> torch.Tensor:
    kind, _, number = reward.partition(":")
    if kind != "member" or not number.isdigit() or int(number) >= members.shape[-3]:
        raise PrudentError(f"reward is {reward!r}, must be 'mean' or 'member:k' with k below {members.shape[-3]}")
    return members[..., int(number), :, :]


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

    def estimate(self, scores: ArrayLike, prompts: ArrayLike, member: int | None = None) -> Estimate:
        """Estimate of N responses as one row: scores (K, 1, N), the rest (1, N).

        scores: (K, N). prompts: (N,) index into ``centre``. member: take this one as the reward; None takes the mean.
        The variance is nan where there is none: one member, or members that agree on every sample of the reference.
        """
        device = self.centre.device
        scores, prompts = as_tensor(scores, torch.float64).to(device), as_tensor(prompts, torch.long).to(device)
        require_finite(scores, "scores", ("member", "response"))
        centred = scores - self.centre[:, prompts]
        mean = centred.mean(dim=0)
        nothing = torch.full_like(mean, float("nan"))
        raw = centred.var(dim=0) if len(centred) > 1 else nothing
        variance = (raw / self.scale).clamp_min(self.floor) if self.scale > 0 else nothing
        reward = mean if member is None else centred[member]
        size = self.sizes[-1 if member is None else member].reshape(1, 1)
        return Estimate(
            centred[:, None], reward[None], mean[None], variance[None], raw.sqrt()[None], size, prompts[None]
        )


def reference_statistics(
    scores: ArrayLike, prompts: ArrayLike, *, floor: float = 1e-2, together: bool = False
) -> ReferenceStatistics:
    """Statistics of K members' scores of samples from the reference policy.

    scores: (K, N). prompts: (N,) index of each sample's prompt, 0..P-1, each prompt with at least one sample.
    together: the members share one origin (they are quantiles of one reward), so that their mean alone is centred and
    the deviation between them stays whole; else each member has an offset of its own, which means nothing.
    Raises PrudentError where a prompt has no sample.
    """
    scores, prompts = as_tensor(scores, torch.float64), as_tensor(prompts, torch.long)
    require_finite(scores, "reference scores", ("member", "sample"))
    count = torch.bincount(prompts)
    if bool((count == 0).any()):
        raise PrudentError(
            f"prompt {int((count == 0).nonzero()[0])} has no sample of the reference policy to centre on"
        )
    centre = uncertainty.group_means(scores, prompts)
    if together:
        centre = centre.mean(0).expand_as(centre)
    centred = scores - centre[:, prompts]
    means = uncertainty.group_means  # the mean over prompts, whatever their number of samples: as `estimate` weighs
    scale = float(means(centred.var(dim=0), prompts).mean()) if len(scores) > 1 else float("nan")
    rewards = torch.cat([centred, centred.mean(dim=0, keepdim=True)])
    return ReferenceStatistics(centre, scale, floor, means(rewards.square(), prompts).mean(1).sqrt())
