"""Recommendations made elsewhere, read as lists of ids and judged like any ranking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from prudent.errors import BadRow, DataError, PrudentError
from prudent.recommend.batches import chunks, history, scoring_batch
from prudent.recommend.interactions import parse_rating, text_id
from prudent.recommend.metrics import Positions, Ranking, Sheet
from prudent.recommend.rows import Fields, rows_of
from prudent.recommend.splits import Truth

UNKNOWN = -1


def read_lists(path: str | Path) -> dict[str, list[str]]:
    """Lists of item ids by user id from a file with a user and an item a row, best first, or by a column ``rank`` from
    1.
    """
    try:
        rows, fields, _ = rows_of(path, Fields(rating="rank"))
    except PrudentError:  # no such column: the order of the rows is the ranking
        rows, fields, _ = rows_of(path, Fields())
        fields = Fields(fields.user, fields.item)
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    bad: list[BadRow] = []
    ranks: dict[tuple[str, float], int] = {}
    for number, row in enumerate(rows):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        line, user, item, rank, _ = row
        who, what = text_id(user), text_id(item)
        if not who or not what:
            bad.append(BadRow(line, "", "missing-id", "a user and an item are needed"))
            continue
        try:
            index = parse_rating(rank) if fields.rating is not None else float(number)
            if index is None:
                raise ValueError("the cell is empty")
        except ValueError as error:
            bad.append(BadRow(line, "rank", "unparsable-rank", str(error)))
            continue
        if fields.rating is not None and (earlier := ranks.setdefault((who, index), line)) != line:
            detail = f"rank {index:g} of user {who!r} stands on line {earlier} too: which item comes first is not said"
            bad.append(BadRow(line, "rank", "equal-rank", detail))
            continue
        found[who].append((index, what))
    if bad:
        raise DataError(str(path), bad, "fix these rows of the lists")
    return {who: [item for _, item in sorted(entries, key=lambda entry: entry[0])] for who, entries in found.items()}


def judge_lists(
    lists: dict[str, list[str]],
    users: list[str],
    items: list[str],
    truth: Truth,
    seen: sparse.csr_matrix,
    tail: np.ndarray,
    *,
    ks: Sequence[int] = (20, 50),
) -> Ranking:
    """Metrics of outside lists, overall and "tail absolute" (a list of all items says nothing of tail items alone).

    A repeated item, one the user has seen and one that training never saw keep their rank and never hit; all are
    counted. Users with held-out positives but no list have recall 0.
    """
    index_of = {name: index for index, name in enumerate(items)}
    sheet = Sheet(truth, tail, ks, ("overall", "tail absolute"))
    counts: Counter = Counter()
    positions = np.full((len(users), sheet.k), UNKNOWN, dtype=np.int32)
    for row, who in enumerate(users):
        shown = lists.get(who, [])[: sheet.k]
        known = set(seen.indices[seen.indptr[row] : seen.indptr[row + 1]].tolist())
        given: set[str] = set()
        for rank, item in enumerate(shown):
            index = index_of.get(item, UNKNOWN)
            repeated, before = item in given, index in known
            counts["repeated recommendations, counted once"] += repeated
            counts["recommendations that the user has seen"] += before
            counts["recommendations unknown to training"] += index == UNKNOWN
            positions[row, rank] = UNKNOWN if repeated or before else index
            given.add(item)
    counts["users without a list"] = sum(users[index] not in lists for index in sheet.active)
    sheet.top[:] = positions
    sheet.exposure.add_indices(positions[sheet.active, : sheet.exposure.k])
    for part in chunks(sheet.active, scoring_batch(len(items))):
        above = np.full((len(part), len(items) + 1), sheet.k)  # beyond the list; the last column is UNKNOWN's
        np.put_along_axis(above, positions[part].astype(np.int64), np.arange(sheet.k)[None, :], axis=1)
        entries = history(truth.positives, part)
        owner, column = entries.row.numpy(), entries.column.numpy()
        sheet.enter(part, column, {"": Positions(owner, above[owner, column], np.ones_like(owner))})
    ranking = sheet.ranking()
    return replace(ranking, notes={**ranking.notes, **counts})
