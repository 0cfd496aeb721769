"""Is the world of friendly tone fair, and can it be learnt? Tables of docs/embedded-data.md.

    python benchmarks/embedded_tone.py [--poolings] [--sets 24]

Fair: what the longest, shortest, likeliest (a token) and unlikeliest response gains over the prompt's mean, as a share
of what the friendliest gains, for three ways of dividing points by length. Learnable: over data sets of 200 pairs at
slope 2, each with a split of its own, the pairwise accuracy (ties count 0.5) of a ridge head on held-out prompts, for
the shipped features and, with --poolings, the encoder's other poolings (from its cache, else minutes).
"""

from __future__ import annotations

import argparse

import torch

from prudent.demo.constraints import soundness, words
from prudent.demo.shipped import load_features
from prudent.demo.tone import SCALE, points, tone_world
from prudent.demo.world import World, draw_preferences, split
from prudent.evaluation.intervals import bootstrap
from prudent.rewards.heads import HeadEnsemble

PAIRS, SLOPE = 200, 2.0


def variants(world: World) -> dict[str, torch.Tensor]:
    """Candidate golds (prompts, responses): points a word (the one chosen), a root word, and undivided."""
    found = torch.tensor([[points(text) for text in row] for row in world.responses]).double()
    length = torch.tensor([[max(1, len(words(text))) for text in row] for row in world.responses]).double()
    sound = torch.tensor([[soundness(text) for text in row] for row in world.responses]).double()
    return {
        "points / words": torch.tanh(SCALE * found / length) * sound,
        "points / root of words": torch.tanh(2 * found / length.sqrt()) * sound,
        "p / root of p^2 + 15": found / (found.square() + 15).sqrt() * sound,
    }


def fairness(world: World) -> None:
    length = torch.tensor([[len(words(text)) for text in row] for row in world.responses]).double()
    token = world.logprobs / world.tokens
    rules = {"longest": length, "shortest": -length, "likeliest": token, "unlikeliest": -token}
    print("| gold | " + " | ".join(rules) + " |\n|---" + "|---" * len(rules) + "|")
    for name, gold in variants(world).items():
        best = float((gold.max(1).values - gold.mean(1)).mean())
        cells = []
        for number in rules.values():
            gain = bootstrap(gold.gather(1, number.argmax(1, keepdim=True))[:, 0] - gold.mean(1), "mean")
            cells.append(
                f"{(gain.value or 0) / best:+.0%} [{(gain.low or 0) / best:+.0%}, {(gain.high or 0) / best:+.0%}]"
            )
        print(f"| {name} | " + " | ".join(cells) + " |")


def accuracy(world: World, features: torch.Tensor, sets: int) -> str:
    """Pairwise accuracy on held-out prompts, mean and interval over data sets."""
    found = []
    for number in range(sets):
        learn, held = split(world, seed=number)
        prompt, better, worse = draw_preferences(world, learn, PAIRS, SLOPE, number)
        heads = HeadEnsemble.fit(
            features[prompt, better],
            features[prompt, worse],
            members=2,
            ridge="cv",
            groups=prompt.tolist(),
            seed=number,
        )
        score, truth = heads.scores(features[held].flatten(0, 1)).mean(0).reshape(len(held), -1), world.gold[held]
        decided = truth[:, :, None] > truth[:, None, :]
        found.append(float((0.5 + 0.5 * (score[:, :, None] - score[:, None, :]).sign())[decided].mean()))
    return bootstrap(torch.tensor(found), "mean").text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--poolings", action="store_true", help="the encoder's other poolings too")
    parser.add_argument("--sets", type=int, default=24, help="data sets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = tone_world()
    print(f"mean {world.gold.mean():.3f}, standard deviation within a prompt {world.gold.std(1).mean():.3f}")
    fairness(world)
    shipped, _ = load_features(world)
    print(f"shipped (mean, {shipped.shape[-1]}, half precision): {accuracy(world, shipped, given.sets)}")
    flat = (shipped - shipped.mean((0, 1))).flatten(0, 1)
    _, _, basis = torch.linalg.svd(flat, full_matrices=False)
    for width in (64, 128, 288):
        reduced = (flat @ basis[:width].T).reshape(*world.gold.shape, -1)
        print(f"its first {width} principal components: {accuracy(world, reduced, given.sets)}")
    if given.poolings:
        from prudent.features.encoder import Encoder

        both = Encoder("smollm2", pooling="last+mean", dtype="float32").encode(*world.flat())
        both, half = both.reshape(*world.gold.shape, -1), both.shape[1] // 2
        for name, part in {"last": both[..., :half], "mean": both[..., half:], "last+mean": both}.items():
            print(f"{name} ({part.shape[-1]}, float32): {accuracy(world, part, given.sets)}")


if __name__ == "__main__":
    main()
