"""Where does ranking by uncertainty find positives that no one was shown? A grid of planted worlds, printed as it is.

    python benchmarks/recommend_planted.py --out runs/planted                  # all worlds, five seeds
    python benchmarks/recommend_planted.py --out runs/planted --seeds 0        # one seed; what is there is kept
    python benchmarks/recommend_planted.py --out runs/planted --table

Worlds have 500 users, 300 items and low-rank tastes; 30 % of the tail's positives are never shown to anybody, none of
the head's: missing, and not at random. One world was fixed before any outcome was seen, by likeness to MovieLens-small
at ratings >= 4: density .12 gives a user 36 positives, of which some 27 are trained on (there: a median of 29), and
skew 1 lets the top fifth of the items hold two thirds of the positives (there: 73 %). Around it, users with a half,
twice as many, and flatter popularity. The backbone is a matrix factorisation whose L2 and share of items with trained
missing pairs are the best of four settings on the world's own validation side, so that uncertainty isn't compared with
a score that nobody tuned; the uncertainty stage has three times its default learning rate and a longer warmup, so
that it isn't stopped on its plateau, which is long in dense worlds. Hidden positives choose nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results

from prudent.files import dumps, write_atomic
from prudent.recommend.metrics import evaluate
from prudent.recommend.models import Backbone, BackboneOptions
from prudent.recommend.pipeline import SCHEDULES, fit_backbone
from prudent.recommend.planted import plant, planted_data
from prudent.recommend.splits import Truth, union
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty
from prudent.seeding import spawn

DENSITIES, SKEWS = (0.06, 0.12, 0.24), (0.5, 1.0)
SETTINGS = tuple(itertools.product((0.1, 1.0), (0.0, 1e-2)))  # share, L2
FIXED = (0.12, 1.0)  # density, skew
STAGE = replace(SCHEDULES["uncertainty"], learning_rate=3e-3, warmup=1200)
SIDES = ("hidden tail", "test", "both")
RANKINGS = ("score", "uncertainty")


def validation(stage: Backbone) -> float:
    """Best validation Recall@20 of a stage."""
    assert stage.curve is not None
    return max(row["recall@20"] for row in stage.curve.rows)


def world(density: float, skew: float, seed: int) -> list[dict[str, Any]]:
    """Recall@20 of the score and of the uncertainties in one world."""
    data, hidden, tail = planted_data(plant(density=density, skew=skew, seed=seed), seed)
    assert data.test is not None
    both = Truth(union(hidden.positives, data.test.positives), hidden.unreachable, hidden.cold, hidden.cold_unreachable)
    backbone_seed, stage_seed = spawn(seed, 2)
    fitted = {
        (share, decay): fit_backbone(
            data, "mf", BackboneOptions(share=share), replace(SCHEDULES["mf"], weight_decay=decay), backbone_seed
        )
        for share, decay in SETTINGS
    }
    (share, decay), backbone = max(fitted.items(), key=lambda pair: validation(pair[1]))
    uncertainty = fit_uncertainty(data, backbone, UncertaintyOptions(), STAGE, stage_seed)
    rows = []
    for name, stage in zip(RANKINGS, (backbone, uncertainty)):
        assert stage.curve is not None
        row: dict[str, Any] = {
            "density": density,
            "skew": skew,
            "seed": seed,
            "ranking": name,
            "share": share,
            "L2": decay,
            "validation": validation(stage),
            "best epoch": stage.curve.best_epoch,
        }
        for side, truth in zip(SIDES, (hidden, data.test, both)):
            found = evaluate(stage.scores, truth, data.seen_with_valid(), tail, ks=(20,), views=("overall",))
            row[side] = found.mean("recall@20 overall")
        rows.append(row)
    return rows


def sides_of(rows: list[dict[str, Any]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """(seeds,) Recall@20 of one side by score, and by uncertainty."""
    by_score, by_uncertainty = ([row[side] for row in rows if row["ranking"] == name] for name in RANKINGS)
    return np.array(by_score), np.array(by_uncertainty)


def cell(rows: list[dict[str, Any]], side: str) -> str:
    """Mean by score, mean by uncertainty, their difference and in how many seeds it is above 0."""
    by_score, by_uncertainty = sides_of(rows, side)
    gap = by_uncertainty - by_score
    return f"{by_score.mean():.3f} → {by_uncertainty.mean():.3f} ({gap.mean():+.3f}; {(gap > 0).sum()}/{len(gap)})"


def report(rows: list[dict[str, Any]], out: Path | None) -> None:
    """The grid as a Markdown table, and as a result file."""
    print("| density | skew | hidden tail | ordinary test | both | seeds |\n|---|---|---|---|---|---|")
    figures = []
    for density, skew in itertools.product(DENSITIES, SKEWS):
        kept = [row for row in rows if (row["density"], row["skew"]) == (density, skew)]
        if not kept:
            continue
        mark = "**" if (density, skew) == FIXED else ""
        cells = (f"{mark}{cell(kept, side)}{mark}" for side in SIDES)
        print(f"| {density:g} | {skew:g} | {' | '.join(cells)} | {len(kept) // 2} |")
        for side in SIDES if mark else ():
            by_score, by_uncertainty = sides_of(kept, side)
            gaps = (by_uncertainty - by_score).tolist()
            figures.append(
                results.figure(f"fixed world, by uncertainty minus by score, {side}", gaps, unit="recall@20")
            )
    results.write(out, "Where does uncertainty find hidden positives of the tail?", figures, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder with one file a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    parser.add_argument("--result", type=Path, help="write it here, too (benchmarks/results/recommend_planted.json)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if arguments.table else arguments.seeds:
        path = arguments.out / f"planted-{seed}.json"
        if not path.is_file():
            grid = itertools.product(DENSITIES, SKEWS)
            write_atomic(path, dumps([row for point in grid for row in world(*point, seed)]))
    rows = [row for path in sorted(arguments.out.glob("planted-*.json")) for row in json.loads(path.read_text())]
    report(rows, arguments.result)


if __name__ == "__main__":
    main()
