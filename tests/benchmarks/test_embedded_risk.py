"""The embedded world's study of risk: reward models that learn from more pairs are better."""

from __future__ import annotations

import torch
from benchmarks.embedded_risk import fresh_scores

from prudent.commands.preflight.truth import ordering


def test_reward_models_learn_more_from_more_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 6, 6, generator=generator)
    gold = (features @ torch.randn(6, generator=generator)).double()
    test = torch.arange(10, 16)

    def choose(pairs: int, slope: float, seed) -> tuple[torch.Tensor, ...]:
        own = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        prompt = torch.randint(0, 10, (pairs,), generator=own)
        a = torch.randint(0, 6, (pairs,), generator=own)
        b = (a + torch.randint(1, 6, (pairs,), generator=own)) % 6
        wins = torch.rand(pairs, generator=own) < torch.sigmoid(slope * (gold[prompt, a] - gold[prompt, b]))
        return prompt, torch.where(wins, a, b), torch.where(wins, b, a)

    right = []
    for pairs in (20, 200):
        drawn = fresh_scores(features, choose, test, pairs=pairs, slope=2.0, draws=8, members=4, seed=0)
        assert drawn.scores.shape == (8, 4, 6, 6)
        right.append(ordering(drawn.scores[:, 0], gold[test], torch.full((6, 6), 1 / 6)))
    assert 0.55 < right[0] < right[1]
