"""Does a more accurate reward model serve better? CHH-RLHF's three uses on the embedded world, where truth is known.

    python benchmarks/clean_uses.py [--prompts 160] [--repeats 3]

Reward models of graded quality (25 to 1600 pairs, up to half of the labels turned round) are fitted on one half of the
prompts and used on the other: as the reward of RL, to label rankings, as the proxy of best-of-16, and as the judge of
policies that other reward models led to. Prints Spearman correlations of accuracy with the worth of each use.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from prudent import Encoder
from prudent.demo.world import World, draw_preferences, load_world, split
from prudent.evaluation.label_noise import plant_flips
from prudent.evaluation.reward_uses import Uses, reward_uses, tilted
from prudent.features.models import DEFAULT_MODEL
from prudent.rewards.convex import fit_heads
from prudent.seeding import spawn

SIZES = (25, 50, 100, 200, 400, 800, 1600)
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SLOPE = 8.0
RIDGE = 0.1


def graded_scores(
    world: World, features: torch.Tensor, train: torch.Tensor, test: torch.Tensor, seed: np.random.SeedSequence
) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    """Scores (M, test prompts, responses) of one reward model for every size and share of turned labels."""
    grades = [(size, noise) for size in SIZES for noise in NOISE]
    scores = []
    for (size, noise), child in zip(grades, spawn(seed, len(grades))):
        draw, turn = spawn(child, 2)
        prompt, chosen, rejected = draw_preferences(world, train, size, SLOPE, draw)
        difference = features[prompt, chosen] - features[prompt, rejected]
        difference *= torch.from_numpy(1.0 - 2.0 * plant_flips(size, noise, turn)).float()[:, None]
        head = fit_heads(difference, ridge=RIDGE, tolerance=1e-6).weights[0]
        scores.append(features[test].double() @ head)
    return torch.stack(scores), grades


def show(uses: Uses, grades: list[tuple[int, float]]) -> None:
    print("  Spearman correlation of accuracy with")
    for name, found in uses.correlations.items():
        print(f"    {name:10s} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    print("  by pairs (labels right): accuracy, gain by RL, ranking, best of 16; judge's rank correlation")
    for number, (size, noise) in enumerate(grades):
        if noise in (0.0, 0.3):
            values = (uses.accuracy, uses.rl, uses.ranking, uses.best_of_n, uses.judge)
            row = "  ".join(f"{value[number]:+.3f}" for value in values)
            print(f"    {size:5d} pairs, {noise:.0%} turned: {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    world = load_world(options.prompts)
    prompts, responses = world.flat()
    features = Encoder(DEFAULT_MODEL, pooling="last+mean").encode(prompts, responses)
    features = ((features - features.mean(0)) / features.std(0).clamp_min(1e-6)).reshape(*world.gold.shape, -1)
    for repeat, seed in enumerate(spawn(0, options.repeats)):
        split_seed, models, makers = spawn(seed, 3)
        train, test = split(world, 0.5, split_seed)
        scores, grades = graded_scores(world, features, train, test, models)
        others, _ = graded_scores(world, features, train, test, makers)
        others = (others - others.mean(-1, keepdim=True)) / others.std(-1, keepdim=True).clamp_min(1e-9)
        uniform = torch.full_like(world.gold[test], 1 / world.gold.shape[1])
        policies = torch.stack([tilted(uniform, other, beta) for other in others for beta in (0.3, 1.0)])
        print(f"repeat {repeat + 1}: {len(grades)} reward models, {len(policies)} policies, {len(test)} test prompts")
        show(reward_uses(scores, world.gold[test], policies), grades)


if __name__ == "__main__":
    main()
