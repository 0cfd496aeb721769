"""Is the promised risk what comes? Worlds whose truth is known, fresh pairs each time, promised beside realised.

    python benchmarks/promise.py [--quick] [--worlds tone gsm8k] [--sets 40] [--cells runs/promise] [--kept]

A data set: half of the prompts give pairs (Bradley-Terry on gold, slope 1 a standard deviation of gold within prompts;
slope 2 in worlds called steep), the policies are valued by gold on the other half. Worlds that no setting was chosen on
(HELD_OUT) have a section of their own. The procedure risk is estimated in QUICK's worlds, up to LARGEST_FORECAST pairs.
Policies and rows that are in --cells aren't made again (delete its *.json after a change to the estimate). gsm8k needs
../shared/data (its gold: correct; its candidates: four real models' solutions). Features come from the package's
encoder and its cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import results
import torch
from promise_worlds import World, draw_pairs, worlds

from prudent.evaluation.intervals import wilson
from prudent.evaluation.posterior_risk import separate_pairs
from prudent.evaluation.risk_estimate import Fit, fit_rewards, policy_moves, promised
from prudent.rewards.draws import standardisation

METHODS, BETAS = ("vanilla", "lcb", "proportional"), (0.1, 0.3)
SIZES, QUICK_SIZES = (50, 100, 200, 400, 800, 1600), (50, 200)
LARGEST_FORECAST = 400
QUICK = ("tone", "restraint", "planted_linear", "no_signal")
HELD_OUT = ("questions", "first_person", "planted_sparse", "planted_steps")
LIMITS = ("outside what", "of another kind")  # a row's reasons for a wider interval
ROWS: list[dict[str, Any]] = [{"method": name, "beta": beta} for name in METHODS for beta in BETAS]


class Drawn(NamedTuple):
    """A data set's arrays as ``estimate_risk`` takes them. gold (P, C): of the candidates."""

    better: torch.Tensor
    worse: torch.Tensor
    groups: list[int]
    pool: torch.Tensor
    weight: torch.Tensor
    gold: torch.Tensor


def drawn(world: World, n: int, seed: int) -> Drawn:
    g = np.random.default_rng([seed, n])
    gold = world.gold(g)
    prompts, won, lost, test = draw_pairs(world, gold, n, g)
    features = world.features
    better, worse, pool = (
        torch.tensor(x).double() for x in (features[prompts, won], features[prompts, lost], features[test])
    )
    weight = torch.full(pool.shape[:2], 1 / pool.shape[1], dtype=torch.float64)
    return Drawn(better, worse, prompts.tolist(), pool, weight, torch.tensor(gold[test]))


def fitted(path: Path, data: Drawn, seed: int) -> tuple[Fit, torch.Tensor]:
    """The fit and its policies, which no setting of the estimate moves: from their file where they are there."""
    if not path.exists():
        fit = fit_rewards(data.better, data.worse, data.groups, data.pool, data.weight, members=10, seed=seed)
        np.savez_compressed(
            path,
            ridge=fit.ridge,
            full=fit.full.float().numpy(),
            ensemble=fit.ensemble.float().numpy(),
            moved=policy_moves(fit, ROWS).float().numpy(),
        )
    mean, scale = standardisation(data.better.float(), data.worse.float())
    with np.load(path) as file:
        full, ensemble, moved = (torch.tensor(file[name]).double() for name in ("full", "ensemble", "moved"))
        ridge = float(file["ridge"])
    difference = ((data.better - data.worse) / scale).float()
    midpoint = ((data.better + data.worse) / 2 - mean) / scale
    separate = separate_pairs(data.better.numpy(), data.worse.numpy(), data.groups)
    standard = (data.pool - mean) / scale
    return Fit(difference, midpoint, standard, ridge, full, ensemble, full[:0], data.weight, separate), moved


def rows_of(folder: Path, name: str, n: int, sets: int, forecasts: int) -> Path:
    """Where a cell's rows are kept."""
    return folder / f"{name}-{n}-{sets}-{forecasts}.json"


