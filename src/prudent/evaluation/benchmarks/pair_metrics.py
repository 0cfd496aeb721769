"""Metrics of pairs from their scores, two scorers compared on the same items, and errors against disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.evaluation.calibration import Calibration, RiskCoverage, auroc, calibration, risk_coverage
from prudent.evaluation.intervals import Estimate, holm, mcnemar, paired_bootstrap, proportion
from prudent.rewards.accuracy import credit
from prudent.seeding import Seed

COARSE = 0.02  # share of tied or coarsely spaced scores at which a warning is due


@dataclass(frozen=True)
class PairScore:
    """Pairs by their margin chosen - rejected. strict: a tie is wrong; half: a tie is half right. log_loss: mean of
    -ln sigmoid(margin)."""

    n: int
    right: int
    tied: int
    wrong: int
    strict: Estimate
    half: Estimate
    calibration: Calibration
    warnings: list[str]
    log_loss: float | None


def grid_step(scores: np.ndarray) -> tuple[float, int] | None:
    """(mantissa bits' worth, distinct values) if all scores are representable in bfloat16 or float16, else None.

    Scores that were rounded to half precision sit on its grid, and close pairs become ties.
    """
    x = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float64))
    for dtype in (torch.bfloat16, torch.float16):
        if bool((x.to(dtype).double() == x).all()):
            return (8 if dtype == torch.bfloat16 else 11), len(torch.unique(x))
    return None


def grid_warnings(scores: ArrayLike, tied: int, n: int) -> list[str]:
    """What the scores' own precision does to the count of ties, in words; empty where nothing is wrong."""
    x = as_tensor(scores, torch.float64).reshape(-1).numpy()
    x = x[np.isfinite(x)]
    if len(x) < 4:
        return []
    found = grid_step(x)
    integers = bool((x == np.round(x)).all())
    distinct = len(np.unique(x))
    if integers or (distinct <= 32 and len(x) >= 4 * distinct):
        kind = "whole numbers" if integers else f"only {distinct} distinct values"
        return [f"scores are {kind}; {tied} of {n} comparisons are ties: read the tie rules beside the accuracy"]
    if found is not None:
        size = float(np.median(np.abs(x)))
        spacing = 2.0 ** (np.floor(np.log2(size)) - (found[0] - 1)) if size > 0 else 0.0
        name = "bfloat16" if found[0] == 8 else "float16"
        return [
            f"every score is representable in {name} (spacing {spacing:.3g} near {size:.3g}): they were rounded, so "
            f"close ones tie ({tied} of {n}); score in float32"
        ]
    return []


def pair_score(chosen: ArrayLike, rejected: ArrayLike, *, rounds: int = 1000, seed: Seed = 0) -> PairScore:
    """Accuracy (ties apart), calibration of sigmoid(margin), and warnings of one score a response. (n,) each."""
    a, b = as_tensor(chosen, torch.float64), as_tensor(rejected, torch.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise PrudentError(f"chosen has shape {tuple(a.shape)}, rejected {tuple(b.shape)}; expected two of one length")
    require_finite(a, "chosen score", ("item",))
    require_finite(b, "rejected score", ("item",))
    margin = a - b
    right, tied = int((margin > 0).sum()), int((margin == 0).sum())
    return PairScore(
        n=len(margin),
        right=right,
        tied=tied,
        wrong=len(margin) - right - tied,
        strict=proportion((margin > 0).double()),
        half=proportion(credit(margin)),
        calibration=calibration(torch.sigmoid(margin), rounds=rounds, seed=seed),
        warnings=grid_warnings(torch.cat([a, b]), tied, len(margin)),
        log_loss=float(torch.nn.functional.softplus(-margin).mean()) if len(margin) else None,
    )


@dataclass(frozen=True)
class Disagreement:
    """Does the scorer err where its members disagree? auroc of the uncertainty for errors (0.5: it says nothing);
    risk: error rate against coverage; accuracy in ``bins`` equal groups by uncertainty, the least uncertain first.
    Items of equal uncertainty count by their mean credit, since their order is luck."""

    measure: str
    auroc: Estimate
    risk: RiskCoverage
    bins: list[Estimate]
    errors: int


def disagreement(
    uncertainty: ArrayLike, credit: ArrayLike, measure: str, *, groups: int = 5, clusters: Any = None
) -> Disagreement:
    """uncertainty, credit: (items,). An item whose credit is below 1/2 is an error.

    A tie at 1/2 counts one half in risk and is left out of the AUROC, which needs two classes.
    """
    u, c = as_tensor(uncertainty, torch.float64), as_tensor(credit, torch.float64)
    decided = c != 0.5
    labels = None if clusters is None else np.asarray(clusters)[decided.numpy()]
    _, code, sizes = torch.unique(u, return_inverse=True, return_counts=True)
    level = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, code, c) / sizes
    parts = [part for part in torch.tensor_split(level.repeat_interleave(sizes), groups) if len(part)]
    return Disagreement(
        measure,
        auroc(u[decided], (c[decided] < 0.5).double(), clusters=labels),
        risk_coverage(u, 1 - c),
        [proportion(part.clamp(0, 1)) for part in parts],
        int((c < 0.5).sum()),
    )


@dataclass(frozen=True)
class ComparisonRow:
    """a against b on the items of one group. p: exact McNemar. p_holm: adjusted over the groups of the table; in the
    row over all items over the scorers compared (None where that wasn't asked for)."""

    group: str
    n: int
    a: float | None
    b: float | None
    a_only: int
    b_only: int
    difference: Estimate
    p: float | None
    p_holm: float | None


def compare(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    clusters: Any = None,
    rounds: int = 1000,
    seed: Seed = 0,
) -> list[ComparisonRow]:
    """Two scorers' credits on the same items: a row over all, then one a group, McNemar's p Holm-corrected over groups.

    difference: mean credit of a minus b, paired bootstrap (whole clusters where given).
    """
    x, y = as_tensor(a, torch.float64), as_tensor(b, torch.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise PrudentError(f"a has shape {tuple(x.shape)}, b {tuple(y.shape)}; both must hold the same items")
    names = np.full(len(x), "") if groups is None else np.asarray(list(groups), dtype=str)
    labels = None if clusters is None else np.asarray(clusters)
    wanted: list[tuple[str, np.ndarray]] = [("all", np.ones(len(x), dtype=bool))]
    if groups is not None:
        wanted += [(name, names == name) for name in dict.fromkeys(names.tolist())]
    rows = []
    for name, chosen in wanted:
        mine, yours = x[chosen], y[chosen]
        test = mcnemar(mine, yours)
        paired = paired_bootstrap(
            mine, yours, rounds=rounds, seed=seed, clusters=None if labels is None else labels[chosen]
        )
        first, second = (float(mine.mean()), float(yours.mean())) if len(mine) else (None, None)
        p = test.p if len(mine) else None
        rows.append(ComparisonRow(name, len(mine), first, second, test.a_only, test.b_only, paired.difference, p, None))
    corrected = holm([float("nan") if row.p is None else row.p for row in rows[1:]]).tolist()
    return rows[:1] + [replace(row, p_holm=None if row.p is None else p) for row, p in zip(rows[1:], corrected)]
