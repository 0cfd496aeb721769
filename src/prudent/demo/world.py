"""The embedded world: our own prompts, 16 sampled responses each, and a gold reward that is exact for any text.

Preferences are drawn from gold by Bradley-Terry with a chosen noise, so the truth behind every estimate is known.
docs/embedded-data.md says how the world was made and what a rule blind to the prompt gains in it.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch

from prudent import seeding
from prudent.arrays import ArrayLike
from prudent.data import bradley_terry
from prudent.demo import design
from prudent.demo.constraints import Constraint, gold
from prudent.errors import PrudentError
from prudent.files import hash_text

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.data.pools import Pool

TASKS, PROMPTS, RESPONSES = "tasks.jsonl", "prompts.jsonl", "responses.jsonl.gz"
SIDES = ("balanced", "restraint", "demand")
Message = dict[str, str]


@dataclass(frozen=True)
class World:
    """Prompts with their constraints, sampled responses and gold rewards, one entry a prompt.

    prompts: messages (one user turn). responses: as many texts for each prompt. gold: (prompts, responses) float64 in
    [0, 1]. topics and tasks: what the prompt is about, and the prompt without its constraints. tokens, logprobs,
    ended, each (prompts, responses): length in tokens with the end mark, log-probability of the whole response under
    the policy that it was sampled from (nats), and whether it ended by itself within the most tokens.
    """

    ids: list[str]
    topics: list[str]
    tasks: list[str]
    prompts: list[list[Message]]
    constraints: list[tuple[Constraint, ...]]
    responses: list[list[str]]
    gold: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    ended: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def flat(self) -> tuple[list[list[Message]], list[str]]:
        """(prompts, responses) with one entry a response, prompt by prompt: what an encoder takes."""
        owners = [prompt for prompt, texts in zip(self.prompts, self.responses, strict=True) for _ in texts]
        return owners, [text for texts in self.responses for text in texts]

    def take(self, indices: Sequence[int] | torch.Tensor) -> World:
        """The world of some prompts, by place, in the order given."""
        order = [int(index) for index in indices]
        columns: dict[str, Any] = {}
        for part in fields(self):
            values = getattr(self, part.name)
            columns[part.name] = values[order] if isinstance(values, torch.Tensor) else [values[i] for i in order]
        return World(**columns)


def read_lines(name: str) -> list[dict[str, Any]]:
    """Rows of a packaged JSONL file, gzipped or not."""
    data = (resources.files("prudent.demo") / "data" / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@functools.cache
def _whole() -> World:
    rows = read_lines(PROMPTS)
    answers = {row["id"]: row for row in read_lines(RESPONSES)}
    sampled = [answers[row["id"]] for row in rows]
    constraints = [tuple(Constraint(**part) for part in row["constraints"]) for row in rows]
    responses = [row["responses"] for row in sampled]
    rewards = [[gold(c, text) for text in texts] for c, texts in zip(constraints, responses, strict=True)]
    return World(
        ids=[row["id"] for row in rows],
        topics=[row["topic"] for row in rows],
        tasks=[row["task"] for row in rows],
        prompts=[[{"role": "user", "content": row["prompt"]}] for row in rows],
        constraints=constraints,
        responses=responses,
        gold=torch.tensor(rewards, dtype=torch.float64),
        tokens=torch.tensor([row["tokens"] for row in sampled]),
        logprobs=torch.tensor([row["logprobs"] for row in sampled], dtype=torch.float64),
        ended=torch.tensor([row["ended"] for row in sampled]),
    )


def load_world(prompts: int | Sequence[str] | None = None, side: str = "balanced") -> World:
    """The embedded world, or a part of it; of that part, the side that is named (see ``side_places``).

    prompts: None for all; a number n for n prompts (the same ones every time, those of a smaller n among those of a
    larger; multiples of 80 are balanced over the constraints like the whole); or ids. Gold is computed at load from
    the texts. Raises PrudentError for a number outside the world, an unknown id or an unknown side.
    """
    world = _part(prompts)
    return world if side == "balanced" else world.take(side_indices(world, side))


def _part(prompts: int | Sequence[str] | None) -> World:
    world = _whole()
    if prompts is None:
        return world
    if isinstance(prompts, int):
        if not 1 <= prompts <= len(world):
            raise PrudentError(f"prompts is {prompts}; the embedded world has 1 to {len(world)}")
        return world.take(sorted(_balanced_order(world)[:prompts]))
    index = {name: i for i, name in enumerate(world.ids)}
    unknown = [name for name in prompts if name not in index]
    if unknown:
        raise PrudentError(f"prompt id {unknown[0]!r} is not in the embedded world; ids look like {world.ids[0]!r}")
    return world.take([index[name] for name in prompts])


def _balanced_order(world: World) -> list[int]:
    """All places, block of the design by block, so that 80, 160 and 240 prompts are balanced like all of them."""
    keys = [hash_text("spread", name) for name in world.ids]
    block = design.blocks(world.constraints, keys)
    return sorted(range(len(world)), key=lambda index: (block[index], keys[index]))


def side_indices(world: World, side: str) -> torch.Tensor:
    """Places of the prompts whose constraints all pull one way, a quarter of the world: "restraint" or "demand".

    Restraint asks for less (at most n words, no commas, avoid a word, ...), demand for more. What is good is then the
    same for nearly all prompts, so that a reward model learns it from a few hundred pairs, which it can't in the
    balanced whole; but a rule blind to the prompt learns it too. "balanced" gives all places.
    """
    if side not in SIDES:
        raise PrudentError(f"side is {side!r}, must be one of {', '.join(SIDES)}")
    kinds = {
        kind for pair in design.PAIRS.values() for kind in (pair if side == "balanced" else [pair[side == "demand"]])
    }
    return torch.tensor([i for i, parts in enumerate(world.constraints) if all(part.kind in kinds for part in parts)])


def split(world: World, share: float = 0.5, seed: seeding.Seed = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(places for preferences, places for evaluation): a random split of the prompts, balanced over the constraints.

    Of the prompts with the same two kinds, ``share`` go to the first side, in random order; with the whole world and
    share 1/2 every kind has 16 prompts on either side. Reward models see preferences on the first side only, policies
    are judged on the second, so neither a prompt nor a balance of kinds is shared by accident.
    """
    if not 0 < share < 1:
        raise PrudentError(f"share is {share}, must be between 0 and 1")
    generator = seeding.numpy_generator(seed)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in generator.permutation(len(world)).tolist():
        kinds = sorted(part.kind for part in world.constraints[index])
        groups.setdefault(tuple(kinds), []).append(index)
    ranked = [(i / len(group), index) for group in groups.values() for i, index in enumerate(group)]
    ranked.sort(key=lambda entry: entry[0])
    cut = min(max(1, round(share * len(world))), len(world) - 1)
    indices = torch.tensor([index for _, index in ranked])
    return indices[:cut].sort().values, indices[cut:].sort().values


