"""Heads on a frozen encoder as the scorer of an RL run: off the reference's hidden states where they are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prudent.features.pooling import pool
from prudent.policies.rl.packing import Pack
from prudent.rewards.heads import HeadEnsemble


class HeadScorer:
    """K heads on an encoder's features, for completions to ``prompts`` (messages or strings, by index).

    shared: the encoder reads the very network that is the reference policy, so that its features can be pooled from the
    reference's pass (equal to encoding apart up to rounding, see the tests). Prompts must leave room for a completion
    within the encoder's length limit.
    """

    def __init__(self, heads: HeadEnsemble, encoder: Any, prompts: Sequence[Any], *, shared: bool) -> None:
        self.heads, self.encoder, self.prompts, self.shared = heads, encoder, list(prompts), shared

    def closed(self, prompts: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """Ids of each answer behind its prompt's, EOS or the template's closing marks included."""
        conversations = self.encoder.renderer.conversations([self.prompts[p] for p in prompts], list(texts))
        return [conversation.response for conversation in conversations]

    def pool(self, hidden: torch.Tensor, row: Pack) -> torch.Tensor:
        """Features (S, d) of the pack's segments, pooled over their own tokens as the encoder does."""
        features = []
        for segment in range(len(row.names)):  # one at a time: a (S, T, d) copy would dwarf the pack
            states = hidden[(row.segment_of == segment).to(hidden.device)][None]
            mask = torch.ones(1, states.shape[1], device=hidden.device)
            features.append(pool(states, mask, self.encoder.pooling))
        return torch.cat(features).cpu()

    def scores(self, prompts: Sequence[int], texts: Sequence[str], features: torch.Tensor | None) -> torch.Tensor:
        """Members' scores (K, N), from features (N, d) where they are at hand."""
        return self.heads.scores(self.features(prompts, texts) if features is None else features)

    def features(self, prompts: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
        """Features (N, d) by the encoder itself."""
        return self.encoder.encode([self.prompts[p] for p in prompts], list(texts))
