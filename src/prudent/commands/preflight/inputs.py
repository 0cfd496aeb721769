"""What preflight reads: preference files (split by prompt where no test file is given) and the pool of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from prudent.commands.preflight.options import PreflightOptions
from prudent.data.failing import Origin, by_pair, origins_of, picked, use_rows
from prudent.data.pools import Pool, read_pool, refuse_uneven, use_pool
from prudent.data.preferences import (
    ReadReport,
    data_hash,
    draw_pairs,
    pair_groups,
    prompt_key,
    read_preferences_with_report,
    split_by_prompt,
    training_columns,
)
from prudent.errors import PrudentError
from prudent.features.limits import same_responses, shown, words
from prudent.rewards.columns import PairColumns
from prudent.rewards.containers import CandidateFeatures, PairFeatures, candidate_features, padded
from prudent.rewards.families import why_same
from prudent.seeding import numpy_generator

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.commands.acquire.options import AcquireOptions
    from prudent.commands.preflight.candidates import Sampler
    from prudent.features.encoder import Encoder

LEAST_PAIRS = 8
Messages = list[dict[str, str]]
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """One preference file: the pairs that reward models learn from, and those that they never see."""

    name: str
    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class Inputs:
    """All preference files. notes: what a reader must know about them, in words; reports: of reading, one a file."""

    sources: list[Source]
    notes: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trains(self) -> list[Dataset]:
        """The pairs that reward models learn from, of each source."""
        return [source.train for source in self.sources]

    @property
    def pairs(self) -> int:
        """Number of training pairs of all sources."""
        return sum(len(source.train) for source in self.sources)

    def hash(self) -> str:
        """Hash of all training and held-out pairs."""
        from prudent.files import hash_text

        return hash_text(*(data_hash(part) for source in self.sources for part in (source.train, source.test)))


def _reading(report: ReadReport) -> dict[str, Any]:
    found = report.as_dict()
    found.pop("rows", None)
    return found


def short_names(sources: Sequence[str]) -> list[str]:
    """File names without their endings, hub ids and files of one name as they are."""
    names = [Path(source).name.split(".")[0] if Path(source).suffix else source for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources)]


def pair_reading(settings: PreflightOptions | AcquireOptions) -> dict[str, Any]:
    """How preference files are read; of --column, what concerns them rather than pools."""
    columns = {ours: theirs for ours, theirs in settings.columns.items() if ours not in ("responses", "gold", "id")}
    return {"on_error": settings.on_error, "columns": columns, "without_prompt": settings.without_prompt}


def read_inputs(settings: PreflightOptions) -> Inputs:
    """Preference pairs of every file, capped and split by prompt. Raises DataError with every bad row."""
    notes: list[str] = []
    reports = []
    data = []
    for file, name in zip(settings.preferences, short_names(settings.preferences)):
        pairs, report = read_preferences_with_report(file, **pair_reading(settings))
        data.append((name, pairs))
        reports.append(_reading(report))
        if report.dropped:
            notes.append(f"{name}: {report.dropped} of {report.read} rows could not be used and were left out")
    total = sum(len(pairs) for _, pairs in data)
    if settings.max_pairs is not None and total > settings.max_pairs:
        data = [(name, _capped(pairs, settings.max_pairs, total, settings.seed)) for name, pairs in data]
        kept = sum(len(pairs) for _, pairs in data)
        notes.append(f"{kept} of {total} pairs used (--max-pairs {settings.max_pairs}), drawn at random by the seed")
    if settings.test:
        sources = _with_test_files(data, settings, reports, notes)
    else:
        sources = [Source(name, *_split(pairs, settings)) for name, pairs in data]
        notes.append(f"{settings.holdout:.0%} of the prompts were held out: no reward model saw their pairs")
    pairs = sum(len(source.train) for source in sources)
    if pairs < LEAST_PAIRS:
        raise PrudentError(f"{pairs} preference pairs to learn from; preflight needs at least {LEAST_PAIRS}, give more")
    return Inputs(sources, [note for note in notes if note], reports)


def _capped(pairs: Dataset, most: int, total: int, seed: int) -> Dataset:
    return draw_pairs(pairs, max(1, round(most * len(pairs) / total)), seed)


def _split(pairs: Dataset, settings: PreflightOptions) -> tuple[Dataset, Dataset]:
    held, train = split_by_prompt(pairs, settings.holdout, settings.seed)
    return train, held


def _with_test_files(
    data: list[tuple[str, Dataset]], settings: PreflightOptions, reports: list[dict[str, Any]], notes: list[str]
) -> list[Source]:
    """Test file i with preference file i where there are as many; else all test files with each preference file."""
    paired = len(settings.test) == len(data)
    tests = []
    for files in [[file] for file in settings.test] if paired else [list(settings.test)]:
        held, report = read_preferences_with_report(files, **pair_reading(settings))
        reports.append(_reading(report))
        if settings.max_test_pairs is not None and len(held) > settings.max_test_pairs:
            notes.append(f"{settings.max_test_pairs} of {len(held)} test pairs of {short_names(files)[0]} used")
            held = _capped(held, settings.max_test_pairs, len(held), settings.seed)
        tests.append(held)
    sources = [Source(name, pairs, tests[i if paired else 0]) for i, (name, pairs) in enumerate(data)]
    notes.append(_shared_prompts(sources))
    return sources


def _shared_prompts(sources: list[Source]) -> str:
    seen = {prompt_key(prompt) for source in sources for prompt in source.train["prompt"]}
    held = {prompt_key(prompt) for source in sources for prompt in source.test["prompt"]}
    both = len(seen & held)
    return f"{both} of {len(held)} test prompts also occur in the preference files" if both else ""


def held_out_prompts(inputs: Inputs, count: int, seed: int) -> list[Messages]:
    """Up to ``count`` distinct prompts that no reward model learnt from, drawn by the seed."""
    seen = {prompt_key(prompt) for source in inputs.sources for prompt in source.train["prompt"]}
    found: dict[str, list[dict[str, str]]] = {}
    for source in inputs.sources:
        for prompt in source.test["prompt"]:
            key = prompt_key(prompt)
            if key not in seen:
                found.setdefault(key, prompt)
    if not found:
        raise PrudentError("every test prompt also occurs in the preference files; give other test files, or a --pool")
    keys = sorted(found)
    order = numpy_generator(seed).permutation(len(keys))[:count]
    return [found[keys[index]] for index in order]


def read_candidates(
    path: str, gold: str | None, columns: Mapping[str, str] | None = None, on_error: str = "raise"
) -> Pool:
    """The pool of a file; a gold column that is named must be there."""
    pool = read_pool(path, gold or "gold", columns, on_error)
    refuse_uneven(pool_counts(pool), pool.ids)
    if gold and pool.gold is None:
        raise PrudentError(f"{path} has no column {gold!r}; name the column of gold rewards, or leave --gold out")
    return pool


def check_prompts(
    sampler: Sampler, found: Inputs, prompts: list[Messages], on_error: str
) -> tuple[list[Messages], list[int]]:
    """The prompts that the policy has room to answer, and their tokens; others are named or left out and noted."""
    from prudent.features.models import require_room
    from prudent.features.rendering import Renderer

    def use(rows: list[int]) -> list[int]:
        lengths = [len(ids) for ids in Renderer(sampler.tokenizer).prompts([prompts[row] for row in rows])]
        require_room(sampler.model, lengths, sampler.longest)
        return lengths

    lengths, kept, bad = use_rows(use, prompt_origins(found, prompts), "held-out prompts", on_error)
    if bad:
        found.notes.append(f"{len(bad)} held-out prompts can't be sampled and were left out, the first: {bad[0]}")
    return [prompts[row] for row in kept], lengths


def prompt_origins(found: Inputs, prompts: list[Messages], part: str = "test") -> list[Origin]:
    """Where each prompt first stands in the test (or "train") parts of the files."""
    first: dict[str, Origin] = {}
    for source in found.sources:
        data = getattr(source, part)
        for prompt, origin in zip(data["prompt"], origins_of(data), strict=True):
            first.setdefault(prompt_key(prompt), origin._replace(file=origin.file or source.name))
    return [first[prompt_key(prompt)] for prompt in prompts]


def pool_counts(pool: Pool) -> list[int]:
    """Responses of each prompt of a pool."""
    return [len(texts) for texts in pool.responses]


def pool_gold(pool: Pool) -> torch.Tensor | None:
    """Gold (P, C) float64, zeros where there is no response."""
    if pool.gold is None:
        return None
    flat = torch.tensor([value for row in pool.gold for value in row], dtype=torch.float64)
    return padded(flat, pool_counts(pool))


def encode_pool(
    encoder: Encoder, pool: Pool, notes: list[str] | None = None, on_error: str = "raise"
) -> tuple[Pool, CandidateFeatures]:
    """The pool and its features; prompts that can't be rendered are named in one DataError, or left out and noted."""
    flat, pool = _use_pool(encoder.encode, pool, notes, on_error)
    if notes is not None:
        notes += candidate_notes(encoder, pool)
    return pool, candidate_features(flat, pool.prompts, pool.responses)


