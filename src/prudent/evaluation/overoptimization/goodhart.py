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
from prudent.rewards.uncertainty import centre, deviation_within
from prudent.seeding import Seed, numpy_generator, spawn


@dataclass(frozen=True)
class World:
    """features: (P, N, d). gold: (P, N). present: (P, N) bool, False where a ragged pool has no candidate. train, test:
    prompt numbers that preferences come from and that policies are judged on."""

    features: torch.Tensor
    gold: torch.Tensor
    present: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor

    @property
    def reference(self) -> torch.Tensor:
        """Uniform over each test prompt's candidates: the policy they were sampled from."""
        there = self.present[self.test].double()
        return there / there.sum(1, keepdim=True)

    @property
    def samples(self) -> int:
        """Candidates of the poorest test prompt: best of n exists for every prompt up to it."""
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


def draw_pairs(world: World, pairs: int, slope: float, seed: Seed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy preferences on the training prompts: (prompt, chosen, rejected) numbers, (pairs,) each.

    Two different candidates of unequal gold (equal ones are no preference); the better is chosen with probability
    sigmoid(slope * difference). slope = inf: always.
    """
    generator = numpy_generator(seed)
    gold, present = world.gold.numpy(), world.present.numpy()
    train = [int(p) for p in world.train if len(np.unique(gold[p][present[p]])) > 1]
    if not train:
        raise PrudentError("gold is constant within every training prompt, so there is nothing to prefer")
    prompts = np.empty(0, dtype=np.int64)
    first = second = prompts
    while len(prompts) < pairs:
        p = np.asarray(train)[generator.integers(0, len(train), 2 * pairs)]
        counts = present[p].sum(1)
        a = (generator.random(len(p)) * counts).astype(np.int64)
        b = (a + 1 + (generator.random(len(p)) * (counts - 1)).astype(np.int64)) % counts
        unequal = gold[p, a] != gold[p, b]
        prompts = np.concatenate([prompts, p[unequal]])
        first, second = np.concatenate([first, a[unequal]]), np.concatenate([second, b[unequal]])
    prompts, first, second = prompts[:pairs], first[:pairs], second[:pairs]
    margin = gold[prompts, first] - gold[prompts, second]
    with np.errstate(over="ignore"):
        better = np.where(np.isinf(slope), margin > 0, generator.random(pairs) < 1 / (1 + np.exp(-slope * margin)))
    chosen, rejected = np.where(better, first, second), np.where(better, second, first)
    return torch.from_numpy(prompts), torch.from_numpy(chosen), torch.from_numpy(rejected)


def member_scores(world: World, setting: Setting, draws: int, seed: Seed) -> Iterator[torch.Tensor]:
    """Members' scores on the test prompts, one draw of preferences after the other: (K, P_test, N) float64 each."""
    from prudent.rewards.heads import bootstrap_counts, choose_ridge, fit_heads

    flat = world.features[world.train][world.present[world.train]].float()
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    test = (world.features[world.test].float() - mean) / scale
    ridge = setting.ridge
    for child in spawn(seed, draws):
        own, rest, ridge_seed = spawn(child, 3)
        prompt, chosen, rejected = draw_pairs(world, setting.pairs, setting.slope, own)
        difference = (world.features[prompt, chosen] - world.features[prompt, rejected]).float() / scale
        if isinstance(ridge, str):
            ridge = choose_ridge(difference, groups=prompt, seed=ridge_seed)[0]
        counts = None
        if setting.members > 1:
            counts = bootstrap_counts(len(prompt), spawn(rest, setting.members), groups=prompt)
        weights = fit_heads(difference, counts, ridge=float(ridge), tolerance=1e-5).weights.float()
        yield torch.einsum("pnd,kd->kpn", test, weights).double()


def reward_of(members: torch.Tensor, reference: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Members (K, P, N) through the setting's rule, centred per prompt before and after, in units of its own spread."""
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
    """Share of the held-out pairs that the reward (P, N) orders rightly, a tie half."""
    margin = reward[pairs[:, 0], pairs[:, 1]] - reward[pairs[:, 0], pairs[:, 2]]
    return float(((torch.sign(margin) + 1) / 2).mean()) if len(pairs) else float("nan")
