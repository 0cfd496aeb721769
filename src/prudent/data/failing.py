"""Rows that can't be rendered or scored, found after reading: named by item, file and line, or left out and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prudent.errors import BadRow, DataError, PrudentError, RowsError, count_rows

if TYPE_CHECKING:
    from datasets import Dataset

R = TypeVar("R")
REASON = "not-scored"
REMEDY = "change these rows, or leave them out with --on-error skip"


class Origin(NamedTuple):
    """Where an item comes from. file: its name where several were read, else ""; item: its id, or ""."""

    line: int
    item: str = ""
    file: str = ""

    def bad(self, detail: str) -> BadRow:
        """The entry of a report that says what is wrong with it."""
        words = [word for word in (self.file, f"item {self.item!r}" if self.item else "") if word]
        return BadRow(self.line, "", REASON, ": ".join([*words, detail]), self.file)


def origins_of(data: Dataset) -> list[Origin]:
    """Origins of a preference data set's pairs, from its columns row, id and (of several files) file."""
    names = data.column_names
    ids = data["id"] if "id" in names else [""] * len(data)
    files = data[FILE_COLUMN] if FILE_COLUMN in names else [""] * len(data)
    return [
        Origin(line, "" if item is None else str(item), file or "")
        for line, item, file in zip(data["row"], ids, files, strict=True)
    ]


def item_origins(ids: Sequence[str], lines: Sequence[int] | None) -> list[Origin]:
    """Origins of items by their ids; without ``lines`` each is on the line of its own number."""
    return [Origin(line, key) for line, key in zip(lines or range(1, len(ids) + 1), ids, strict=True)]


def picked(data: Dataset, rows: Sequence[int]) -> Dataset:
    """Some pairs of a data set; itself where they are all."""
    return data if len(rows) == len(data) else data.select(rows)


FILE_COLUMN = "row_file"  # of a data set read from several files: which one the line in ``row`` is of


def name_failing(error: RowsError, origins: Sequence[Origin] | Mapping[int, Origin], source: str | Path) -> DataError:
    """The same faults with item, file and line."""
    return DataError(str(source), [origins[row].bad(detail) for row, detail in error.rows.items()], REMEDY)


@contextmanager
def by_pair(n: int) -> Iterator[None]:
    """Inside, the chosen and then the rejected answers of n pairs are used: a RowsError is one of the pairs."""
    try:
        yield
    except RowsError as error:
        raise error.moved([*range(n), *range(n)]) from error


def use_rows(
    use: Callable[[list[int]], R], origins: Sequence[Origin], source: str | Path, on_error: str
) -> tuple[R, list[int], list[BadRow]]:
    """(``use(rows)``, the rows used, what was left out): rows that ``use`` names in a RowsError (places in the list
    that it was given) end in one DataError, or are left out with ``on_error="skip"`` and the others used again."""
    rows = list(range(len(origins)))
    bad: list[BadRow] = []
    while True:
        try:
            return use(rows), rows, bad
        except RowsError as error:
            named = {index: origins[row] for index, row in enumerate(rows)}
            found = name_failing(error, named, source)
            if on_error != "skip" or not error.rows:
                raise found from error
            bad += found.rows
            rows = [row for index, row in enumerate(rows) if index not in error.rows]
            if not rows:
                first = next(iter(error.rows.values()))
                raise PrudentError(
                    f"{source}: no row can be scored, {len(bad)} were left out; the last: {first}"
                ) from error


def counted(bad: Sequence[BadRow]) -> dict[str, Any]:
    """What a result says about the rows left out: how many, and the first hundred."""
    return {"left_out": count_rows(bad), "left_out_rows": [str(row) for row in bad[:100]]}
