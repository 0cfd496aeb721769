"""Scorers compared on the items that both scored: paired differences and tests, adjusted for how many are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prudent.errors import PrudentError
from prudent.evaluation.benchmarks.contest import Result, clusters_of
from prudent.evaluation.benchmarks.pair_metrics import ComparisonRow, compare
from prudent.evaluation.benchmarks.ties_domain import published
from prudent.evaluation.intervals import holm
from prudent.seeding import Seed


def compare_results(first: Result, second: Result, by_subset: bool, rounds: int, seed: Seed) -> list[ComparisonRow]:
    """Paired comparison on the items that both scored; a row over all, then one a subset (Holm-corrected)."""
    where = {name: index for index, name in enumerate(first.items.ids)}
    shared = [(where[name], index) for index, name in enumerate(second.items.ids) if name in where]
    if not shared:
        raise PrudentError(f"{first.name} and {second.name} scored no common item")
    left, right = map(list, zip(*shared))
    subsets = [first.items.subsets[index] for index in left]
    clusters = clusters_of(first.items)
    rows = compare(
        first.view.credit[left],
        second.view.credit[right],
        subsets if by_subset and len(set(subsets)) > 1 else None,
        clusters=None if clusters is None else [clusters[index] for index in left],
        rounds=rounds,
        seed=seed,
    )
    return [replace(rows[0], group=whole_group(first.items.benchmark, set(subsets))), *rows[1:]]


def compare_with(
    reference: Result, others: Sequence[Result], by_subset: bool, rounds: int, seed: Seed
) -> list[dict[str, Any]]:
    """The reference against each other scorer: names a, b and rows; p over all items adjusted by Holm over them."""
    tables = [compare_results(reference, other, by_subset, rounds, seed) for other in others]
    adjusted = holm([float("nan") if rows[0].p is None else rows[0].p for rows in tables]).tolist()
    found = []
    for other, rows, p in zip(others, tables, adjusted):
        first = replace(rows[0], p_holm=None if rows[0].p is None else p)
        found.append({"a": reference.name, "b": other.name, "rows": [first, *rows[1:]]})
    return found


def whole_group(benchmark: str, there: set[str]) -> str:
    """Name of the row over all items, which says so where a published benchmark's subsets are missing."""
    table = published().get(benchmark)
    if table is None:
        return "all"
    known = {name for members in table["sections"].values() for name in members} if "sections" in table else set()
    known = known or set(table["subsets"])
    return "all" if known <= there else f"all, {len(known & there)} of {len(known)} subsets"
