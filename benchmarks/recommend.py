"""Does ranking by uncertainty help the tail? Every backbone with and without AUR over seeds, on ratings of your own.

    python benchmarks/recommend.py --train TRAIN.jsonl.gz --test TEST.jsonl.gz --threshold 4 --out runs/recommend
    python benchmarks/recommend.py --out runs/recommend --table      # the table of what is there so far
    python benchmarks/recommend.py --planted --out runs/recommend    # where the hidden positives are known

Each (piece, seed) is written as it is done and skipped when it is there already, so the work can be cut up with
--pieces and --seeds. A seed draws the validation side and the initial weights; the test side is the same throughout.
Intervals are bootstraps over users of each user's mean over seeds; differences are paired over users.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from prudent.evaluation.statistics import bootstrap, paired_bootstrap
from prudent.recommend.interactions import read_interactions
from prudent.recommend.metrics import Ranking, evaluate, spread_of, tail_items
from prudent.recommend.models import BackboneOptions
from prudent.recommend.pipeline import BASELINES, SCHEDULES, Settings, fit, fit_backbone
from prudent.recommend.planted import plant, planted_data
from prudent.recommend.splits import Data, Truth, assemble, sides, union, with_test
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty
from prudent.runs import dumps, write_atomic
from prudent.seeding import spawn

METRICS = ("recall@20", "recall@50", "ndcg@20", "ndcg@50")
VIEWS = ("overall", "tail absolute", "tail relative")
PIECES = ("mf", "lightgcn", "vae", "als", "baselines")


def data_of(arguments: argparse.Namespace, seed: int) -> Data:
    """The training file split anew into training and validation; the test file as it is."""
    train, _ = read_interactions(arguments.train, threshold=arguments.threshold)
    test, _ = read_interactions(arguments.test, threshold=arguments.threshold)
    side = sides(train, "user", 0.1, 0.0, seed)
    return with_test(assemble(train.keep(side == 0), train.keep(side == 1), str(arguments.train)), test)


def piece(data: Data, name: str, seed: int) -> tuple[dict[str, Ranking], dict[str, float]]:
    """Rankings of a backbone with and without AUR, or of the baselines, and the seconds of every stage."""
    assert data.test is not None
    tail, _ = tail_items(data.popularity)
    seen = data.seen_with_valid()
    scorers, seconds = {}, {}
    if name == "baselines":
        for baseline, child in zip(BASELINES, spawn(seed, len(BASELINES))):
            started = time.perf_counter()
            scorers[baseline] = fit_backbone(data, baseline, seed=child).scores
            seconds[baseline] = time.perf_counter() - started
    else:
        model = fit(data, Settings(backbone=name), seed)
        seconds = {f"{name} {stage}": value for stage, value in model.seconds.items()}
        started = time.perf_counter()
        # The released code's default is gamma = 1e-3; its example run takes 1e-2.
        plan, wider = SCHEDULES["uncertainty"], UncertaintyOptions(gamma=1e-2)
        other = fit_uncertainty(data, model.backbone, wider, plan, spawn(seed, 2)[1])
        seconds[f"{name} uncertainty, gamma 0.01"] = time.perf_counter() - started
        scorers = {
            f"{name} score": model.scorer("score"),
            f"{name} uncertainty": model.scorer("uncertainty"),
            f"{name} uncertainty, gamma 0.01": other.scores,
            f"{name} blend": model.scorer("blend"),
        }
        seconds[f"{name} blend weight"] = model.blend.weight
    return {key: evaluate(scorer, data.test, seen, tail) for key, scorer in scorers.items()}, seconds


def write_piece(folder: Path, data: Data, rankings: dict[str, Ranking], seconds: dict, name: str, seed: int) -> None:
    """Per-user metrics as Parquet, spread and seconds as JSON; the JSON comes last and marks the piece as done."""
    import pyarrow as pa

    columns: dict[str, list] = {"user": data.users}
    for key, ranking in rankings.items():
        columns |= {f"{key}|{metric}": values.tolist() for metric, values in ranking.values.items()}
    pq.write_table(pa.table(columns), folder / f"{name}-{seed}.parquet")
    about = {
        "seconds": seconds,
        "spread": {key: spread_of(ranking.top, data.popularity) for key, ranking in rankings.items()},
        "data": {"users": len(data.users), "items": len(data.items), "positives": int(data.train.nnz)},
    }
    write_atomic(folder / f"{name}-{seed}.json", dumps(about))


def gather(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[dict]], int]:
    """(ranking -> metric -> each user's mean over seeds, NaN where never defined), spread by ranking, and seeds."""
    values: dict[str, dict[str, list]] = {}
    spread: dict[str, list[dict]] = {}
    seeds = set()
    users: dict[str, int] = {}
    tables = []
    for path in sorted(folder.glob("*-*.parquet")):
        if not path.with_suffix(".json").is_file():
            continue
        seeds.add(path.stem.rpartition("-")[2])
        tables.append(pq.read_table(path))
        for key, row in json.loads(path.with_suffix(".json").read_text())["spread"].items():
            spread.setdefault(key, []).append(row)
        for user in tables[-1].column("user").to_pylist():
            users.setdefault(user, len(users))
    for table in tables:
        places = np.array([users[user] for user in table.column("user").to_pylist()])
        for name in table.column_names[1:]:
            key, _, metric = name.partition("|")
            row = np.full(len(users), np.nan)
            row[places] = table.column(name).to_numpy()
            values.setdefault(key, {}).setdefault(metric, []).append(row)
    means = {key: {metric: over_seeds(rows) for metric, rows in found.items()} for key, found in values.items()}
    return means, spread, len(seeds)


def over_seeds(rows: list[np.ndarray]) -> np.ndarray:
    """Mean of each user's values over the seeds in which there is one."""
    stacked = np.array(rows)
    count = (~np.isnan(stacked)).sum(0)
    return np.where(count > 0, np.nansum(stacked, 0) / np.maximum(count, 1), np.nan)


def summarise(folder: Path) -> dict:
    """Means with intervals, differences from the backbone's own score, spread."""
    means, spread, seeds = gather(folder)
    rows, gaps = [], []
    for key, found in means.items():
        row: dict = {"ranking": key}
        for metric, values in found.items():
            estimate = bootstrap(values[~np.isnan(values)])
            row[metric] = [estimate.value, estimate.low, estimate.high, estimate.n]
        for name in spread[key][0]:
            row[name] = float(np.mean([entry[name] for entry in spread[key]]))
        rows.append(row)
        base = f"{key.split()[0]} score"
        if base in means and key != base:
            for metric, values in found.items():
                kept = ~np.isnan(values) & ~np.isnan(means[base][metric])
                gap = paired_bootstrap(values[kept], means[base][metric][kept])
                estimate = gap.difference
                gaps.append({"ranking": key, "minus": base, "metric": metric, "difference": estimate.value,
                             "low": estimate.low, "high": estimate.high, "p": gap.p})  # fmt: skip
    return {"seeds": seeds, "rankings": rows, "differences": gaps}


def show(summary: dict) -> str:
    """The summary as a Markdown table: Recall@20 in three views, and differences from the score."""
    lines = [
        "| ranking | overall | tail absolute | tail relative | coverage@20 | popularity@20 |",
        "|---|---|---|---|---|---|",
    ]
    gaps = {(row["ranking"], row["metric"]): row for row in summary["differences"]}
    for row in summary["rankings"]:
        cells = []
        for view in VIEWS:
            value, low, high, _ = row[f"recall@20 {view}"]
            cell = f"{value:.4f} [{low:.4f}, {high:.4f}]"
            if gap := gaps.get((row["ranking"], f"recall@20 {view}")):
                cell += f"; {gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
            cells.append(cell)
        lines.append(
            f"| {row['ranking']} | {' | '.join(cells)} | {row['coverage@20']:.3f} | {row['popularity@20']:.1f} |"
        )
    return "\n".join(lines)


def planted(seeds: int) -> list[dict]:
    """Recall@20 on hidden tail positives, on the ordinary test side and on both, by score and by uncertainty."""
    rows = []
    for share in (1.0, 0.1):
        for seed in range(seeds):
            data, hidden, tail = planted_data(plant(density=0.3, skew=0.5, seed=seed), seed)
            assert data.test is not None
            both = Truth(
                union(hidden.positives, data.test.positives), hidden.unreachable, hidden.cold, hidden.cold_unreachable
            )
            plan = Schedule(batch=64, epochs=200, weight_decay=1e-3, warmup=60)
            backbone = fit_backbone(data, "mf", BackboneOptions(share=share), plan, seed)
            scorers = {"score": backbone.scores}
            for gamma in (1e-3, 1e-2):
                stage = Schedule(batch=64, epochs=60)
                fitted = fit_uncertainty(data, backbone, UncertaintyOptions(gamma=gamma), stage, seed)
                scorers[f"uncertainty, gamma {gamma:g}"] = fitted.scores
            for name, scorer in scorers.items():
                row: dict = {"backbone share": share, "seed": seed, "ranking": name}
                for side, truth in (("hidden tail", hidden), ("test", data.test), ("both", both)):
                    found = evaluate(scorer, truth, data.seen_with_valid(), tail, ks=(20,), views=("overall",))
                    row[side] = found.mean("recall@20 overall")
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--threshold", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pieces", nargs="+", default=list(PIECES), choices=PIECES)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    parser.add_argument("--planted", action="store_true", help="the planted world instead of a file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.planted:
        rows = planted(len(arguments.seeds))
        write_atomic(arguments.out / "planted.json", dumps(rows))
        for share in (1.0, 0.1):
            for name in dict.fromkeys(row["ranking"] for row in rows):
                kept = [row for row in rows if (row["ranking"], row["backbone share"]) == (name, share)]
                print(
                    share,
                    name,
                    {side: round(np.mean([r[side] for r in kept]), 4) for side in ("hidden tail", "test", "both")},
                )
        return
    if not arguments.table:
        for seed in arguments.seeds:
            data = data_of(arguments, seed)
            for name in arguments.pieces:
                if (arguments.out / f"{name}-{seed}.json").is_file():
                    continue
                rankings, seconds = piece(data, name, seed)
                write_piece(arguments.out, data, rankings, seconds, name, seed)
                print(name, seed, {key: round(value, 1) for key, value in seconds.items()}, flush=True)
    summary = summarise(arguments.out)
    write_atomic(arguments.out / "summary.json", dumps(summary))
    print(show(summary))


if __name__ == "__main__":
    main()
