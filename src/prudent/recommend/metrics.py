"""Recall, NDCG, coverage and concentration of recommendations; overall and in both views of the tail.

Recall@K divides by all held-out positives of a user, NDCG@K by the gain of an ideal list of min(K, positives) hits. A
user without held-out positives has no value (NaN) and is left out of the mean and counted. Items of equal score are
ranked in every order alike: metrics, coverage and concentration are expected values over those orders.
Views (AUR, arXiv 2209.11679): "overall"; "tail absolute" ranks all items and counts tail positives only; "tail
relative" ranks tail items only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.evaluation.ties import mean_over_orders
from prudent.recommend.batches import History, chunks, history, scoring_batch
from prudent.recommend.splits import Truth

Scorer = Callable[[np.ndarray], torch.Tensor]
SHOWN = 20  # length of the lists whose coverage and concentration are counted
VIEWS = ("overall", "tail absolute", "tail relative")


@dataclass(frozen=True)
class Ranking:
    """How a ranking did. values: metric -> (users,) float64, NaN where a user has no held-out positive in that view.

    top: (users, K) int32 item indices, best first; -1 where fewer than K items were left. exposure: how often items are
    shown.
    """

    values: dict[str, np.ndarray]
    top: np.ndarray
    exposure: Exposure
    notes: dict[str, int] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Mean over users that have a value; NaN when none has."""
        values = self.values[metric]
        kept = values[~np.isnan(values)]
        return float(kept.mean()) if len(kept) else float("nan")


def tail_items(
    popularity: np.ndarray, *, percentile: float = 80.0, below: int | None = None
) -> tuple[np.ndarray, float]:
    """(items,) bool, true where popularity is under the threshold, and that threshold.

    The threshold is ``below`` (a number of training positives), or the ``percentile`` of the popularity of all items.
    """
    if below is None and not 0 < percentile <= 100:
        raise PrudentError(f"tail percentile is {percentile}; choose a number above 0 and at most 100")
    if below is not None and below < 1:
        raise PrudentError(f"tail threshold is {below}; an item is tail below so many positives: choose at least 1")
    threshold = float(np.percentile(popularity, percentile)) if below is None else float(below)
    return popularity < threshold, threshold


def discounts(k: int) -> np.ndarray:
    """(k,) 1 / log2(rank + 1) for ranks from 1."""
    return 1 / np.log2(np.arange(2, k + 2))


