"""Prompts, responses and a gold reward from anywhere, as the arrays that overoptimisation and reward learning need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from prudent.data.failing import Origin, use_rows
from prudent.data.files import read_records
from prudent.data.pools import Pool, read_pool, refuse_bad, refuse_uneven, use_pool
from prudent.data.records import item_id, mapped
from prudent.errors import BadRow, PrudentError, RowsError
from prudent.evaluation.overoptimization.goodhart import World, split_world
from prudent.features.limits import Shown, same_responses, shown, words
from prudent.seeding import Seed

R = TypeVar("R")


@dataclass(frozen=True)
class TextWorld:
    """prompts: message lists or texts. responses: texts, lists of any length. gold: numbers of the same shape. unit:
    what gold measures. name: where it came from. split: seed -> (prompts to learn from, prompts to judge on), where the
    world has a balanced one of its own. origins: where each prompt stands in its file, for what came from one. notes:
    what a reader must know: prompts left out, texts cut."""

    prompts: list[Any]
    responses: list[list[str]]
    gold: list[list[float]]
    name: str
    unit: str
    split: Callable[[Seed], tuple[torch.Tensor, torch.Tensor]] | None = None
    origins: list[Origin] | None = None
    notes: tuple[str, ...] = ()

    def take(self, rows: Sequence[int]) -> TextWorld:
        """The prompts with these indices; the world itself where they are all, with its own split."""
        if len(rows) == len(self):
            return self
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            responses=[self.responses[row] for row in rows],
            gold=[self.gold[row] for row in rows],
            split=None,
            origins=None if self.origins is None else [self.origins[row] for row in rows],
        )

    def use(self, function: Callable[[TextWorld], R], on_error: str = "raise") -> tuple[R, TextWorld]:
        """(``function`` of the world, the world it used): prompts of which it names a response in a RowsError end in
        one DataError, or are left out with ``on_error="skip"``, which the world's notes tell."""

        def part(rows: list[int]) -> R:
            world = self.take(rows)
            try:
                return function(world)
            except RowsError as error:
                raise error.moved([index for index, texts in enumerate(world.responses) for _ in texts]) from error

        origins = self.origins or [Origin(row + 1) for row in range(len(self))]
        found, kept, bad = use_rows(part, origins, self.name, on_error)
        return found, self.take(kept).noted(*left_out(bad))

    def noted(self, *notes: str) -> TextWorld:
        """The world with more notes, empty ones dropped."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))

    def shown(self, read: Callable[[list[Any], list[str]], Shown]) -> dict[str, Any]:
        """What a model is shown of the responses (counts for ``features.limits.words``). read: how texts are shown."""
        prompts, responses = self.flat()
        owners = [index for index, texts in enumerate(self.responses) for _ in texts]
        return same_responses(read(prompts, responses), owners, responses)

    def __len__(self) -> int:
        return len(self.prompts)

    def flat(self) -> tuple[list[Any], list[str]]:
        """(prompts, responses) with one entry a response."""
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


def embedded(prompts: int | None = None, side: str = "balanced") -> TextWorld:
    """The embedded world, or one side of it: gold is computed by a program, exact for any text."""
    from prudent.demo.world import load_world
    from prudent.demo.world import split as balanced

    world = load_world(prompts, side)
    name = "embedded world" if side == "balanced" else f"embedded world, side {side}"
    return TextWorld(
        list(world.prompts),
        [list(texts) for texts in world.responses],
        world.gold.tolist(),
        name,
        "share of the prompt's constraints met, 0 to 1",
        lambda seed: balanced(world, 0.5, seed),
    )


def holds_solutions(path: str | Path, columns: Mapping[str, str] | None = None) -> bool:
    """Whether a file's first row is a problem with ``solutions``."""
    first = next((record.value for record in mapped(read_records(path), columns) if record.value is not None), None)
    return first is not None and isinstance(first.get("solutions"), list)


def left_out(bad: Sequence[BadRow]) -> list[str]:
    """A note on prompts that can't be rendered or scored, or none."""
    return [f"{len(bad)} prompts were left out, the first: {bad[0]}"] if bad else []


