"""One policy update from scored rollouts: RLOO (one sequence, one action) and PPO (one token, one action).

Both read the same packs and reference passes. RLOO with one epoch needs a single pass of the policy: its own
log-probabilities, detached, are the old ones, and a pack holds whole groups, so the leave-one-out baseline is local.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.policies.objectives import Shaped
from prudent.policies.rl.advantages import (
    WEIGHTINGS,
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    kl_estimates,
    leave_one_out,
    token_rewards,
    whiten,
)
from prudent.policies.rl.packing import Pack
from prudent.policies.rl.policy import Pass, Policy


@dataclass(frozen=True)
class UpdateOptions:
    """How rollouts become a step. clip: PPO's ratio clip; epochs and minibatches: passes over one set of rollouts.
    advantages: plain, or one of ``advantages.WEIGHTINGS``, which a group's reward is weighted by."""

    algorithm: str = "rloo"
    beta: float = 0.1
    completions: int = 4
    clip: float = 0.2
    epochs: int = 1
    minibatches: int = 1
    value_coefficient: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    max_grad_norm: float = 1.0
    advantages: str = "plain"

    def __post_init__(self) -> None:
        if self.algorithm not in ("rloo", "ppo"):
            raise PrudentError(f"unknown algorithm {self.algorithm!r}; one of rloo, ppo (GRPO runs on --engine trl)")
        if not self.beta >= 0:
            raise PrudentError(f"beta is {self.beta}; the KL coefficient must be at least 0")
        if self.algorithm == "rloo" and self.completions < 2:
            raise PrudentError("RLOO needs at least 2 completions a prompt for its leave-one-out baseline")
        if self.advantages not in WEIGHTINGS:
            raise PrudentError(f"unknown advantages {self.advantages!r}; one of {', '.join(WEIGHTINGS)}")
        if self.algorithm == "ppo" and self.advantages != "plain":
            raise PrudentError(f"advantages {self.advantages!r} are a group's, which PPO has none of; take rloo")


@dataclass
class Scored:
    """Rollouts packed and scored: per pack the row and the reference's pass; per completion the shaped reward, and the
    prompt's short name for errors."""

    rows: list[Pack]
    references: list[Pass]
    shaped: Shaped
    total: int  # completions over all processes, by which the summed loss is divided
    describe: Sequence[str]


def segment_sums(values: torch.Tensor, row: Pack) -> torch.Tensor:
    """Sum of per-token ``values`` (M,) over each segment of the pack: (S,)."""
    return torch.zeros(len(row.names), dtype=values.dtype, device=values.device).index_add(
        0, row.owners.to(values.device), values
    )


