"""Prompts, responses and a gold reward from anywhere, as the arrays that overoptimisation and reward learning need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prudent.errors import BadRow, DataError, PrudentError
from prudent.evaluation.goodhart import World, split_world
from prudent.seeding import Seed


@dataclass(frozen=True)
class TextWorld:
    """prompts: message lists or texts. responses: texts, lists of any length. gold: numbers of the same shape. unit:
    what gold measures. name: where it came from. split: seed -> (prompts to learn from, prompts to judge on), where the
    world has a balanced one of its own."""

    prompts: list[Any]
    responses: list[list[str]]
    gold: list[list[float]]
    name: str
    unit: str
    split: Callable[[Seed], tuple[torch.Tensor, torch.Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def flat(self) -> tuple[list[Any], list[str]]:
        owners = [prompt for prompt, texts in zip(self.prompts, self.responses) for _ in texts]
        return owners, [text for texts in self.responses for text in texts]

    def padded_gold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gold (P, N) float64 and which candidates are there (P, N)."""
        width = max(map(len, self.gold))
        gold = torch.zeros(len(self.gold), width, dtype=torch.float64)
        present = torch.zeros(len(self.gold), width, dtype=torch.bool)
        for row, values in enumerate(self.gold):
            gold[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
            present[row, : len(values)] = True
        return gold, present


def embedded(prompts: int | None = None) -> TextWorld:
    """The embedded world: gold is computed by a program, exact for any text."""
    from prudent.demo.world import load_world
    from prudent.demo.world import split as balanced

    world = load_world(prompts)
    return TextWorld(
        list(world.prompts), [list(texts) for texts in world.responses], world.gold.tolist(), "embedded world",
        "share of the prompt's constraints met, 0 to 1", lambda seed: balanced(world, 0.5, seed),
    )  # fmt: skip


def read_world(path: str | Path, gold: str | None = None) -> TextWorld:
    """A pool file with gold, or solutions of problems (``question`` and ``solutions`` with ``is_correct``).

    gold: a reward model (folder or hub id) that scores a pool which has no gold of its own.
    """
    from prudent.data.files import read_records

    first = next((record.value for record in read_records(path) if record.value is not None), None)
    if first is not None and isinstance(first.get("solutions"), list):
        return read_solutions(path)
    from prudent.data.pools import read_pool

    pool = read_pool(path)
    if gold is not None:
        from prudent.rewards.model import RewardModel

        owners, texts, _ = pool.flat()
        scores = RewardModel.load(gold).score(owners, texts).mean(0)
        values = [part.tolist() for part in scores.split([len(texts) for texts in pool.responses])]
        return TextWorld(list(pool.prompts), list(pool.responses), values, str(path), f"mean score of {gold}")
    if pool.gold is None:
        raise PrudentError(f"{path} has no gold; give every row gold rewards, or a reward model as judge with --gold")
    return TextWorld(list(pool.prompts), list(pool.responses), list(pool.gold), str(path), "gold of the file")


def read_solutions(path: str | Path) -> TextWorld:
    """Problems with several solutions, gold 1 for a correct one and 0 for others."""
    from prudent.data.files import read_records

    bad: list[BadRow] = []
    prompts, responses, gold = [], [], []
    for record in read_records(path):
        bad += record.errors
        if record.value is None:
            continue
        question, solutions = record.value.get("question"), record.value.get("solutions")
        listed = solutions if isinstance(solutions, list) else []
        readable = all(isinstance(s, dict) and isinstance(s.get("solution"), str) for s in listed)
        if not isinstance(question, str) or len(listed) < 2 or not readable:
            bad.append(
                BadRow(record.line, "solutions", "not-solutions", "a question and two or more solutions are needed")
            )
            continue
        if not all(isinstance(s.get("is_correct"), bool) for s in listed):
            bad.append(
                BadRow(record.line, "solutions", "missing-field", "is_correct (true or false) in every solution")
            )
            continue
        prompts.append(question)
        responses.append([s["solution"] for s in listed])
        gold.append([float(s["is_correct"]) for s in listed])
    if bad:
        raise DataError(str(path), bad, "mend these rows")
    return TextWorld(prompts, responses, gold, str(path), "1 for a correct solution, 0 else")


def encode_world(
    text: TextWorld,
    model: str,
    layers: Sequence[int | None],
    *,
    seed: Seed,
    pooling: str = "last",
    max_length: int = 1024,
    test_share: float = 0.5,
) -> dict[int, World]:
    """Worlds by number of layers of the feature model (None: all), split alike. Each text is read once a layer."""
    from prudent.features.encoder import Encoder

    gold, present = text.padded_gold()
    prompts, responses = text.flat()
    worlds = {}
    for layer in layers:
        encoder = Encoder(model, pooling=pooling, max_length=max_length, layer=layer)
        vectors = encoder.encode(prompts, responses)
        features = torch.zeros(*present.shape, vectors.shape[1])
        features[present] = vectors
        depth = layer if layer is not None else int(encoder.model.config.num_hidden_layers)
        if text.split is not None:
            train, test = text.split(seed)
            worlds[depth] = World(features, gold, present, train, test)
        else:
            worlds[depth] = split_world(features, gold, present, seed, test_share)
    return worlds
