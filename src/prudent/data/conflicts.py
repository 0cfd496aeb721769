"""Two sources of score compared: on which pairs they disagree, and by how much, the largest conflict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent.data.messages import number
from prudent.data.records import listed
from prudent.errors import PrudentError

FORM = "ONE,OTHER, each a column or CHOSEN:REJECTED (two columns whose difference is meant); dots reach into a column"


@dataclass(frozen=True)
class Conflict:
    """Two sources of score; each is one column, or those of the chosen and of the rejected answer. Names as
    ``ratings.helpfulness.0`` reach into objects and lists. least: size from which a pair is found, in standard
    deviations."""

    one: tuple[str, ...]
    other: tuple[str, ...]
    least: float = 2.0


@dataclass(frozen=True)
class Compared:
    """What two sources say about n pairs. values (2, n): a column, or the difference of two; NaN where it is missing.
    size (n,): |one - other| in standard deviations, NaN where either is missing. order: pairs, largest size first."""

    names: tuple[str, str]
    values: np.ndarray
    size: np.ndarray
    order: list[int]


def parse_conflict(text: str, least: float = 2.0) -> Conflict:
    """The two sources that ``ONE,OTHER`` names; PrudentError for another text."""
    sources = [tuple(name.strip() for name in part.split(":")) for part in text.split(",")]
    if len(sources) != 2 or sources[0] == sources[1] or any(len(names) > 2 or not all(names) for names in sources):
        raise PrudentError(f"--conflict {text!r}: give {FORM}")
    return Conflict(sources[0], sources[1], least)


def cell(value: Any, name: str) -> Any:
    """What stands under a name in a row: a column of that very name, or a path into objects and lists by dots. None
    where there is nothing."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, dot, rest = name.partition(".")
    while dot:  # a key may hold dots itself, so every way to part the name is tried
        inner = None
        if isinstance(value, Mapping):
            inner = value.get(head)
        elif isinstance(value, (list, tuple)) and head.isdecimal() and int(head) < len(value):
            inner = value[int(head)]
        if inner is not None and (found := cell(inner, rest)) is not None:
            return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    if isinstance(value, (list, tuple)) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    return None


def numbers_under(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """(n,) numbers of one column, NaN where a row has none; PrudentError where no row has one."""
    found = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        try:
            value = number(cell(row, name))
        except (TypeError, ValueError):
            continue
        found[index] = np.nan if value is None else value
    if np.isnan(found).all():
        columns = listed(_paths(rows[0]) if rows else ())
        raise PrudentError(
            f"--conflict names {name!r}, under which no row has a number; columns with numbers: {columns}"
        )
    return found


def _paths(value: Any, before: str = "", depth: int = 4) -> list[str]:
    """Names under which a row has numbers."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [before]
    items: list[tuple[Any, Any]] = []
    if depth and isinstance(value, Mapping):
        items = list(value.items())
    elif depth and isinstance(value, (list, tuple)):
        items = list(enumerate(value[:5]))
    return [path for key, item in items for path in _paths(item, f"{before}.{key}" if before else str(key), depth - 1)]


def compare(rows: Sequence[Mapping[str, Any]], conflict: Conflict) -> Compared:
    """What two sources of score say about the same pairs, on one scale.

    A column is taken as (value - mean) / standard deviation over the pairs that both sources score; the difference of
    two columns is divided by its root mean square, so that zero stays "neither is better". Raises PrudentError where
    fewer than three pairs have both, or one source says the same about all.
    """
    sources = (conflict.one, conflict.other)
    values = np.stack([_margin([numbers_under(rows, name) for name in names]) for names in sources])
    known = np.isfinite(values).all(0)
    names = (":".join(conflict.one), ":".join(conflict.other))
    if known.sum() < 3:
        raise PrudentError(
            f"--conflict {','.join(names)}: {int(known.sum())} pairs have both scores; it needs at least three"
        )
    scaled = np.full(values.shape, np.nan)
    for index, columns in enumerate(sources):
        part = values[index, known]
        part = part / (np.abs(part).max() or 1.0)  # squares of 1e200 would overflow
        part = part - part.mean() if len(columns) == 1 else part
        scale = float(np.sqrt((part**2).mean()))
        if np.ptp(part) <= 1e-12 or scale == 0:
            raise PrudentError(
                f"--conflict {','.join(names)}: {names[index]} is the same in every pair; name another column"
            )
        scaled[index, known] = part / scale
    size = np.abs(scaled[0] - scaled[1])
    order = [int(index) for index in np.argsort(-size, kind="stable") if known[index]]
    return Compared(names, values, size, order)


def _margin(columns: Sequence[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else columns[0] - columns[1]