def recall_ndcg(entries: Positions, positives: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected Recall@k and NDCG@k (users,) of the users' positives in a ranking; NaN for a user without positives.

    positives: (users,) how many held-out positives each has, those that no ranking can reach included.
    """
    gain = discounts(k)
    ideal = np.r_[0.0, np.cumsum(gain)][np.minimum(positives, k)]
    sums = (
        np.bincount(entries.row, mean_over_orders(gains, entries.above, entries.equal), minlength=len(positives))
        for gains in (np.ones(k), gain)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, ndcg = (np.where(positives > 0, found / best, np.nan) for found, best in zip(sums, (positives, ideal)))
    return recall, ndcg


def mask_seen(scores: torch.Tensor, seen: sparse.csr_matrix, users: np.ndarray) -> torch.Tensor:
    """``scores`` (batch, items) with pairs the users have seen at minus infinity, in a copy."""
    entries = history(seen, users)
    scores = scores.clone()
    scores[entries.row, entries.column] = -torch.inf
    return scores


@dataclass(frozen=True)
class Best:
    """The best items of a batch of users. values: (batch, k + 1) scores, highest first, minus infinity where none is
    left. indices: (batch, k) int32 items, -1 where none is left. full: (batch, items) scores that they come from.
    """

    values: torch.Tensor
    indices: np.ndarray
    full: torch.Tensor

    def tied_at(self, k: int) -> torch.Tensor:
        """Rows (n,) whose list of k ends within a group of equal scores, so that some of the group are left out."""
        last, following = self.values[:, k - 1], self.values[:, k]
        return torch.nonzero((last == following) & ~torch.isneginf(last))[:, 0]


def best_items(scores: torch.Tensor, k: int, users: np.ndarray) -> Best:
    """The k highest scores (batch, items) of each user; minus infinity is never chosen.

    Of equal scores at the end of a list, those that it has room for are drawn by a generator seeded with the user's
    number: neither an item's name nor its index in the catalogue decides, and the same user gets the same list again.
    """
    reach = min(k + 1, scores.shape[1])
    found, order = torch.topk(scores, reach, dim=1)
    values = torch.nn.functional.pad(found, (0, k + 1 - reach), value=-torch.inf)
    indices = np.full((len(scores), k), -1, dtype=np.int32)
    indices[:, :reach] = torch.where(torch.isneginf(found), -1, order).numpy()[:, :k]
    best = Best(values, indices, scores)
    for row in best.tied_at(k).tolist():
        cut = values[row, k - 1]
        group = torch.nonzero(scores[row] == cut)[:, 0].numpy()
        room = torch.nonzero(values[row, :k] == cut)[:, 0].numpy()
        indices[row, room] = np.random.default_rng([int(users[row])]).choice(group, len(room), replace=False)
    return best


@dataclass(frozen=True)
class Positions:
    """Where positives stand in rankings: their user's row in the batch, how many items score above each, and how many
    score the same, itself included. (n,) each.
    """

    row: np.ndarray
    above: np.ndarray
    equal: np.ndarray

    def at(self, kept: np.ndarray) -> Positions:
        """Those for which ``kept`` (n,) is true."""
        return Positions(self.row[kept], self.above[kept], self.equal[kept])


def positions(best: Best, entries: History) -> Positions:
    """Positions of the entries (user, item); one beyond the list of k has ``above`` k: exact ranks are not needed."""
    score, top = best.full[entries.row, entries.column], best.values[entries.row, :-1]
    above, equal = (top > score[:, None]).sum(1), (top == score[:, None]).sum(1)
    last = best.values[:, -2]
    group = torch.zeros(len(last), dtype=torch.int64)
    rows = best.tied_at(top.shape[1])
    group[rows] = (best.full[rows] == last[rows, None]).sum(1)
    equal = torch.where(score == last[entries.row], torch.maximum(group[entries.row], equal), equal).clamp(min=1)
    above = torch.where(torch.isneginf(score), top.shape[1], above)
    return Positions(entries.row.numpy(), above.numpy(), equal.numpy())


@dataclass(frozen=True)
class Exposure:
    """How often items are shown in lists of ``k``. expected: (items,) times. missed: (items,) probability that no list
    shows the item (equal scores in an order of each user's own).
    """

    expected: np.ndarray
    missed: np.ndarray
    k: int

    def add(self, best: Best) -> None:
        """Count a batch's lists in."""
        tied = best.tied_at(self.k)
        self.add_indices(np.delete(best.indices[:, : self.k], tied.numpy(), axis=0))
        for row in tied.tolist():
            cut = best.values[row, self.k - 1]
            group = (best.full[row] == cut).numpy()
            room = int((best.values[row, : self.k] == cut).sum())
            self.add_indices((best.full[row] > cut).nonzero()[:, 0].numpy())
            self.expected[group] += room / group.sum()
            self.missed[group] *= 1 - room / group.sum()

    def add_indices(self, indices: np.ndarray) -> None:
        """Count in items that are certainly shown; -1 is none."""
        shown = indices[indices >= 0]
        self.expected[:] += np.bincount(shown, minlength=len(self.expected))
        self.missed[shown] = 0


def evaluate(
    scorer: Scorer,
    truth: Truth,
    seen: sparse.csr_matrix,
    tail: np.ndarray,
    *,
    ks: Sequence[int] = (20, 50),
    views: Sequence[str] = VIEWS,
) -> Ranking:
    """Rank unseen items by ``scorer`` for every user with held-out positives, a batch at a time.

    scorer: user indices -> (batch, items) scores. seen: pairs never recommended. tail: (items,) bool. Metrics are means
    over every order of equal scores. Raises PrudentError for scores that are NaN (naming the user) or have the wrong
    shape.
    """
    sheet = Sheet(truth, tail, ks, views)
    items_count = truth.positives.shape[1]
    blocked = torch.from_numpy(~tail)
    for users in chunks(sheet.active, scoring_batch(items_count)):
        scores = mask_seen(checked(scorer(users), users, items_count), seen, users)
        best, entries = best_items(scores, sheet.k, users), history(truth.positives, users)
        sheet.show(users, best)
        found = {"": positions(best, entries)}
        if "tail relative" in views:
            in_tail = best_items(scores.masked_fill(blocked, -torch.inf), sheet.k, users)
            found["tail relative"] = positions(in_tail, entries)
        sheet.enter(users, entries.column.numpy(), found)
    return sheet.ranking()


class Sheet:
    """Collects metrics of ranked items, a batch of users at a time; state is what a batch adds to."""

    def __init__(self, truth: Truth, tail: np.ndarray, ks: Sequence[int], views: Sequence[str]) -> None:
        """Lists are at least ``SHOWN`` long, whatever the ks: exposure is always counted at ``SHOWN``."""
        self.truth, self.tail, self.ks, self.views, self.k = truth, tail, ks, views, max(*ks, SHOWN)
        users, items = truth.positives.shape
        self.top = np.full((users, self.k), -1, dtype=np.int32)
        self.exposure = Exposure(np.zeros(items), np.ones(items), SHOWN)
        self.tied = 0
        names = [f"{name}@{k} {view}" for view in views for k in ks for name in ("recall", "ndcg")]
        self.values = {name: np.full(users, np.nan) for name in names}
        self.totals = np.diff(truth.positives.indptr) + truth.unreachable
        # Items that training never saw have popularity 0: they are tail.
        self.tail_totals = np.rint(truth.positives @ tail.astype(np.float64)).astype(np.int64) + truth.unreachable
        self.active = np.flatnonzero(self.totals > 0)

    def show(self, users: np.ndarray, best: Best) -> None:
        """Keep the lists of these users."""
        self.top[users] = best.indices
        self.exposure.add(best)
        self.tied += len(best.tied_at(max(self.ks)))

    def enter(self, users: np.ndarray, items: np.ndarray, found: Mapping[str, Positions]) -> None:
        """Metrics of these users. items: (n,) of the positives. found: their positions, by the view that has its own
        ranking or "" for the ranking of all items."""
        for view in self.views:
            mine = found.get(view, found[""])
            mine = mine if view == "overall" else mine.at(self.tail[items])
            totals = (self.totals if view == "overall" else self.tail_totals)[users]
            for k in self.ks:
                recall, ndcg = recall_ndcg(mine, totals, k)
                self.values[f"recall@{k} {view}"][users], self.values[f"ndcg@{k} {view}"][users] = recall, ndcg

    def ranking(self) -> Ranking:
        """What was collected."""
        notes = {
            "users evaluated": len(self.active),
            "users without held-out positives": len(self.totals) - len(self.active),
        }
        if self.tied:
            notes[f"users whose first {max(self.ks)} end among equal scores, averaged over orders"] = self.tied
        return Ranking(self.values, self.top, self.exposure, notes)


def checked(scores: torch.Tensor, users: np.ndarray, items: int) -> torch.Tensor:
    """``scores`` when they are (batch, items) without NaN, or PrudentError."""
    if tuple(scores.shape) != (len(users), items):
        raise PrudentError(
            f"a scorer gave shape {tuple(scores.shape)} for {len(users)} users, expected {(len(users), items)}"
        )
    missing = torch.isnan(scores).any(1)
    if bool(missing.any()):
        raise PrudentError(
            f"a scorer gave NaN for user number {users[int(missing.nonzero()[0])]}; scores must be numbers"
        )
    return scores


def exposure_shares(exposure: Exposure, popularity: np.ndarray) -> dict[str, float]:
    """Coverage (expected share of items in any list), Gini of how often items are expected to be shown (0 even, 1 one
    item), mean popularity of what is shown; NaN where nothing is.
    """
    total, k = exposure.expected.sum(), exposure.k
    return {
        f"coverage@{k}": float(1 - exposure.missed.mean()),
        f"gini@{k}": gini(exposure.expected),
        f"popularity@{k}": float(exposure.expected @ popularity / total) if total else float("nan"),
    }


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of non-negative counts; NaN when they sum to zero."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    n, total = len(ordered), ordered.sum()
    if total == 0:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def list_metrics(
    recommended: Sequence[Sequence[Hashable]], truth: Sequence[set], k: int
) -> dict[str, np.ndarray | int]:
    """Recall@k and NDCG@k of lists of ids, as a person saw them, best first.

    An item repeated in a list counts at its first rank only and wastes the later ones. Returns recall, ndcg ((users,)
    float64, NaN for a user without truth), repeats and users_without_truth (counts).
    """
    if k < 1:
        raise PrudentError(f"k is {k}; choose at least 1")
    if len(recommended) != len(truth):
        raise PrudentError(f"{len(recommended)} lists but {len(truth)} truths; give one truth set a list")
    hits = np.zeros((len(truth), k), dtype=bool)
    repeats = 0
    for index, (shown, right) in enumerate(zip(recommended, truth)):
        known: set = set()
        for rank, item in enumerate(shown[:k]):
            repeats += item in known
            hits[index, rank] = item in right and item not in known
            known.add(item)
    sizes = np.array([len(set(right)) for right in truth], dtype=np.int64)
    owner, above = np.nonzero(hits)
    recall, ndcg = recall_ndcg(Positions(owner, above, np.ones_like(above)), sizes, k)
    return {"recall": recall, "ndcg": ndcg, "repeats": repeats, "users_without_truth": int((sizes == 0).sum())}
