"""Does weighting the KL by the reward's variance lower the risk of real training runs? The study of docs/rl-study.md.

    python benchmarks/rl_study.py --processes 2 --minutes 9                # goes on where it stopped
    python benchmarks/rl_tables.py --out benchmarks/results/rl_study.json  # its tables

A cell is a block of draws of one regime, all arms in one batch, and one JSON file of ``--cells``. The first draws, at
equal beta, give each arm's beta for equal KL, at which the later ones run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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

from prudent.data.bradley_terry import draw_preferences
from prudent.evaluation.posterior_risk import risk_without_gold
from prudent.evaluation.risk_estimate import Fit, fit_rewards, policy_moves, promised
from prudent.files import dumps, write_atomic
from prudent.policies.estimates import ReferenceStatistics, reference_statistics
from prudent.policies.finite import kl
from prudent.rewards.draws import bootstrap_counts, fit_resamples, standardisation
from prudent.rewards.heads import HeadEnsemble
from prudent.seeding import Seed, numpy_generator, spawn

MEMBERS = 10
FIRST_ARMS = ("vanilla", "mean", "lcb", "proportional", "bregman", "permuted")
LATER_ARMS = ("exact", "variance-only")
ARMS = FIRST_ARMS + LATER_ARMS
BLOCK = 8  # draws a cell
FRESH = 64  # first draw of the primary view; those before set its betas
FEW = 104  # first draw without the later arms: one has no reward, the other's KL can't be matched in *high*
BETAS = (0.03, 3.0)
JUDGE = 16  # samples a prompt, of 32 prompts
STUDY = 1  # seeds' first branch


@dataclass(frozen=True)
class Regime:
    """pairs drawn with ``slope``; adjectives: vocabulary of the writer whose texts are compared (None: the reference's
    own samples); settings and beta of vanilla; betas: of the other arms, for vanilla's KL."""

    pairs: int
    slope: float
    adjectives: int | None
    settings: Settings
    beta: float


REGIMES = {
    "high": Regime(30, 0.3, None, Settings(), 0.3),
    "low": Regime(60, 1.0, None, Settings(), 0.3),
    "other": Regime(60, 1.0, 5, Settings(), 0.3),
}


@dataclass(frozen=True)
class World:
    """What all runs share: the base; pools (features (P, C, d) and gold (P, C)) that pairs are drawn from, by writer;
    samples of the reference that statistics and promises are taken from; the reference's gold by prompt (P,) and its
    mean features (P, d)."""

    base: dict[str, torch.Tensor]
    pairs: dict[int | None, tuple[torch.Tensor, torch.Tensor]]
    candidates: torch.Tensor
    gold: torch.Tensor
    reference: torch.Tensor
    features: torch.Tensor


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
    _, mean, many = (part.double().mean(1) for part in pool_of(base, 512, seeds[2]))
    names = ("features", "gold", "other", "other_gold", "candidates", "known", "reference", "mean_features")
    return dict(zip(names, (features, gold, other, other_gold, candidates, known, many, mean)))


@cache
def world() -> World:
    base = load_base()
    found = load_file(WORLD_FILE) if WORLD_FILE.is_file() else {}
    if "mean_features" not in found:
        found = _new_world(base)
        save_file(found, WORLD_FILE)
    pairs = {None: (found["features"], found["gold"]), 5: (found["other"], found["other_gold"])}
    return World(base, pairs, found["candidates"], found["known"], found["reference"], found["mean_features"])


@dataclass(frozen=True)
class Draw:
    """One data set of a world: pairs' features (n, d), their prompts, the heads fitted on them ([0]: on all), and the
    seed of the runs trained on it."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    groups: list[int]
    heads: HeadEnsemble
    accuracy: float
    seed: Seed
    fit_seed: Seed
    known: World


def draw(regime: Regime, branch: int, number: int, known: World | None = None) -> Draw:
    """Data set ``number`` of a regime: pairs, and the heads that ``estimate_risk`` fits on them with the same seed."""
    pair_seed, fit_seed, run_seed = spawn(spawn(branch, number + 1)[-1], 3)
    known = known or world()
    features, gold = known.pairs[regime.adjectives]
    prompt, better, worse = draw_preferences(gold, range(len(gold)), regime.pairs, regime.slope, pair_seed)
    chosen, rejected, groups = (features[prompt, better], features[prompt, worse], prompt.tolist())
    mean, scale = standardisation(chosen, rejected)
    counts = torch.cat([torch.ones(1, len(chosen)), bootstrap_counts(len(chosen), spawn(fit_seed, MEMBERS), groups)])
    found = fit_resamples((chosen - rejected) / scale, counts, ridge="cv", groups=groups, seed=fit_seed)
    heads = HeadEnsemble(found.weights.float(), torch.zeros(1 + MEMBERS), mean, scale, {"ridge": found.ridge})
    return Draw(chosen, rejected, groups, heads, _accuracy(heads, known), run_seed, fit_seed, known)


def _accuracy(heads: HeadEnsemble, known: World) -> float:
    """How often the head fitted on all pairs orders two samples of the reference as gold does (ties of scores half)."""
    gold = known.gold
    scores = heads.scores(known.candidates.flatten(0, 1))[0].view(gold.shape).double()
    decided = gold[:, :, None] > gold[:, None, :]
    return float((0.5 + 0.5 * (scores[:, :, None] - scores[:, None, :]).sign())[decided].mean())


def statistics_of(one: Draw) -> ReferenceStatistics:
    """Centre and scale of a data set's heads on samples of the reference."""
    prompts, count = one.known.candidates.shape[:2]
    owner = torch.arange(prompts).repeat_interleave(count)
    return reference_statistics(one.heads.scores(one.known.candidates.flatten(0, 1)), owner)


