"""Rated single responses: into pairs (by one rating) or as they are (for attribute regression)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prudent.data.files import open_records
from prudent.data.formats import Pair
from prudent.data.messages import Message, Note, Problem, Reject, number, read_side
from prudent.data.read_report import ReadReport
from prudent.data.records import brief, listed, mapped
from prudent.errors import BadRow, PrudentError

if TYPE_CHECKING:
    from datasets import Dataset

RATINGS = ("helpfulness", "rating", "score", "overall_score", "label", "reward")


@dataclass
class Rated:
    """One response with its rating (None: missing) and the other columns."""

    line: int
    prompt: list[Message]
    response: list[Message]
    rating: float | None
    extra: dict[str, Any]


def pick_rating(columns: Sequence[str], wanted: str | None) -> str:
    """Rating column: the one asked for, or the first known name; Reject says what there is."""
    found = wanted or next((name for name in RATINGS if name in columns), None)
    if found is None or found not in columns:
        what = f"no rating column {wanted!r}" if wanted else "responses without a known rating column"
        detail = f"{what}; columns found: {listed(columns)}; name one with --rating"
        raise Reject(Problem(wanted or "rating", "missing-field", detail))
    return found


def read_response(row: Mapping[str, Any], note: Note) -> tuple[list[Message], list[Message]]:
    """(prompt, response) of a row as messages; Reject names every fault in them."""
    problems: list[Problem] = []
    sides: list[list[Message]] = []
    for name, role in (("prompt", "user"), ("response", "assistant")):
        try:
            if name not in row:
                raise Reject(Problem(name, "missing-field", f"columns found: {listed(row)}"))
            side = read_side(row[name], name, note)
            sides.append([{"role": role, "content": side}] if isinstance(side, str) else side)
        except Reject as reject:
            problems += reject.problems
    if problems:
        raise Reject(*problems)
    return sides[0], sides[1]


def read_rated(row: Mapping[str, Any], line: int, rating: str | None, note: Note) -> Rated:
    """Rated response of a row with prompt, response and a rating. "N/A", null and NaN are missing; 0 is a rating."""
    prompt, response = read_response(row, note)
    column = pick_rating(list(row), rating)
    try:
        value = number(row[column])
    except (TypeError, ValueError):
        detail = f"{brief(row[column])} is no rating; give a number or leave it out"
        raise Reject(Problem(column, "not-a-number", detail)) from None
    return Rated(line, prompt, response, value, _other_columns(row))


def _other_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prompt", "response")}


def pairs_of_ratings(
    rows: Sequence[Rated], rating: str, ties: str = "drop"
) -> tuple[list[tuple[int, Pair]], list[BadRow]]:
    """Every pair of one prompt's responses with different ratings, the higher one chosen, in order of first appearance.

    Rows of one prompt need not be neighbours. Left out, with reasons: ties, prompts with one rated response, missing
    ratings. The line is that of the chosen response; ``rating_gap`` and both rows' lines are kept as columns.
    """
    groups: dict[str, list[Rated]] = {}
    for row in rows:
        groups.setdefault(repr(row.prompt), []).append(row)
    pairs: list[tuple[int, Pair]] = []
    left_out: list[BadRow] = []
    for group in groups.values():
        rated = [row for row in group if row.rating is not None]
        left_out += [
            BadRow(row.line, rating, "missing-rating", "no rating in this row") for row in group if row.rating is None
        ]
        if len(rated) < 2:
            left_out += [BadRow(row.line, "prompt", "single", "the only rated response to its prompt") for row in rated]
        for index, one in enumerate(rated):
            for other in rated[index + 1 :]:
                outcome = _pair(one, other, ties)
                if isinstance(outcome, BadRow):
                    left_out.append(outcome)
                else:
                    pairs.append((outcome[0].line, outcome[1]))
    return pairs, left_out


def _pair(one: Rated, other: Rated, ties: str) -> tuple[Rated, Pair] | BadRow:
    """(chosen row, pair) of two rated responses, or why they give none."""
    if one.response == other.response:
        return BadRow(other.line, "response", "identical-sides", f"the same response as line {one.line}")
    high, low = (one, other) if (one.rating or 0.0) >= (other.rating or 0.0) else (other, one)
    gap = float(high.rating) - float(low.rating)  # type: ignore[arg-type]
    if gap == 0 and ties != "keep":
        return BadRow(other.line, "rating", "tie", f"rated {high.rating:g} like line {one.line}")
    extra = {"rating_gap": gap, "chosen_line": high.line, "rejected_line": low.line}
    numbers = {"soft_label": 0.5} if gap == 0 else {}
    return high, Pair(high.prompt, high.response, low.response, numbers, extra, "ratings")


def read_ratings(
    source: str | Path,
    attributes: Sequence[str] | None = None,
    *,
    split: str | None = None,
    on_error: str = "raise",
    columns: Mapping[str, str] | None = None,
) -> tuple[Dataset, ReadReport]:
    """Rated single responses as they are, for attribute regression: columns prompt, response (messages), row and one
    float column an attribute, null where a rating is missing (mask it: no loss and no gradient, not 0).

    attributes: the rating columns; by default every column that holds numbers in more than half of the rows. columns:
    {our name: the file's} of prompt and response. Raises DataError with every bad row, PrudentError for the source.
    """
    import pyarrow as pa
    from datasets import Dataset

    report = ReadReport(str(source))
    rows: list[Rated] = []
    for record in mapped(open_records(source, split), columns):
        report.read += 1
        report.flagged += record.flags
        report.bad += record.errors
        if record.value is None:
            continue

        def note(name: str, reason: str, detail: str, line: int = record.line) -> None:
            report.flagged.append(BadRow(line, name, reason, detail))

        try:
            prompt, response = read_response(record.value, note)
            rows.append(Rated(record.line, prompt, response, None, _other_columns(record.value)))
        except Reject as reject:
            report.bad += [BadRow(record.line, p.field, p.reason, p.detail) for p in reject.problems]
    names = list(attributes) if attributes is not None else numeric_columns(rows)
    values: dict[str, list[float | None]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            try:
                values[name].append(number(row.extra.get(name)))
            except (TypeError, ValueError):
                values[name].append(None)
                detail = f"{brief(row.extra[name])} is no rating; give a number or leave it out"
                report.bad.append(BadRow(row.line, name, "not-a-number", detail))
    report.require(on_error)
    bad = {row.line for row in report.bad}
    kept = [index for index, row in enumerate(rows) if row.line not in bad]
    report.kept = len(kept)
    if not kept or not names:
        raise PrudentError(f"{source}: no rated response in {report.read} rows; rating columns: {listed(names)}")
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = {
        "prompt": pa.array([rows[i].prompt for i in kept], messages),
        "response": pa.array([rows[i].response for i in kept], messages),
        "row": pa.array([rows[i].line for i in kept], pa.int64()),
    }
    table |= {name: pa.array([values[name][i] for i in kept], pa.float64()) for name in names}
    return Dataset(pa.table(table)), report


def numeric_columns(rows: Sequence[Rated]) -> list[str]:
    """Columns that hold a number in some row and nothing but numbers and missing values in more than half of them."""
    names = dict.fromkeys(key for row in rows for key in row.extra if key)
    return [str(name) for name in names if 2 * sum(_is_number(row.extra.get(name)) for row in rows) > len(rows)]


def _is_number(value: Any) -> bool:
    """Whether a cell holds a number, as text too: all cells of a CSV are text."""
    try:
        return number(value) is not None
    except (TypeError, ValueError):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
