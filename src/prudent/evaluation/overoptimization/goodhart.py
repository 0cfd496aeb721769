"""Overoptimisation worlds on arrays: reward models drawn from noisy preferences, pushed, and held to a known gold.

A world has features (prompts, candidates, width) and gold (prompts, candidates). Its prompts are split: preferences are
drawn on one part (Bradley-Terry from gold, slope = how clean), policies are pushed and judged on the other. Every draw
sees its own preferences, so intervals are over prompts *and* over reward models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.rewards.accuracy import credit
from prudent.rewards.containers import GoldCandidates
from prudent.rewards.draws import bootstrap_counts, fit_resamples
from prudent.rewards.uncertainty import centre, deviation_within
from prudent.seeding import Seed, numpy_generator, spawn


@dataclass(frozen=True)
class World(GoldCandidates):
    """Candidates with gold, their prompts split: train, test: indices of the prompts that preferences come from and
    that policies are judged on."""

    train: torch.Tensor
    test: torch.Tensor

    @property
    def reference(self) -> torch.Tensor:
        """The reference policy on the test prompts."""
        return self.reference_on(self.test)

    @property
    def samples(self) -> int:
        """The fewest candidates a test prompt has: best of n exists for every prompt up to it."""
        return int(self.present[self.test].sum(1).min())


@dataclass(frozen=True)
class Setting:
    """How a reward model is made. pairs: preferences drawn. slope: of Bradley-Terry on gold (inf: no label noise).
    members: heads on bootstraps of the pairs. rule: how they become a reward. ridge: "cv" picks it on the first draw.
    """

    pairs: int = 400
    slope: float = 4.0
    members: int = 5
    rule: str = "mean"
    ridge: float | str = "cv"
    options: dict[str, float] = field(default_factory=dict)


def split_world(
    features_: torch.Tensor, gold: torch.Tensor, present: torch.Tensor | None, seed: Seed, test_share: float = 0.5
) -> World:
    """A world with its prompts split at random; the test part holds ``test_share`` of them."""
    prompts = len(gold)
    if prompts < 4:
        raise PrudentError(f"{prompts} prompts are too few to split into prompts to learn from and to judge on")
    order = torch.from_numpy(numpy_generator(seed).permutation(prompts))
    cut = min(prompts - 2, max(2, round(prompts * (1 - test_share))))
    there = torch.ones(gold.shape, dtype=torch.bool) if present is None else present
    return World(features_, gold.double(), there, order[:cut].sort().values, order[cut:].sort().values)


def member_scores(world: World, setting: Setting, draws: int, seed: Seed) -> Iterator[torch.Tensor]:
    """Members' scores on the test prompts, one draw of preferences after the other: (K, P_test, N) float64 each."""
    standard = world.standardised_on(world.train)
    test, ridge = standard[world.test], setting.ridge
    for child in spawn(seed, draws):
        own, rest, ridge_seed = spawn(child, 3)
        prompt, chosen, rejected = world.preferences(world.train, setting.pairs, setting.slope, own)
        counts = None
        if setting.members > 1:
            counts = bootstrap_counts(len(prompt), spawn(rest, setting.members), groups=prompt)
        difference = standard[prompt, chosen] - standard[prompt, rejected]
        found = fit_resamples(difference, counts, ridge=ridge, groups=prompt, seed=ridge_seed)
        ridge = found.ridge
        yield torch.einsum("pnd,kd->kpn", test, found.weights.float()).double()


def reward_of(members: torch.Tensor, reference: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Members (K, P, N) through the setting's rule, centred per prompt before and after, in units of its own standard
    deviation."""
    from prudent.rewards.aggregation import aggregate

    inner = centre(members, weights=reference)
    reward = inner[0] if len(inner) == 1 else aggregate(inner, setting.rule, **setting.options)
    reward = centre(reward, weights=reference)
    size = float(deviation_within(reward, reference))
    if not size > 0:
        raise PrudentError("the proxy is constant within every prompt: it can't be optimised")
    return reward / size


def held_out_pairs(gold: torch.Tensor, present: torch.Tensor, most: int = 20_000) -> torch.Tensor:
    """(prompt, better, worse) numbers of test candidates of unequal gold, (pairs, 3): all, or ``most`` at random.

    The sample is a function of the world alone, so that every reward model is asked the same pairs.
    """
    generator = numpy_generator(0)
    counts = present.sum(1).numpy()
    rows = []
    per = max(1, -(-most // len(gold)))
    for prompt, count in enumerate(counts.tolist()):
        a, b = np.triu_indices(count, 1)
        if len(a) > per:
            kept = generator.choice(len(a), per, replace=False)
            a, b = a[kept], b[kept]
        rows.append(np.stack([np.full(len(a), prompt), a, b], axis=1))
    pairs = torch.from_numpy(np.concatenate(rows))
    first, second = gold[pairs[:, 0], pairs[:, 1]], gold[pairs[:, 0], pairs[:, 2]]
    swapped = torch.where((first >= second)[:, None], pairs, pairs[:, [0, 2, 1]])
    return swapped[first != second]


def pair_accuracy(reward: torch.Tensor, pairs: torch.Tensor) -> float:
    """Pairwise accuracy of the reward (P, N) on the held-out pairs; ties count 0.5."""
    margin = reward[pairs[:, 0], pairs[:, 1]] - reward[pairs[:, 0], pairs[:, 2]]
    return float(credit(margin).mean()) if len(pairs) else float("nan")
