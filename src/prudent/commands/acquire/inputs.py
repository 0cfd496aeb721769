"""What acquire reads: labelled pairs, and every two responses of a pool that nobody has labelled."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prudent.commands.acquire.options import AcquireOptions
from prudent.commands.preflight.inputs import encode_distinct, encode_pool, pair_reading, short_names
from prudent.data.messages import squeeze
from prudent.data.pools import Pool, refuse_uneven
from prudent.data.preferences import prompt_key, read_preferences_with_report
from prudent.errors import PrudentError
from prudent.rewards.containers import CandidateFeatures, PairFeatures, combine

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.features.encoder import Encoder

MOST_PAIRS = 5_000_000


@dataclass(frozen=True)
class OpenPairs:
    """Pairs without a label. prompt (m,): index into the pool; sides (m, 2): indices of its responses; counts: what
    was left out, by reason."""

    prompt: list[int]
    sides: list[tuple[int, int]]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompt)


def read_labelled(options: AcquireOptions) -> tuple[list[tuple[str, Dataset]], list[tuple[str, Dataset]], list[str]]:
    """Preference files by name, the ties in them (they teach nothing, and need not be asked for again), and notes on
    rows left out. PrudentError where there are ties alone."""
    found, ties, notes = [], [], []
    for file, name in zip(options.preferences, short_names(options.preferences)):
        pairs, report = read_preferences_with_report(file, **pair_reading(options), ties="keep")
        labels = pairs["soft_label"] if "soft_label" in pairs.column_names else [None] * len(pairs)
        tied = [row for row, label in enumerate(labels) if label == 0.5]
        if tied:
            ties.append((name, pairs.select(tied)))
            notes.append(f"{name}: {len(tied)} ties, which say nothing of the reward, are not asked for again")
            pairs = pairs.select([row for row, label in enumerate(labels) if label != 0.5])
        if len(pairs):
            found.append((name, pairs))
        if report.dropped:
            notes.append(f"{name}: {report.dropped} of {report.read} rows could not be used, left out")
    if not found:
        raise PrudentError(f"{', '.join(options.preferences)} holds ties alone; give --preferences with a choice, too")
    return found, ties, notes


def _text(answer: Any) -> str:
    return squeeze(answer if isinstance(answer, str) else "\n".join(turn["content"] for turn in answer))


def labelled_keys(data: list[tuple[str, Dataset]]) -> set[tuple[str, frozenset[str]]]:
    """Prompt and two answers of every labelled pair, whichever was chosen, if any."""
    return {
        (prompt_key(prompt), frozenset((_text(chosen), _text(rejected))))
        for _, pairs in data
        for prompt, chosen, rejected in zip(pairs["prompt"], pairs["chosen"], pairs["rejected"])
    }


def open_pairs(pool: Pool, known: set[tuple[str, frozenset[str]]]) -> OpenPairs:
    """Every two responses of a prompt that differ and that nobody has labelled."""
    prompts, sides = [], []
    counts = {"already labelled": 0, "same text": 0, "listed twice": 0}
    seen: set[tuple[str, frozenset[str]]] = set()
    for position, (prompt, responses) in enumerate(zip(pool.prompts, pool.responses)):
        key, texts = prompt_key(prompt), [squeeze(text) for text in responses]
        for a, b in itertools.combinations(range(len(texts)), 2):
            pair = (key, frozenset((texts[a], texts[b])))
            reason = (
                "same text"
                if texts[a] == texts[b]
                else "already labelled"
                if pair in known
                else "listed twice"
                if pair in seen
                else ""
            )
            if reason:
                counts[reason] += 1
                continue
            seen.add(pair)
            prompts.append(position)
            sides.append((a, b))
    return OpenPairs(prompts, sides, counts)


def open_of(pool: Pool, options: AcquireOptions, data: list[tuple[str, Dataset]]) -> OpenPairs:
    """The pool's open pairs. PrudentError where the budget is beyond them."""
    refuse_uneven([len(texts) for texts in pool.responses], pool.ids)
    every = sum(math.comb(len(texts), 2) for texts in pool.responses)
    if every > MOST_PAIRS:
        raise PrudentError(
            f"{options.candidates} holds {every:,} pairs of two responses to one prompt; the limit is {MOST_PAIRS:,}: "
            "give fewer responses a prompt"
        )
    found = open_pairs(pool, labelled_keys(data))
    most = len(found) * options.repeat
    if options.budget > most:
        left = ", ".join(f"{count} {reason}" for reason, count in found.counts.items() if count)
        raise PrudentError(
            f"--budget is {options.budget}, but {options.candidates} holds {len(found)} pairs to label"
            f"{f' ({left} left out)' if left else ''}; give --budget {most} or less, or more --candidates"
            if most
            else f"{options.candidates} holds no pair to label ({left} left out); give other --candidates"
        )
    return found


def open_encoder(options: AcquireOptions) -> Encoder:
    """The encoder of the features, at the depth that is named."""
    from prudent.features.encoder import Encoder

    return Encoder(
        options.encoder,
        pooling=options.pooling,
        max_length=options.max_length,
        dtype=options.dtype,
        layer=options.blocks,
    )


def encode(
    encoder: Encoder, data: list[tuple[str, Dataset]], pool: Pool, notes: list[str], on_error: str
) -> tuple[PairFeatures, Pool, CandidateFeatures]:
    """Features of the labelled pairs, the pool without what can't be rendered, and features of its responses."""
    pairs = combine([encode_distinct(encoder, part, name, notes, on_error)[1] for name, part in data])
    return pairs, *encode_pool(encoder, pool, notes, on_error)


def sides_of(candidates: CandidateFeatures, found: OpenPairs) -> torch.Tensor:
    """Features (m, 2, d) of the open pairs."""
    return candidates.features[torch.tensor(found.prompt)[:, None], torch.tensor(found.sides)]
