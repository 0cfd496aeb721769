"""Precomputed scores: read from files of many shapes, matched to items by id, never by position where ids exist.

A row holds one item's scores, candidates in the item's order (correct ones first):

- ``{"id": ..., "scores": [3.1, 2.0]}`` or ``{"id": ..., "chosen": 3.1, "rejected": 2.0}`` (or a list of rejected);
- several models at once: ``{"id": ..., "scores": {"model-a": [3.1, 2.0], "model-b": [...]}}``;
- a list a candidate: members of an ensemble (``members``), steps of a process reward model (``steps``, or ``scores``
  with lists of uneven length);
- a judge's text: ``{"id": ..., "chosen_slot": "A", "output": "... [[A]]", "output_swapped": "..."}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prudent.data.files import read_records
from prudent.data.records import item_id, listed
from prudent.errors import BadRow, DataError, PrudentError
from prudent.evaluation.benchmarks.items import Items
from prudent.evaluation.benchmarks.judges import outcome, parse_verdict, swapped_outcome

REMEDY = "give one row an item: an id and its candidates' scores"
KINDS = ("scores", "members", "steps", "judge")


@dataclass
class ScoreTable:
    """One scorer's rows: by id (values a candidate, or outcomes of a judge), with the lines they stand on."""

    name: str
    kind: str
    rows: dict[str, list[Any]]
    lines: dict[str, int]
    has_ids: bool
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # subset and sources named in the rows


def _identity(value: dict[str, Any]) -> str | None:
    """The id of a row, None where it has none; ValueError for what can't be one."""
    found = (item_id(value.get(name)) for name in ("id", "problem_id"))
    return next((name for name in found if name is not None), None)


def row_scores(value: dict[str, Any]) -> dict[str, tuple[str, list[Any]]] | str:
    """Model -> (kind, values) of one row, or what is wrong with it. "" is the model of a file that names none."""
    for kind in ("members", "steps", "scores"):
        if kind in value:
            found = value[kind]
            if found == {}:
                return f"{kind} are an empty object; name a model and its {kind}"
            if isinstance(found, dict):
                return {str(name): (kind, scores) for name, scores in found.items()}
            return {"": (kind, found)}
    if "output" in value:
        slot = value.get("chosen_slot")
        if not isinstance(slot, str) or len(slot) != 1:
            return "chosen_slot must be one letter, the slot in which the chosen answer stood"
        if not all(isinstance(value.get(name), (str, type(None))) for name in ("output", "output_swapped")):
            return "output must be the judge's text"
        return {"": ("judge", [_judged(value, slot.upper())])}
    if "chosen" in value and "rejected" in value:
        rejected = value["rejected"]
        return {"": ("scores", [value["chosen"], *(rejected if isinstance(rejected, list) else [rejected])])}
    return f"no scores; columns found: {listed(value)}"


def _judged(value: dict[str, Any], slot: str) -> str:
    slots = "ABCD" if value.get("slots") == 4 else "AB"
    tie = "C" if slots == "AB" else "T"
    first = outcome(parse_verdict(str(value.get("output") or ""), slots, tie), slot)
    if "output_swapped" not in value:
        return first
    other = {"A": "B", "B": "A"}.get(slot, slot)
    return swapped_outcome(first, outcome(parse_verdict(str(value["output_swapped"] or ""), slots, tie), other))


def checked(kind: str, values: Any) -> tuple[str, list[Any]] | str:
    """(kind, values) with numbers as floats and None as NaN, lists as members or as steps; or what is wrong."""
    if kind == "judge":
        return kind, values
    if not isinstance(values, list) or not values:
        return f"{kind} are {values!r:.60}, expected a list with one entry a candidate"
    nested = [isinstance(entry, list) for entry in values]
    if kind in ("members", "steps") and not all(nested):
        position = nested.index(False)
        return f"{kind} of candidate {position + 1} are {values[position]!r:.60}, expected a list of numbers"
    if any(isinstance(x, (str, bool)) for entry in values for x in (entry if isinstance(entry, list) else [entry])):
        return f"a score is text or true/false, not a number: {values!r:.80}"
    if any(nested) and not all(nested):
        return "some candidates have a list of scores and others one number"
    try:
        if not nested[0]:
            return "scores", [float("nan") if entry is None else float(entry) for entry in values]
        numbers = [[float("nan") if x is None else float(x) for x in entry] for entry in values]
    except (TypeError, ValueError, OverflowError):
        return f"a score is no number: {values!r:.80}"
    if kind == "members" and len({len(entry) for entry in numbers}) > 1:
        return "candidates have different numbers of members"
    return ("steps" if kind == "scores" and len({len(e) for e in numbers}) > 1 else kind), numbers


def read_scores(path: str | Path, models: Sequence[str] | None = None) -> list[ScoreTable]:
    """Every scorer in the file, or those named. Raises DataError with every unusable row, PrudentError otherwise."""
    path = Path(path)
    bad: list[BadRow] = []
    tables: dict[str, ScoreTable] = {}
    for number, record in enumerate(read_records(path)):
        bad += record.errors
        value = record.value
        if value is None or record.errors:
            continue
        found = row_scores(value)
        if isinstance(found, str):
            bad.append(BadRow(record.line, "scores", "no-scores", found))
            continue
        try:
            key = _identity(value)
        except ValueError as error:
            bad.append(BadRow(record.line, "id", "not-an-id", str(error)))
            continue
        for name, (kind, entries) in found.items():
            if models and name not in models:
                continue
            result = checked(kind, entries)
            if isinstance(result, str):
                bad.append(BadRow(record.line, f"scores.{name}" if name else "scores", "not-scores", result))
                continue
            table = tables.setdefault(name, ScoreTable(name or path.stem.split(".")[0], "", {}, {}, key is not None))
            item = key if key is not None else str(number)
            if item in table.rows and result[0] != "judge":
                bad.append(
                    BadRow(record.line, "id", "duplicate-id", f"{item!r} is the id of line {table.lines[item]} too")
                )
                continue
            _add_row(table, item, record.line, result, value)
            table.has_ids &= key is not None
    if bad:
        raise DataError(str(path), bad, REMEDY)
    if not tables:
        raise PrudentError(f"{path} holds no scores" + (f" of {', '.join(models)}" if models else ""))
    missing = sorted(set(models or []) - set(tables))
    if missing:
        raise PrudentError(f"{path} has no scores of {', '.join(missing)}")
    return [_settled(table, path) for table in tables.values()]


