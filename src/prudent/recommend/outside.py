"""Scores from elsewhere: a table of pairs, or a function of ids. The uncertainty stage wraps either as its backbone."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from prudent.errors import BadRow, DataError, PrudentError
from prudent.recommend.baselines import csr_tensors, sparse_scores
from prudent.recommend.interactions import parse_rating, text_id
from prudent.recommend.metrics import Scorer
from prudent.recommend.models import Backbone
from prudent.recommend.rows import Fields, rows_of
from prudent.recommend.splits import Data

Outside = Callable[[list[str], list[str]], Any]


def from_table(
    path: str | Path, data: Data, *, user: str | None = None, item: str | None = None, score: str | None = None
) -> tuple[Backbone, dict[str, int]]:
    """Backbone of a CSV, TSV, JSONL or Parquet file with a user, an item and a score a row; and counts of what it held.

    Pairs that the file doesn't hold score 0. Pairs of unknown users or items are left out and counted. Raises DataError
    for missing or unparsable scores and for a pair given twice.
    """
    rows, fields, _ = rows_of(path, Fields(user, item, score, None))
    if fields.rating is None:
        raise PrudentError(f"{path}: no score column; name it with score=... (--score-column)")
    user_index = {name: index for index, name in enumerate(data.users)}
    item_index = {name: index for index, name in enumerate(data.items)}
    cells: dict[tuple[int, int], float] = {}
    bad: list[BadRow] = []
    counts: Counter = Counter()
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        line, who, what, value, _ = row
        try:
            number = parse_rating(value)
        except ValueError as error:
            bad.append(BadRow(line, fields.rating, "unparsable-score", str(error)))
            continue
        if number is None:
            bad.append(BadRow(line, fields.rating, "missing-score", "the cell is empty; give a number"))
            continue
        counts["rows"] += 1
        pair = (user_index.get(text_id(who), -1), item_index.get(text_id(what), -1))
        if min(pair) < 0:
            counts["pairs of users or items unseen in training"] += 1
        elif pair in cells:
            bad.append(BadRow(line, "", "pair-given-twice", f"user {who!r}, item {what!r}; keep one score a pair"))
        else:
            cells[pair] = number
    if bad:
        raise DataError(str(path), bad, "fix these rows of the outside scores")
    if not cells:
        raise PrudentError(
            f"{path}: no score of a known user and item; check that its ids are those of the interactions"
        )
    shape = data.train.shape
    indices = np.array(list(cells), dtype=np.int64)
    matrix = sparse.csr_matrix((np.array(list(cells.values()), dtype=np.float32), indices.T), shape=shape)
    matrix.sort_indices()
    counts["known pairs with a score"] = len(cells)
    counts["known pairs without a score, taken as 0"] = shape[0] * shape[1] - len(cells)
    return Backbone("outside file", "table", sparse_scores(matrix), csr_tensors(matrix)), dict(counts)


def from_callable(function: Outside, data: Data, name: str = "outside function") -> Backbone:
    """Backbone of ``function(users, items) -> (users, items)`` array of scores, called with ids (text), users in
    batches.
    """
    return Backbone(name, "callable", outside_scores(function, data.users, data.items), {})


def outside_scores(function: Outside, users: list[str], items: list[str]) -> Scorer:
    """Scorer that asks an outside function; its shape is checked, NaN and infinity are refused."""

    def scores(indices: np.ndarray) -> torch.Tensor:
        values = torch.as_tensor(np.asarray(function([users[index] for index in indices], items)), dtype=torch.float32)
        if tuple(values.shape) != (len(indices), len(items)):
            raise PrudentError(
                f"the outside scorer gave shape {tuple(values.shape)} for {len(indices)} users and {len(items)} items; "
                "it must give one score a pair, users first"
            )
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise PrudentError(
                f"the outside scorer gave {values[row, column].item()} for user {users[indices[row]]!r}, item "
                f"{items[column]!r}; scores must be finite"
            )
        return values

    return scores


def load_callable(name: str) -> Outside:
    """The function ``package.module:function``, looked for in the working folder too."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise PrudentError(f"scorer {name!r} isn't of the form package.module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PrudentError(f"scorer {name!r} can't be loaded: {error}") from error
    if not callable(function):
        raise PrudentError(f"scorer {name!r} is no function but {type(function).__name__}")
    return function
