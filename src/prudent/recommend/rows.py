"""Rows of interaction files as plain tuples (line, user, item, rating, time), whatever the format."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prudent.data.files import read_lines
from prudent.data.json_records import KINDS as JSON_KINDS
from prudent.data.json_records import not_json
from prudent.data.records import LINE_BYTES
from prudent.data.tables import cells_of
from prudent.errors import BadRow, DataError, PrudentError

USUAL = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "movie_id"),
    "rating": ("rating", "value", "score", "count", "weight"),
    "timestamp": ("timestamp", "time", "ts", "datetime"),
}
TYPED = re.compile(r":(token|float)(_seq)?$")  # RecBole's headers name each column's type
Row = tuple[int, Any, Any, Any, Any] | BadRow  # a row that can't even be taken apart becomes a BadRow
Blank = Callable[[], int]


@dataclass(frozen=True)
class Fields:
    """Names of the columns that hold the user, item, rating and time; None where there is none."""

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    timestamp: str | None = None


def find_fields(columns: Sequence[str], wanted: Fields, source: str) -> Fields:
    """Columns by their given or their usual names; PrudentError names what is missing and what is there."""
    lowered = {TYPED.sub("", column.strip().lower()): column for column in reversed(columns)}
    found = Fields()
    for role, names in USUAL.items():
        given = getattr(wanted, role)
        if given is not None and given not in columns:
            raise PrudentError(
                f"{source}: no column {given!r} for the {role}; there are {', '.join(columns) or 'none'}"
            )
        column = given or next((lowered[name] for name in names if name in lowered), None)
        if column is None and role in ("user", "item"):
            raise PrudentError(
                f"{source}: no {role} column (looked for {', '.join(names)}); there are "
                f"{', '.join(columns) or 'none'}; name it with {role}='...' (--column {role}=...)"
            )
        found = replace(found, **{role: column})
    return found


def rows_of(source: str | Path | Mapping[str, Any], wanted: Fields) -> tuple[Iterator[Row], Fields, Blank]:
    """Rows of a file or of a mapping of columns, the columns they come from, a count of blank lines (read it last)."""
    if not isinstance(source, (str, Path)):
        return column_rows(source, wanted)
    path = Path(source)
    if not path.is_file():
        raise PrudentError(f"{path}: no such file; give a CSV, TSV, JSONL or Parquet file of interactions")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind in (".csv", ".tsv", ".txt", ".inter"):
        return csv_rows(path, wanted, "," if kind == ".csv" else "\t")
    if kind in (".jsonl", ".ndjson", ".json"):
        return json_rows(path, wanted)
    if kind in (".parquet", ".pq"):
        return parquet_rows(path, wanted)
    raise PrudentError(f"{path}: unknown kind of file {kind!r}; give .csv, .tsv, .inter, .jsonl (also .gz) or .parquet")


def lines_of(path: Path) -> Iterator[str]:
    """Lines of a text file, unpacked, its encoding checked. PrudentError for what concerns the whole file."""
    for number, line in enumerate(read_lines(path), start=1):
        if len(line) > LINE_BYTES:
            raise PrudentError(f"{path}: line {number} is longer than {LINE_BYTES >> 20} MiB; fix or remove it")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PrudentError(
                f"{path}: line {number} is not UTF-8 at its byte {error.start + 1} ({error.reason}); save it as UTF-8"
            ) from error


def csv_rows(path: Path, wanted: Fields, delimiter: str) -> tuple[Iterator[Row], Fields, Blank]:
    """Rows of a CSV or TSV file with a header; ``line`` is the physical line on which a row ends."""
    blanks = [0]
    try:
        header = [name.strip() for name in next(csv.reader(lines_of(path), delimiter=delimiter), [])]
    except csv.Error as error:
        raise PrudentError(f"{path}, line 1: {error}; fix the line") from error
    other = next((mark for mark in ",;\t|" if mark != delimiter and len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise PrudentError(
            f"{path}: the first line is separated by {other!r}, but {delimiter!r} goes with the file's name; save it "
            "with commas as .csv or with tabs as .tsv"
        )
    fields = find_fields(header, wanted, str(path))
    twice = [name for name in vars(fields).values() if name is not None and header.count(name) > 1]
    if twice:
        raise PrudentError(f"{path}: the column {twice[0]!r} is there twice; rename one of them")
    indices = [header.index(name) if name is not None else None for name in vars(fields).values()]

    def rows() -> Iterator[Row]:
        reader = csv.reader(lines_of(path), delimiter=delimiter)
        try:
            next(reader)
            for cells in reader:
                if not cells:
                    blanks[0] += 1
                    continue
                if len(cells) > len(header):
                    detail = f"{len(cells)} fields under {len(header)} columns; quote a field that holds {delimiter!r}"
                    yield BadRow(reader.line_num, "", "too-many-fields", detail)
                    continue
                user, item, rating, time = (
                    cells[position] if position is not None and position < len(cells) else None for position in indices
                )
                yield reader.line_num, user, item, rating, time
        except csv.Error as error:
            raise PrudentError(f"{path}, line {reader.line_num}: {error}; fix the line") from error

    return rows(), fields, lambda: blanks[0]


def json_rows(path: Path, wanted: Fields) -> tuple[Iterator[Row], Fields, Blank]:
    """Rows of a file with one JSON object a line. Columns are taken from the first hundred objects."""
    blanks = [0]

    def objects() -> Iterator[tuple[int, dict] | BadRow]:
        for line, text in enumerate(lines_of(path), 1):
            if not text.strip():
                blanks[0] += 1
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield BadRow(line, "", "not-json", f"{not_json(error)}; give one object a line")
                continue
            if isinstance(value, dict):
                yield line, value
            else:
                yield BadRow(line, "", "no-object", f"found {JSON_KINDS[type(value)]}; give one object a line")

    first = list(itertools.islice(objects(), 100))
    columns = {column: None for found in first if not isinstance(found, BadRow) for column in found[1]}
    bad = [found for found in first if isinstance(found, BadRow)]
    if bad and len(bad) == len(first):
        raise DataError(str(path), bad, "write one JSON object a line (JSONL), each with a user and an item")
    blanks[0] = 0
    fields = find_fields(list(columns), wanted, str(path))
    names = list(vars(fields).values())

    def rows() -> Iterator[Row]:
        for found in objects():
            if isinstance(found, BadRow):
                yield found
                continue
            line, value = found
            user, item, rating, time = (value.get(name) if name is not None else None for name in names)
            yield line, user, item, rating, time

    return rows(), fields, lambda: blanks[0]


def parquet_rows(path: Path, wanted: Fields) -> tuple[Iterator[Row], Fields, Blank]:
    """Rows of a Parquet file, batch by batch; ``line`` is the row's number from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise PrudentError(f"{path}: no readable Parquet file ({error}); write or fetch it again") from error
    fields = find_fields(file.schema_arrow.names, wanted, str(path))
    names = list(vars(fields).values())

    def rows() -> Iterator[Row]:
        line = 0
        for batch in file.iter_batches(65536, columns=[name for name in names if name is not None]):
            flags: list[BadRow] = []
            columns = [
                [None] * len(batch) if name is None else cells_of(batch.column(name), line, name, flags)
                for name in names
            ]
            bad = {flag.line: flag for flag in flags}
            for user, item, rating, time in zip(*columns):
                line += 1
                yield bad.get(line) or (line, user, item, rating, time)

    return rows(), fields, lambda: 0


def column_rows(source: Mapping[str, Any], wanted: Fields) -> tuple[Iterator[Row], Fields, Blank]:
    """Rows of a mapping of columns (dict of lists, pandas frame, datasets.Dataset); ``line`` counts rows from 1."""
    names = list(getattr(source, "column_names", None) or source.keys())
    fields = find_fields([str(name) for name in names], wanted, "the given columns")
    columns = [list(source[name]) if name is not None else None for name in vars(fields).values()]
    length = len(columns[0] or [])
    if any(column is not None and len(column) != length for column in columns):
        raise PrudentError("the given columns have different lengths; give one value a row in each")

    def rows() -> Iterator[Row]:
        for index in range(length):
            user, item, rating, time = (column[index] if column is not None else None for column in columns)
            yield index + 1, user, item, rating, time

    return rows(), fields, lambda: 0
