"""Recall, NDCG, coverage and concentration of recommendations; overall and in both views of the tail.

Recall@K divides by all held-out positives of a user, NDCG@K by the gain of an ideal list of min(K, positives) hits. A user
without held-out positives has no value (NaN) and is left out of the mean and counted. Views (AUR, arXiv 2209.11679):
"overall"; "tail absolute" ranks all items and counts tail positives only; "tail relative" ranks tail items only.
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
    threshold = float(np.percentile(popularity, percentile)) if below is None else float(below)
    return popularity < threshold, threshold


def discounts(k: int) -> np.ndarray:
    """(k,) 1 / log2(rank + 1) for ranks from 1."""
    return 1 / np.log2(np.arange(2, k + 2))


def recall_ndcg(hits: np.ndarray, positives: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall@k and NDCG@k of (users, >= k) bool hits in rank order and (users,) numbers of positives; NaN without any."""
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

    scorer: user places -> (batch, items) scores. seen: pairs never recommended. tail: (items,) bool. Raises PrudentError for
    scores that are NaN (naming the user) or have the wrong shape.
    """
    users_count, items_count = truth.positives.shape
    k = max(ks)
    top = np.full((users_count, k), -1, dtype=np.int32)
    values = {
        f"{name}@{n} {view}": np.full(users_count, np.nan) for view in views for n in ks for name in ("recall", "ndcg")
    }
    totals = np.diff(truth.positives.indptr) + truth.unreachable
    tail_totals = np.asarray(truth.positives @ tail.astype(np.float64)).astype(np.int64) + truth.unreachable
    blocked = torch.from_numpy(~tail)
    active = np.flatnonzero(totals > 0)
    for users in chunks(active, scoring_batch(items_count)):
        scores = checked(scorer(users), users, items_count)
        scores = mask_seen(scores, seen, users)
        positive = truth.positives[users]
        top[users] = places = top_places(scores, k)
        for view in views:
            if view == "tail relative":
                places = top_places(scores.masked_fill(blocked, -torch.inf), k)
            hits = hit_matrix(places, positive)
            if view != "overall":
                hits &= np.append(tail, False)[places]
            for n in ks:
                recall, ndcg = recall_ndcg(hits, (totals if view == "overall" else tail_totals)[users], n)
                values[f"recall@{n} {view}"][users], values[f"ndcg@{n} {view}"][users] = recall, ndcg
    notes = {"users evaluated": len(active), "users without held-out positives": users_count - len(active)}
    return Ranking(values, top, notes)


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
    """Coverage (share of items in any top-k list), Gini of how often items are shown (0 even, 1 one item), mean popularity."""
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