def cell(folder: Path, name: str, world: World, n: int, sets: int, forecasts: int) -> list[list[dict[str, Any]]]:
    """Rows of ``estimate_risk`` of a cell's data sets, and ``realised``: the gain in gold of their own policies."""
    started, rows = time.perf_counter(), []
    kept = rows_of(folder, name, n, sets, forecasts)
    if kept.exists():
        return list(json.loads(kept.read_text(encoding="utf-8")))
    for seed in range(sets):
        data = drawn(world, n, seed)
        fit, moved = fitted(folder / f"{name}-{n}-{seed}.npz", data, seed)
        said = promised(fit, moved, data.groups, ROWS, draws=200 if seed < forecasts else 0, seed=seed)
        gains = (moved * data.gold).sum(-1).mean(-1)
        rows.append([{**row, "realised": float(gain)} for row, gain in zip(said, gains)])
    found = summary(name, n, rows)[0]
    print(
        f"{name}, {n} pairs: promised {found['promised']:.0%}, realised {found['realised']:.0%}, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )
    kept.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def overlaps(low: float, high: float, below: int, n: int) -> bool:
    """Whether an interval holds the realised share as far as n data sets tell it (Wilson)."""
    least, most = wilson(below, n)
    return low <= most and high >= least


def summary(name: str, n: int, sets: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a method and beta of a cell."""
    out = []
    for column in zip(*sets):
        risk = np.array([row["risk"] for row in column])
        failed = np.array([row["realised"] <= 0 for row in column])
        share, below, count = float(failed.mean()), int(failed.sum()), len(column)
        procedure = [row for row in column if row["procedure_risk"] is not None]
        out.append(
            {
                "world": name,
                "pairs": n,
                "method": column[0]["method"],
                "beta": column[0]["beta"],
                "promised": float(risk.mean()),
                "realised": share,
                "brier": float(((risk - failed) ** 2).mean()),
                "own_mean": share * (1 - share),
                "high": float(np.mean([row["high"] for row in column])),
                "holds": float(np.mean([row["low"] <= share <= row["high"] for row in column])),
                "holds_counting": float(np.mean([overlaps(row["low"], row["high"], below, count) for row in column])),
                "procedure": float(np.mean([row["procedure_risk"] for row in procedure])) if procedure else None,
                "procedure_holds": float(
                    np.mean([overlaps(r["procedure_low"], r["procedure_high"], below, count) for r in procedure])
                )
                if procedure
                else None,
                "flagged": float(np.mean([any(word in (row["reason"] or "") for word in LIMITS) for row in column])),
                "risks": risk.round(4).tolist(),
                "failed": failed.tolist(),
            }
        )
    return out


def bins(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reliability chart: promised and realised by tenths of the promise."""
    risk = np.concatenate([row["risks"] for row in cells])
    failed = np.concatenate([row["failed"] for row in cells])
    out = []
    for start, end in zip(
        (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4), (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 1.01)
    ):
        kept = (risk >= start) & (risk < end)
        if kept.any():
            out.append(
                {
                    "from": start,
                    "count": int(kept.sum()),
                    "promised": float(risk[kept].mean()),
                    "realised": float(failed[kept].mean()),
                }
            )
    return out


def figures(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    off = np.array([row["promised"] - row["realised"] for row in cells])
    risk = np.concatenate([row["risks"] for row in cells])
    failed = np.concatenate([row["failed"] for row in cells])
    low = risk < 0.05
    none = [row["promised"] for row in cells if row["world"] == "no_signal"]
    by_world: dict[str, list[dict[str, Any]]] = {}
    for row in cells:
        by_world.setdefault(row["world"], []).append(row)
    beaten = []
    for rows in by_world.values():
        share = float(np.mean([row["realised"] for row in rows]))
        if 0 < share < 1:
            beaten.append(float(np.mean([row["brier"] for row in rows])) <= share * (1 - share))
    procedure = [row for row in cells if row["procedure"] is not None]
    made = [
        results.figure("promised - realised, mean over cells", 100 * off.mean(), unit="points", at_most=5),
        results.figure("promised - realised, mean absolute", 100 * np.abs(off).mean(), unit="points"),
        results.figure("cells within 10 points", 100 * (np.abs(off) <= 0.1).mean(), unit="%", at_least=100),
        results.figure(
            "promises under 5 % broken",
            100 * failed[low].mean() if low.any() else 0.0,
            unit="%",
            at_most=10,
            note=f"of {low.sum()}",
        ),
        results.figure(
            "worlds whose Brier score is no worse than their own mean's",
            float(100 * np.mean(beaten)),
            unit="%",
            at_least=100,
        ),
        results.figure(
            "0 to high holds the realised share", 100 * np.mean([r["holds"] for r in cells]), unit="%", at_least=95
        ),
        results.figure(
            "the same, up to what 40 data sets tell",
            100 * np.mean([r["holds_counting"] for r in cells]),
            unit="%",
            at_least=95,
        ),
    ]
    if none:
        made.append(results.figure("promised without signal", 100 * np.mean(none), unit="%", at_least=35))
    if procedure:
        gap = [100 * (row["procedure"] - row["realised"]) for row in procedure]
        made += [
            results.figure("procedure risk - realised, mean over cells", float(np.mean(gap)), unit="points", at_most=5),
            results.figure("procedure risk - realised, mean absolute", float(np.mean(np.abs(gap))), unit="points"),
            results.figure(
                "its interval holds the realised share, up to counting",
                100 * np.mean([r["procedure_holds"] for r in procedure]),
                unit="%",
                at_least=95,
            ),
        ]
    return made


def table(cells: list[dict[str, Any]]) -> str:
    """One line a world and size, vanilla at beta .1, for docs/calibration.md."""
    lines = [
        "| world | pairs | promised | high | realised | Brier | own mean | holds | flagged | procedure | holds |",
        "|---" * 11 + "|",
    ]
    for row in cells:
        if (row["method"], row["beta"]) == (METHODS[0], BETAS[0]):
            other = (
                ["", ""]
                if row["procedure"] is None
                else [f"{100 * row['procedure']:.0f}", f"{row['procedure_holds']:.2f}"]
            )
            found = [
                row["world"],
                str(row["pairs"]),
                *(f"{100 * row[name]:.0f}" for name in ("promised", "high", "realised")),
                *(f"{row[name]:.3f}" for name in ("brier", "own_mean")),
                f"{row['holds']:.2f}",
                f"{100 * row['flagged']:.0f}",
                *other,
            ]
            lines.append(f"| {' | '.join(found)} |")
    return "\n".join(lines)


def printed(title: str, cells: list[dict[str, Any]]) -> None:
    """The section of docs/calibration.md on these cells."""
    print(f"### {title}\n\n| figure | value | aim |\n|---|---|---|")
    for one in figures(cells):
        side = next((key for key in ("at_least", "at_most") if key in one), None)
        value, off = f"{one['median']:.1f} {one['unit']}", ""
        if side and ((one["median"] < one[side]) if side == "at_least" else (abs(one["median"]) > one[side])):
            value, off = f"**{value}**", ", **missed**"
        aim = f"{side.replace('_', ' ')} {one[side]:g}{off}" if side else ""
        print(f"| {one['name']}{' (' + one['note'] + ')' if 'note' in one else ''} | {value} | {aim} |")
    print(f"\n{table(cells)}\n\n| promised, % | realised, % | promises |\n|---|---|---|")
    for tenth in bins(cells):
        print(f"| {100 * tenth['promised']:.1f} | {100 * tenth['realised']:.1f} | {tenth['count']} |")
    print()


def public(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without each data set's own numbers."""
    return [{key: value for key, value in row.items() if key not in ("risks", "failed")} for row in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four worlds, two sizes, 20 data sets")
    parser.add_argument("--worlds", nargs="+", default=None)
    parser.add_argument("--sizes", nargs="+", type=int, default=None)
    parser.add_argument("--sets", type=int, default=None, help="data sets a cell (40; quick: 20)")
    parser.add_argument("--forecasts", type=int, default=10, help="data sets a cell whose procedure risk is estimated")
    parser.add_argument("--cells", default="runs/promise", help="folder of fitted policies")
    parser.add_argument("--kept", action="store_true", help="tables of the cells that --cells holds rows of, alone")
    parser.add_argument("--out", default=None, help="result file as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(options.cells)
    folder.mkdir(parents=True, exist_ok=True)
    every = worlds("gsm8k" in (options.worlds or ([] if options.quick else ["gsm8k"])))
    many = options.sets or (20 if options.quick else 40)
    collected: list[dict[str, Any]] = []
    for size in options.sizes or (QUICK_SIZES if options.quick else SIZES):
        for name in options.worlds or (QUICK if options.quick else every):
            forecasts = options.forecasts if name in QUICK and size <= LARGEST_FORECAST else 0
            if options.kept and not rows_of(folder, name, size, many, forecasts).exists():
                continue
            collected += summary(name, size, cell(folder, name, every[name], size, many, forecasts))
    collected.sort(key=lambda row: (row["world"], row["pairs"]))
    parts = {
        "Worlds that settings were chosen on": [row for row in collected if row["world"] not in HELD_OUT],
        "Worlds that no setting was chosen on": [row for row in collected if row["world"] in HELD_OUT],
    }
    for title, cells in parts.items():
        if cells:
            printed(title, cells)
    found = {
        title: {"figures": figures(cells), "rows": public(cells), "reliability": bins(cells)}
        for title, cells in parts.items()
        if cells
    }
    results.write(options.out, "Is the promised risk what comes?", figures(collected), parts=found)


if __name__ == "__main__":
    main()
