"""The tables of docs/rl-study.md from the cells that rl_study.py has written.

python benchmarks/rl_tables.py [--cells runs/rl-study] [--out benchmarks/results/rl_study.json]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from rl_study import REGIMES
from scipy.stats import pearsonr
from scipy.stats import t as student

from prudent.evaluation.risk import paired_risk, policy_risk
from prudent.evaluation.statistics import holm, mcnemar

VIEWS = {"equal KL": "-kl", "equal beta": ""}  # and what it adds to a regime's name in its cells' files
CHARTED = ("vanilla", "lcb", "proportional", "bregman")
Rows = list[dict[str, Any]]


def deviation_ratio(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float, float]:
    """Standard deviation of ``first`` over that of ``second``, paired: ratio, 95 % interval, p (Pitman and Morgan).

    The interval inverts the test: with F the ratio of variances and r the correlation it is F (K +- sqrt(K^2 - 1)),
    K = 1 + 2 (1 - r^2) t^2 / (n - 2). Normal gains are assumed.
    """
    n = len(first)
    ratio = float(first.var(ddof=1) / second.var(ddof=1))
    r = float(np.corrcoef(first, second)[0, 1])
    k = 1 + 2 * (1 - r * r) * float(student.ppf(0.975, n - 2)) ** 2 / (n - 2)
    half = math.sqrt(k * k - 1)
    p = float(pearsonr(first + second, first - second).pvalue)
    return (math.sqrt(ratio), math.sqrt(ratio * (k - half)), math.sqrt(ratio * (k + half)), p)


def column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def scored(promised: np.ndarray, failed: np.ndarray) -> dict[str, float]:
    """A promise's mean, Brier score, and how far it orders the runs: (concordant - discordant) pairs, as an AUROC."""
    high, low = promised[failed], promised[~failed]
    order = np.sign(high[:, None] - low[None]).mean() if len(high) and len(low) else 0.0
    return {
        "mean": float(promised.mean()),
        "brier": float(((promised - failed) ** 2).mean()),
        "auroc": float(0.5 + 0.5 * order),
    }


def arm_row(rows: Rows, arm: str) -> dict[str, Any]:
    """One line of the table: an arm's runs beside vanilla's on the same draws."""
    mine = [row for row in rows if row["arm"] == arm]
    draws = {row["draw"] for row in mine}  # an arm may be on the first ones alone
    base = [row for row in rows if row["arm"] == "vanilla" and row["draw"] in draws]
    gains, others = column(mine, "gain"), column(base, "gain")
    risk, paired, failed = policy_risk(gains), paired_risk(gains, others), gains <= 0
    row = {
        "arm": arm,
        "beta": mine[0]["beta"],
        "runs": len(mine),
        "kl": float(column(mine, "kl").mean()),
        "kl_ratio": float(column(mine, "kl").mean() / column(base, "kl").mean()),
        "gain": [risk.gain, risk.gain_low, risk.gain_high],
        "gain_difference": [paired.gain, paired.gain_low, paired.gain_high],
        "deviation": risk.deviation,
        "deviation_ratio": list(deviation_ratio(gains, others)) if arm != "vanilla" else [1.0, 1.0, 1.0, None],
        "at_or_below": risk.at_or_below,
        "risk": [risk.risk, risk.low, risk.high],
        "risk_difference": [paired.risk, paired.risk_low, paired.risk_high],
        "mcnemar_p": mcnemar(failed, others <= 0).p if arm != "vanilla" else None,
        "judging_share_of_variance": float((column(mine, "judging") ** 2).mean() / gains.var(ddof=1)),
        "promised": scored(column(mine, "promised_risk"), failed),
        "brier_of_own_mean": risk.risk * (1 - risk.risk),
        "exact_at_or_below": float((column(mine, "exact_gain") <= 0).mean()),
        "exact_correlation": float(np.corrcoef(column(mine, "exact_gain"), gains)[0, 1]),
    }
    if "exact_kl" in mine[0]:
        row |= {
            "exact_kl": float(column(mine, "exact_kl").mean()),
            "promised_after": scored(column(mine, "promised_after"), failed),
        }
    return row


def adjusted(rows: Rows) -> Rows:
    """Rows of one regime with Holm's adjustment of the primary outcome over its arms."""
    tested = [row for row in rows if row["arm"] != "vanilla"]
    for row, p in zip(tested, holm([row["deviation_ratio"][3] for row in tested]).tolist()):
        row["holm_p"] = p
    return rows


def reliability(rows: Rows, key: str = "promised_risk", parts: int = 10) -> Rows:
    """Promised and realised risk in equal parts of the runs ordered by promise."""
    ordered = sorted(rows, key=lambda row: row[key])
    return [
        {
            "runs": len(part),
            "promised": float(column(part, key).mean()),
            "realised": float((column(part, "gain") <= 0).mean()),
        }
        for part in ([ordered[i] for i in index] for index in np.array_split(np.arange(len(ordered)), parts))
    ]


