"""One record of a file, what may be wrong with it, and the bounds within which a record is read at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prudent.errors import BadRow, escape
from prudent.files import clean_text

DEPTH = 32  # levels of lists and objects in one field; the deepest tool schema in use has about ten
LINE_BYTES = 64 * 2**20
WHOLE_BYTES = 2**30  # of a file that can only be read whole (JSON arrays, CSV)


@dataclass
class Record:
    """One record of a file. value: the object, None where ``errors`` says why there is none. flags: what was repaired
    or deserves a look."""

    line: int
    value: dict[str, Any] | None
    errors: list[BadRow] = field(default_factory=list)
    flags: list[BadRow] = field(default_factory=list)


def named_twice(names: list[str], line: int) -> list[BadRow]:
    """Flags of the columns that a header names more than once."""
    return [
        BadRow(line, name, "duplicate-column", f"named {count} times; the last of these columns won")
        for name, count in Counter(names).items()
        if count > 1
    ]


def mapped(records: Iterable[Record], columns: Mapping[str, str] | None) -> Iterator[Record]:
    """Records with a user's names in place of ours: columns = {our name: name in the file}. A row that lacks a name of
    the file's keeps ours."""
    for record in records:
        if columns and record.value is not None:
            ours = {theirs: name for name, theirs in columns.items() if theirs in record.value}
            replaced = set(ours.values()) - set(ours)
            value = {ours.get(key, key): cell for key, cell in record.value.items() if key not in replaced}
            record = replace(record, value=value)
        yield record


def brief(value: Any, limit: int = 60) -> str:
    """``value`` for a message: text quoted, in one line, at most ``limit`` characters, without control characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of {len(str(abs(value)))} digits" if abs(value) < 10**4000 else "a number of over 4000 digits"
    text = clean_text(value if isinstance(value, str) else repr(value))
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(short) if isinstance(value, str) else escape(short)


def item_id(value: Any) -> str | None:
    """An id as text; None where there is none (null, blank, NaN). ValueError for what can't name an item: true, a list,
    an object, infinity."""
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value in (math.inf, -math.inf):
        raise ValueError(f"{brief(value)} is no id; give a text or a number")
    return str(value)


def listed(names: Iterable[Any], most: int = 20) -> str:
    """Names for a message: at most ``most`` of them, each at most 60 characters."""
    found = [str(name) for name in names]
    shown = ", ".join(escape(name if len(name) <= 60 else name[:59] + "…") for name in found[:most])
    return (shown or "none") + (f" and {len(found) - most} more" if len(found) > most else "")


def is_deep(value: Any, depth: int = DEPTH) -> bool:
    """Whether lists and objects stand in each other more than ``depth`` levels deep."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def prune(record: Record) -> None:
    """Take fields nested too deep for what writes them out again as missing, and flag them."""
    for name, value in record.value.items() if record.value is not None else ():
        if isinstance(value, (dict, list)) and is_deep(value):
            record.value[name] = None  # type: ignore[index]
            detail = f"nested more than {DEPTH} levels deep; treated as missing"
            record.flags.append(BadRow(record.line, name, "too-deep", detail))