def gold_reward(
    prompts: Sequence[str | Sequence[Constraint | Mapping[str, Any]]], texts: Sequence[str]
) -> torch.Tensor:
    """Gold rewards (N,) float64 in [0, 1] of any texts, one prompt each.

    prompts: an id of the embedded world, or constraints (``Constraint`` or mappings with kind, number, word), a text.
    Raises PrudentError for an unknown id, an unknown kind or unequal lengths.
    """
    if len(prompts) != len(texts):
        raise PrudentError(f"{len(prompts)} prompts for {len(texts)} texts; give one prompt a text")
    world = _whole() if any(isinstance(prompt, str) for prompt in prompts) else None
    known = dict(zip(world.ids, world.constraints, strict=True)) if world else {}
    found = []
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if isinstance(prompt, str):
            if prompt not in known:
                raise PrudentError(f"prompt id {prompt!r} (number {index}) is not in the embedded world")
            prompt = known[prompt]
        found.append(gold(prompt, text))
    return torch.tensor(found, dtype=torch.float64)


def draw_preferences(
    world: World | ArrayLike, prompt_indices: Sequence[int] | torch.Tensor, pairs: int, slope: float, seed: seeding.Seed
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``data.bradley_terry.draw_preferences`` from a World, or from its gold (prompts, responses)."""
    return bradley_terry.draw_preferences(
        world.gold if isinstance(world, World) else world, prompt_indices, pairs, slope, seed
    )


def preferences_dataset(
    world: World, prompt_indices: Sequence[int] | torch.Tensor, pairs: int, slope: float, seed: seeding.Seed
) -> Dataset:
    """The draw of :func:`draw_preferences` in the form of ``prudent.read_preferences``: prompt, chosen, rejected.

    Extra columns: ``row`` (from 1), ``id`` (of the prompt). Gold isn't among them: reward models see preferences only.
    """
    from datasets import Dataset

    prompt, chosen, rejected = draw_preferences(world, prompt_indices, pairs, slope, seed)

    def answer(index: int, response: int) -> list[Message]:
        return [{"role": "assistant", "content": world.responses[index][response]}]

    rows = [
        {
            "prompt": world.prompts[index],
            "chosen": answer(index, better),
            "rejected": answer(index, worse),
            "row": number,
            "id": world.ids[index],
        }
        for number, (index, better, worse) in enumerate(
            zip(prompt.tolist(), chosen.tolist(), rejected.tolist(), strict=True), 1
        )
    ]
    return Dataset.from_list(rows)


def pool(world: World) -> Pool:
    """The world as a candidate pool with its gold rewards."""
    from prudent.data.pools import Pool

    return Pool(
        prompts=world.prompts,
        responses=world.responses,
        gold=[[float(value) for value in row] for row in world.gold],
        ids=world.ids,
    )
