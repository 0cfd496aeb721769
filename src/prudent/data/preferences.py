"""Read preference pairs of any shape into one: columns prompt, chosen, rejected as lists of chat messages."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prudent.data.failing import FILE_COLUMN
from prudent.data.files import Record, file_kind, open_records
from prudent.data.formats import (
    KEEP_EMPTY,
    LEFT_OUT,
    LISTED,
    NUMBERS,
    WITHOUT_PROMPT,
    Choices,
    Message,
    Pair,
    Problem,
    Reject,
    pair_of_sides,
    squeeze,
)
from prudent.data.ratings import Rated, pairs_of_ratings, pick_rating, read_rated
from prudent.data.read_report import SKIP, ReadReport
from prudent.data.records import item_id, listed
from prudent.data.votes import SOFT_RULES, of_argilla, pair_of_votes, read_votes
from prudent.errors import BadRow, PrudentError
from prudent.runs import clean_text, hash_text
from prudent.seeding import numpy_generator, spawn

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Source = str | Path
MESSAGE_COLUMNS = ("prompt", "chosen", "rejected")
PIECE = 8192  # rows read together where a source is streamed
MOST_COLUMNS = 1000  # of the file's own ones kept; a data set of many more takes minutes to open
NEUTRAL = {"weight": 1.0, "soft_label": 1.0, "margin": 0.0}


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


class Plan(NamedTuple):
    """How rows are read: see ``read_preferences``."""

    choices: Choices
    columns: Mapping[str, str]
    rating: str | None
    errors: str | Iterable[str]
    config: str | None
    on_error: str


def reading_plan(
    *,
    on_error: str = "raise",
    columns: Mapping[str, str] | None = None,
    ties: str = "drop",
    diverged: str = "drop",
    rating: str | None = None,
    soft_votes: str | None = "half",
    min_share: float = 0.5,
    without_prompt: str = "refuse",
    errors: str | Iterable[str] = (),
    config: str | None = None,
    allow: Iterable[str] = (),
) -> Plan:
    """The options of ``read_preferences``, checked."""
    _choice("on_error", on_error, ("raise", "skip"))
    _choice("ties", ties, ("drop", "keep"))
    _choice("diverged", diverged, ("drop", "keep"))
    if soft_votes is not None:
        _choice("soft_votes", soft_votes, SOFT_RULES)
    _choice("without_prompt", without_prompt, WITHOUT_PROMPT)
    choices = Choices(ties, diverged, without_prompt, soft_votes, min_share, frozenset(allow))
    return Plan(choices, columns or {}, rating, errors, config, on_error)


def read_pairs(
    sources: Sequence[Source], split: str | None, plan: Plan, report: ReadReport, piece: int | None = None
) -> Iterator[list[tuple[int, Pair]]]:
    """Pairs of the sources with their lines, a list for each source; with ``piece``, lists from at most so many rows,
    read as they come, whose bad rows are raised at once. Rows, reasons and shapes are counted in the report."""
    if not sources:
        raise PrudentError("no source of preferences was given")
    for one in sources:
        label = f"{Path(str(one)).name}: " if len(sources) > 1 else ""
        records = open_records(one, split, plan.config, stream=piece is not None)
        if file_kind(Path(one)) == "csv":
            records = _decode_cells(records)
        for part in _in_pieces(records, piece):
            pairs = _read_one(part, report, plan, label, whole=piece is None)
            report.kept += len(pairs)
            for _, pair in pairs:
                report.shapes[pair.shape] = report.shapes.get(pair.shape, 0) + 1
            if piece is not None:
                report.require(plan.on_error, plan.errors)
            yield pairs


def _in_pieces(records: Iterator[Record], piece: int | None) -> Iterator[Iterable[Record]]:
    if piece is None:
        yield records
        return
    while part := list(itertools.islice(records, piece)):
        yield part


def vote_codes(value: Any) -> list[int]:
    """Votes as codes; none where they can't be read (the row itself is reported elsewhere)."""
    try:
        return read_votes(value)
    except ValueError:
        return []


def _one_class(report: ReadReport, on_error: str) -> None:
    """Raise (or note, when skipping) that every vote of the file is for one response: a constant, not a judgement."""
    total = sum(report.votes.values())
    if len(report.votes) != 1 or total < 3 or report.shapes.get("votes", 0) < 3:
        return
    text = f"all {total} votes are {next(iter(report.votes))}: votes of one class hold no judgement; check the column"
    if on_error == "raise":
        raise PrudentError(f"{report.source}: {text}, or read them all the same: {SKIP}")
    report.notes.append(text)


def _choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise PrudentError(f"{name} is {value!r}; known: {', '.join(known)}")