def interval(values: list[float], digits: int = 3) -> str:
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"


def markdown(rows: Rows) -> str:
    """The tables of arms of docs/rl-study.md."""
    lines = [
        "| regime | arm | beta | KL (ratio) | gain | deviation | at or below | ratio of deviations | p (Holm) | "
        "at or below, points | McNemar's p | promised | Brier (own mean's) | after: mean, Brier, AUROC | "
        "exact: KL, at or below |",
        "|---" * 15 + "|",
    ]
    for row in rows:
        ratio, compared = row["deviation_ratio"], "1 | | | |"
        if row["arm"] != "vanilla":
            points = interval([100 * value for value in row["risk_difference"]], 0)
            compared = (
                f"{interval(ratio, 2)} | {ratio[3]:.2g} ({row['holm_p']:.2g}) | {points} | {row['mcnemar_p']:.2g} |"
            )
        after, exact = row.get("promised_after"), f"{row['exact_at_or_below']:.0%}"
        lines.append(
            f"| {row['regime']} | {row['arm']} | {row['beta']:.3g} | {row['kl']:.2f} ({row['kl_ratio']:.2f}) | "
            f"{interval(row['gain'])} | {row['deviation']:.3f} | {row['at_or_below']} = "
            "{:.0%} [{:.0%}, {:.0%}] | ".format(*row["risk"])
            + f"{compared} {row['promised']['mean']:.0%} | {row['promised']['brier']:.3f} "
            f"({row['brier_of_own_mean']:.3f}) | "
            + (f"{after['mean']:.0%}, {after['brier']:.3f}, {after['auroc']:.2f}" if after else "")
            + f" | {format(row['exact_kl'], '.3f') + ', ' if 'exact_kl' in row else ''}{exact} |"
        )
    return "\n".join(lines)


def chart(charts: Rows) -> str:
    """Promised and realised by tenths of the promise (the lowest first), an arm and a promise a pair of lines."""
    lines = ["| | " + " | ".join(f"{number}" for number in range(1, 11)) + " |", "|---" * 11 + "|"]
    for arm, key in dict.fromkeys((part["arm"], part["promise"]) for part in charts):
        parts = [part for part in charts if (part["arm"], part["promise"]) == (arm, key)]
        when = "after" if key == "promised_after" else "before"
        cells = {name: " | ".join(f"{part[name]:.0%}" for part in parts) for name in ("promised", "realised")}
        lines += [f"| {arm}, promised {when} | {cells['promised']} |", f"| came | {cells['realised']} |"]
    return "\n".join(lines)


def read_cells(folder: Path, name: str) -> tuple[Rows, list[float]]:
    """All rows of a kind of cell, and its seconds a run."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}-[0-9]*.json"))]
    return [row for one in found for row in one["rows"]], [one["seconds_a_run"] for one in found]


def options(about: str | None, cells: str) -> argparse.ArgumentParser:
    """Options of a script that makes tables from the cells of a folder."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=Path(cells))
    parser.add_argument("--page", type=Path, help="docs/rl-study.md: put the tables there")
    parser.add_argument("--out", type=Path)
    return parser


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Callable[[], bool]]:
    """What is given, ``--minutes`` too, and whether they last for one cell more; for a script that makes cells itself,
    on one thread."""
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.cells.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * given.minutes
    return given, lambda: time.monotonic() < ends


def main() -> None:
    given = options(__doc__, "runs/rl-study").parse_args()
    rows, every, seconds = [], [], []
    for view, suffix in VIEWS.items():
        for name in REGIMES:
            runs, took = read_cells(given.cells, name + suffix)
            if not runs:
                continue
            arms = dict.fromkeys(row["arm"] for row in runs)
            rows += [{"view": view, "regime": name, **row} for row in adjusted([arm_row(runs, arm) for arm in arms])]
            every += runs
            seconds += took
        table = markdown([row for row in rows if row["view"] == view])
        print(f"\n{view}\n{table}")
        if given.page:
            results.fill(given.page, view.replace(" ", "-"), table)
    charts = []
    for arm, key in ((arm, key) for arm in CHARTED for key in ("promised_risk", "promised_after")):
        mine = [row for row in every if row["arm"] == arm and row.get(key) is not None]
        if len(mine) >= 100:
            charts += [{"arm": arm, "promise": key, **part} for part in reliability(mine, key)]
    print(f"\nby tenths, all regimes and both views\n{chart(charts)}")
    if given.page:
        results.fill(given.page, "reliability", chart(charts))
    figures = [results.figure("a run with its judging and promises", seconds, unit="s of processor")]
    question = "Does weighting the KL by the reward's variance lower the risk of RL runs?"
    results.write(given.out, question, figures, rows=rows, reliability=charts)


if __name__ == "__main__":
    main()
