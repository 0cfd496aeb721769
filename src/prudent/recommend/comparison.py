"""Rankings side by side on the test side: means with intervals over users, paired differences, what s has learnt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse, stats

from prudent.errors import PrudentError
from prudent.evaluation.statistics import bounded_mean, correlation, holm, paired_bootstrap
from prudent.recommend.batches import chunks, history, scoring_batch
from prudent.recommend.lists import judge_lists
from prudent.recommend.metrics import VIEWS, Ranking, Scorer, evaluate, exposure_shares
from prudent.recommend.pipeline import BASELINES, Model, fit_backbone
from prudent.recommend.ranking import sweep
from prudent.recommend.splits import Truth
from prudent.recommend.training import Progress
from prudent.seeding import Seed, spawn

SCORE, UNCERTAINTY, BLEND = "score", "uncertainty", "blend"
NAMES = {"popularity": "popularity", "knn": "item-kNN", "als": "ALS (implicit)", "ipw": "MF + IPW"}


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found. rankings: by name, the backbone's first. table, paired, sweep: rows in plain types.
    validation: users and positives that the blend was chosen on, and its lead over the score there (Recall@20).
    """

    rankings: dict[str, Ranking]
    table: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    sweep: list[dict[str, float]]
    counts: dict[str, Any] = field(default_factory=dict)
    items: dict[str, np.ndarray] = field(default_factory=dict)
    correlations: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)


def compare(
    model: Model,
    *,
    baselines: Sequence[str] = BASELINES,
    lists: Mapping[str, dict[str, list[str]]] | None = None,
    ks: Sequence[int] = (20, 50),
    rounds: int = 1000,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Judge score, uncertainty, blend and baselines on the model's test side. lists: outside recommendations by name.

    Every ranking hides the same seen pairs. Differences are paired over users against the backbone's own ranking, with
    p values adjusted by Holm over the family. Raises PrudentError when there is no test side or nobody to test.
    """
    data = model.data
    if data.test is None:
        raise PrudentError("the recommender has no test side; give --test FILE, or fit with a test share above 0")
    if not ((np.diff(data.test.positives.indptr) + data.test.unreachable) > 0).any():
        found = ", ".join(f"{count} {name}" for name, count in data.test.counts().items() if count)
        raise PrudentError(f"no known user has a test positive ({found or 'none at all'}); check the test file's ids")
    if min(ks) < 1:
        raise PrudentError(f"k is {min(ks)}; choose at least 1")
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise PrudentError(f"baselines {', '.join(unknown)} are unknown; choose from {', '.join(BASELINES)}")
    seen = data.seen_with_valid()
    rankings: dict[str, Ranking] = {}
    seconds: dict[str, float] = {}
    for name, scorer in contenders(model, baselines, seed, seconds, progress).items():
        rankings[name] = evaluate(scorer, data.test, seen, model.tail, ks=ks)
    for name, given in (lists or {}).items():
        rankings[name] = judge_lists(given, data.users, data.items, data.test, seen, model.tail, ks=ks)
    first = next(iter(rankings.values()))
    return Comparison(
        rankings,
        [row_of(name, ranking, data.popularity, rounds, seed) for name, ranking in rankings.items()],
        differences(rankings, rounds, seed),
        sweep(model.backbone.scores, model.uncertainty.scores, data.test, seen, model.tail),
        {**data.test.counts(), **first.notes, **cold_counts(model, ks)},
        *against_popularity(model, seen),
        seconds,
        validation_lead(model, rounds, seed),
    )


def validation_lead(model: Model, rounds: int, seed: Seed) -> dict[str, Any]:
    """How many validation users and positives chose the blend, and its Recall@20 minus the score's on them: gain, low
    and high (paired bootstrap over users; None where one user has nothing to resample)."""
    data, metric = model.data, "recall@20 overall"
    scorers = model.scorer(BLEND), model.scorer(SCORE)
    mixed, score = (
        evaluate(scorer, data.valid, data.seen, model.tail, ks=(20,), views=VIEWS[:1]).values[metric]
        for scorer in scorers
    )
    kept = ~np.isnan(mixed)
    lead = paired_bootstrap(mixed[kept], score[kept], rounds=rounds, seed=seed).difference
    counts = {"users": int(kept.sum()), "positives": int(data.valid.positives.nnz)}
    return {**counts, **lead.fields("gain")}


def contenders(
    model: Model, baselines: Sequence[str], seed: Seed, seconds: dict[str, float], progress: Progress | None
) -> dict[str, Scorer]:
    """Scorers by the name they have in tables; baselines are fitted here, and timed."""
    scorers = {
        f"{model.backbone.name}: score": model.scorer(SCORE),
        f"{model.backbone.name}: uncertainty": model.scorer(UNCERTAINTY),
        f"{model.backbone.name}: blend": model.scorer(BLEND),
    }
    for name, child in zip(baselines, spawn(seed, len(baselines))):
        if name == model.backbone.name:
            continue
        started = time.perf_counter()
        scorers[NAMES[name]] = fit_backbone(model.data, name, seed=child, progress=progress).scores
        seconds[NAMES[name]] = time.perf_counter() - started
    return scorers


def row_of(name: str, ranking: Ranking, popularity: np.ndarray, rounds: int, seed: Seed) -> dict[str, Any]:
    """One ranking's means with intervals over users (null with a reason where there is none), and its exposure."""
    row: dict[str, Any] = {"ranking": name}
    for metric, values in ranking.values.items():
        found = bounded_mean(values[~np.isnan(values)], rounds=rounds, seed=seed)
        row[metric] = {**found.fields("mean"), "users": found.n}
        if found.value is None:
            row[metric]["reason"] = found.reason
    return {**row, **exposure_shares(ranking.exposure, popularity), "notes": ranking.notes}


def paired_p(gap: np.ndarray) -> float | None:
    """Two-sided p of a paired t-test on (users,) differences; 1 where all are 0, None where all are equal.

    A bootstrap's p is never below 2 / (rounds + 1), which Holm over dozens of rows lifts above any level.
    """
    if not gap.any():
        return 1.0
    return float(stats.ttest_1samp(gap, 0).pvalue) if len(gap) > 1 and gap.std() else None


def differences(rankings: Mapping[str, Ranking], rounds: int, seed: Seed) -> list[dict[str, Any]]:
    """Each ranking minus the first, paired over users, for every metric both have; p adjusted by Holm over all rows."""
    names = list(rankings)
    rows = []
    for name in names[1:]:
        for metric, values in rankings[name].values.items():
            base = rankings[names[0]].values[metric]
            kept = ~np.isnan(values) & ~np.isnan(base)
            if not kept.any():
                continue
            gap = paired_bootstrap(values[kept], base[kept], rounds=rounds, seed=seed).difference
            row = {"ranking": name, "minus": names[0], "metric": metric, **gap.fields("difference"), "users": gap.n}
            rows.append({**row, "p": paired_p(values[kept] - base[kept])})
    tested = [row for row in rows if row["p"] is not None]
    if tested:
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]).tolist()):
            row["p_holm"] = adjusted
    return rows


