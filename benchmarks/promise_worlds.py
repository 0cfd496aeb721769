"""The worlds of ``promise.py``: golds by program, planted ones, and real solutions that are right or wrong."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prudent.demo.world import load_world, side_indices

GSM8K = Path(__file__).resolve().parents[2] / "shared/data/evaluation/gsm8k_solutions.jsonl.gz"
GOOD = set(re.findall(r"\w+", "good great best fresh love enjoy happy wonderful beautiful easy")) | set(
    re.findall(r"\w+", "perfect safe fun warm nice")
)
BAD = set(re.findall(r"\w+", "bad worst hate sad ugly hard difficult never no not")) | set(
    re.findall(r"\w+", "wrong problem worry fear danger risk hurt")
)
POLITE = frozenset(["please", "thank", "thanks", "you", "your", "hello", "hi", "dear", "hope", "sorry", "kindly"])


class World(NamedTuple):
    """features (P, C, d) float32. gold: a generator to (P, C), drawn anew for each data set where planted. pairs_from:
    the prompts that pairs come from and those that policies are valued on; None halves them at random. half: pairs come
    from the half of each prompt's responses with fewer words only."""

    features: np.ndarray
    gold: Callable[[np.random.Generator], np.ndarray]
    sides: tuple[np.ndarray, np.ndarray] | None = None
    half: np.ndarray | None = None


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def tone(text: str) -> float:
    found = words(text)
    return (sum(w in GOOD for w in found) - sum(w in BAD for w in found)) / max(3, len(found)) ** 0.5


GOLDS: dict[str, Callable[[str], float]] = {
    "tone": tone,
    "letters": lambda text: -float(np.mean([len(w) for w in words(text)] or [4])),
    "polite": lambda text: float(sum(w in POLITE for w in words(text)) >= 2),
    "lists": lambda text: float(len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s", text)) >= 2),
    "questions": lambda text: float(min(2, text.count("?"))),
    "first_person": lambda text: sum(w in {"i", "me", "my", "i'm"} for w in words(text)) / max(5, len(words(text))),
}

STEEP = ("tone", "balanced")  # also with slope 2 a standard deviation of gold


def unit(gold: np.ndarray) -> np.ndarray:
    """Centred within prompts, root mean square 1."""
    centred = gold - gold.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean())


def always(gold: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """A gold that is the same for every data set."""
    return lambda _: gold


def planted(z: np.ndarray) -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    """Golds drawn anew on standardised features z (P, C, d)."""
    width = z.shape[-1]

    def linear(g: np.random.Generator) -> np.ndarray:
        return unit(z @ g.normal(size=width))

    def nonlinear(g: np.random.Generator) -> np.ndarray:
        inner = z @ g.normal(size=(width, 300)) / width**0.5 * 1.5
        return unit(np.cos(inner + g.uniform(0, 2 * np.pi, 300)) @ g.normal(size=300))

    return {
        "planted_linear": linear,
        "planted_weak": lambda g: unit(0.5 * linear(g) + unit(g.normal(size=z.shape[:2]))),
        "planted_nonlinear": nonlinear,
        "no_signal": lambda g: unit(g.normal(size=z.shape[:2])),
        "planted_sparse": lambda g: unit(z[..., g.permutation(width)[:20]] @ g.standard_t(3, 20)),
        "planted_steps": lambda g: unit(np.sign(linear(g)) + np.sign(linear(g))),
    }


def encoded(prompts: list[Any], responses: list[str], shape: tuple[int, int]) -> np.ndarray:
    from prudent.features.encoder import Encoder

    return np.asarray(Encoder("smollm2", pooling="last+mean").encode(prompts, responses)).reshape(*shape, -1)


def worlds(real: bool) -> dict[str, World]:
    """All worlds, by name; real: gsm8k, too, whose texts take minutes to encode the first time."""
    embedded = load_world()
    features = encoded(*embedded.flat(), (len(embedded), 16))
    flat = features.reshape(-1, features.shape[-1])
    z = (features - flat.mean(0)) / np.where(flat.std(0) > 0, flat.std(0), 1.0)
    texts = embedded.responses
    golds = {name: unit(np.array([[rule(t) for t in row] for row in texts])) for name, rule in GOLDS.items()}
    golds["balanced"] = unit(embedded.gold.numpy())
    found = {name: World(features, always(gold)) for name, gold in golds.items()}
    found |= {f"{name}_steep": World(features, always(2 * golds[name])) for name in STEEP}
    found |= {name: World(features, draw) for name, draw in planted(z).items()}
    restraint, demand = (side_indices(embedded, side).numpy() for side in ("restraint", "demand"))
    own = unit(embedded.gold.numpy()[restraint])
    found["restraint"] = World(features[restraint], always(own))
    short = np.argsort([[len(words(t)) for t in row] for row in texts], axis=1)[:, :8]
    found["polite_short"] = found["polite"]._replace(half=short)
    found["other_prompts"] = found["balanced"]._replace(sides=(restraint, demand))
    if real and GSM8K.exists():
        found["gsm8k"] = solutions()
    return found


def solutions() -> World:
    """Real solutions of GSM8K problems; gold is whether they are correct."""
    with gzip.open(GSM8K, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [solution["solution"] for row in rows for solution in row["solutions"]]
    problems = [row["question"] for row in rows for _ in row["solutions"]]
    right = unit(np.array([[float(s["is_correct"]) for s in row["solutions"]] for row in rows]))
    return World(encoded(problems, texts, right.shape), lambda g: right)


def draw_pairs(world: World, gold: np.ndarray, n: int, g: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Prompts of the n pairs, indices of chosen and rejected, and the prompts that the policies are valued on."""
    order = g.permutation(len(gold))
    train, test = world.sides or (order[: len(order) // 2], order[len(order) // 2 :])
    prompts = np.concatenate([g.permutation(train) for _ in range(-(-n // len(train)))])[:n]
    many = gold.shape[1] if world.half is None else world.half.shape[1]
    first = g.integers(0, many, n)
    second = (first + g.integers(1, many, n)) % many
    if world.half is not None:
        first, second = world.half[prompts, first], world.half[prompts, second]
    wins = g.random(n) < 1 / (1 + np.exp(-(gold[prompts, first] - gold[prompts, second])))
    return prompts, np.where(wins, first, second), np.where(wins, second, first), test
