"""The errors that a user can fix. The command line prints them without a traceback and exits with status 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


def escape(text: str) -> str:
    """``text`` with control, bidirectional and other invisible characters written as escapes, line ends kept: what is
    printed can't move the cursor, change colours or reorder what stands beside it."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


class PrudentError(ValueError):
    """Something is wrong with what was given; the message names the value, the place and the remedy."""

    def __init__(self, message: object = "") -> None:
        super().__init__(escape(str(message)))


@dataclass(frozen=True)
class BadRow:
    """One unusable or flagged row of an input file.

    line: physical line (text files, from 1) or row number (tables, from 1). field: column, or "" for the whole row.
    reason: a short stable key such as ``missing-field``, by which rows are counted.
    detail: what was found and what to do. file: its name where several were read together.
    """

    line: int
    field: str
    reason: str
    detail: str
    file: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", field {self.field!r}" if self.field else "")
        return escape(f"{where}: {self.reason}: {self.detail}")


def count_rows(faults: Iterable[BadRow]) -> int:
    """How many rows these faults are of: a row may have several."""
    return len({(fault.file, fault.line) for fault in faults})


class DataError(PrudentError):
    """Rows that can't be used. ``rows`` holds every one of them, not only the first."""

    def __init__(self, source: str, rows: list[BadRow], remedy: str = "", shown: int = 20) -> None:
        self.source, self.rows, self.remedy = source, rows, remedy
        count = count_rows(rows)
        lines = [f"{source}: {count} bad row{'s' if count != 1 else ''}"]
        if len(rows) > 1 and len({(row.field, row.reason, row.detail) for row in rows}) == 1:
            lines.append(f"  all alike, the last in line {rows[-1].line}, the first in {rows[0]}")
        else:
            lines += [f"  {row}" for row in rows[:shown]]
            if len(rows) > shown:
                lines.append(f"  ... and {len(rows) - shown} more")
        if remedy:
            lines.append(remedy)
        super().__init__("\n".join(lines))


class RowsError(PrudentError):
    """Texts of a list that can't be rendered or scored. ``rows``: place in that list (from 0) -> what is wrong.

    Raised once for all of them, so that whoever made the list can name items and lines, and leave them out.
    """

    def __init__(self, rows: Mapping[int, str], shown: int = 5) -> None:
        self.rows = dict(rows)
        lines = [f"row {row}: {detail}" for row, detail in list(self.rows.items())[:shown]]
        if len(self.rows) > shown:
            lines.append(f"... and {len(self.rows) - shown} more")
        super().__init__("\n".join(lines))

    def moved(self, owners: Sequence[int]) -> RowsError:
        """The same faults by the owners of the texts; one of several texts of an owner stands for it."""
        rows: dict[int, str] = {}
        for row, detail in self.rows.items():
            rows.setdefault(int(owners[row]), detail)
        return RowsError(rows)