def cold_counts(model: Model, ks: Sequence[int]) -> dict[str, Any]:
    """How the popular items do for users without a history: they are no part of the table's means."""
    truth = model.data.test
    assert truth is not None
    if not truth.cold_users:
        return {}
    counts = torch.from_numpy(model.data.popularity.astype(np.float32))
    held = Truth(truth.cold, truth.cold_unreachable, truth.cold[:0], truth.cold_unreachable[:0])
    nothing = truth.cold * 0
    nothing.eliminate_zeros()
    found = evaluate(lambda users: counts.expand(len(users), -1), held, nothing, model.tail, ks=ks, views=VIEWS[:1])
    return {f"users without history: {name} of the popular items": found.mean(name) for name in found.values}


def against_popularity(model: Model, seen: sparse.csr_matrix) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Each item's mean score and mean log-variance over the users who have not seen it, and how they go with
    popularity.
    """
    count = len(model.data.items)
    sums = {"score": np.zeros(count), "log_variance": np.zeros(count)}
    unseen = np.zeros(count)
    for users in chunks(np.arange(len(model.data.users)), scoring_batch(count)):
        entries = history(seen, users)
        unseen += len(users) - np.bincount(entries.column.numpy(), minlength=count)
        for name, scorer in (("score", model.backbone.scores), ("log_variance", model.uncertainty.scores)):
            scores = scorer(users).clone()
            scores[entries.row, entries.column] = 0
            sums[name] += scores.sum(0, dtype=torch.float64).numpy()
    popularity = model.data.popularity
    with np.errstate(invalid="ignore", divide="ignore"):
        items = {"popularity": popularity, "tail": model.tail, **{name: total / unseen for name, total in sums.items()}}
    kept = unseen > 0
    found = {}
    for name in sums:
        estimate = correlation(items[name][kept], popularity[kept], "spearman", rounds=200)
        found[name] = {**estimate.fields("spearman"), "items": estimate.n}
    return items, found
