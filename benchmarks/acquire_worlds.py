"""The data of ``acquire.py`` and ``acquire_forecast.py``: the embedded worlds, people's choices and real solutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from promise_worlds import GSM8K, encoded, solutions, unit

from prudent.demo.shipped import load_features
from prudent.demo.tone import tone_world
from prudent.demo.world import load_world, side_indices

SHARED = Path(__file__).resolve().parents[2] / "shared/data/preference"


class Split(NamedTuple):
    """One seed of a world. pool (m, 2, d) with prompts (m,) and whether the first side is chosen (m,) bool; test (t, 2,
    d) with the same; candidates (P, C, d) and gold (P, C) that value policies, or None; chance (m,): that the first
    side is chosen, where labels are noisy."""

    pool: np.ndarray
    prompts: np.ndarray
    first: np.ndarray
    test: np.ndarray
    test_first: np.ndarray
    candidates: np.ndarray | None = None
    gold: np.ndarray | None = None
    chance: np.ndarray | None = None


def components(rows: np.ndarray, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """Projection onto the leading principal components of standardised rows (n, d)."""
    mean, deviation = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    standard = (rows - mean) / deviation
    vectors = np.linalg.eigh(standard.T @ standard)[1][:, ::-1][:, :width]
    return lambda x: (((x - mean) / deviation) @ vectors).astype(np.float32)


def gold_split(
    features: np.ndarray, gold: np.ndarray, width: int, seed: int, most: int = 4000, noisy: bool = True
) -> Split:
    """Pairs of half of a world's prompts, labelled by Bradley-Terry on gold; noisy False: only pairs of unequal gold,
    labelled by it."""
    g = np.random.default_rng(seed)
    scaled = unit(gold)
    order = g.permutation(len(gold))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    project = components(features[train].reshape(-1, features.shape[-1]), width)
    made = project(features)
    a, b = np.triu_indices(gold.shape[1], 1)

    def pairs(chosen: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
        prompt = np.repeat(chosen, len(a))
        one, two = np.tile(a, len(chosen)), np.tile(b, len(chosen))
        kept = g.permutation(len(prompt))
        if not noisy:
            kept = kept[scaled[prompt[kept], one[kept]] != scaled[prompt[kept], two[kept]]]
        prompt, one, two = prompt[kept[:count]], one[kept[:count]], two[kept[:count]]
        ahead = scaled[prompt, one] - scaled[prompt, two]
        chance = 1 / (1 + np.exp(-ahead)) if noisy else (ahead > 0).astype(float)
        wins = g.random(len(prompt)) < chance
        return np.stack([made[prompt, one], made[prompt, two]], 1), prompt, wins, chance

    pool, prompts, first, chance = pairs(train, most)
    held, _, held_first, _ = pairs(test, 4000)
    return Split(pool, prompts, first, held, held_first, made[test], scaled[test], chance)


def people_split(name: str, width: int, seed: int) -> Split:
    """The pairs of a file of choices, its own test file to judge; sides in random order. Of long files a part (MOST
    pairs), by the model's first blocks (LAYER)."""
    from prudent import Encoder, read_preferences

    g = np.random.default_rng(seed)
    sides = []
    for part in ("train", "test"):
        if (name, part) not in ENCODED:
            data = read_preferences(SHARED / f"{name}.{part}.jsonl.gz")
            rows = np.random.default_rng(0).permutation(len(data))[: MOST.get((name, part), len(data))]
            data = data.select(np.sort(rows).tolist())
            encoder = Encoder("smollm2", pooling="last+mean", layer=LAYER.get(name))
            both = encoder.encode([*data["prompt"], *data["prompt"]], [*data["chosen"], *data["rejected"]])
            ENCODED[name, part] = np.asarray(both).reshape(2, len(data), -1).swapaxes(0, 1)
        sides.append(ENCODED[name, part])
    project = components(sides[0].reshape(-1, sides[0].shape[-1]), width)
    found: list[np.ndarray] = []
    for pairs in sides:
        first = g.random(len(pairs)) < 0.5
        made = project(pairs)
        found += [np.where(first[:, None, None], made, made[:, ::-1]), first]
    return Split(found[0], np.arange(len(found[0])), found[1], found[2], found[3])


ENCODED: dict[tuple[str, str], np.ndarray] = {}
MOST, LAYER = {("alpacaeval_gpt4", "train"): 1000, ("alpacaeval_gpt4", "test"): 400}, {"alpacaeval_gpt4": 8}


def worlds(width: int) -> dict[str, Callable[[int], Split]]:
    """A split by seed, for every world that can be had here."""
    toned = tone_world()
    features = load_features(toned)[0].numpy()
    found: dict[str, Callable[[int], Split]] = {
        "tone": lambda seed: gold_split(features, toned.gold.numpy(), width, seed),
        "restraint": lambda seed: gold_split(*restrained(), width, seed),
    }
    for name in ("hh_harmless", "alpacaeval_gpt4"):
        if (SHARED / f"{name}.train.jsonl.gz").exists():
            found[name] = functools.partial(people_split, name, width)
    if GSM8K.exists():
        found["gsm8k"] = lambda seed: gold_split(*solved(), width, seed, noisy=False)
    return found


@functools.cache
def restrained() -> tuple[np.ndarray, np.ndarray]:
    """Features and gold of the embedded world's prompts that ask for less; encoded when they are first asked for."""
    embedded = load_world()
    places = side_indices(embedded, "restraint")
    return encoded(*embedded.flat(), (len(embedded), 16))[places], embedded.gold[places].numpy()


@functools.cache
def solved() -> tuple[np.ndarray, np.ndarray]:
    """Features and gold of gsm8k's solutions; encoded when they are first asked for, which takes minutes."""
    world = solutions()
    return world.features, world.gold(np.random.default_rng(0))