def read_candidates(path: str | Path, columns: Mapping[str, str] | None = None, on_error: str | None = None) -> Pool:
    """A pool file, or solutions of problems (``question`` and ``solutions`` with ``is_correct``, which is the gold).

    columns: {our name: the file's}. on_error: as of ``read_pool``."""
    return _candidates(path, columns, on_error)[0]


def _candidates(path: str | Path, columns: Mapping[str, str] | None, on_error: str | None) -> tuple[Pool, str]:
    """The pool of a file, and the unit of its gold."""
    if holds_solutions(path, columns):
        return read_solutions(path, columns, on_error), "1 for a correct solution, 0 else"
    return read_pool(path, columns=columns, on_error=on_error), "gold of the file"


def read_world(
    path: str | Path, gold: str | None = None, columns: Mapping[str, str] | None = None, on_error: str = "raise"
) -> TextWorld:
    """The prompts, responses and gold of ``read_candidates``.

    gold: a reward model (folder or hub id) that scores the responses in place of the file's own gold; prompts of which
    it can't score a response are named, or left out with ``on_error="skip"``.
    """
    pool, unit = _candidates(path, columns, on_error)
    refuse_uneven([len(texts) for texts in pool.responses], pool.ids)
    values, bad = pool.gold, [*pool.left_out]
    if gold is not None:
        from prudent.rewards.model import RewardModel

        judge = RewardModel.load(gold)
        scores, pool, bad = use_pool(lambda p, r: judge.score(p, r).mean(0), pool, path, on_error)
        values = [part.tolist() for part in scores.split([len(texts) for texts in pool.responses])]
        unit = f"mean score of {gold}"
    if values is None:
        raise PrudentError(f"{path} has no gold; give every row gold rewards, or a reward model as judge with --gold")
    world = TextWorld(list(pool.prompts), list(pool.responses), values, str(path), unit, origins=pool.origins())
    if gold is None:
        return world.noted(*left_out(bad))
    said = words(world.shown(judge.shown))
    return world.noted(*left_out(bad), f"{gold}: {said}" if said else "")


def read_solutions(path: str | Path, columns: Mapping[str, str] | None = None, on_error: str | None = None) -> Pool:
    """Problems with several solutions, gold 1 for a correct one and 0 for others."""
    bad: list[BadRow] = []
    pool = Pool([], [], [], [], [])
    assert pool.gold is not None and pool.lines is not None
    for index, record in enumerate(mapped(read_records(path), columns)):
        bad += record.errors
        if record.value is None:
            continue
        question, solutions = record.value.get("question"), record.value.get("solutions")
        listed = solutions if isinstance(solutions, list) else []
        readable = all(isinstance(s, dict) and isinstance(s.get("solution"), str) for s in listed)
        if not isinstance(question, str) or not question.strip():
            bad.append(BadRow(record.line, "question", "missing-field", "a question, a text, is needed"))
            continue
        if len(listed) < 2 or not readable:
            bad.append(BadRow(record.line, "solutions", "not-solutions", "two or more solutions are needed"))
            continue
        if not all(isinstance(s.get("is_correct"), bool) for s in listed):
            bad.append(
                BadRow(record.line, "solutions", "missing-field", "is_correct (true or false) in every solution")
            )
            continue
        try:
            name = item_id(record.value.get("problem_id")) or item_id(record.value.get("id")) or str(index)
        except ValueError as error:
            bad.append(BadRow(record.line, "id", "not-an-id", str(error)))
            continue
        pool.prompts.append([{"role": "user", "content": question}])
        pool.responses.append([s["solution"] for s in listed])
        pool.gold.append([float(s["is_correct"]) for s in listed])
        pool.ids.append(name)
        pool.lines.append(record.line)
    refuse_bad(path, bad, on_error)
    return replace(pool, left_out=bad)


def encode_world(
    text: TextWorld,
    model: str,
    layers: Sequence[int | None],
    *,
    seed: Seed,
    pooling: str = "last",
    max_length: int = 1024,
    test_share: float = 0.5,
) -> tuple[dict[int, World], dict[str, Any]]:
    """Worlds by number of layers of the feature model (None: all), split alike; each text is read once a layer. And
    what the model is shown of the texts (counts for ``features.limits.words``)."""
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
    return worlds, text.shown(partial(shown, encoder.renderer))
