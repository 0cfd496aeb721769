"""Does weighting the KL by the reward's variance lower the risk of real training runs? The study of docs/rl-study.md.

    python benchmarks/rl_study.py --regime high --draws 0 60 --minutes 20     # goes on where it stopped
    python benchmarks/rl_study.py --calibrate high          # KL of each arm at some betas, on other draws
    python benchmarks/rl_study.py --table --out benchmarks/results/rl_study.json

A cell is a block of draws of one regime, all arms in one batch, and one JSON file of ``--cells``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import results
import rl_text
import torch
from rl_testbed import (
    BASE_FILE,
    Batch,
    Run,
    Settings,
    features_of,
    gold_of,
    load_base,
    log_probabilities,
    of_base,
    pool_of,
)
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from scipy.stats import t as student

from prudent.data.bradley_terry import draw_preferences
from prudent.evaluation.risk import paired_risk, policy_risk
from prudent.evaluation.risk_estimate import fit_rewards, policy_moves, promised
from prudent.files import dumps, write_atomic
from prudent.policies.estimates import reference_statistics
from prudent.rewards.draws import bootstrap_counts, fit_resamples, standardisation
from prudent.rewards.heads import HeadEnsemble
from prudent.seeding import Seed, numpy_generator, spawn

MEMBERS = 10
ARMS = ("vanilla", "mean", "lcb", "proportional", "bregman", "permuted")
BLOCK = 8  # draws a cell
JUDGE = 16  # samples a prompt, of 32 prompts
STUDY, CALIBRATION = 1, 2  # seeds' first branch


@dataclass(frozen=True)
class Regime:
    """pairs drawn with ``slope``; adjectives: vocabulary of the writer whose texts are compared (None: the reference's
    own samples); settings and beta of vanilla; betas: of the other arms, for vanilla's KL."""

    pairs: int
    slope: float
    adjectives: int | None
    settings: Settings
    beta: float
    betas: dict[str, float]


REGIMES = {
    "high": Regime(30, 0.3, None, Settings(), 0.3, {}),
    "low": Regime(60, 1.0, None, Settings(), 0.3, {}),
    "other": Regime(60, 1.0, 5, Settings(), 0.3, {}),
}


@dataclass(frozen=True)
class World:
    """What all runs share: the base; pools (features (P, C, d) and gold (P, C)) that pairs are drawn from, by writer;
    samples of the reference that statistics and promises are taken from; the reference's gold by prompt (P,)."""

    base: dict[str, torch.Tensor]
    pairs: dict[int | None, tuple[torch.Tensor, torch.Tensor]]
    candidates: torch.Tensor
    gold: torch.Tensor
    reference: torch.Tensor