def padded(values: torch.Tensor, row: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token ``values`` (M,) as (S, T) with zeros behind each segment, and the mask (S, T)."""
    owners = row.owners.to(values.device)
    lengths = torch.bincount(owners, minlength=len(row.names))
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(len(values), device=values.device) - starts[owners]
    shape = (len(row.names), max(1, int(lengths.max()) if len(lengths) else 1))
    mask = torch.zeros(shape, dtype=torch.bool, device=values.device)
    mask[owners, position] = True
    return torch.zeros(shape, dtype=values.dtype, device=values.device).index_put((owners, position), values), mask


class Meter:
    """Sums of what a step measures, divided once at the end by what was counted."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, name: str, value: torch.Tensor | float, count: float = 1.0) -> None:
        """Add a sum over ``count`` things."""
        entry = self.sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(value)
        entry[1] += count

    def means(self) -> dict[str, float]:
        """Sum by count of every name; nan where nothing was counted."""
        return {name: total / count if count else float("nan") for name, (total, count) in self.sums.items()}


def require_sound(values: torch.Tensor, what: str, row: Pack, describe: Sequence[str]) -> None:
    """Stop before the optimiser step where a value is not finite, naming the prompts of the pack."""
    if bool(torch.isfinite(values).all()):
        return
    prompts = sorted({describe[name] for name in row.names})
    raise PrudentError(
        f"{what} is not finite; the step was not taken. Prompts in the batch: "
        + "; ".join(prompts[:8])
        + ". Lower the learning rate, or look at these prompts' rewards"
    )


def _measure(meter: Meter, log_policy: torch.Tensor, reference: Pass, row: Pack) -> None:
    """KL estimates per sequence and the entropy per token, of the policy as it sampled."""
    estimate = kl_estimates(log_policy, reference.log_probabilities)
    per_sequence = segment_sums(estimate.k1, row)
    meter.add("kl", per_sequence.sum(), len(row.names))
    meter.add("kl_k3", estimate.k3.sum(), len(row.names))
    meter.add("kl_negative_share", (per_sequence < 0).float().sum(), len(row.names))
    meter.add("clamped_tokens", estimate.clamped, len(log_policy))
    meter.add("entropy", -log_policy.sum(), len(log_policy))


def rloo_backward(
    policy: Policy, scored: Scored, options: UpdateOptions, meter: Meter
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of the first (usually the only) epoch; returns each pack's old log-probabilities and advantages."""
    kept = []
    for row, reference in zip(scored.rows, scored.references, strict=True):
        current = policy.policy_pass(row, reference.trunk).log_probabilities
        old = current.detach()
        require_sound(old, "a log-probability of the policy", row, scored.describe)
        penalty = segment_sums(old - reference.log_probabilities, row)
        reward = (
            scored.shaped.reward[row.names].to(penalty)
            - options.beta * scored.shaped.kl_weight[row.names].to(penalty) * penalty
        )
        advantages = leave_one_out(reward, options.completions).advantages
        _measure(meter, old, reference, row)
        loss = -(advantages * segment_sums(current, row)).sum() / scored.total
        require_sound(loss, "the loss", row, scored.describe)
        loss.backward()
        kept.append((old, advantages))
    return kept


def rloo_again(
    policy: Policy, scored: Scored, kept: list, options: UpdateOptions, chosen: Sequence[int], meter: Meter
) -> None:
    """Gradients of a later epoch over the packs ``chosen``, with the sequence's ratio clipped."""
    total = sum(len(scored.rows[i].names) for i in chosen)
    for i in chosen:
        row = scored.rows[i]
        old, advantages = kept[i]
        current = policy.policy_pass(row, scored.references[i].trunk).log_probabilities
        ratio_now, mask = padded(current, row)
        loss, active = clipped_policy_loss(
            ratio_now, padded(old, row)[0], advantages, mask, options.clip, per_sequence=True
        )
        meter.add("clip_share", active)
        (loss / total).backward()


@dataclass
class TokenTargets:
    """What PPO's epochs read for one pack: old log-probabilities, old values, advantages, returns, mask (S, T)."""

    old: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    mask: torch.Tensor


def ppo_targets(
    policy: Policy, value_head: nn.Module, scored: Scored, options: UpdateOptions, meter: Meter
) -> list[TokenTargets]:
    """One pass without gradients: token rewards, GAE, advantages whitened over the whole batch."""
    targets = []
    for row, reference in zip(scored.rows, scored.references, strict=True):
        with torch.no_grad():
            current = policy.policy_pass(row, reference.trunk)
            value = value_head(current.hidden[row.sources.to(current.hidden.device)].float()).squeeze(-1)
        require_sound(current.log_probabilities, "a log-probability of the policy", row, scored.describe)
        _measure(meter, current.log_probabilities, reference, row)
        old, mask = padded(current.log_probabilities, row)
        reward = token_rewards(
            scored.shaped.reward[row.names].to(old),
            old,
            padded(reference.log_probabilities, row)[0],
            mask,
            options.beta,
            scored.shaped.kl_weight[row.names].to(old),
        )
        values, _ = padded(value, row)
        advantages, returns = generalised_advantages(reward, values, mask, options.gamma, options.gae_lambda)
        targets.append(TokenTargets(old, values, advantages, returns, mask))
    flat = torch.cat([t.advantages[t.mask] for t in targets])
    white = whiten(flat, torch.ones_like(flat))
    start = 0
    for target in targets:
        count = int(target.mask.sum())
        target.advantages = torch.zeros_like(target.advantages).masked_scatter(
            target.mask, white[start : start + count]
        )
        start += count
    return targets


def ppo_backward(
    policy: Policy,
    value_head: nn.Module,
    scored: Scored,
    targets: list[TokenTargets],
    options: UpdateOptions,
    chosen: Sequence[int],
    tokens: int,
    meter: Meter,
) -> None:
    """Gradients of one minibatch of packs: clipped surrogate plus the value head's clipped error, per token."""
    for i in chosen:
        row, target = scored.rows[i], targets[i]
        current = policy.policy_pass(row, scored.references[i].trunk)
        new, _ = padded(current.log_probabilities, row)
        value, _ = padded(value_head(current.hidden[row.sources.to(current.hidden.device)].float()).squeeze(-1), row)
        policy_loss, active = clipped_policy_loss(new, target.old, target.advantages, target.mask, options.clip)
        value_loss = clipped_value_loss(value, target.values, target.returns, target.mask, options.clip)
        loss = (policy_loss + options.value_coefficient * value_loss) / tokens
        require_sound(loss, "the loss", row, scored.describe)
        loss.backward()
        meter.add("clip_share", active)
        meter.add("value_loss", value_loss.detach(), float(target.mask.sum()))