def runs_of(one: Draw, regime: Regime, betas: dict[str, float]) -> list[Run]:
    """One run an arm, on the same data set and random numbers."""
    statistics = statistics_of(one)
    return [Run(arm, betas.get(arm, regime.beta), one.heads, statistics, 0, one.seed) for arm in betas]


def fit_of(one: Draw) -> Fit:
    """What ``estimate_risk`` makes of a data set and the reference's samples."""
    gold = one.known.gold
    return fit_rewards(
        one.chosen.double(),
        one.rejected.double(),
        one.groups,
        one.known.candidates.double(),
        torch.full(gold.shape, 1 / gold.shape[1], dtype=torch.float64),
        members=MEMBERS,
        seed=one.fit_seed,
    )


def promise(one: Draw, betas: dict[str, float], moves: torch.Tensor | None) -> list[dict[str, Any]]:
    """What ``estimate_risk`` promises of each arm from this data set alone, a row an arm.

    exact_gain, exact_kl: the exact policy's true gain over the reference's samples, and its KL. moves (A, d): the
    shift of the mean features that each arm's run made, standardised; promised_after is the posterior risk of it.
    """
    fit, gold = fit_of(one), one.known.gold
    rows: list[dict[str, Any]] = [{"method": arm, "beta": beta} for arm, beta in betas.items()]
    moved = policy_moves(fit, rows)
    found = promised(fit, moved, one.groups, rows, draws=0, seed=0)
    gains = (moved * gold).sum(-1).mean(-1).tolist()
    spent = kl(moved + fit.weight, fit.weight).mean(-1).tolist()
    after = [None] * len(rows) if moves is None else risk_without_gold(fit.posterior, moves.numpy()).risk.tolist()
    return [
        {
            **{f"promised_{key}": row[key] for key in ("risk", "high", "gain")},
            "exact_gain": gain,
            "exact_kl": distance,
            "promised_after": risk,
        }
        for row, gain, distance, risk in zip(found, gains, spent, after)
    ]


def shift(one: Draw, features: torch.Tensor) -> torch.Tensor:
    """Mean features (R, d) of runs, less the reference's, in the units of a draw's fit."""
    return ((features - one.known.features.mean(0)) / one.heads.scale).double()


