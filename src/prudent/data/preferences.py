"""Read preference pairs of any shape into one: columns prompt, chosen, rejected as lists of chat messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prudent.data.formats import KEEP_EMPTY, NEUTRAL, NUMBERS, Pair
from prudent.data.messages import Message, squeeze
from prudent.data.pairs import (
    MESSAGE_COLUMNS,
    MOST_COLUMNS,
    PIECE,
    Source,
    _one_class,
    message_columns,
    read_pairs,
    reading_plan,
)
from prudent.data.read_report import ReadReport
from prudent.data.records import item_id, listed
from prudent.errors import PrudentError
from prudent.files import hash_text
from prudent.seeding import numpy_generator, spawn

if TYPE_CHECKING:
    from datasets import Dataset


def read_preferences(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    on_error: str = "raise",
    stream: bool = False,
    **options: Any,
) -> Dataset:
    """Preference pairs of a hub id, a local file (JSONL, JSON, CSV, also .gz; Parquet, Arrow) or several of them.

    Returns a Dataset with ``prompt``, ``chosen`` and ``rejected`` (lists of {"role", "content"}; chosen and rejected
    hold the answer turns only), ``row`` (line of the file, from 1), where given ``weight``, ``soft_label`` (probability
    that chosen is better) and ``margin``, and the file's other columns where their types allow.

    split: split of a hub data set ("train" by default). on_error: "raise" reports every bad row in one DataError;
    "skip" leaves them out, counted (see ``read_preferences_with_report``). stream: read piece by piece onto disk, for
    what doesn't fit in memory or shouldn't be downloaded whole first; of the columns, only those above are kept.

    Options: columns={"prompt": "question", ...} maps names; ties="drop" | "keep" (soft label 1/2); diverged="drop" |
    "keep" for conversations that part before the last answer; rating= column of rated single responses;
    soft_votes="half" | "ignore" | None rule of soft labels from votes; min_share= share of votes that a winner needs;
    without_prompt="refuse" | "shared" (what two plain texts begin with is the prompt) | "empty" (kept with an empty
    prompt); errors= reasons that are errors too
    ("all": every flag and every row left out); allow= reasons of "empty", "blank" and "identical-sides" that are noted
    instead (for cleaning); config= configuration of a hub data set.

    Raises DataError (bad rows) or PrudentError (the whole source: missing, empty, wrong encoding, no pair in it).
    """
    return read_preferences_with_report(source, split=split, on_error=on_error, stream=stream, **options)[0]


def read_preferences_with_report(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    on_error: str = "raise",
    stream: bool = False,
    **options: Any,
) -> tuple[Dataset, ReadReport]:
    """``read_preferences`` and the report of the pass: rows read, kept and left out by reason, with their lines."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    report = ReadReport(", ".join(map(str, sources)))
    plan = reading_plan(on_error=on_error, **options)
    if stream:
        from prudent.data.streaming import on_disk

        dataset = on_disk(read_pairs(sources, split, plan, report, PIECE))
    else:
        pairs = [pair for part in read_pairs(sources, split, plan, report) for pair in part]
    if report.shapes.get("votes") and plan.choices.soft_votes:
        rule = {"half": "a tie counts as half a vote for each side", "ignore": "ties left out"}
        report.notes.append(f"soft_label from votes: {rule[plan.choices.soft_votes]}")
    if without := sum(row.reason == "no-prompt" for row in report.bad):
        report.notes.append(f"{without} pairs without a prompt left out; {KEEP_EMPTY}")
    report.require(on_error, plan.errors)
    _one_class(report, on_error)
    if not report.kept:
        counts = {reason: n for part in report.counts().values() for reason, n in part.items()}
        why = ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "no rows"
        first = next(iter([*report.bad, *report.left_out]), None)
        example = f"; the first: {first}" if first else ""
        raise PrudentError(
            f"{report.source}: no usable preference pair in {report.read} rows ({why}){example}; fix or map them"
        )
    return dataset if stream else to_dataset(pairs, report), report


