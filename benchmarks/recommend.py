"""Does ranking by uncertainty help the tail? Every backbone with and without AUR over seeds, on ratings of your own.

    python benchmarks/recommend.py --train TRAIN.jsonl.gz --test TEST.jsonl.gz --threshold 4 --out runs/recommend
    python benchmarks/recommend.py --out runs/recommend --table      # the table of what is there so far
    python benchmarks/recommend.py --train TRAIN.jsonl.gz --test TEST.jsonl.gz --tune mf    # settings, by validation
    python benchmarks/recommend.py --train TRAIN.jsonl.gz --test TEST.jsonl.gz --speed      # seconds of every stage

Each (piece, seed) is written as it is done and skipped when it is there already, so the work can be cut up with
--pieces and --seeds. A seed draws the validation side and the initial weights; the test side is the same throughout.
Intervals are bootstraps over users of each user's mean over seeds; differences are paired over users, and how many
seeds agree with their sign is said beside them. "none" has no backbone: its score is 0 for every pair, so that its
uncertainty shows what the estimator finds in the histories alone. --tune never looks at the test side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import results
import torch

from prudent.evaluation.statistics import bootstrap, holm, paired_bootstrap
from prudent.files import dumps, write_atomic
from prudent.recommend.batches import chunks
from prudent.recommend.comparison import paired_p
from prudent.recommend.interactions import read_interactions
from prudent.recommend.metrics import Ranking, Scorer, evaluate, exposure_shares, tail_items
from prudent.recommend.models import Backbone, BackboneOptions, validator
from prudent.recommend.pipeline import BACKBONES, BASELINES, SCHEDULES, Settings, fit, fit_backbone
from prudent.recommend.ranking import blend, choose_blend, recommend
from prudent.recommend.splits import Data, assemble, sides, with_test
from prudent.seeding import spawn

VIEWS = ("overall", "tail absolute", "tail relative")
PIECES = ("mf", "lightgcn", "vae", "als", "none", "baselines")
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "mf": {"share": (0.1, 1.0), "weight_decay": (0.0, 1e-3, 3e-3, 1e-2, 3e-2)},
    "lightgcn": {"learning_rate": (3e-3, 1e-2), "share": (0.1, 1.0), "weight_decay": (0.0, 1e-4, 1e-3)},
    "vae": {"share": (0.1, 1.0), "dropout": (0.0, 0.5)},
    "als": {"factors": (32, 64, 128), "regularisation": (5.0, 20.0, 80.0, 160.0), "confidence": (1.0, 5.0, 20.0, 40.0)},
}


def data_of(arguments: argparse.Namespace, seed: int) -> Data:
    """The training file split anew into training and validation; the test file as it is."""
    train, _ = read_interactions(arguments.train, threshold=arguments.threshold)
    test, _ = read_interactions(arguments.test, threshold=arguments.threshold)
    side = sides(train, "user", 0.1, 0.0, seed)
    return with_test(assemble(train.keep(side == 0), train.keep(side == 1), str(arguments.train)), test)


def baselines(data: Data, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scorers of the baselines by name, and what is to be told of them."""
    scorers, seconds = {}, {}
    for name, child in zip(BASELINES, spawn(seed, len(BASELINES))):
        if name == "als":  # a piece of its own
            continue
        started = time.perf_counter()
        scorers[name] = fit_backbone(data, name, seed=child).scores
        seconds[name] = time.perf_counter() - started
    return scorers, {"seconds": seconds}


def nothing(users: list[str], items: list[str]) -> np.ndarray:
    """The scorer of no backbone."""
    return np.zeros((len(users), len(items)), dtype=np.float32)