@torch.no_grad()
def written(
    base: dict[str, torch.Tensor], adjectives: int, texts: int, seed: Seed
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of another writer, as features (P, C, d) and gold (P, C)."""
    generator = numpy_generator(seed)
    rows = [
        [rl_text.encode(name, rl_text.write(name, generator, adjectives)) for _ in range(texts)]
        for name in rl_text.PRODUCTS
    ]
    ids = torch.tensor(rows)
    return features_of(log_probabilities(base, of_base(base, len(ids)), ids)[1], ids), gold_of(ids)


WORLD_FILE = BASE_FILE.with_name("world.safetensors")


def _new_world(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seeds = spawn(0, 4)
    _, features, gold = pool_of(base, 64, seeds[0])
    _, candidates, known = pool_of(base, 32, seeds[1])
    other, other_gold = written(base, 5, 64, seeds[3])
    many = pool_of(base, 512, seeds[2])[2].mean(1)
    names = ("features", "gold", "other", "other_gold", "candidates", "known", "reference")
    return dict(zip(names, (features, gold, other, other_gold, candidates, known, many)))


@cache
def world() -> World:
    base = load_base()
    if not WORLD_FILE.is_file():
        save_file(_new_world(base), WORLD_FILE)
    found = load_file(WORLD_FILE)
    pairs = {None: (found["features"], found["gold"]), 5: (found["other"], found["other_gold"])}
    return World(base, pairs, found["candidates"], found["known"], found["reference"])


@dataclass(frozen=True)
class Draw:
    """One data set: pairs' features (n, d), their prompts, the heads fitted on them ([0]: on all), and the seed of the
    runs trained on it."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    groups: list[int]
    heads: HeadEnsemble
    accuracy: float
    seed: Seed
    fit_seed: Seed


def draw(regime: Regime, branch: int, number: int) -> Draw:
    """Data set ``number`` of a regime: pairs, and the heads that ``estimate_risk`` fits on them with the same seed."""
    pair_seed, fit_seed, run_seed = spawn(spawn(branch, number + 1)[-1], 3)
    features, gold = world().pairs[regime.adjectives]
    prompt, better, worse = draw_preferences(gold, range(len(gold)), regime.pairs, regime.slope, pair_seed)
    chosen, rejected, groups = (features[prompt, better], features[prompt, worse], prompt.tolist())
    mean, scale = standardisation(chosen, rejected)
    counts = torch.cat([torch.ones(1, len(chosen)), bootstrap_counts(len(chosen), spawn(fit_seed, MEMBERS), groups)])
    found = fit_resamples((chosen - rejected) / scale, counts, ridge="cv", groups=groups, seed=fit_seed)
    heads = HeadEnsemble(found.weights.float(), torch.zeros(1 + MEMBERS), mean, scale, {"ridge": found.ridge})
    return Draw(chosen, rejected, groups, heads, _accuracy(heads), run_seed, fit_seed)


def _accuracy(heads: HeadEnsemble) -> float:
    """How often the head fitted on all pairs orders two samples of the reference as gold does (ties of scores half)."""
    scores = heads.scores(world().candidates.flatten(0, 1))[0].view(world().gold.shape).double()
    gold = world().gold
    decided = gold[:, :, None] > gold[:, None, :]
    return float((0.5 + 0.5 * (scores[:, :, None] - scores[:, None, :]).sign())[decided].mean())


def runs_of(one: Draw, regime: Regime, betas: dict[str, float]) -> list[Run]:
    """One run an arm, on the same data set and random numbers."""
    prompts, count = world().candidates.shape[:2]
    owner = torch.arange(prompts).repeat_interleave(count)
    statistics = reference_statistics(one.heads.scores(world().candidates.flatten(0, 1)), owner)
    return [Run(arm, betas.get(arm, regime.beta), one.heads, statistics, 0, one.seed) for arm in betas]


def promise(one: Draw, betas: dict[str, float]) -> list[dict[str, Any]]:
    """What ``estimate_risk`` promises of each arm from this data set alone, a row an arm. ``exact_gain``: the exact
    policy's true gain over the reference's samples."""
    known = world()
    reference = torch.full(known.gold.shape, 1 / known.gold.shape[1], dtype=torch.float64)
    fit = fit_rewards(
        one.chosen.double(),
        one.rejected.double(),
        one.groups,
        known.candidates.double(),
        reference,
        members=MEMBERS,
        seed=one.fit_seed,
    )
    rows: list[dict[str, Any]] = [{"method": arm, "beta": beta} for arm, beta in betas.items()]
    moved = policy_moves(fit, rows)
    found = promised(fit, moved, one.groups, rows, draws=0, seed=0)
    gains = (moved * known.gold).sum(-1).mean(-1).tolist()
    return [{**row, "exact_gain": gain} for row, gain in zip(found, gains)]


def cell(
    name: str,
    regime: Regime,
    branch: int,
    first: int,
    betas: dict[str, float],
    folder: Path,
    samples: int = JUDGE,
    draws: int = BLOCK,
) -> dict[str, Any]:
    """``draws`` of them from ``first`` on, an arm each of ``betas``: trained, judged and written, or read if there."""
    path = folder / f"{name}-{first:04d}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.process_time()
    drawn = [draw(regime, branch, first + i) for i in range(draws)]
    batch = Batch(world().base, [run for one in drawn for run in runs_of(one, regime, betas)], regime.settings)
    path_kl = [batch.step()["kl"].tolist() for _ in range(regime.settings.steps)]
    judged = batch.judge(samples)
    gains = (judged["gold"] - world().reference).mean(1)
    rows = []
    for i, one in enumerate(drawn):
        for j, (arm, found) in enumerate(zip(betas, promise(one, betas))):
            k = i * len(betas) + j
            rows.append(
                {
                    "draw": first + i,
                    "arm": arm,
                    "beta": betas[arm],
                    "gain": float(gains[k]),
                    "judging": float(judged["error"][k]),
                    "kl": float(judged["kl"][k]),
                    "length": float(judged["length"][k]),
                    "kl_path": [step[k] for step in path_kl],
                    "accuracy": one.accuracy,
                    "exact_gain": found["exact_gain"],
                    **{f"promised_{name}": found[name] for name in ("risk", "high", "gain")},
                }
            )
    seconds = time.process_time() - started
    result = {"regime": name, "rows": rows, "seconds_a_run": seconds / len(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(result))
    return result


def calibrated(name: str, factors: tuple[float, ...], draws: int, folder: Path) -> dict[str, float]:
    """beta of each arm at which its KL is vanilla's, on draws of their own: log KL is taken as linear in log beta.

    Prints KL and promised risk of each arm and beta beside it.
    """
    regime = REGIMES[name]
    table: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for factor in factors:
        betas = dict.fromkeys(ARMS, regime.beta * factor)
        found = cell(f"calibrate-{name}-{factor:g}", regime, CALIBRATION, 0, betas, folder, 2, draws)["rows"]
        for arm in ARMS:
            mine = [row for row in found if row["arm"] == arm]
            kl = float(np.mean([row["kl"] for row in mine]))
            risk = float(np.mean([row["promised_risk"] for row in mine]))
            table[arm].append((betas[arm], kl))
            print(f"{name}: {arm}, beta {betas[arm]:.4g}: KL {kl:.2f}, promised risk {risk:.0%}", flush=True)
    target = next(kl for beta, kl in table["vanilla"] if beta == regime.beta)
    betas = {}
    for arm, points in table.items():
        slope, level = np.polyfit(*np.log([[beta, max(kl, 0.01)] for beta, kl in points]).T, 1)
        exact = math.exp((math.log(target) - level) / slope) if slope < -0.05 else regime.beta
        betas[arm] = float(np.clip(exact, min(factors) * regime.beta / 2, max(factors) * regime.beta * 2))
    betas["vanilla"] = regime.beta
    print(f"{name}: KL {target:.2f} at " + ", ".join(f"{arm}: {beta:.3g}" for arm, beta in betas.items()))
    return betas


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


def arm_row(name: str, arm: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: an arm's runs beside vanilla's on the same draws."""
    mine, base = ([row for row in rows if row["arm"] == which] for which in (arm, "vanilla"))
    gains, others = (np.array([row["gain"] for row in part]) for part in (mine, base))
    risk, paired = policy_risk(gains), paired_risk(gains, others)
    promised, failed = np.array([row["promised_risk"] for row in mine]), gains <= 0
    ratio = deviation_ratio(gains, others) if arm != "vanilla" else (1.0, 1.0, 1.0, 1.0)
    judging = float(np.mean([row["judging"] ** 2 for row in mine]) / gains.var(ddof=1))
    return {
        "regime": name,
        "arm": arm,
        "beta": mine[0]["beta"],
        "runs": len(mine),
        "kl": float(np.mean([row["kl"] for row in mine])),
        "gain": risk.gain,
        "gain_low": risk.gain_low,
        "gain_high": risk.gain_high,
        "gain_difference": [paired.gain, paired.gain_low, paired.gain_high],
        "deviation": risk.deviation,
        "deviation_ratio": list(ratio),
        "at_or_below": risk.at_or_below,
        "risk": [risk.risk, risk.low, risk.high],
        "risk_difference": [paired.risk, paired.risk_low, paired.risk_high],
        "judging_share_of_variance": judging,
        "promised": float(promised.mean()),
        "brier": float(((promised - failed) ** 2).mean()),
        "brier_of_own_mean": risk.risk * (1 - risk.risk),
        "high": float(np.mean([row["promised_high"] for row in mine])),
        "exact_at_or_below": int(sum(row["exact_gain"] <= 0 for row in mine)),
        "exact_correlation": float(np.corrcoef([row["exact_gain"] for row in mine], gains)[0, 1]),
    }


def reliability(rows: list[dict[str, Any]], parts: int = 4) -> list[dict[str, Any]]:
    """Promised and realised risk in equal parts of the runs ordered by promise."""
    ordered = sorted(rows, key=lambda row: row["promised_risk"])
    return [
        {
            "runs": len(part),
            "promised": float(np.mean([row["promised_risk"] for row in part])),
            "realised": float(np.mean([row["gain"] <= 0 for row in part])),
        }
        for part in ([ordered[i] for i in index] for index in np.array_split(np.arange(len(ordered)), parts))
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/rl-study.md."""

    def range_of(values: list[float], digits: int = 3) -> str:
        return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"

    lines = [
        "| regime | arm | beta | runs | KL | gain | deviation over runs | ratio to vanilla's | p | at or below | "
        "difference, points | promised | Brier (own mean's) | exact policies at or below | their gain's correlation |",
        "|---" * 15 + "|",
    ]
    for row in rows:
        ratio, points = (row["deviation_ratio"], [100 * value for value in row["risk_difference"]])
        gain = range_of([row["gain"], row["gain_low"], row["gain_high"]])
        risk = "{:.0%} [{:.0%}, {:.0%}]".format(*row["risk"])
        lines.append(
            f"| {row['regime']} | {row['arm']} | {row['beta']:.3g} | {row['runs']} | {row['kl']:.2f} | "
            f"{gain} | {row['deviation']:.3f} | {range_of(ratio, 2)} | {ratio[3]:.2g} | {row['at_or_below']} = {risk} |"
            f" {range_of(points, 0)} | {row['promised']:.0%} | {row['brier']:.3f} ({row['brier_of_own_mean']:.3f}) | "
            f"{row['exact_at_or_below'] / row['runs']:.0%} | {row['exact_correlation']:.2f} |"
        )
    return "\n".join(lines)


def table(folder: Path, out: Path | None) -> None:
    """Every finished cell of the study as the page's tables and a result file."""
    rows, charts, seconds = [], [], []
    for name in REGIMES:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}-*.json"))]
        runs = [row for one in found for row in one["rows"]]
        seconds += [one["seconds_a_run"] for one in found]
        if not runs:
            continue
        rows += [arm_row(name, arm, runs) for arm in ARMS]
        for arm in ("vanilla", "lcb", "proportional", "bregman"):
            charts += [
                {"regime": name, "arm": arm, **part} for part in reliability([r for r in runs if r["arm"] == arm])
            ]
    print(markdown(rows))
    for part in charts:
        print(f"{part['regime']}, {part['arm']}: promised {part['promised']:.1%}, came {part['realised']:.1%}")
    figures = [results.figure("a run with its judging and promise", seconds, unit="s of processor")]
    question = "Does weighting the KL by the reward's variance lower the risk of RL runs?"
    results.write(out, question, figures, rows=rows, reliability=charts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regime", choices=REGIMES)
    parser.add_argument("--draws", type=int, nargs=2, default=(0, 64), help="from, to")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    parser.add_argument("--calibrate", choices=REGIMES)
    parser.add_argument("--factors", type=float, nargs="+", default=(1.0, 2.5), help="of vanilla's beta")
    parser.add_argument("--cells", type=Path, default=Path("runs/rl-study"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.calibrate:
        calibrated(given.calibrate, tuple(given.factors), given.draws[1], given.cells)
    if given.regime:
        regime, began = REGIMES[given.regime], time.monotonic()
        betas = {arm: regime.betas.get(arm, regime.beta) for arm in ARMS}
        for first in range(given.draws[0], given.draws[1], BLOCK):
            if time.monotonic() - began > 60 * given.minutes:
                break
            found = cell(given.regime, regime, STUDY, first, betas, given.cells)
            print(f"{given.regime}, draws {first} on: {found['seconds_a_run']:.2f} s a run", flush=True)
    if given.table:
        table(given.cells, given.out)


if __name__ == "__main__":
    main()
