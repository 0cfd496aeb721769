"""Noisy preferences drawn from a gold reward by the Bradley-Terry model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prudent import seeding
from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError


def draw_preferences(
    gold: ArrayLike,
    prompts: Sequence[int] | torch.Tensor,
    pairs: int,
    slope: float,
    seed: seeding.Seed,
    *,
    present: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``pairs`` noisy preferences: (prompt, chosen, rejected) indices, int64 (pairs,) each, drawn with replacement.

    gold (P, C); present (P, C) bool: a prompt's first so many responses exist (None: all). Each pair takes one of
    ``prompts`` (as evenly as can be) and two different responses of it, and prefers a to b with probability
    sigmoid(slope * (gold_a - gold_b)). So two responses of equal gold are a pair like any other, and either is chosen
    with probability 0.5: people are asked about such pairs too. slope: how clean the labels are, 0 (pure noise) to inf
    (no noise; equal gold stays a coin flip). Raises PrudentError for indices out of range, a prompt of one response,
    and gold that is constant within every prompt.
    """
    rewards = as_tensor(gold, torch.float64)
    require_finite(rewards, "gold", ("prompt", "response"))
    usable = torch.as_tensor([int(i) for i in prompts])
    if not len(usable) or int(usable.min()) < 0 or int(usable.max()) >= len(rewards):
        raise PrudentError(f"prompt_indices must lie in 0 to {len(rewards) - 1} and not be empty")
    there = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    counts = there.sum(1)
    fewest = int(counts[usable].min())
    if pairs < 1 or fewest < 2:
        raise PrudentError(f"pairs is {pairs} and each prompt has {fewest} responses; need >= 1 and >= 2")
    if not bool(((rewards != rewards[:, :1]) & there)[usable].any()):
        raise PrudentError("gold is constant within every prompt to learn from, so there is nothing to prefer")
    generator = seeding.torch_generator(seed)
    rounds = -(-pairs // len(usable))
    order = torch.cat([torch.randperm(len(usable), generator=generator) for _ in range(rounds)])[:pairs]
    prompt = usable[order]
    count = counts[prompt]
    first = _below(count, generator)
    second = (first + 1 + _below(count - 1, generator)) % count
    margin = rewards[prompt, first] - rewards[prompt, second]
    logit = torch.where(margin == 0, 0.0, slope * margin)  # inf * 0 is no number
    wins = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid(logit)
    return prompt, torch.where(wins, first, second), torch.where(wins, second, first)


def _below(bounds: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A uniform whole number from 0 to below each of ``bounds`` (n,)."""
    found = torch.empty_like(bounds)
    for bound in bounds.unique().tolist():
        rows = bounds == bound
        found[rows] = torch.randint(bound, (int(rows.sum()),), generator=generator)
    return found
