"""Who took what: interaction files read, checked and counted, ids kept as text.

A file is CSV, TSV, JSONL (each also gzipped) or Parquet with a user, an item, and optionally a rating and a time. Every
bad row is found in one pass; repeats, zeros and ratings below the threshold are counted, never silently dropped.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from prudent.data.records import brief
from prudent.errors import BadRow, DataError, PrudentError
from prudent.recommend.rows import Fields, rows_of

SHOWN_FLAGS = 1000  # flagged rows that are kept one by one; the counts cover all of them


@dataclass(frozen=True)
class Interactions:
    """Distinct user-item pairs, sorted by user and item text, so that the order of a file's rows doesn't matter.

    users, items: ids as text, sorted. user, item: (cells,) int32 indices into them. positive: (cells,) bool; the rest
    were seen, but rated below the threshold. time: (cells,) float64 seconds, NaN where unknown; None without a time
    column.
    """

    users: list[str]
    items: list[str]
    user: np.ndarray
    item: np.ndarray
    positive: np.ndarray
    time: np.ndarray | None

    def __len__(self) -> int:
        return len(self.user)

    def keep(self, mask: np.ndarray) -> Interactions:
        """The cells where ``mask`` is true, over the same users and items."""
        time = None if self.time is None else self.time[mask]
        return Interactions(self.users, self.items, self.user[mask], self.item[mask], self.positive[mask], time)

    def pairs(self) -> list[tuple[str, str]]:
        """Positive pairs as (user, item) text, sorted."""
        return [(self.users[u], self.items[i]) for u, i in zip(self.user[self.positive], self.item[self.positive])]


@dataclass
class ReadReport:
    """What reading found. counts: rows by reason. bad: rows left out. flagged: rows kept or ignored with a note."""

    source: str
    fields: Fields
    rule: str
    counts: Counter = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    flagged: list[BadRow] = field(default_factory=list)

    def flag(self, row: BadRow) -> None:
        """Count a row that is kept, and remember the first such ones."""
        self.counts[row.reason] += 1
        if len(self.flagged) < SHOWN_FLAGS:
            self.flagged.append(row)

    def reject(self, row: BadRow) -> None:
        """Count and remember a bad row."""
        self.counts[row.reason] += 1
        self.bad.append(row)

    def summary(self) -> dict[str, Any]:
        """Counts, columns and rule in plain types, for a manifest or a report."""
        return {
            "source": self.source,
            "columns": {name: column for name, column in vars(self.fields).items() if column is not None},
            "positive_when": self.rule,
            "counts": dict(sorted(self.counts.items())),
            "bad_rows": [str(row) for row in self.bad[:100]],
        }


def parse_rating(value: Any) -> float | None:
    """Number of a rating cell; None when it is missing; ValueError when it is no finite number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{brief(value)} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{brief(value)} is no finite number")
    return number


def parse_time(value: Any) -> float:
    """Seconds since 1970 of a number or an ISO 8601 text; NaN when missing; ValueError when it is neither."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    try:
        number = float(value)
        if math.isfinite(number):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{brief(value)} is neither a number nor an ISO 8601 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def text_id(value: Any) -> str:
    """An id as text: 7 and "7" are one id, "07" and "7" are two, white space around it is no part of it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


