"""Rollouts of a policy, packed and scored: from the reference's pass where the reward model reads its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from prudent.features.models import padding_id
from prudent.features.sampling import decode, sample_ids, stop_tokens
from prudent.policies.rl.packing import Group, Pack, fill, pack
from prudent.policies.rl.policy import Pass, Policy
from prudent.seeding import Seed


@dataclass(frozen=True)
class Rollouts:
    """Completions, those of one prompt side by side.

    prompts: (N,) index of each one's prompt. prompt_ids, completions: token ids, EOS included where the policy wrote
    one. ended: whether it did. texts: decoded, without marks.
    """

    prompts: list[int]
    prompt_ids: list[list[int]]
    completions: list[list[int]]
    ended: list[bool]
    texts: list[str]


class Scorer(Protocol):
    """Members' scores of completions. ``shared``: whether they are read off the reference policy's hidden states."""

    shared: bool

    def closed(self, prompts: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """Ids of each answer as the reward model reads it, behind the prompt's ids (asked only where ``shared``)."""
        ...

    def pool(self, hidden: torch.Tensor, row: Pack) -> torch.Tensor:
        """Features (S, d) of a pack's segments from its hidden states (T, d) (asked only where ``shared``)."""
        ...

    def scores(self, prompts: Sequence[int], texts: Sequence[str], features: torch.Tensor | None) -> torch.Tensor:
        """(K, N); features (N, d) where ``shared``, else None."""
        ...


@dataclass
class ScoredRollouts:
    """Packs of the rollouts with the reference's pass over each, members' scores (K, N) and features (N, d) or None.

    mismatched: completions whose text, tokenised again, is not what was sampled, so that they were read apart.
    """

    rows: list[Pack]
    references: list[Pass]
    scores: torch.Tensor
    features: torch.Tensor | None
    mismatched: int = 0


def roll_out(
    model: Any,
    tokenizer: Any,
    prompt_ids: Sequence[list[int]],
    prompts: Sequence[int],
    *,
    completions: int,
    max_new_tokens: int,
    seed: Seed,
    batch_size: int = 64,
) -> Rollouts:
    """``completions`` samples at temperature 1, without truncation, for each prompt: a function of (seed, prompt).

    model: what is sampled, such as ``policy.sampler()``. prompts: (P,) indices of the prompts, prompt_ids their tokens.
    """
    drawn = sample_ids(
        model,
        prompt_ids,
        samples=completions,
        max_new_tokens=max_new_tokens,
        stop=stop_tokens(model, tokenizer),
        pad=padding_id(model, tokenizer),
        seed=seed,
        batch_size=batch_size,
    )
    lengths = drawn.lengths.flatten().tolist()
    ids = [row[:n].tolist() for row, n in zip(drawn.tokens.flatten(0, 1), lengths, strict=True)]
    return Rollouts(
        [p for p in prompts for _ in range(completions)],
        [list(p) for p in prompt_ids for _ in range(completions)],
        ids,
        drawn.stopped.flatten().tolist(),
        [text for texts in decode(tokenizer, drawn) for text in texts],
    )


def groups_of(rollouts: Rollouts, closed: Sequence[list[int]] | None) -> tuple[list[Group], list[Group]]:
    """Groups of completions to pack, and groups to be read by the reward model alone.

    Where an answer as the reward model reads it (``closed``) begins with the sampled tokens, its closing marks are
    appended to them, and one segment serves both. Else (the tokenizer would split the text in another way) the answer
    is a segment of its own, without actions.
    """
    together: dict[int, Group] = {}
    apart: dict[int, Group] = {}
    for name, (prompt, ids, completion) in enumerate(
        zip(rollouts.prompts, rollouts.prompt_ids, rollouts.completions, strict=True)
    ):
        group = together.setdefault(prompt, Group(ids, [], [], []))
        segment = completion
        if closed is not None and closed[name][: len(completion)] == completion:
            segment = closed[name]
        elif closed is not None:
            other = apart.setdefault(prompt, Group(ids, [], [], []))
            other.segments.append(closed[name])
            other.names.append(name)
            other.actions.append(0)  # type: ignore[union-attr]
        group.segments.append(segment)
        group.names.append(name)
        group.actions.append(len(completion))  # type: ignore[union-attr]
    return list(together.values()), list(apart.values())


def pack_and_score(policy: Policy, rollouts: Rollouts, scorer: Scorer, pack_tokens: int) -> ScoredRollouts:
    """The reference's pass over all rollouts, and the members' scores, from that very pass where the scorer allows."""
    closed = scorer.closed(rollouts.prompts, rollouts.texts) if scorer.shared else None
    together, apart = groups_of(rollouts, closed)
    rows = [pack(content) for content in fill(together, pack_tokens)]
    references = []
    features: torch.Tensor | None = None
    read_apart = {name for group in apart for name in group.names}
    for row in rows:
        reference = policy.reference_pass(row)
        if scorer.shared:
            features = _position(features, scorer.pool(reference.hidden, row), row, len(rollouts.texts), read_apart)
        # The policy's pass needs the state below the first adapter, never the one above it.
        references.append(Pass(reference.log_probabilities, reference.hidden[:0], reference.trunk))
    for content in fill(apart, pack_tokens):
        row = pack(content)
        pooled = scorer.pool(policy.reference_pass(row).hidden, row)
        features = _position(features, pooled, row, len(rollouts.texts), set())
    scores = scorer.scores(rollouts.prompts, rollouts.texts, features)
    return ScoredRollouts(rows, references, scores, features, len(read_apart))


def _position(
    features: torch.Tensor | None, pooled: torch.Tensor, row: Pack, count: int, skipped: set[int]
) -> torch.Tensor:
    """Write a pack's pooled features to their completions' rows."""
    if features is None:
        features = torch.zeros(count, pooled.shape[1])
    for name, vector in zip(row.names, pooled.float().cpu(), strict=True):
        if name not in skipped:
            features[name] = vector
    return features
