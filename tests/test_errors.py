"""What a person reads about bad rows."""

from __future__ import annotations

from prudent.errors import BadRow, DataError


def test_a_fault_that_all_rows_share_is_one_line() -> None:
    rows = [BadRow(line, "rejected", "missing-field", "columns found: prompt, chosen") for line in (1, 2, 9)]
    lines = str(DataError("a.jsonl", rows, "fix them")).splitlines()
    assert lines == [
        "a.jsonl: 3 bad rows",
        "  all alike, the last in line 9, the first in line 1, field 'rejected': missing-field: columns found: prompt, "
        "chosen",
        "fix them",
    ]
    other = str(DataError("a.jsonl", [*rows, BadRow(3, "", "empty", "no text")])).splitlines()
    assert len(other) == 5 and other[-1] == "  line 3: empty: no text"
    many = [BadRow(line, "", "empty", f"no text {line}") for line in range(30)]
    assert str(DataError("a.jsonl", many)).endswith("... and 10 more")
