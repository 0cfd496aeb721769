"""Rank by score, by uncertainty or by a blend of the two, and choose the blend on the validation side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.batches import chunks, scoring_batch
from prudent.recommend.metrics import Scorer, best_items, evaluate, mask_seen
from prudent.recommend.splits import Data, Truth

RANKS = ("score", "uncertainty", "blend")
BLEND_BY = ("overall", "tail")
ROUNDING = 1e-12  # means over users that differ by less are equal
WEIGHTS = tuple(step / 10 for step in range(11))


def standardised(scores: torch.Tensor, seen: sparse.csr_matrix, users: np.ndarray) -> torch.Tensor:
    """Scores less each user's mean, over the standard deviation (ddof=1), both over items that the user has not seen.

    A user to whom all unseen items score the same gets zeros.
    """
    masked = mask_seen(scores, seen, users)
    unseen = ~torch.isneginf(masked)
    count = unseen.sum(1, keepdim=True)
    mean = torch.where(unseen, scores, 0).sum(1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(unseen, scores - mean, 0)
    scale = (deviation.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(scale > 0, (scores - mean) / scale, 0)


def blend(score: Scorer, log_variance: Scorer, seen: sparse.csr_matrix, weight: float) -> Scorer:
    """(1 - weight) z(f) + weight z(s), z standardised per user: weight 0 ranks by score, 1 by uncertainty."""
    if not 0 <= weight <= 1:
        raise PrudentError(f"blend weight is {weight}; choose a number from 0 (score) to 1 (uncertainty)")
    if weight == 0:
        return score
    if weight == 1:
        return log_variance

    def scores(users: np.ndarray) -> torch.Tensor:
        one, other = standardised(score(users), seen, users), standardised(log_variance(users), seen, users)
        return (1 - weight) * one + weight * other

    return scores


@dataclass(frozen=True)
class Blend:
    """The chosen weight, by which rule, and how every weight did on the side it was looked at."""

    weight: float
    by: str
    rows: list[dict[str, float]] = field(default_factory=list)


def sweep(
    score: Scorer,
    log_variance: Scorer,
    truth: Truth,
    seen: sparse.csr_matrix,
    tail: np.ndarray,
    weights: Sequence[float] = WEIGHTS,
) -> list[dict[str, float]]:
    """Recall@20 in every view for each blend weight."""
    rows = []
    for weight in weights:
        found = evaluate(blend(score, log_variance, seen, weight), truth, seen, tail, ks=(20,))
        recalls = {name: found.mean(name) for name in found.values if name.startswith("recall")}
        rows.append({"weight": weight, **recalls})
    return rows


def choose_blend(
    data: Data,
    score: Scorer,
    log_variance: Scorer,
    tail: np.ndarray,
    by: str = "overall",
    weights: Sequence[float] = WEIGHTS,
) -> Blend:
    """The blend that is best on validation.

    by "overall": the highest overall Recall@20 (the smaller weight on a tie). "tail": the highest Recall@20 on tail
    positives among all items, of those weights whose overall Recall@20 is not below that of the score alone.
    """
    if by not in BLEND_BY:
        raise PrudentError(f"blend rule is {by!r}; choose one of {', '.join(BLEND_BY)}")
    if 0 not in weights:
        raise PrudentError("blend weights must include 0, the score alone, which the others are compared with")
    rows = sweep(score, log_variance, data.valid, data.seen, tail, sorted(weights))
    overall = np.array([row["recall@20 overall"] for row in rows])
    if np.isnan(overall).any():
        raise PrudentError(
            "there is no validation positive to choose a blend by; hold out more, or rank by score or uncertainty"
        )
    if by == "overall":
        return Blend(rows[first_highest(overall)]["weight"], by, rows)
    in_tail = np.nan_to_num(np.array([row["recall@20 tail absolute"] for row in rows]), nan=-1.0)
    allowed = overall >= overall[0] - ROUNDING
    return Blend(rows[first_highest(np.where(allowed, in_tail, -2))]["weight"], by, rows)


def first_highest(values: np.ndarray) -> int:
    """Index of the first of the highest values; a difference of rounding alone is none."""
    return int((values >= values.max() - ROUNDING).argmax())


def recommend(scorer: Scorer, seen: sparse.csr_matrix, users: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, k) item indices (best first, -1 where none is left) and scores, for known users, none of them seen."""
    if k < 1:
        raise PrudentError(f"k is {k}; choose at least 1")
    indices = np.full((len(users), k), -1, dtype=np.int32)
    values = np.full((len(users), k), np.nan, dtype=np.float32)
    start = 0
    for part in chunks(users, scoring_batch(seen.shape[1])):
        scores = scorer(part)
        stop = start + len(part)
        indices[start:stop] = best_items(mask_seen(scores, seen, part), k, part).indices
        picked = torch.gather(scores, 1, torch.from_numpy(indices[start:stop].astype(np.int64)).clamp(min=0)).numpy()
        values[start:stop] = np.where(indices[start:stop] >= 0, picked, np.nan)
        start = stop
    return indices, values