def _add_row(table: ScoreTable, item: str, line: int, result: tuple[str, list[Any]], value: dict[str, Any]) -> None:
    kind, values = result
    # "scores" with even lists in some rows and uneven ones in others are steps throughout.
    table.kind = kind if table.kind in ("", "scores") else table.kind
    if kind == "judge":
        table.rows.setdefault(item, []).extend(values)
    else:
        table.rows[item] = values
    table.lines[item] = line
    table.facts.setdefault(item, {k: value[k] for k in ("subset", "solution_reference", "problem") if k in value})


def _settled(table: ScoreTable, path: Path) -> ScoreTable:
    lists = [isinstance(values[0], list) for values in table.rows.values() if table.kind != "judge"]
    if lists and any(lists) and not all(lists):
        few = 2 * sum(lists) <= len(lists)  # the rarer of the two is what is named
        what = (
            "lists of scores where other rows have numbers" if few else "numbers where other rows have lists of scores"
        )
        bad = [
            BadRow(table.lines[key], "scores", "mixed-scores", f"{table.name} has {what}")
            for key, is_list in zip(table.rows, lists)
            if is_list == few
        ]
        raise DataError(str(path), bad, REMEDY)
    if table.kind == "scores" and lists and lists[0]:
        table.kind = "members"  # lists of one length in every row and candidate
    if table.kind == "members" and len({len(c) for values in table.rows.values() for c in values}) > 1:
        table.kind = "steps"
    return table


def items_of_scores(table: ScoreTable, benchmark: str, path: str | Path, subset: str | None) -> Items:
    """Items known from a scores file alone: no texts, the first candidate correct."""
    if table.kind == "judge":
        sizes = [1 + len(values) for values in table.rows.values()]
    else:
        sizes = [len(values) for values in table.rows.values()]
    facts = [table.facts.get(key, {}) for key in table.rows]
    missing = benchmark.startswith("rewardbench") and subset is None and any("subset" not in f for f in facts)
    if missing:
        raise PrudentError(f"{path} names no subset; give the benchmark's file with --data, or --subset NAME")
    sources = [
        list(map(str, fact["solution_reference"])) if len(fact.get("solution_reference", ())) == size else [""] * size
        for fact, size in zip(facts, sizes)
    ]
    return Items(
        benchmark,
        str(path),
        list(table.rows),
        [fact.get("problem", "") for fact in facts],
        [[""] * size for size in sizes],
        [1] * len(sizes),
        [str(f.get("subset", subset or "all")) for f in facts],
        sources,
        has_ids=table.has_ids,
    )


def match(table: ScoreTable, items: Items, on_error: str = "raise") -> tuple[list[int], list[list[Any]]]:
    """(indices of the items scored, their values). By id where both have ids, else by position with equal lengths.

    An item without scores, scores of no item, the wrong number of candidates, or NaN: a DataError naming every row, or
    with on_error "skip" the item is left out (the caller counts it).
    """
    bad: list[BadRow] = []
    indices, values = [], []
    if not (table.has_ids and items.has_ids) and len(table.rows) != len(items):
        raise PrudentError(
            f"{table.name} has {len(table.rows)} rows for {len(items)} items, and without ids on both sides rows are "
            "matched by position; give ids"
        )
    keys = items.ids if table.has_ids and items.has_ids else list(table.rows)
    # Where all items are of one subset, ids that lack its name still say which item they mean (math-prm-12 and 12).
    only = items.subsets[0] if len(set(items.subsets)) == 1 else None
    used = set()
    for position, key in enumerate(keys):
        name = key if key in table.rows or only is None else key.removeprefix(f"{only}-")
        found = table.rows.get(name)
        used.add(name)
        fault = _fault_of(found, items.sizes[position], table.kind)
        if fault is None:
            indices.append(position)
            values.append(found)
        else:
            bad.append(BadRow(table.lines.get(name, 0), key, *fault))
    bad += [BadRow(table.lines[key], key, "unknown-id", "no item has this id") for key in table.rows if key not in used]
    if bad and on_error == "raise":
        raise DataError(f"scores of {table.name}", bad, "fix them, or leave these items out with --on-error skip")
    if not indices:
        raise PrudentError(f"no score of {table.name} belongs to an item of {items.source}")
    return indices, values  # type: ignore[return-value]


def _fault_of(values: list[Any] | None, size: int, kind: str) -> tuple[str, str] | None:
    if values is None:
        return "no-scores", "the item has no row in the scores"
    if kind == "judge":
        return (
            None if len(values) in (1, size - 1) else ("wrong-length", f"{len(values)} verdicts for {size} candidates")
        )
    if kind == "steps" and any(len(np.atleast_1d(entry)) == 0 for entry in values):
        return "no-steps", "a candidate has an empty list of steps"
    if len(values) != size:
        return "wrong-length", f"{len(values)} scores for {size} candidates"
    if not np.all(np.isfinite(np.concatenate([np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in values]))):
        return "not-finite", "a score is NaN, missing or infinite"
    return None
