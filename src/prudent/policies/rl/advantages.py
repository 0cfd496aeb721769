"""The arithmetic of policy gradients as pure functions on tensors: KL estimators, advantages, clipped losses.

Padding never enters: every function takes a mask (1 where a token counts) and returns the same result whatever stands
at the other positions. Sample statistics (ddof=1) throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from prudent.errors import PrudentError

# exp(88.7) is the largest finite float32; the clamp leaves room for the products that follow.
LOG_RATIO_LIMIT = 60.0
# Rewards of one group closer than this share of their size count as equal: 0.1 + 0.2 is not more than 0.3.
EQUAL_TOLERANCE = 1e-6


class KLEstimate(NamedTuple):
    """Per-token estimates of KL(policy || reference) in nats, and how many tokens were clamped before exp."""

    k1: torch.Tensor
    k2: torch.Tensor
    k3: torch.Tensor
    clamped: int


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the positions where ``mask`` is 1; zero where there are none."""
    kept = torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() / mask.sum().clamp(min=1)


def masked_variance(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sample variance (ddof=1) over the masked positions; NaN with fewer than two of them."""
    selected = values[mask.bool()]
    return selected.var() if selected.numel() > 1 else torch.full((), float("nan"), dtype=values.dtype)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit sample standard deviation over the masked positions, zero elsewhere.

    With one valid token, or equal values, there is nothing to scale by: the values are returned as they are
    (one token) or centred (equal values), always finite.
    """
    kept = mask.bool()
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    if int(kept.sum()) < 2:
        return torch.where(kept, values, zero)
    mean, deviation = masked_mean(values, mask), masked_variance(values, mask).sqrt()
    scale = deviation if float(deviation) > EQUAL_TOLERANCE * (1 + float(mean.abs())) else torch.ones_like(deviation)
    return torch.where(kept, (values - mean) / scale, zero)


def kl_estimates(log_policy: torch.Tensor, log_reference: torch.Tensor) -> KLEstimate:
    """The three usual estimators from samples of the policy, per token.

    k1 = log pi - log pi0 (unbiased, can be negative), k2 = k1^2 / 2, k3 = exp(-k1) - 1 + k1 (unbiased, never negative).
    The log ratio is clamped *before* exp, so that value and gradient stay finite. Source: Schulman (2020),
    "Approximating KL divergence".
    """
    k1 = log_policy - log_reference
    clamped = k1.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k3 = torch.expm1(-clamped) + clamped
    return KLEstimate(k1, 0.5 * k1.square(), k3, int((k1.detach().abs() > LOG_RATIO_LIMIT).sum()))


def token_entropy(log_probabilities: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of -log pi over valid tokens: a sampled estimate of the entropy per token, in nats.

    A log-probability above zero at a valid token is a bug wherever it came from, and raises.
    """
    kept = log_probabilities[mask.bool()]
    if bool((kept > 1e-4).any()):
        raise PrudentError(f"a log-probability is {float(kept.max()):.4g} > 0: padding or a marker was read as a token")
    return -masked_mean(log_probabilities, mask)


WEIGHTINGS = ("plain", "reliability", "members")  # what a group's rewards are before its advantages are taken


class GroupAdvantages(NamedTuple):
    """advantages (N,) and the share of groups whose rewards are all equal (they feel nothing but the KL term)."""

    advantages: torch.Tensor
    equal_share: float


def _grouped(rewards: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if rewards.numel() % group_size:
        raise PrudentError(f"{rewards.numel()} rewards don't divide into groups of {group_size} completions a prompt")
    groups = rewards.reshape(-1, group_size)
    width = groups.max(dim=1).values - groups.min(dim=1).values
    return groups, width <= EQUAL_TOLERANCE * (1 + groups.abs().max(dim=1).values)


def leave_one_out(rewards: torch.Tensor, group_size: int) -> GroupAdvantages:
    """RLOO: each reward minus the mean of its prompt's other rewards (Ahmadian et al. 2024, 2402.14740).

    rewards: (N,) with the completions of one prompt side by side. Groups of equal rewards get exactly zero.
    """
    if group_size < 2:
        raise PrudentError("leave-one-out needs at least 2 completions a prompt")
    groups, equal = _grouped(rewards, group_size)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) * (group_size / (group_size - 1))
    advantages = torch.where(equal.unsqueeze(1), torch.zeros_like(advantages), advantages)
    return GroupAdvantages(advantages.reshape(-1), float(equal.float().mean()))


def group_normalised(rewards: torch.Tensor, group_size: int) -> GroupAdvantages:
    """GRPO: rewards standardised within their prompt's group by the sample deviation; equal groups get zero."""
    groups, equal = _grouped(rewards, group_size)
    deviation = groups.std(dim=1, keepdim=True) if group_size > 1 else torch.ones_like(groups)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / torch.where(equal.unsqueeze(1), 1.0, deviation)
    advantages = torch.where(equal.unsqueeze(1), torch.zeros_like(advantages), advantages)
    return GroupAdvantages(advantages.reshape(-1), float(equal.float().mean()))


def ordering_agreement(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """How sure the order of each group's completions is, (groups,): 1 where all members order them alike, 0 where they
    agree no more than by chance.

    scores: (K, N), K >= 2 members, the completions of one prompt side by side. It is Kendall's tau between the
    orderings of two members, over all pairs of members and of completions that neither member scores alike (Goodman
    and Kruskal's gamma, 1954; 1 where there is no such pair, hence no order to doubt), raised to 0. For members that
    order at random its mean before that is 0, whatever their number, so that noise isn't taken for a weak order.
    """
    members = len(scores)
    if members < 2 or group_size < 2:
        raise PrudentError(
            f"{members} members of {group_size} completions a prompt: an order's sureness needs 2 of each"
        )
    groups = scores.double().reshape(members, -1, group_size)
    signs = torch.sign(groups.unsqueeze(-1) - groups.unsqueeze(-2))  # (K, groups, G, G)
    same = signs.square().sum(0)  # a member beside itself, which is no pair
    agreeing = (signs.sum(0).square() - same).sum((-2, -1))
    untied = (signs.abs().sum(0).square() - same).sum((-2, -1))
    return torch.where(untied > 0, agreeing / untied.clamp(min=1.0), 1.0).clamp(min=0.0)


def columns_apart(columns: torch.Tensor, group_size: int) -> torch.Tensor:
    """The mean (N,) of columns (K, N) of rewards, each standardised within its prompt's group by itself (as GDPO does,
    2601.05242). A group that members order alike keeps its whole size; one on which they differ shrinks."""
    return torch.stack([group_normalised(column, group_size).advantages for column in columns]).mean(0)


def weighted_rewards(weighting: str, rewards: torch.Tensor, scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """Rewards (N,) whose leave-one-out advantages are the weighted ones: "plain" as they are; "reliability" times
    their group's ``ordering_agreement``; "members" ``columns_apart`` of the members' scores (K, N) in their place.

    The baseline is linear in the rewards, so that a KL penalty subtracted afterwards keeps its weight.
    """
    if weighting == "members":
        return columns_apart(scores.to(rewards), group_size)
    if weighting == "reliability":
        return rewards * ordering_agreement(scores, group_size).to(rewards).repeat_interleave(group_size)
    return rewards


def token_rewards(
    score: torch.Tensor,
    log_policy: torch.Tensor,
    log_reference: torch.Tensor,
    mask: torch.Tensor,
    beta: float,
    kl_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Per-token rewards of PPO: ``-beta * weight * (log pi - log pi0)``, with the score added at the last valid token.

    score, kl_weight: (N,); the others (N, T). kl_weight None is ordinary RLHF. Source: 2410.23726, practical algorithm.
    """
    coefficient = torch.full_like(score, beta) if kl_weight is None else beta * kl_weight
    kept = mask.bool()
    rewards = torch.where(kept, -coefficient.unsqueeze(1) * (log_policy - log_reference), torch.zeros_like(log_policy))
    last = mask.long().cumsum(dim=1).argmax(dim=1)
    rewards[torch.arange(len(score), device=score.device), last] += torch.where(kept.any(dim=1), score, 0.0)
    return rewards


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (Schulman et al. 2016): advantages and returns, both (N, T), zero at masked positions.

    rewards, values, mask: (N, T), valid tokens first in each row; the value after the last valid token is zero.
    """
    kept = mask.bool()
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    values = torch.where(kept, values, zero)
    rewards = torch.where(kept, rewards, zero)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    td_error = rewards + gamma * following - values
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for step in range(values.shape[1] - 1, -1, -1):
        running = torch.where(kept[:, step], td_error[:, step] + gamma * gae_lambda * running, zero)
        advantages[:, step] = running
    return advantages, torch.where(kept, advantages + values, zero)


def clipped_policy_loss(
    log_policy: torch.Tensor,
    log_old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float = 0.2,
    per_sequence: bool = False,
) -> tuple[torch.Tensor, float]:
    """PPO's clipped surrogate as a sum to minimise, and the share of tokens (or sequences) where the clip was active.

    log_policy, log_old, mask: (N, T); advantages (N, T), or (N,) with ``per_sequence``, whose ratio is the sequence's.
    The sum, not the mean, is returned: the caller divides once by what the whole batch holds, so that the split into
    micro-batches leaves the step unchanged.
    """
    kept = mask.bool()
    log_ratio = torch.where(kept, log_policy - log_old, torch.zeros_like(log_policy))
    if per_sequence:
        log_ratio, kept = log_ratio.sum(dim=1), kept.any(dim=1)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = -torch.where(kept, torch.minimum(plain, clipped), torch.zeros_like(plain)).sum()
    active = float(((clipped < plain) & kept).sum() / kept.sum().clamp(min=1))
    return loss, active


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float = 0.2
) -> torch.Tensor:
    """PPO's clipped squared error of the value head, summed over valid tokens (half of it, as usual)."""
    kept = mask.bool()
    near = old_values + (values - old_values).clamp(-clip, clip)
    loss = 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
    return torch.where(kept, loss, torch.zeros_like(loss)).sum()
