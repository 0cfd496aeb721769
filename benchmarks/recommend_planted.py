"""Where does ranking by uncertainty find positives that no one was shown? A grid of planted worlds, printed as it is.

    python benchmarks/recommend_planted.py --out runs/planted                  # all worlds, five seeds
    python benchmarks/recommend_planted.py --out runs/planted --seeds 0        # one seed; what is there is kept
    python benchmarks/recommend_planted.py --out runs/planted --table

Worlds have 500 users, 300 items and low-rank tastes; 30 % of the tail's positives are never shown to anybody, none of
the head's: missing, and not at random. One world was fixed before any outcome was seen, by likeness to MovieLens-small
at ratings >= 4: density .12 gives a user 36 positives, of which some 27 are trained on (there: a median of 29), and
skew 1 lets the top fifth of the items hold two thirds of the positives (there: 73 %). Around it, users with a half,
twice and three times as many, and flatter and steeper popularity. Both stages have the defaults of ``prudent recommend
fit``; beside the default share of items whose missing pairs train the backbone (a tenth) stands 1, all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import results

from prudent.recommend.metrics import evaluate
from prudent.recommend.models import BackboneOptions
from prudent.recommend.pipeline import SCHEDULES, fit_backbone
from prudent.recommend.planted import plant, planted_data
from prudent.recommend.splits import Truth, union
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty
from prudent.runs import dumps, write_atomic
from prudent.seeding import spawn

DENSITIES, SKEWS, SHARES = (0.06, 0.12, 0.24, 0.36), (0.5, 1.0), (0.1, 1.0)
FIXED = (0.12, 1.0, 0.1)  # density, skew, share
SIDES = ("hidden tail", "test", "both")
RANKINGS = ("score", "uncertainty")


def world(density: float, skew: float, share: float, seed: int) -> list[dict[str, Any]]:
    """Recall@20 of the score and of the uncertainties in one world."""
    data, hidden, tail = planted_data(plant(density=density, skew=skew, seed=seed), seed)
    assert data.test is not None
    both = Truth(union(hidden.positives, data.test.positives), hidden.unreachable, hidden.cold, hidden.cold_unreachable)
    backbone_seed, stage_seed = spawn(seed, 2)
    backbone = fit_backbone(data, "mf", BackboneOptions(share=share), SCHEDULES["mf"], backbone_seed)
    uncertainty = fit_uncertainty(data, backbone, UncertaintyOptions(), SCHEDULES["uncertainty"], stage_seed)
    rows = []
    for name, stage in zip(RANKINGS, (backbone, uncertainty)):
        row: dict[str, Any] = {"density": density, "skew": skew, "share": share, "seed": seed, "ranking": name}
        assert stage.curve is not None
        row["validation"] = max(entry["recall@20"] for entry in stage.curve.rows)
        row["best epoch"] = stage.curve.best_epoch
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
    print("| share | density | skew | hidden tail | ordinary test | both |\n|---|---|---|---|---|---|")
    figures = []
    for share, density, skew in itertools.product(SHARES, DENSITIES, SKEWS):
        kept = [row for row in rows if (row["share"], row["density"], row["skew"]) == (share, density, skew)]
        if not kept:
            continue
        mark = "**" if (density, skew, share) == FIXED else ""
        cells = (f"{mark}{cell(kept, side)}{mark}" for side in SIDES)
        print(f"| {share:g} | {density:g} | {skew:g} | {' | '.join(cells)} |")
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
            grid = itertools.product(DENSITIES, SKEWS, SHARES)
            write_atomic(path, dumps([row for point in grid for row in world(*point, seed)]))
    rows = [row for path in sorted(arguments.out.glob("planted-*.json")) for row in json.loads(path.read_text())]
    report(rows, arguments.result)


if __name__ == "__main__":
    main()
