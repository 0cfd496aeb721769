"""Training, validation and test sides of interactions, and what of them a recommender can't know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.interactions import Interactions, require_population
from prudent.seeding import Seed, numpy_generator

HOWS = ("user", "time", "random")


@dataclass(frozen=True)
class Truth:
    """Held-out positives, distinguished by whether the training side knows their user and item.

    positives: (users, items) CSR, the pairs whose item is in the catalogue. unreachable: (users,) int64, held-out
    positives of an item that training never saw; they stay in every denominator, since leaving them out would flatter.
    cold: (cold users, items) CSR of users without a training positive. dropped: pairs left out since they are training
    positives too.
    """

    positives: sparse.csr_matrix
    unreachable: np.ndarray
    cold: sparse.csr_matrix
    cold_unreachable: np.ndarray
    cold_users: list[str] = field(default_factory=list)
    dropped: int = 0

    def counts(self) -> dict[str, int]:
        """How many pairs and users there are of each kind."""
        return {
            "positive pairs of known users and items": int(self.positives.nnz),
            "users with such a pair": int((np.diff(self.positives.indptr) > 0).sum()),
            "positive pairs of items unseen in training": int(self.unreachable.sum() + self.cold_unreachable.sum()),
            "users without training history (popularity is shown to them)": len(self.cold_users),
            "positive pairs of users without training history": int(self.cold.nnz + self.cold_unreachable.sum()),
            "pairs left out because training has them": self.dropped,
        }


@dataclass(frozen=True)
class Data:
    """What a recommender is fitted on and judged by.

    users, items: ids (text), sorted; each has a training positive. train: (users, items) CSR of ones, the positives.
    seen: CSR of ones, every known pair, also those rated below the threshold; none of them is recommended. valid, test:
    held out.
    """

    users: list[str]
    items: list[str]
    train: sparse.csr_matrix
    seen: sparse.csr_matrix
    valid: Truth
    test: Truth | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def popularity(self) -> np.ndarray:
        """(items,) number of users with a training positive."""
        return np.bincount(self.train.indices, minlength=len(self.items))

    def seen_with_valid(self) -> sparse.csr_matrix:
        """Pairs known when the test is taken: ``seen`` and the validation positives."""
        return union(self.seen, self.valid.positives)


def pattern(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """CSR of ones with sorted indices."""
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def union(one: sparse.csr_matrix, other: sparse.csr_matrix) -> sparse.csr_matrix:
    """CSR of ones where either has an entry."""
    both = (one + other).tocsr()
    both.data[:] = 1
    both.sort_indices()
    return both


def sides(found: Interactions, how: str, valid: float, test: float, seed: Seed) -> np.ndarray:
    """(cells,) int8: 0 training, 1 validation, 2 test.

    how: "user" holds out a share of each user's own cells at random and leaves each at least one; "random" a share of
    all cells; "time" cuts at two moments, so that nothing later than the cut is trained on.
    """
    if how not in HOWS:
        raise PrudentError(f"split is {how!r}; choose one of {', '.join(HOWS)}")
    if not (0 <= test < 1 and 0 < valid < 1 and valid + test < 1):
        raise PrudentError(
            f"shares valid={valid}, test={test} leave no training side; they must be positive and sum below 1"
        )
    side = np.zeros(len(found), dtype=np.int8)
    if how == "time":
        if found.time is None or np.isnan(found.time).any():
            missing = (
                "no time column" if found.time is None else f"{int(np.isnan(found.time).sum())} pairs without a time"
            )
            raise PrudentError(
                f"split by time needs a time for every pair, found {missing}; give --split user or --split random"
            )
        # Cut at moments of positives, since these are what is trained on and tested.
        cuts = np.quantile(found.time[found.positive], [1 - test - valid, 1 - test])
        side[found.time > cuts[0]] = 1
        side[found.time > cuts[1]] = 2
        return side
    generator = numpy_generator(seed)
    if how == "random":
        order = generator.permutation(len(found))
        ends = np.floor(np.array([test, test + valid]) * len(found)).astype(int)
        side[order[: ends[0]]] = 2
        side[order[ends[0] : ends[1]]] = 1
        return side
    key = generator.random(len(found))
    # Positives and the rest are split apart, so that a user's share is a share of what is recommended.
    group = found.user.astype(np.int64) * 2 + found.positive
    order = np.lexsort((key, group))
    starts = np.r_[0, np.flatnonzero(np.diff(group[order])) + 1] if len(found) else np.zeros(0, dtype=int)
    sizes = np.diff(np.r_[starts, len(found)])
    position = np.arange(len(found)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    tests = np.minimum(np.round(size * test), size - 1)
    valids = np.minimum(np.round(size * valid), size - 1 - tests)
    side[order] = np.where(position < tests, 2, np.where(position < tests + valids, 1, 0))
    return side


def split(
    found: Interactions,
    how: str = "user",
    *,
    valid: float = 0.1,
    test: float = 0.1,
    seed: Seed = 0,
    source: str = "input",
) -> Data:
    """Split one set of interactions into training, validation and test; see ``sides`` for the ways."""
    side = sides(found, how, valid, test, seed)
    data = assemble(found.keep(side == 0), found.keep(side == 1), source)
    data.notes.update(split=how, valid_share=valid, test_share=test)
    return with_test(data, found.keep(side == 2)) if test else data


def assemble(train: Interactions, valid: Interactions, source: str = "input") -> Data:
    """Data of a training and a validation side; users and items without a training positive are left out, counted."""
    require_population(train, source)
    user, item = train.user[train.positive], train.item[train.positive]
    known_users, known_items = np.unique(user), np.unique(item)
    users = [train.users[i] for i in known_users]
    items = [train.items[i] for i in known_items]
    shape = (len(users), len(items))
    positives = pattern(np.searchsorted(known_users, user), np.searchsorted(known_items, item), shape)
    inside = np.isin(train.user, known_users) & np.isin(train.item, known_items)
    seen = pattern(
        np.searchsorted(known_users, train.user[inside]), np.searchsorted(known_items, train.item[inside]), shape
    )
    data = Data(users, items, positives, seen, truth_of(users, items, positives, valid))
    data.notes["users without a training positive"] = len(train.users) - len(users)
    data.notes["items without a training positive"] = len(train.items) - len(items)
    return data


def with_test(data: Data, test: Interactions) -> Data:
    """``data`` with a test side."""
    known = union(data.train, data.valid.positives)
    return replace(data, test=truth_of(data.users, data.items, known, test))


def truth_of(users: list[str], items: list[str], known: sparse.csr_matrix, held: Interactions) -> Truth:
    """Held-out positives over the catalogue of the training side; ``known`` pairs among them are left out, counted."""
    user_index = catalogue_index(held.users, users)[held.user[held.positive]]
    item_index = catalogue_index(held.items, items)[held.item[held.positive]]
    warm, reachable = user_index >= 0, item_index >= 0
    positives = pattern(user_index[warm & reachable], item_index[warm & reachable], known.shape)
    overlap = positives.multiply(known).tocsr()
    if overlap.nnz:
        positives = (positives - overlap).tocsr()
        positives.eliminate_zeros()
    cold_codes, cold_rows = np.unique(held.user[held.positive][~warm], return_inverse=True)
    cold_reach = reachable[~warm]
    cold = pattern(cold_rows[cold_reach], item_index[~warm][cold_reach], (len(cold_codes), len(items)))
    return Truth(
        positives,
        np.bincount(user_index[warm & ~reachable], minlength=len(users)),
        cold,
        np.bincount(cold_rows[~cold_reach], minlength=len(cold_codes)),
        [held.users[code] for code in cold_codes],
        int(overlap.nnz),
    )


def catalogue_index(names: list[str], catalogue: list[str]) -> np.ndarray:
    """(names,) index of each name in the catalogue, -1 where it isn't there."""
    index = {name: position for position, name in enumerate(catalogue)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64)