def to_dataset(pairs: Sequence[tuple[int, Pair]], report: ReadReport | None = None) -> Dataset:
    """Dataset of normalised pairs. A column that Arrow can't hold in one type is left out and named in the report."""
    import pyarrow as pa
    from datasets import Dataset

    table = message_columns(pairs)
    for name in NUMBERS:
        values = [pair.numbers.get(name) for _, pair in pairs]
        if any(value is not None for value in values):
            table[name] = pa.array(values, pa.float64())
            missing = sum(value is None for value in values)
            if missing and report is not None:
                report.notes.append(
                    f"{name}: missing in {missing} of {len(values)} rows; training takes {NEUTRAL[name]}"
                )
    out: dict[str, list[Any]] = {}  # names of the columns left out by reason
    extras = dict.fromkeys(key for _, pair in pairs for key in pair.extra)
    for name in extras:
        reason = None
        if name in table:
            reason = "Prudent writes one of that name"
        elif "\0" in str(name):
            reason = "its name holds U+0000"
        elif len(table) >= MOST_COLUMNS:
            reason = f"a data set has at most {MOST_COLUMNS} columns"
        if reason:
            out.setdefault(reason, []).append(name)
            continue
        try:
            values = [pair.extra.get(name) for _, pair in pairs]
            mixed = name == "id" and len({type(value) for value in values} - {type(None)}) > 1
            column = pa.array([item_id(value) for value in values] if mixed else values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeError, OverflowError) as error:
            out.setdefault(f"its values have no common type ({str(error)[:80]})", []).append(name)
            continue
        if not pa.types.is_null(column.type):
            table[str(name)] = column
    if report is not None:
        for reason, names in out.items():
            plural = "s" if len(names) > 1 else ""
            report.notes.append(f"column{plural} {listed(map(repr, names))} left out: {reason}")
    return Dataset(pa.table(table))


def training_columns(dataset: Dataset) -> dict[str, np.ndarray]:
    """The columns weight, soft_label and margin that a data set has, (n,) float64 each; a missing value is neutral
    (weight 1, soft label 1, margin 0). Pass them on to ``HeadEnsemble.fit``."""
    found = {}
    for name, neutral in NEUTRAL.items():
        if name in dataset.column_names:
            values = [neutral if value is None else value for value in dataset[name]]
            found[name] = np.asarray(values, dtype=np.float64)
    return found


def prompt_key(prompt: list[Message]) -> str:
    """Hash of a prompt's text, white space and role names of equal turns set aside."""
    return hash_text(*(f"{message['role']}\n{squeeze(message['content'])}" for message in prompt))


def pair_groups(data: Dataset) -> list[str]:
    """Key of each pair's prompt, by which pairs are resampled and split; a pair without a prompt is a group of its
    own."""
    blank = prompt_key([{"role": "user", "content": ""}])
    keys = [prompt_key(prompt) for prompt in data["prompt"]]
    if blank not in keys:
        return keys
    texts = zip(data["chosen"], data["rejected"], strict=True)
    return [prompt_key([*a, *b]) if key == blank else key for key, (a, b) in zip(keys, texts, strict=True)]


def row_hash(row: Mapping[str, Any]) -> str:
    """Hash of one pair (prompt, chosen, rejected): a decision about a row holds only while this is the same."""
    return hash_text(*(json.dumps(row[name], sort_keys=True) for name in MESSAGE_COLUMNS))


def data_hash(dataset: Dataset) -> str:
    """SHA-256 (hex) of a data set's pairs in order with weight, soft_label and margin, for manifests."""
    digest = hashlib.sha256()
    for row in dataset.select_columns([n for n in (*MESSAGE_COLUMNS, *NUMBERS) if n in dataset.column_names]):
        digest.update(json.dumps(row, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def draw_pairs(dataset: Dataset, most: int | None, seed: int) -> Dataset:
    """At most ``most`` pairs of a data set, drawn at random by the seed and left in their order; None takes all."""
    if most is None or most >= len(dataset):
        return dataset
    rows = numpy_generator(spawn(seed, 1)[0]).permutation(len(dataset))[:most]
    return dataset.select(sorted(rows.tolist()))


def split_by_prompt(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(a, b): about ``share`` of the prompts in a, the rest in b; rows of one prompt text never on both sides.

    Which prompts go where depends on the seed and the prompts' texts alone, not on the order of rows. Raises
    PrudentError unless both sides get at least one prompt.
    """
    keys = pair_groups(dataset)
    unique = sorted(set(keys))
    count = round(share * len(unique))
    if not 0 < share < 1 or not 0 < count < len(unique):
        raise PrudentError(
            f"share {share} of {len(unique)} prompts leaves one side empty; both need at least one prompt"
        )
    order = numpy_generator(seed).permutation(len(unique))
    first = {unique[index] for index in order[:count]}
    sides = ([i for i, key in enumerate(keys) if key in first], [i for i, key in enumerate(keys) if key not in first])
    return dataset.select(sides[0]), dataset.select(sides[1])