def with_and_without(data: Data, name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scorers of a backbone: its score, the uncertainty on top, and the blends that validation prefers."""
    model = fit(data, Settings(backbone=name, outside=nothing if name == "none" else None), seed)
    about: dict[str, Any] = {"seconds": model.seconds}
    about["stages"] = {"backbone": stage_of(model.backbone), "uncertainty": stage_of(model.uncertainty)}
    uncertainty = model.uncertainty.scores
    if name == "none":
        return {"none uncertainty": uncertainty}, about
    score, seen = model.backbone.scores, data.seen_with_valid()
    scorers = {f"{name} score": score, f"{name} uncertainty": uncertainty}
    for rule, key in (("overall", f"{name} blend"), ("tail", f"{name} blend for the tail")):
        found = choose_blend(data, score, uncertainty, model.tail, rule)
        scorers[key] = blend(score, uncertainty, seen, found.weight)
        about[f"weight of {key}"] = found.weight
    about["validation, every weight"] = found.rows
    about["residuals"] = residuals(data, score, model.tail)
    return scorers, about


def residuals(data: Data, scorer: Scorer, tail: np.ndarray) -> dict[str, float]:
    """What the uncertainty learns from: squared residuals of the frozen scores, and how far the scores are off.

    "of missing" is the share of all squared residuals that missing pairs hold. "held out" is the share of validation
    positives among unseen pairs that score .5 or more, beside their mean score.
    """
    sums, high = np.zeros(3), np.zeros(3)
    counts = np.array([data.popularity[~tail].sum(), data.popularity[tail].sum()])
    for users in chunks(np.arange(len(data.users)), 1024):
        with torch.no_grad():
            score = scorer(users).numpy()
        taken = data.train[users].toarray() > 0
        error = np.where(taken, 1 - score, score) ** 2
        sums += [error[:, ~tail][taken[:, ~tail]].sum(), error[:, tail][taken[:, tail]].sum(), error[~taken].sum()]
        sure = (score >= 0.5) & (data.seen[users].toarray() == 0)
        high += [sure.sum(), score[sure].sum(), (data.valid.positives[users].toarray() > 0)[sure].sum()]
    head, rare = sums[:2] / counts
    return {
        "positives of the head": head,
        "positives of the tail": rare,
        "of missing": sums[2] / sums.sum(),
        "mean score of sure pairs": high[1] / high[0],
        "held out": high[2] / high[0],
    }


def stage_of(stage: Backbone) -> dict[str, Any]:
    """How long a stage trained and its best validation Recall@20."""
    if stage.curve is None:
        return {}
    rows = stage.curve.rows
    best = max(row["recall@20"] for row in rows)
    return {"best epoch": stage.curve.best_epoch, "epochs": rows[-1]["epoch"], "validation": best}


def write_piece(folder: Path, data: Data, name: str, seed: int) -> None:
    """Per-user metrics as Parquet, the rest as JSON; the JSON comes last and marks the piece as done."""
    scorers, about = baselines(data, seed) if name == "baselines" else with_and_without(data, name, seed)
    assert data.test is not None
    tail, below = tail_items(data.popularity)
    seen = data.seen_with_valid()
    columns: dict[str, Any] = {"user": data.users}
    about["spread"] = {}
    for key, scorer in scorers.items():
        ranking: Ranking = evaluate(scorer, data.test, seen, tail)
        columns |= {f"{key}|{metric}": values for metric, values in ranking.values.items()}
        about["spread"][key] = exposure_shares(ranking.exposure, data.popularity)
    pq.write_table(pa.table(columns), folder / f"{name}-{seed}.parquet")
    about["data"] = {
        "users": len(data.users),
        "items": len(data.items),
        "positives": int(data.train.nnz),
        "tail items": int(tail.sum()),
        "tail below": below,
        "test": data.test.counts(),
    }
    write_atomic(folder / f"{name}-{seed}.json", dumps(about))
    print(
        name,
        seed,
        dumps({key: about[key] for key in about if key not in ("spread", "data", "validation, every weight")}),
        flush=True,
    )


def gather(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[dict]]]:
    """(ranking -> metric -> (seeds, users), NaN where not defined; users sorted), and what each piece tells."""
    pieces = [path for path in sorted(folder.glob("*-*.parquet")) if path.with_suffix(".json").is_file()]
    tables = {path: pq.read_table(path) for path in pieces}
    users = sorted({user for table in tables.values() for user in table.column("user").to_pylist()})
    seeds = sorted({path.stem.rpartition("-")[2] for path in pieces})
    values: dict[str, dict[str, np.ndarray]] = {}
    told: dict[str, list[dict]] = {}
    for path, table in tables.items():
        name, _, seed = path.stem.rpartition("-")
        told.setdefault(name, []).append({"seed": seed, **json.loads(path.with_suffix(".json").read_text())})
        places = np.searchsorted(users, table.column("user").to_pylist())
        for column in table.column_names[1:]:
            key, _, metric = column.partition("|")
            rows = values.setdefault(key, {}).setdefault(metric, np.full((len(seeds), len(users)), np.nan))
            rows[seeds.index(seed), places] = table.column(column).to_numpy()
    return values, told


def over_seeds(rows: np.ndarray) -> np.ndarray:
    """(users,) mean of each user's values over the seeds in which there is one, NaN without any."""
    count = (~np.isnan(rows)).sum(0)
    return np.where(count > 0, np.nansum(rows, 0) / np.maximum(count, 1), np.nan)


def gap_of(key: str, base: str, metric: str, rows: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """One ranking minus another: mean, interval and p over users, each seed's own difference."""
    mine, theirs = over_seeds(rows), over_seeds(others)
    kept = ~np.isnan(mine) & ~np.isnan(theirs)
    gap = paired_bootstrap(mine[kept], theirs[kept]).difference
    each = [np.nanmean(row) for row in rows - others if not np.isnan(row).all()]
    agree = sum(np.sign(value) == np.sign(gap.value) for value in each)
    return {
        "ranking": key,
        "minus": base,
        "metric": metric,
        "difference": gap.value,
        "low": gap.low,
        "high": gap.high,
        "p": paired_p(mine[kept] - theirs[kept]),
        "seeds": each,
        "agree": int(agree),
    }


def summarise(folder: Path) -> dict[str, Any]:
    """Means with intervals, differences from the backbone's own score (p by Holm over all of them), spread."""
    values, told = gather(folder)
    spread: dict[str, list[dict]] = {}
    for about in itertools.chain(*told.values()):
        for key, row in about.pop("spread").items():
            spread.setdefault(key, []).append(row)
    rows, gaps = [], []
    for key, found in values.items():
        row: dict[str, Any] = {"ranking": key}
        base = f"{key.split()[0]} score"
        for metric, each in found.items():
            mean = over_seeds(each)
            estimate = bootstrap(mean[~np.isnan(mean)])
            row[metric] = [estimate.value, estimate.low, estimate.high, estimate.n]
            if base in values and key != base:
                gaps.append(gap_of(key, base, metric, each, values[base][metric]))
        rows.append(row | {name: float(np.mean([entry[name] for entry in spread[key]])) for name in spread[key][0]})
    for gap, adjusted in zip(gaps, holm([gap["p"] for gap in gaps]).tolist() if gaps else []):
        gap["p_holm"] = adjusted
    return {"seeds": max(map(len, told.values()), default=0), "rankings": rows, "differences": gaps, "told": told}


def show(summary: dict[str, Any], k: int = 20) -> str:
    """The summary as a Markdown table: Recall@k in three views, and differences from the score."""
    lines = [
        f"Recall@{k}, mean over users and {summary['seeds']} seeds [95 %]; difference from the backbone's score [95 %] "
        "(seeds of its sign)",
        "",
        "| ranking | overall | tail absolute | tail relative | coverage@20 | popularity@20 |",
        "|---|---|---|---|---|---|",
    ]
    gaps = {(row["ranking"], row["metric"]): row for row in summary["differences"]}
    for row in summary["rankings"]:
        cells = []
        for view in VIEWS:
            value, low, high, _ = row[f"recall@{k} {view}"]
            cell = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            if gap := gaps.get((row["ranking"], f"recall@{k} {view}")):
                cell += f"; {gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] ({gap['agree']})"
            cells.append(cell)
        lines.append(
            f"| {row['ranking']} | {' | '.join(cells)} | {row['coverage@20']:.3f} | {row['popularity@20']:.1f} |"
        )
    return "\n".join(lines)


def report(folder: Path, out: Path | None) -> None:
    """Print the table of what is there and write it."""
    summary = summarise(folder)
    write_atomic(folder / "summary.json", dumps(summary))
    print(show(summary), show(summary, 50), sep="\n\n")
    figures = [
        results.figure(
            f"{gap['ranking']} minus its score, {gap['metric']}",
            gap["seeds"],
            unit="recall",
            note=f"mean {gap['difference']:+.4f}, 95 % over users [{gap['low']:+.4f}, {gap['high']:+.4f}]",
        )
        for gap in summary["differences"]
        if gap["metric"].startswith("recall@20") and gap["ranking"].split(" ", 1)[1] in ("uncertainty", "blend")
    ]
    for name, pieces in summary["told"].items():
        found = [about["residuals"] for about in pieces if "residuals" in about]
        if found:
            print(f"{name}:", {key: round(float(np.mean([row[key] for row in found])), 3) for key in found[0]})
    question = "Does ranking by uncertainty find more of the tail, and no less overall, on real ratings?"
    results.write(
        out,
        question,
        figures,
        rows=summary["rankings"],
        differences=summary["differences"],
        told=summary["told"],
        packages=["implicit"],
    )


def tune(data: Data, name: str, seed: int) -> None:
    """Validation Recall@20 of every setting of a backbone's grid, best first."""
    found = []
    for values in itertools.product(*GRIDS[name].values()):
        setting = dict(zip(GRIDS[name], values))
        timing = {key: value for key, value in setting.items() if key in ("learning_rate", "weight_decay")}
        chosen = {key: value for key, value in setting.items() if key not in timing}
        plan = replace(SCHEDULES[name], **timing) if name in SCHEDULES else None
        started = time.perf_counter()
        backbone = fit_backbone(data, name, BackboneOptions(**chosen), plan, seed)
        seconds = time.perf_counter() - started
        figure = validator(data, lambda fitted=backbone: fitted.scores)()
        found.append((figure, setting, stage_of(backbone).get("best epoch"), seconds))
        print(f"{figure:.4f} {setting} best epoch {found[-1][2]}, {seconds:.0f} s", flush=True)
    print(f"best of {name} by validation Recall@20: {max(found, key=lambda row: row[0])}")


def speed(data: Data, names: list[str], seed: int, out: Path | None) -> None:
    """Seconds of all stages of each backbone, and of the top 50 of all users by the slowest ranking, the blend."""
    figures = []
    for name in names:
        model = fit(data, Settings(backbone=name), seed)
        note = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in model.seconds.items())
        figures.append(
            results.figure(f"all stages, {name}", sum(model.seconds.values()), unit="s", at_most=180, note=note)
        )
        mixed = blend(model.backbone.scores, model.uncertainty.scores, data.seen_with_valid(), 0.5)
        times = results.interleaved(
            {"top": lambda mixed=mixed: recommend(mixed, data.seen_with_valid(), np.arange(len(data.users)), 50)}, 3
        )
        figures.append(results.figure(f"top 50 of all users by blend, {name}", times["top"], unit="s", at_most=2))
    results.write(
        out, "How long do all stages and all recommendations take on real ratings?", figures, packages=["implicit"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--threshold", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="folder of the pieces")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pieces", nargs="+", default=list(PIECES), choices=PIECES)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    parser.add_argument("--result", type=Path, help="write the table here, too (benchmarks/results/recommend.json)")
    parser.add_argument("--speed", action="store_true", help="time all stages and the top 50 of the --pieces, and stop")
    parser.add_argument("--tune", choices=list(GRIDS), help="settings of a backbone by validation alone, and stop")
    arguments = parser.parse_args()
    if arguments.out is None and not (arguments.tune or arguments.speed):
        parser.error("--out is missing: the folder of the pieces")
    if not arguments.table and (arguments.train is None or arguments.test is None):
        parser.error("--train and --test are missing: the ratings")
    if arguments.tune:
        tune(data_of(arguments, arguments.seeds[0]), arguments.tune, arguments.seeds[0])
        return
    if arguments.speed:
        names = [name for name in BACKBONES if name in arguments.pieces]
        speed(data_of(arguments, arguments.seeds[0]), names, arguments.seeds[0], arguments.result)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if arguments.table else arguments.seeds:
        data = data_of(arguments, seed)
        for name in arguments.pieces:
            if not (arguments.out / f"{name}-{seed}.json").is_file():
                write_piece(arguments.out, data, name, seed)
    report(arguments.out, arguments.result)


if __name__ == "__main__":
    main()