def _read_one(
    records: Iterable[Record], report: ReadReport, plan: Plan, label: str, whole: bool
) -> list[tuple[int, Pair]]:
    """Pairs of one source with their lines; what is wrong goes into the report, one entry a field. whole: the records
    are all of the source's, as pairs of single ratings need."""
    pairs: list[tuple[int, Pair]] = []
    rated: list[Rated] = []

    def named(row: BadRow) -> BadRow:
        return BadRow(row.line, row.field, row.reason, label + row.detail) if label else row

    for record in records:
        report.read += 1
        report.flagged += map(named, record.flags)
        report.bad += map(named, record.errors)
        if record.value is None or record.errors:
            continue
        line = record.line

        def note(name: str, reason: str, detail: str, line: int = line) -> None:
            report.flagged.append(named(BadRow(line, name, reason, detail)))

        try:
            row = of_argilla(rename(record.value, plan.columns))
            if "response_1" in row:
                report.votes.update(vote_codes(row.get("votes")))
            outcome = _read_row(row, line, plan.choices, plan.rating, note)
        except Reject as reject:
            for problem in reject.problems:
                target = report.left_out if problem.reason in LEFT_OUT else report.bad
                target.append(named(BadRow(line, problem.field, problem.reason, problem.detail)))
            continue
        if isinstance(outcome, Rated):
            rated.append(outcome)
        else:
            try:
                item_id(outcome.extra.get("id"))
            except ValueError as error:
                note("id", "not-an-id", f"{error}; treated as missing")
                outcome.extra["id"] = None
            if label:
                outcome.extra[FILE_COLUMN] = label.removesuffix(": ")
            pairs.append((line, outcome))
    if rated:
        if not whole:
            raise PrudentError(
                f"{report.source}: pairs from single rated responses need all of them at once; don't stream"
            )
        name = plan.rating or pick_rating([*rated[0].extra], plan.rating)
        found, left_out = pairs_of_ratings(rated, name, plan.choices.ties)
        report.left_out += map(named, left_out)
        report.notes.append(f"pairs from single responses by {name!r}: every two of one prompt with different ratings")
        pairs += found
    return pairs


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """``row`` with a user's names in place of ours: columns = {our name: name in the file}."""
    if not columns:
        return dict(row)
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        found = listed(row)
        raise Reject(
            *(Problem(name, "missing-field", f"mapped column is not there; found: {found}") for name in missing)
        )
    ours = {theirs: name for name, theirs in columns.items()}
    return {ours.get(key, key): value for key, value in row.items() if key not in columns or key in ours}


def _read_row(
    row: dict[str, Any], line: int, choices: Choices, rating: str | None, note: Callable[[str, str, str], None]
) -> Pair | Rated:
    if "chosen" in row or "rejected" in row:
        return pair_of_sides(row, choices, note)
    if "votes" in row and ("response_1" in row or "response_2" in row):
        return pair_of_votes(row, choices, note)
    if "response" in row:
        return read_rated(row, line, rating, note)
    found = listed(row)
    detail = (
        f"columns found: {found}; expected chosen and rejected, response_1, response_2 and votes, or response and a "
        'rating; map yours with --column chosen=your_column (in Python columns={"chosen": "your_column"})'
    )
    raise Reject(Problem("", "unknown-columns", detail))


def _decode_cells(records: Iterable[Record]) -> Iterator[Record]:
    """Records of a CSV; a column in which some cells hold JSON lists of messages must hold them in every row."""
    listed: set[str] = set()
    kept: list[Record] = []
    names = ("prompt", "chosen", "rejected", "response")
    for record in records:
        kept.append(record)
        if record.value is not None:
            listed |= {n for n in names if isinstance(record.value.get(n), str) and LISTED.match(record.value[n])}
    for record in kept:
        for name in listed if record.value is not None else ():
            cell = record.value.get(name)  # type: ignore[union-attr]
            if isinstance(cell, str) and cell.strip() and not LISTED.match(cell):
                detail = "plain text in a column whose other cells hold JSON lists of messages; not used as an answer"
                record.errors.append(BadRow(record.line, name, "not-json", detail))
        yield record


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


def message_columns(pairs: Sequence[tuple[int, Pair]]) -> dict[str, pa.Array]:
    """Arrow columns prompt, chosen, rejected and row."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = {name: pa.array([_clean(getattr(pair, name)) for _, pair in pairs], messages) for name in MESSAGE_COLUMNS}
    return {**table, "row": pa.array([line for line, _ in pairs], pa.int64())}


def _clean(messages: list[Message]) -> list[Message]:
    return [{"role": message["role"], "content": clean_text(message["content"])} for message in messages]


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