def _use_pool(
    use: Callable[[list[Any], list[str]], R], pool: Pool, notes: list[str] | None, on_error: str
) -> tuple[R, Pool]:
    """``use`` of the pool's prompts and responses, one a response, and the prompts that it can be used on."""
    found, pool, bad = use_pool(use, pool, "candidates", on_error)
    if notes is not None and bad:
        notes.append(f"candidates: {len(bad)} prompts were left out, the first: {bad[0]}")
    return found, replace(pool, left_out=())  # they are noted once


def check_pool(encoder: Encoder, pool: Pool, notes: list[str], on_error: str) -> tuple[Pool, np.ndarray, np.ndarray]:
    """The prompts of a pool that can be rendered, and of their responses what ``Encoder.sizes`` says."""
    (tokens, held), pool = _use_pool(encoder.sizes, pool, notes, on_error)
    return pool, tokens, held


def _use_pairs(
    use: Callable[[Dataset], R], data: Dataset, name: str, notes: list[str], on_error: str
) -> tuple[R, Dataset]:
    """``use`` of the pairs, and those it can be used on; others are named in one DataError, or left out and noted."""
    found, kept, bad = use_rows(lambda rows: use(picked(data, rows)), origins_of(data), name, on_error)
    if bad:
        notes.append(f"{name}: {len(bad)} pairs can't be rendered and were left out, the first: {bad[0]}")
    return found, picked(data, kept)


