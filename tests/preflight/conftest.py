"""A synthetic world: linear truth on Gaussian features, Bradley-Terry labels, candidates. No model, no file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prudent.rewards.containers import CandidateFeatures, PairFeatures, uniform_reference


def make_world(
    pairs: int = 160, prompts: int = 12, width: int = 8, size: int = 12, strength: float = 1.0, seed: int = 0
) -> tuple[PairFeatures, CandidateFeatures, torch.Tensor]:
    """Pairs of ``pairs // 2`` prompts (two each), candidates, and their true reward (prompts, width)."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(size, generator=generator) * strength / size**0.5
    a, b = (torch.randn(pairs, size, generator=generator) for _ in range(2))
    wins = torch.rand(pairs, generator=generator) < torch.sigmoid((a - b) @ truth)
    chosen, rejected = torch.where(wins[:, None], a, b), torch.where(wins[:, None], b, a)
    features = torch.randn(prompts, width, size, generator=generator)
    groups = [f"p{i // 2}" for i in range(pairs)]
    reference = uniform_reference([width] * prompts, width)
    return PairFeatures(chosen, rejected, groups), CandidateFeatures(features, reference), (features @ truth).double()


@pytest.fixture(scope="session")
def world() -> Callable:
    """The function that makes a synthetic world."""
    return make_world
