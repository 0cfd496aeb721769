"""Fit a backbone and the uncertainty stage on top, choose the blend, recommend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.recommend.baselines import fit_als, fit_ipw, fit_knn, fit_popularity
from prudent.recommend.metrics import Scorer, best_items, tail_items
from prudent.recommend.models import Backbone, BackboneOptions, fit_lightgcn, fit_mf, fit_vae
from prudent.recommend.outside import from_callable, from_table, load_callable
from prudent.recommend.ranking import RANKS, Blend, blend, choose_blend, recommend
from prudent.recommend.splits import Data, catalogue_index
from prudent.recommend.training import Progress, Schedule
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty
from prudent.seeding import Seed, spawn

BACKBONES = ("mf", "lightgcn", "vae", "als")
BASELINES = ("popularity", "knn", "als", "ipw")
SCHEDULES = {
    "mf": Schedule(batch=128, epochs=300, weight_decay=1e-2, warmup=600),
    "lightgcn": Schedule(learning_rate=1e-2, batch=128, epochs=300, weight_decay=1e-3, warmup=300),
    "vae": Schedule(batch=128, epochs=150),
    "ipw": Schedule(batch=128, epochs=300, weight_decay=1e-2, warmup=600),
    "uncertainty": Schedule(batch=128, epochs=300, warmup=300),
}
RANK_HELP = ", ".join(RANKS)


@dataclass(frozen=True)
class Settings:
    """All choices of a fit. backbone: a name of BACKBONES, or with ``outside`` whatever comes from elsewhere.

    outside: a file of scores, or a function (users, items) -> scores, or its name ``package.module:function``.
    schedule, stage: of the backbone and of the uncertainty stage; None takes SCHEDULES. tail_percentile, tail_below:
    see ``tail_items``.
    """

    backbone: str = "mf"
    outside: Any = None
    options: BackboneOptions = field(default_factory=BackboneOptions)
    uncertainty: UncertaintyOptions = field(default_factory=UncertaintyOptions)
    schedule: Schedule | None = None
    stage: Schedule | None = None
    tail_percentile: float = 80.0
    tail_below: int | None = None
    blend_by: str = "overall"


@dataclass(frozen=True)
class Model:
    """A fitted recommender: data, frozen backbone, log-variances, blend, which items are tail, and what it took."""

    data: Data
    backbone: Backbone
    uncertainty: Backbone
    blend: Blend
    tail: np.ndarray
    tail_below: float
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def scorer(self, rank: str = "uncertainty", weight: float | None = None) -> Scorer:
        """Scorer that ranks by "score", "uncertainty" or "blend" (at its chosen weight, or at ``weight``)."""
        if rank not in RANKS:
            raise PrudentError(f"rank is {rank!r}; choose one of {RANK_HELP}")
        if rank != "blend":
            return self.backbone.scores if rank == "score" else self.uncertainty.scores
        chosen = self.blend.weight if weight is None else weight
        return blend(self.backbone.scores, self.uncertainty.scores, self.data.seen_with_valid(), chosen)


def fit_backbone(
    data: Data,
    name: str,
    options: BackboneOptions | None = None,
    schedule: Schedule | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Backbone:
    """A backbone or baseline by name, with its default schedule where none is given."""
    options = options or BackboneOptions()
    if name == "popularity":
        return fit_popularity(data)
    if name == "knn":
        return fit_knn(data)
    if name == "als":
        return fit_als(data, options, seed)
    if name not in SCHEDULES or name == "uncertainty":
        raise PrudentError(f"backbone is {name!r}; choose one of {', '.join(BACKBONES)}, or give an outside scorer")
    plan = schedule or SCHEDULES[name]
    if name == "ipw":
        return fit_ipw(data, options, plan, seed, progress)
    fitters = {"mf": fit_mf, "lightgcn": fit_lightgcn, "vae": fit_vae}
    return fitters[name](data, options, plan, seed, progress=progress)


def outside_backbone(data: Data, outside: Any) -> tuple[Backbone, dict[str, int]]:
    """Backbone of an outside scorer: a function, its name ``package.module:function``, or a file of scores."""
    if callable(outside):
        return from_callable(outside, data, getattr(outside, "__name__", "outside function")), {}
    if isinstance(outside, Path) or Path(str(outside)).is_file() or ":" not in str(outside):
        return from_table(outside, data)
    return from_callable(load_callable(str(outside)), data, str(outside)), {}


def fit(data: Data, settings: Settings | None = None, seed: Seed = 0, progress: Progress | None = None) -> Model:
    """Backbone, uncertainty stage and blend, in that order; the backbone is proved unchanged by the second."""
    settings = settings or Settings()
    backbone_seed, stage_seed = spawn(seed, 2)
    if settings.outside is None and settings.backbone not in BACKBONES:
        raise PrudentError(f"backbone is {settings.backbone!r}; choose one of {', '.join(BACKBONES)}")
    tail, below = tail_items(data.popularity, percentile=settings.tail_percentile, below=settings.tail_below)
    if not (data.valid.positives.nnz or data.valid.unreachable.any()):
        raise PrudentError(
            "no known user has a validation positive to stop training and to choose a blend by; hold out a larger "
            "share (--valid-share), or give validation interactions of their own (--valid)"
        )
    clock = [time.perf_counter()]
    notes: dict[str, Any] = {}
    if settings.outside is not None:
        backbone, notes = outside_backbone(data, settings.outside)
    else:
        backbone = fit_backbone(data, settings.backbone, settings.options, settings.schedule, backbone_seed, progress)
    before = backbone.fingerprint()
    clock.append(time.perf_counter())
    plan = settings.stage or SCHEDULES["uncertainty"]
    uncertainty = fit_uncertainty(data, backbone, settings.uncertainty, plan, stage_seed, progress=progress)
    if backbone.fingerprint() != before:
        raise RuntimeError("the uncertainty stage changed the backbone, which it must only read")
    clock.append(time.perf_counter())
    chosen = choose_blend(data, backbone.scores, uncertainty.scores, tail, settings.blend_by)
    clock.append(time.perf_counter())
    seconds = dict(zip(("backbone", "uncertainty", "blend"), np.diff(clock).tolist()))
    return Model(data, backbone, uncertainty, chosen, tail, below, notes, seconds)


@dataclass(frozen=True)
class Top:
    """Recommendations. users: ids asked for. items: (users) lists of ids, best first. scores: as ranked. cold: without
    history.
    """

    users: list[str]
    items: list[list[str]]
    scores: list[list[float]]
    cold: list[bool]
    rank: str

    def counts(self) -> dict[str, int]:
        """How many users were asked for, and how many of them got the popular items for want of a history."""
        return {"users": len(self.users), "users without history, given the popular items": sum(self.cold)}


def top(model: Model, users: Sequence[str] | None = None, *, k: int = 20, rank: str = "blend") -> Top:
    """The best ``k`` unseen items of each user (None: all). A user without history gets the popular items."""
    data = model.data
    names = list(data.users) if users is None else [str(user) for user in users]
    index = catalogue_index(names, data.users)
    known = np.flatnonzero(index >= 0)
    seen = data.seen_with_valid()
    found, values = recommend(model.scorer(rank), seen, index[known], k)
    counts = torch.from_numpy(data.popularity.astype(np.float32))
    popular = best_items(counts[None], k, np.zeros(1, dtype=np.int64)).indices[0]
    order = popular[popular >= 0].tolist()
    items: list[list[str]] = [[data.items[i] for i in order] for _ in names]
    scores: list[list[float]] = [[float(counts[i]) for i in order] for _ in names]
    for row, who in enumerate(known.tolist()):
        kept = found[row] >= 0
        items[who] = [data.items[i] for i in found[row][kept]]
        scores[who] = values[row][kept].tolist()
    return Top(names, items, scores, (index < 0).tolist(), rank)


def with_truth(model: Model, data: Data) -> Model:
    """``model`` with another test side."""
    return replace(model, data=data)


def describe(settings: Settings) -> Mapping[str, Any]:
    """Settings in plain types, for a manifest."""
    outside = settings.outside
    return {
        "backbone": settings.backbone if outside is None else "outside",
        "outside": None if outside is None else getattr(outside, "__name__", str(outside)),
        "options": vars(settings.options),
        "uncertainty": vars(settings.uncertainty),
        "schedule": vars(settings.schedule or SCHEDULES.get(settings.backbone, Schedule())),
        "stage": vars(settings.stage or SCHEDULES["uncertainty"]),
        "tail_percentile": settings.tail_percentile,
        "tail_below": settings.tail_below,
        "blend_by": settings.blend_by,
    }


def summary(model: Model) -> dict[str, Any]:
    """What a fit gains on its validation side, in plain types."""
    stages = {}
    for name, stage in (("backbone", model.backbone), ("uncertainty", model.uncertainty)):
        curve = stage.curve
        stages[name] = {"name": stage.name, "hash": stage.fingerprint(), "seconds": model.seconds[name]}
        if curve is not None:
            stages[name] |= {"epochs": curve.rows[-1]["epoch"], "best_epoch": curve.best_epoch}
    data = model.data
    return {
        **stages,
        "blend": {"weight": model.blend.weight, "by": model.blend.by, "validation": model.blend.rows},
        "tail": {"popularity_below": model.tail_below, "items": int(model.tail.sum())},
        "data": {
            "users": len(data.users),
            "items": len(data.items),
            "training_positives": int(data.train.nnz),
            "validation": data.valid.counts(),
            "test": data.test.counts() if data.test else None,
            "notes": data.notes,
        },
        "notes": model.notes,
    }
