"""What one pass over a file found: rows read, kept, repaired and left out, each with line, field and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prudent.errors import BadRow, DataError, count_rows, escape

SKIP = '--on-error skip (in Python on_error="skip")'


def count_lines(name: str, counts: Mapping[str, int], examples: Mapping[str, str]) -> list[str]:
    """Lines for a person: how many rows of each reason, and the first of each."""
    head = f"  {name.replace('_', ' ')}: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
    return [head, *(f"    the first: {examples[reason]}" for reason in counts)]


@dataclass
class ReadReport:
    """What one pass over a source found. bad: rows that can't be used. left_out: well-formed rows without a preference
    (ties, undecided votes, ...). flagged: rows kept after a repair or with something to look at. votes: how often each
    vote was given (1, 2, 0 for a tie, 3 for both bad)."""

    source: str
    read: int = 0
    kept: int = 0
    bad: list[BadRow] = field(default_factory=list)
    left_out: list[BadRow] = field(default_factory=list)
    flagged: list[BadRow] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    votes: Counter[int] = field(default_factory=Counter)

    @property
    def dropped(self) -> int:
        """Rows that gave no pair because they are bad."""
        return count_rows(self.bad)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of entries by reason: ``bad``, ``left_out`` and ``flagged``."""
        return {
            name: dict(Counter(row.reason for row in getattr(self, name))) for name in ("bad", "left_out", "flagged")
        }

    def examples(self) -> dict[str, dict[str, str]]:
        """The first entry of each reason in words: what was found, where, and what became of it."""
        found: dict[str, dict[str, str]] = {}
        for name in ("bad", "left_out", "flagged"):
            found[name] = {}
            for row in getattr(self, name):
                if row.reason not in found[name]:
                    found[name][row.reason] = str(row)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "read": self.read,
            "kept": self.kept,
            "dropped": self.dropped,
            "shapes": self.shapes,
            "counts": self.counts(),
            "examples": self.examples(),
            "notes": self.notes,
            "rows": {
                name: [vars(row) for row in getattr(self, name)[:1000]] for name in ("bad", "left_out", "flagged")
            },
        }

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.source}: {self.read} rows read, {self.kept} pairs kept"]
        for name, counts in self.counts().items():
            if counts:
                lines += count_lines(name, counts, self.examples()[name])
        return escape("\n".join([*lines, *(f"  {note}" for note in self.notes)]))

    def require(self, on_error: str, errors: str | Iterable[str] = ()) -> None:
        """Raise one DataError with every bad row (unless ``on_error`` is "skip") and every row whose reason is in
        ``errors`` ("all": every flag and every row left out)."""
        wanted = {errors} if isinstance(errors, str) else set(errors)
        promoted = [row for row in [*self.left_out, *self.flagged] if "all" in wanted or row.reason in wanted]
        bad = ([] if on_error == "skip" else self.bad) + promoted
        if bad:
            remedy = f"{self.read} rows read. Fix these rows, or leave the unusable ones out: {SKIP}"
            raise DataError(self.source, sorted(bad, key=lambda row: row.line), remedy)
