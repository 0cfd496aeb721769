"""Pairs with features and candidates with features: what reward models learn from, and what they score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.data.bradley_terry import draw_preferences
from prudent.data.formats import NEUTRAL
from prudent.rewards.columns import NO_COLUMNS, PairColumns
from prudent.rewards.stored import equal_rows, pick_rows
from prudent.seeding import Seed


@dataclass(frozen=True)
class PairFeatures:
    """Features of n preference pairs: chosen and rejected (n, d), memory maps too; groups: prompt of each pair (n
    integers or texts); columns: their weights, soft labels and margins."""

    chosen: Any
    rejected: Any
    groups: Sequence[Any]
    columns: PairColumns = NO_COLUMNS

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: torch.Tensor) -> PairFeatures:
        """The pairs with these row numbers."""
        index = rows.long()
        groups = [self.groups[i] for i in index.tolist()]
        return PairFeatures(
            pick_rows(self.chosen, index), pick_rows(self.rejected, index), groups, self.columns.at(index)
        )

    def distinct(self) -> torch.Tensor:
        """Row numbers of the pairs whose sides differ. Equal features mean texts that are the same once they are cut:
        such a pair has no gradient and is right by chance."""
        return torch.nonzero(~equal_rows(self.chosen, self.rejected))[:, 0]

    def fit_arguments(self) -> dict[str, Any]:
        """The pairs as keyword arguments of a family's ``fit``."""
        columns = {name: column for name, column in self.columns._asdict().items() if column is not None}
        return {"chosen": self.chosen, "rejected": self.rejected, "groups": self.groups, **columns}


@dataclass(frozen=True)
class CandidateFeatures:
    """Features (P, C, d) of C candidates of P prompts, and the reference policy's probabilities (P, C).

    An index without a candidate (ragged pools) has probability 0; its features are never used. prompts (messages) and
    responses (texts, a list a prompt), where they are known.
    """

    features: torch.Tensor
    reference: torch.Tensor
    prompts: Sequence[Any] = ()
    responses: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.reference)

    def flat(self) -> tuple[list[int], list[str]]:
        """(prompt index, text) with one entry a response."""
        owner = [i for i, texts in enumerate(self.responses) for _ in texts]
        return owner, [text for texts in self.responses for text in texts]


@dataclass(frozen=True)
class GoldCandidates:
    """Candidates whose gold reward is known. features (P, C, d); gold (P, C); present (P, C) bool, False where a ragged
    pool has no candidate."""

    features: torch.Tensor
    gold: torch.Tensor
    present: torch.Tensor

    def reference_on(self, prompts: torch.Tensor) -> torch.Tensor:
        """Uniform over the candidates of each of these prompts: the policy they were sampled from."""
        there = self.present[prompts].double()
        return there / there.sum(1, keepdim=True)

    def standardised_on(self, prompts: torch.Tensor) -> torch.Tensor:
        """Features (P, C, d) float32 in standard deviations (ddof=1) of these prompts' candidates, about their mean."""
        flat = self.features[prompts][self.present[prompts]].float()
        return (self.features.float() - flat.mean(0)) / flat.std(0).clamp_min(1e-6)

    def preferences(
        self, prompts: torch.Tensor, pairs: int, slope: float, seed: Seed
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy preferences on these prompts, see ``data.bradley_terry.draw_preferences``."""
        return draw_preferences(self.gold, prompts, pairs, slope, seed, present=self.present)


def combine(parts: list[PairFeatures]) -> PairFeatures:
    """Several files' pairs as one set; a column that only some of them have is neutral in the others."""
    names = [name for name in PairColumns._fields if any(getattr(part.columns, name) is not None for part in parts)]
    columns = {
        name: torch.cat(
            [
                torch.full((len(part),), NEUTRAL[name], dtype=torch.float64)
                if getattr(part.columns, name) is None
                else getattr(part.columns, name)
                for part in parts
            ]
        )
        for name in names
    }
    return PairFeatures(
        torch.cat([part.chosen for part in parts]),
        torch.cat([part.rejected for part in parts]),
        [group for part in parts for group in part.groups],
        PairColumns(**columns),
    )


def candidate_features(
    flat: torch.Tensor, prompts: Sequence[Any], responses: Sequence[Sequence[str]]
) -> CandidateFeatures:
    """Candidates from the features (N, d) of all responses in order; each of a prompt's has the same probability."""
    counts = [len(texts) for texts in responses]
    return CandidateFeatures(padded(flat, counts), uniform_reference(counts, max(counts)), prompts, responses)


def uniform_reference(counts: ArrayLike, width: int) -> torch.Tensor:
    """Probabilities (P, width) that give each of a prompt's ``counts`` (P,) sampled candidates the same weight."""
    sizes = as_tensor(counts).long()
    return torch.where(torch.arange(width) < sizes[:, None], 1.0 / sizes[:, None].double(), 0.0)


def padded(flat: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(N, ...) with one entry a response as (P, C, ...), zeros where a prompt has fewer than C responses."""
    width = max(counts)
    out = torch.zeros(len(counts), width, *flat.shape[1:], dtype=flat.dtype)
    out[torch.arange(width) < torch.tensor(counts)[:, None]] = flat
    return out
