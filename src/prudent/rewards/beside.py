"""Rows that some families learn from beside the pairs: rated responses, and a pool sampled from the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from prudent.data.failing import Origin, counted, use_rows
from prudent.data.pools import Pool, read_pool, use_pool
from prudent.data.ratings import read_ratings
from prudent.errors import BadRow, PrudentError
from prudent.seeding import Seed, numpy_generator, spawn

if TYPE_CHECKING:
    from datasets import Dataset

MOST_META = 5_000_000  # pairs of two responses to one prompt, whose scores are compared in every step


@dataclass
class Beside:
    """Rows of one file. option: its name in ``fit_reward_model``; source: the file; rows: what it holds; left_out: rows
    that couldn't be used, where they may be left out (on_error "skip")."""

    option: str
    source: str
    rows: Any
    on_error: str
    left_out: list[BadRow]

    def info(self) -> dict[str, Any]:
        """What a fitted model's ``info`` says of the rows left out."""
        return {f"{self.option}_{name}": value for name, value in counted(self.left_out).items()}


def read_beside(
    given: Mapping[str, Any], on_error: str = "raise", columns: Mapping[str, str] | None = None
) -> dict[str, Beside]:
    """The files that ``ratings`` and ``meta_pool`` name, read before anything is computed. columns: {our name: the
    file's}, of which each file takes its own. PrudentError for what can't be used."""
    names = columns or {}
    found: dict[str, Beside] = {}
    if "ratings" in given:
        path = given["ratings"]
        mapped = {ours: names[ours] for ours in ("prompt", "response") if ours in names}
        rated, report = read_ratings(path, given.get("attributes"), on_error=on_error, columns=mapped)
        found["ratings"] = Beside("ratings", str(path), rated, on_error, report.bad)
    if "meta_pool" in given:
        path = given["meta_pool"]
        mapped = {ours: names[ours] for ours in ("prompt", "responses", "id") if ours in names}
        pool = read_pool(path, on_error=on_error, columns=mapped)
        pairs = len(pool) * math.comb(fewest(pool), 2)
        if pairs > MOST_META:
            raise PrudentError(
                f"{path} gives {pairs:,} pairs of two responses to one prompt ({fewest(pool):,} responses a prompt), "
                f"which every step compares; the limit is {MOST_META:,}: give fewer"
            )
        found["meta_pool"] = Beside("meta_pool", str(path), pool, on_error, list(pool.left_out))
    return found


def fewest(pool: Pool) -> int:
    """How many responses of each prompt can be used side by side: as many as the one with the fewest has."""
    return min(len(texts) for texts in pool.responses)


def encode_rated(encoder: Any, beside: Beside) -> tuple[torch.Tensor, Dataset]:
    """Features (n, d) of rated responses and the rows that they are of."""
    rated, lines = beside.rows, beside.rows["row"]

    def encode(rows: list[int]) -> torch.Tensor:
        part = rated.select(rows)
        return encoder.encode(list(part["prompt"]), list(part["response"]))

    features, kept, bad = use_rows(encode, [Origin(line) for line in lines], beside.source, beside.on_error)
    beside.left_out += bad
    return features, rated.select(kept)


def encode_meta(encoder: Any, beside: Beside) -> torch.Tensor:
    """Features (prompts, k, d) of a pool's responses, with k the smallest number of them that a prompt has."""
    k = fewest(beside.rows)
    pool = replace(beside.rows, responses=[texts[:k] for texts in beside.rows.responses], gold=None)
    features, kept, beside.left_out = use_pool(encoder.encode, pool, beside.source, beside.on_error)
    return features.unflatten(0, (len(kept), k))


@dataclass
class PoolSampler:
    """Draws ``prompts`` prompts with their responses from a pool sampled from the policy, anew in each step."""

    beside: Beside
    prompts: int
    seed: Seed

    def use(self, renderer: Any) -> None:
        """Leave out, or name in one DataError, the prompts of which a response can't be rendered."""
        one = self.beside
        _, one.rows, one.left_out = use_pool(renderer.conversations, one.rows, one.source, one.on_error)

    def __call__(self, step: int) -> tuple[Sequence[Any], Sequence[Sequence[str]]]:
        """Prompts and their responses of a step."""
        pool = self.beside.rows
        generator = numpy_generator(spawn(self.seed, step + 1)[step])
        rows = generator.choice(len(pool), min(self.prompts, len(pool)), replace=False)
        return [pool.prompts[row] for row in rows], [pool.responses[row] for row in rows]