class Cells:
    """Cells as they are read: ids are numbered on the way, so that ten million rows need no list of texts."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.user, self.item, self.label, self.time = array("i"), array("i"), array("b"), array("d")

    def add(self, user: str, item: str, positive: bool, time: float) -> None:
        """Append one interaction; users and items are numbered as they come. time: seconds, or nan."""
        self.user.append(self.users.setdefault(user, len(self.users)))
        self.item.append(self.items.setdefault(item, len(self.items)))
        self.label.append(positive)
        self.time.append(time)


def read_interactions(
    source: str | Path | Mapping[str, Any],
    *,
    threshold: float | None = None,
    on_error: str = "raise",
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
) -> tuple[Interactions, ReadReport]:
    """Read interactions from a file (CSV, TSV, JSONL, Parquet; .gz too) or a mapping of columns.

    threshold: a rating at or above it is a positive; None: a rating above 0 is, and a negative one is a bad row.
    Without a rating column every row is a positive. on_error: "raise" (DataError with every bad row) or "drop" (left
    out, counted). user, item, rating, timestamp: column names where they aren't found by their usual names. A pair is
    positive when any of its rows is; its time is that of its earliest positive row. Zeros count as no interaction at
    all.

    Raises DataError for bad rows, PrudentError for a missing column, no positive, one user or one item.
    """
    if on_error not in ("raise", "drop"):
        raise PrudentError(f"on_error is {on_error!r}; choose 'raise' or 'drop'")
    if threshold is not None and not math.isfinite(threshold):
        raise PrudentError(f"threshold is {threshold}; give a finite rating at which a row counts as a positive")
    name = str(source) if isinstance(source, (str, Path)) else "the given columns"
    wanted = Fields(user, item, rating, timestamp)
    rows, fields, blank = rows_of(source, wanted)
    rule = (
        "every row"
        if fields.rating is None
        else f"{fields.rating} > 0"
        if threshold is None
        else f"{fields.rating} >= {threshold:g}"
    )
    report = ReadReport(name, fields, rule)
    cells = Cells()
    for row in rows:
        report.counts["rows"] += 1
        if isinstance(row, BadRow):
            report.reject(row)
            continue
        add_row(row, fields, threshold, cells, report)
    if blank():
        report.counts["blank-line"] += blank()
    if report.bad and on_error == "raise":
        raise DataError(name, report.bad, "fix these rows, or leave them out: --on-error drop")
    return distinct(cells, report, fields.timestamp is not None), report


def add_row(
    row: tuple[int, Any, Any, Any, Any], fields: Fields, threshold: float | None, cells: Cells, report: ReadReport
) -> None:
    """Check one row and add it to ``cells``, or note in ``report`` why not."""
    line, user_value, item_value, rating_value, time_value = row
    for name, value in ((fields.user, user_value), (fields.item, item_value)):
        if isinstance(value, (list, dict, bytes, bool)) or value in (math.inf, -math.inf):
            detail = f"{brief(value)} is no id; give text or a number"
            report.reject(BadRow(line, name or "", "no-id", detail))
            return
    user, item = text_id(user_value), text_id(item_value)
    if not user or not item:
        name = (fields.user if not user else fields.item) or ""
        report.reject(BadRow(line, name, "missing-id", "the cell is empty; give an id or remove the row"))
        return
    positive = True
    if fields.rating is not None:
        try:
            number = parse_rating(rating_value)
        except ValueError as error:
            report.reject(BadRow(line, fields.rating, "unparsable-rating", f"{error}; give a number"))
            return
        if number is None:
            report.reject(BadRow(line, fields.rating, "missing-rating", "the cell is empty; give a number"))
            return
        if number < 0 and threshold is None:
            detail = f"{number:g} is below 0 and there is no threshold; name one if negative ratings are meant"
            report.reject(BadRow(line, fields.rating, "negative-rating", detail))
            return
        if number == 0 and (threshold is None or threshold > 0):
            report.flag(BadRow(line, fields.rating, "zero", "a zero counts as no interaction"))
            return
        positive = number > 0 if threshold is None else number >= threshold
        report.counts["below-threshold"] += not positive
    time = math.nan
    if fields.timestamp is not None:
        try:
            time = parse_time(time_value)
        except ValueError as error:
            report.flag(BadRow(line, fields.timestamp, "unparsable-time", f"{error}; kept without a time"))
    cells.add(user, item, positive, time)


def distinct(cells: Cells, report: ReadReport, timed: bool) -> Interactions:
    """One cell a pair, ids sorted; repeats and pairs rated on both sides of the threshold are counted."""
    user, users = sorted_codes(np.frombuffer(cells.user, dtype=np.int32), cells.users)
    item, items = sorted_codes(np.frombuffer(cells.item, dtype=np.int32), cells.items)
    label = np.frombuffer(cells.label, dtype=np.int8).astype(bool)
    time = np.frombuffer(cells.time, dtype=np.float64)
    # Within a pair: positives first, then the earliest; the first row of each pair then stands for it.
    order = np.lexsort((time, ~label, item, user))
    user, item, label, time = user[order], item[order], label[order], time[order]
    first = np.ones(len(user), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    group = np.cumsum(first) - 1
    totals = np.bincount(group, minlength=0) if len(group) else np.zeros(0, dtype=int)
    hits = np.bincount(group, weights=label) if len(group) else np.zeros(0)
    report.counts["duplicate"] += int(len(user) - first.sum())
    if mixed := int(((hits > 0) & (hits < totals)).sum()):
        report.counts["pair-on-both-sides-of-threshold"] += mixed
    found = Interactions(users, items, user[first], item[first], label[first], time[first] if timed else None)
    report.counts["pairs"] = len(found)
    report.counts["positive-pairs"] = int(found.positive.sum())
    require_enough(found, report)
    return found


def sorted_codes(codes: np.ndarray, names: dict[str, int]) -> tuple[np.ndarray, list[str]]:
    """Codes renumbered so that names are in text order, and those names."""
    ordered = sorted(names)
    position = np.empty(len(names), dtype=np.int32)
    for index, name in enumerate(ordered):
        position[names[name]] = index
    return (position[codes] if len(codes) else codes), ordered


def require_enough(found: Interactions, report: ReadReport) -> None:
    """PrudentError when there is nothing to learn a recommender from."""
    if not found.positive.any():
        raise PrudentError(
            f"{report.source}: no positive pair among {report.counts['rows']} rows (positive when {report.rule}); "
            "lower the threshold or check the rating column"
        )


def require_population(found: Interactions, source: str) -> None:
    """PrudentError when the positives have one user or one item: then there is nothing to rank or to compare."""
    for kind, codes, names in (("user", found.user, found.users), ("item", found.item, found.items)):
        present = np.unique(codes[found.positive])
        if len(present) < 2:
            only = f" ({names[present[0]]!r})" if len(present) else ""
            raise PrudentError(
                f"{source}: {len(present)} {kind}{only} with a positive; a recommender needs at least two users "
                "and two items"
            )
