"""Preference pairs of any source, a piece at a time: which reader takes a row, and what its bad rows are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prudent.data.failing import FILE_COLUMN
from prudent.data.files import Record, file_kind, open_records
from prudent.data.formats import LEFT_OUT, WITHOUT_PROMPT, Choices, Pair, pair_of_sides
from prudent.data.messages import LISTED, Message, Problem, Reject
from prudent.data.ratings import Rated, pairs_of_ratings, pick_rating, read_rated
from prudent.data.read_report import SKIP, ReadReport
from prudent.data.records import item_id, listed
from prudent.data.votes import SOFT_RULES, of_argilla, pair_of_votes, read_votes
from prudent.errors import BadRow, PrudentError
from prudent.files import clean_text

if TYPE_CHECKING:
    import pyarrow as pa

Source = str | Path
MESSAGE_COLUMNS = ("prompt", "chosen", "rejected")
PIECE = 8192  # rows read together where a source is streamed
MOST_COLUMNS = 1000  # of the file's own ones kept; a data set of many more takes minutes to open


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
    labels = [Path(str(one)).name for one in sources]
    for one, name in zip(sources, labels):
        label = "" if len(sources) == 1 else f"{name if labels.count(name) == 1 else one}: "
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
        return replace(row, detail=label + row.detail, file=label) if label else row

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


def message_columns(pairs: Sequence[tuple[int, Pair]]) -> dict[str, pa.Array]:
    """Arrow columns prompt, chosen, rejected and row."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = {name: pa.array([_clean(getattr(pair, name)) for _, pair in pairs], messages) for name in MESSAGE_COLUMNS}
    return {**table, "row": pa.array([line for line, _ in pairs], pa.int64())}


def _clean(messages: list[Message]) -> list[Message]:
    return [{"role": message["role"], "content": clean_text(message["content"])} for message in messages]
