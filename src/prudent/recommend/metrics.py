"""Recall, NDCG, coverage and concentration of recommendations; overall and in both views of the tail.

Recall@K divides by all held-out positives of a user, NDCG@K by the gain of an ideal list of min(K, positives) hits. A
user without held-out positives has no value (NaN) and is left out of the mean and counted. Views (AUR, arXiv
2209.11679): "overall"; "tail absolute" ranks all items and counts tail positives only; "tail relative" ranks tail items
only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.batches import chunks, history, scoring_batch
from prudent.recommend.splits import Truth

Scorer = Callable[[np.ndarray], torch.Tensor]
VIEWS = ("overall", "tail absolute", "tail relative")


@dataclass(frozen=True)
class Ranking:
    """How a ranking did. values: metric -> (users,) float64, NaN where a user has no held-out positive in that view.

    top: (users, K) int32 item places, best first; -1 where fewer than K items were left.
    """

    values: dict[str, np.ndarray]
    top: np.ndarray
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


def recall_ndcg(hits: np.ndarray, positives: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall@k and NDCG@k of (users, >= k) bool hits in rank order and (users,) numbers of positives; else NaN."""
    hits = hits[:, :k].astype(np.float64)
    gain = discounts(k)
    ideal = np.r_[0.0, np.cumsum(gain)][np.minimum(positives, k)]
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(positives > 0, hits.sum(1) / positives, np.nan)
        ndcg = np.where(positives > 0, hits @ gain[: hits.shape[1]] / ideal, np.nan)
    return recall, ndcg


def mask_seen(scores: torch.Tensor, seen: sparse.csr_matrix, users: np.ndarray) -> torch.Tensor:
    """``scores`` (batch, items) with pairs the users have seen at minus infinity, in a copy."""
    entries = history(seen, users)
    scores = scores.clone()
    scores[entries.row, entries.column] = -torch.inf
    return scores


def top_places(scores: torch.Tensor, k: int) -> np.ndarray:
    """(batch, k) int32 places of the highest scores, best first; -1 where only minus infinity is left."""
    k_here = min(k, scores.shape[1])
    values, places = torch.topk(scores, k_here, dim=1)
    places = torch.where(torch.isneginf(values), -1, places)
    out = np.full((len(scores), k), -1, dtype=np.int32)
    out[:, :k_here] = places.numpy()
    return out


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

    scorer: user places -> (batch, items) scores. seen: pairs never recommended. tail: (items,) bool. Raises
    PrudentError for scores that are NaN (naming the user) or have the wrong shape.
    """
    sheet = Sheet(truth, tail, ks, views)
    items_count = truth.positives.shape[1]
    blocked = torch.from_numpy(~tail)
    for users in chunks(sheet.active, scoring_batch(items_count)):
        scores = mask_seen(checked(scorer(users), users, items_count), seen, users)
        relative = "tail relative" in views
        in_tail = top_places(scores.masked_fill(blocked, -torch.inf), sheet.k) if relative else None
        sheet.enter(users, top_places(scores, sheet.k), in_tail)
    return sheet.ranking()


class Sheet:
    """Collects metrics of ranked places, a batch of users at a time; state is what a batch adds to."""

    def __init__(self, truth: Truth, tail: np.ndarray, ks: Sequence[int], views: Sequence[str]) -> None:
        self.truth, self.tail, self.ks, self.views, self.k = truth, tail, ks, views, max(ks)
        users = truth.positives.shape[0]
        self.top = np.full((users, self.k), -1, dtype=np.int32)
        names = [f"{name}@{k} {view}" for view in views for k in ks for name in ("recall", "ndcg")]
        self.values = {name: np.full(users, np.nan) for name in names}
        self.totals = np.diff(truth.positives.indptr) + truth.unreachable
        # Items that training never saw have popularity 0: they are tail.
        self.tail_totals = np.rint(truth.positives @ tail.astype(np.float64)).astype(np.int64) + truth.unreachable
        self.active = np.flatnonzero(self.totals > 0)

    def enter(self, users: np.ndarray, places: np.ndarray, in_tail: np.ndarray | None) -> None:
        """places, in_tail: (batch, k) best unseen items of these users among all and among tail items."""
        self.top[users] = places
        positive = self.truth.positives[users]
        for view in self.views:
            shown = in_tail if view == "tail relative" else places
            if shown is None:
                continue
            hits = hit_matrix(shown, positive)
            if view != "overall":
                hits &= np.append(self.tail, False)[shown]
            totals = (self.totals if view == "overall" else self.tail_totals)[users]
            for k in self.ks:
                recall, ndcg = recall_ndcg(hits, totals, k)
                self.values[f"recall@{k} {view}"][users], self.values[f"ndcg@{k} {view}"][users] = recall, ndcg

    def ranking(self) -> Ranking:
        without = len(self.totals) - len(self.active)
        notes = {"users evaluated": len(self.active), "users without held-out positives": without}
        return Ranking(self.values, self.top, notes)


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


def hit_matrix(places: np.ndarray, positive: sparse.csr_matrix) -> np.ndarray:
    """(batch, k) bool: is the item at this rank a held-out positive? -1 never is."""
    dense = np.zeros((positive.shape[0], positive.shape[1] + 1), dtype=bool)
    dense[np.repeat(np.arange(positive.shape[0]), np.diff(positive.indptr)), positive.indices] = True
    return np.take_along_axis(dense, places.astype(np.int64), axis=1)  # place -1 reads the last column, always false


def spread_of(top: np.ndarray, popularity: np.ndarray, k: int = 20) -> dict[str, float]:
    """Coverage (share of items in any top-k list), Gini of how often items are shown (0 even, 1 one item), mean
    popularity.
    """
    shown = top[:, :k]
    shown = shown[shown >= 0]
    counts = np.bincount(shown, minlength=len(popularity))
    return {
        f"coverage@{k}": float((counts > 0).mean()),
        f"gini@{k}": gini(counts),
        f"popularity@{k}": float(popularity[shown].mean()) if len(shown) else float("nan"),
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

    An item repeated in a list counts at its first place only and wastes the later ones. Returns recall, ndcg ((users,)
    float64, NaN for a user without truth), repeats and users_without_truth (counts).
    """
    if k < 1:
        raise PrudentError(f"k is {k}; choose at least 1")
    if len(recommended) != len(truth):
        raise PrudentError(f"{len(recommended)} lists but {len(truth)} truths; give one truth set a list")
    hits = np.zeros((len(truth), k), dtype=bool)
    repeats = 0
    for place, (shown, right) in enumerate(zip(recommended, truth)):
        known: set = set()
        for rank, item in enumerate(shown[:k]):
            repeats += item in known
            hits[place, rank] = item in right and item not in known
            known.add(item)
    sizes = np.array([len(set(right)) for right in truth], dtype=np.int64)
    recall, ndcg = recall_ndcg(hits, sizes, k)
    return {"recall": recall, "ndcg": ndcg, "repeats": repeats, "users_without_truth": int((sizes == 0).sum())}