def check_pairs(
    encoder: Encoder, data: Dataset, name: str, notes: list[str], on_error: str
) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """The pairs that can be rendered; tokens (n, 3) of prompt, chosen and rejected; which (n,) are on disk already."""

    def use(part: Dataset) -> tuple[np.ndarray, np.ndarray]:
        with by_pair(len(part)):
            return encoder.sizes([*part["prompt"], *part["prompt"]], [*part["chosen"], *part["rejected"]])

    (tokens, held), data = _use_pairs(use, data, name, notes, on_error)
    n = len(data)
    return data, np.column_stack([tokens[:n], tokens[n:, 1]]), held[:n] & held[n:]


def candidate_notes(encoder: Encoder, pool: Pool) -> list[str]:
    """What a reader must know of candidates: how many are cut, and how many the encoder can't tell apart."""
    prompts, responses, owners = pool.flat()
    said = words(same_responses(shown(encoder, prompts, responses), owners, responses))
    return [f"candidates: {said} (--max-length {encoder.max_length})"] if said else []


def encode_pairs(encoder: Encoder, data: Dataset) -> PairFeatures:
    """Features of a data set's pairs, both sides in one pass, with weights, soft labels and margins where there are."""
    prompts = data["prompt"]
    with by_pair(len(data)):
        both = encoder.encode([*prompts, *prompts], [*data["chosen"], *data["rejected"]])
    columns = {name: torch.from_numpy(values) for name, values in training_columns(data).items()}
    return PairFeatures(both[: len(data)], both[len(data) :], pair_groups(data), PairColumns(**columns))


def encode_distinct(
    encoder: Encoder, data: Dataset, name: str, notes: list[str], on_error: str = "raise"
) -> tuple[Dataset, PairFeatures]:
    """The pairs that the encoder can tell apart, and their features; what its length limit did goes to ``notes``.

    Pairs that can't be rendered are named in one DataError, or left out with ``on_error="skip"``.
    """
    pairs, data = _use_pairs(lambda part: encode_pairs(encoder, part), data, name, notes, on_error)
    rows = pairs.distinct()
    same, cut = len(pairs) - len(rows), encoder.stats.truncated
    if cut:
        notes.append(
            f"{name}: {cut} of {2 * len(pairs)} texts are longer than --max-length {encoder.max_length} and were cut"
        )
    if same:
        why = why_same(data, sorted(set(range(len(pairs))) - set(rows.tolist())), encoder)
        causes = (("truncation", "identical_after_truncation"), ("the template", "identical_after_template"))
        parts = [f"{why[key]} pairs are the same after {cause}" for cause, key in causes if why[key]]
        notes.append(f"{name}: of {len(pairs)} pairs, {' and '.join(parts)}: left out")
    if not len(rows):
        raise PrudentError(
            f"{name}: both sides of every pair are the same within {encoder.max_length} tokens; raise --max-length, or "
            "give a model whose template shows what they differ in"
        )
    return (data.select(rows.tolist()), pairs.take(rows)) if same else (data, pairs)


def encode_sources(
    encoder: Encoder, found: Inputs, on_error: str = "raise"
) -> tuple[Inputs, list[PairFeatures], list[PairFeatures]]:
    """The inputs without the pairs that can't be distinguished, and the features of every source's train and test."""
    notes = list(found.notes)
    trains, tests = (
        [
            encode_distinct(encoder, getattr(source, part), f"{source.name}, {part}", notes, on_error)
            for source in found.sources
        ]
        for part in ("train", "test")
    )
    sources = [
        Source(source.name, train, test)
        for source, (train, _), (test, _) in zip(found.sources, trains, tests, strict=True)
    ]
    return replace(found, sources=sources, notes=notes), [pairs for _, pairs in trains], [pairs for _, pairs in tests]


def answer_length(messages: list[dict[str, str]]) -> int:
    """Characters of an answer."""
    return sum(len(message["content"]) for message in messages)


def length_difference(data: Dataset) -> torch.Tensor:
    """Characters of the chosen minus those of the rejected answer, (n,)."""
    return torch.tensor([answer_length(a) - answer_length(b) for a, b in zip(data["chosen"], data["rejected"])])