def cell(
    name: str, regime: Regime, draws: range, betas: dict[str, float], folder: Path, samples: int = JUDGE
) -> dict[str, Any]:
    """``draws``, an arm each of ``betas``: trained, judged and written to a file of ``name``, or read if there."""
    path = folder / f"{name}-{draws.start:04d}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.process_time()
    drawn = [draw(regime, STUDY, number) for number in draws]
    batch = Batch(world().base, [run for one in drawn for run in runs_of(one, regime, betas)], regime.settings)
    path_kl = [batch.step()["kl"].tolist() for _ in range(regime.settings.steps)]
    judged = batch.judge(samples, features=samples == JUDGE)
    gains = (judged["gold"] - world().reference).mean(1)
    rows = []
    for i, (number, one) in enumerate(zip(draws, drawn)):
        mine = slice(i * len(betas), (i + 1) * len(betas))
        moves = shift(one, judged["features"][mine]) if "features" in judged else None
        for k, arm, found in zip(range(mine.start, mine.stop), betas, promise(one, betas, moves)):
            rows.append(
                {
                    "draw": number,
                    "arm": arm,
                    "beta": betas[arm],
                    "gain": float(gains[k]),
                    "judging": float(judged["error"][k]),
                    "kl": float(judged["kl"][k]),
                    "length": float(judged["length"][k]),
                    "kl_path": [step[k] for step in path_kl],
                    "accuracy": one.accuracy,
                    **found,
                }
            )
    seconds = time.process_time() - started
    result = {"regime": name, "rows": rows, "seconds_a_run": seconds / len(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(result))
    return result


def equal_beta(name: str, draws: range, folder: Path) -> dict[str, Any]:
    """A block of the second view: six arms at vanilla's beta."""
    return cell(name, REGIMES[name], draws, dict.fromkeys(FIRST_ARMS, REGIMES[name].beta), folder)


def mean_kl(rows: list[dict[str, Any]], arm: str, beta: float, draws: int) -> float:
    """Over the runs of an arm at a beta on the first ``draws``; nan where there are none."""
    return float(np.mean([r["kl"] for r in rows if (r["arm"], r["beta"]) == (arm, beta) and r["draw"] < draws]))


GRID = (1 / 3, 1.0, 3.0)  # of vanilla's beta


def calibration(name: str, factor: float, folder: Path) -> dict[str, Any]:
    """The few draws that the slope of KL in beta is from, at one of GRID."""
    regime = REGIMES[name]
    betas = dict.fromkeys(LATER_ARMS if factor == 1 else ARMS, regime.beta * factor)
    return cell(f"beta-{name}-{factor:.2g}", regime, range(2 * BLOCK), betas, folder, 2)


def calibrated(name: str, folder: Path, say: Callable[[str], None] | None = None) -> dict[str, float]:
    """beta of each arm at which its KL is vanilla's (docs/rl-study.md, protocol of the second part).

    log KL is a line in log beta: its slope from three betas on the same few draws, its level at vanilla's beta from all
    of the first draws where the arm was among them.
    """
    beta, few = REGIMES[name].beta, 2 * BLOCK
    cells = [equal_beta(name, range(first, first + BLOCK), folder) for first in range(0, FRESH, BLOCK)]
    rows = [row for one in [*cells, *(calibration(name, factor, folder) for factor in GRID)] for row in one["rows"]]
    betas = {}
    for arm in ARMS:
        seen = [mean_kl(rows, arm, beta * factor, few) for factor in GRID]
        slope = float(np.polyfit(np.log(GRID), np.log(seen), 1)[0])
        count = FRESH if arm in FIRST_ARMS else few
        ratio = mean_kl(rows, arm, beta, count) / mean_kl(rows, "vanilla", beta, count)
        # Where KL doesn't fall with beta nothing can be matched by it.
        betas[arm] = float(np.clip(beta * ratio ** (-1 / slope), *BETAS)) if slope < -0.05 else beta
        if say is not None:
            said = ", ".join(f"{spent:.2f} at {beta * factor:.3g}" for spent, factor in zip(seen, GRID))
            say(f"{name}, {arm}: KL {said}; slope {slope:.2f}, {ratio:.2f} times vanilla's; beta {betas[arm]:.3g}")
    return betas


def equal_kl(name: str, draws: range, folder: Path) -> dict[str, Any]:
    """A block of the primary view."""
    betas = calibrated(name, folder)
    arms = ARMS if draws.start < FEW else FIRST_ARMS
    return cell(f"{name}-kl", REGIMES[name], draws, {arm: betas[arm] for arm in arms}, folder)


def work(kind: str, name: str, number: float, folder: Path, until: float) -> str:
    """One cell, unless time is over: what was done, in a line."""
    torch.set_num_threads(1)
    if time.time() > until:
        return f"{name}, {kind} {number:g}: not begun"
    if kind == "calibration":
        found = calibration(name, number, folder)
    else:
        draws = range(int(number), int(number) + BLOCK)
        found = equal_beta(name, draws, folder) if draws.start < FRESH else equal_kl(name, draws, folder)
    return f"{name}, {kind} {number:g}: {found['seconds_a_run']:.2f} s a run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--draws", type=int, nargs=2, default=(0, 200), help="from, to; equal KL from 64 on")
    parser.add_argument("--minutes", type=float, default=1e4, help="begin no cell after so long")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=Path("runs/rl-study"))
    given = parser.parse_args()
    world()
    until = time.time() + 60 * given.minutes
    starts = range(given.draws[0], given.draws[1], BLOCK)
    stages: list[list[tuple[str, str, float]]] = [
        [("draws from", name, first) for first in starts if first < FRESH for name in given.regimes],
        [("calibration", name, factor) for factor in GRID for name in given.regimes],
        [("draws from", name, first) for first in starts if first >= FRESH for name in given.regimes],
    ]
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        for stage in stages:
            for done in as_completed(pool.submit(work, *task, given.cells, until) for task in stage):
                print(done.result(), flush=True)
    if time.time() < until:
        for name in given.regimes:
            calibrated(name, given.cells, print)


if __name__ == "__main__":
    main()
