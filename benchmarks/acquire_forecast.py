"""How many labels until the risk is low enough, and is a second opinion better than a new pair? Against what comes.

    python benchmarks/acquire_forecast.py [--quick] [--worlds tone restraint gsm8k] [--sets 40] [--cells DIR]
    python benchmarks/acquire_forecast.py --scales 8 [--worlds gsm8k]

A data set: 100 labelled pairs of half of a world's prompts. ``forecast_risk`` says what preflight will state at double
and at four times the labels, and how probable it is that the policy is then truly no better than the reference. Then
the labels come: as many more random pairs of the same prompts, answered as the first ones were. Stated is preflight's
risk with them; realised is whether the policy's gold gain is 0 or below on the other half's prompts.

Repeats: the same number of answers, spent on pairs that are all different or on half as many pairs, twice each. Labels
are Bradley-Terry on gold, drawn anew at each answer, so a second answer may contradict the first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from acquire import LOW_RISK, labelled, outcomes, prior_of
from acquire_worlds import Split, worlds

from prudent.acquisition.forecast import CERTAIN, ForecastSettings, forecast_risk
from prudent.evaluation.posterior_risk import SCALES, reward_posterior
from prudent.files import dumps, write_atomic

START, SIZES, BETA = 100, (200, 400), 0.1


def forecast(split: Split, seed: int, simulations: int) -> list[dict[str, float]]:
    """Forecast, stated and realised at each size."""
    order = np.random.default_rng(seed + 50_000).permutation(len(split.pool))
    chosen, rejected = labelled(split, order[:START])
    planned = split.pool[order[START : SIZES[-1]]]
    assert split.candidates is not None
    reference = np.full(split.candidates.shape[:2], 1 / split.candidates.shape[1])
    said = forecast_risk(
        chosen,
        rejected,
        split.candidates,
        reference,
        planned[:, 0] - planned[:, 1],
        SIZES,
        settings=ForecastSettings(beta=BETA, simulations=simulations, max_risk=LOW_RISK),
        seed=seed,
    )["rows"]
    prior = prior_of(split, seed)
    rows = []
    for row in said:
        came = outcomes(split, order[: row["labels"]], prior)
        rows.append({**row, "stated": came["risk"], "worse": float(came["gain at beta"] <= 0)})
    return rows


def repeats(split: Split, seed: int, answers: int) -> dict[str, dict[str, float]]:
    """Outcomes of so many answers on different pairs, and on half as many pairs with two answers each."""
    g = np.random.default_rng(seed + 60_000)
    order = g.permutation(len(split.pool))[:answers]
    prior = prior_of(split, seed)
    twice = order[: answers // 2]
    second = g.random(len(twice)) < split.chance[twice]
    again = split._replace(
        pool=np.concatenate([split.pool[twice], split.pool[twice]]), first=np.concatenate([split.first[twice], second])
    )
    return {
        "different pairs": outcomes(split, order, prior),
        "each pair twice": outcomes(again, np.arange(2 * len(twice)), prior),
    }


def cell(world: str, make: Callable[[int], Split], seed: int, given: Any) -> dict[str, Any]:
    """One data set; read from --cells where it is there already."""
    path = None if given.cells is None else Path(given.cells) / f"forecast-{world}-{given.width}-{seed}.json"
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    split = make(seed)
    found = {
        "forecast": forecast(split, seed, given.simulations),
        "repeats": {str(n): repeats(split, seed, n) for n in (100, 400)},
    }
    print(f"{world} {seed}", flush=True)
    if path is not None:
        write_atomic(path, dumps(found))
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over data sets."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def forecast_table(world: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over data sets at each number of labels. covered: share whose stated risk lay in the central 80 %. certain:
    forecast probability that the stated risk is at most LOW_RISK, and low_enough: share where it was. said: data sets
    whose forecast was certain enough to name this number of labels, and kept: how many of them were under it."""
    rows = []
    for number, labels in enumerate((START, *SIZES)):
        at = [one["forecast"][number] for one in cells]
        mean = {
            name: float(np.mean([row[name] for row in at]))
            for name in ("risk", "realised", "stated", "worse", "certain")
        }
        covered = float(np.mean([row["low"] <= row["stated"] <= row["high"] for row in at])) if number else None
        low, high = interval(np.array([row["risk"] - row["stated"] for row in at]))
        said = np.array([row["certain"] >= CERTAIN for row in at])
        under = np.array([row["stated"] <= LOW_RISK for row in at])
        found = {"world": world, "labels": labels, **mean, "covered": covered, "off_low": low, "off_high": high}
        found |= {"low_enough": float(under.mean()), "said": int(said.sum()), "kept": int((said & under).sum())}
        rows.append(found)
    return rows


def repeat_table(world: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Different pairs less pairs asked twice, by number of answers and outcome."""
    rows = []
    for answers in ("100", "400"):
        for outcome in ("log loss", "gain"):
            pair = [
                [one["repeats"][answers][way][outcome] for one in cells]
                for way in ("different pairs", "each pair twice")
            ]
            difference = np.array(pair[0]) - np.array(pair[1])
            low, high = interval(difference)
            rows.append(
                {
                    "world": world,
                    "answers": int(answers),
                    "outcome": outcome,
                    "different": float(np.mean(pair[0])),
                    "twice": float(np.mean(pair[1])),
                    "difference": float(difference.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def scales(world: str, make: Callable[[int], Split], sets: int) -> list[dict[str, Any]]:
    """What the posterior thinks of the reward's size at each number of labels, over data sets: geometric mean of a
    pair's root mean square margin in logits (mean, least and most), and the mean probability of no signal."""
    seen = []
    for seed in range(sets):
        split = make(seed)
        order = np.random.default_rng(seed + 50_000).permutation(len(split.pool))  # as in forecast
        for labels in (START, *SIZES):
            chosen, rejected = labelled(split, order[:labels])
            posterior = reward_posterior((chosen - rejected) / np.concatenate([chosen, rejected]).std(0))
            weight = posterior.weight[1:] / posterior.weight[1:].sum()
            seen.append((labels, float(np.exp(weight @ np.log(SCALES))), posterior.no_signal))
    rows = []
    for labels in (START, *SIZES):
        size, no_signal = np.array([one[1:] for one in seen if one[0] == labels]).T
        rows.append(
            {"world": world, "labels": labels, "margin": float(size.mean()), "no_signal": float(no_signal.mean())}
        )
        rows[-1] |= {"margin_least": float(size.min()), "margin_most": float(size.max())}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=None)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--simulations", type=int, default=40)
    parser.add_argument("--width", type=int, default=96, help="principal components")
    parser.add_argument("--quick", action="store_true", help="three data sets of the tone world")
    parser.add_argument("--cells", default=None, help="folder that keeps each data set's outcomes")
    parser.add_argument("--scales", type=int, default=0, help="only how large so many data sets' rewards seem")
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    had = {name: make for name, make in worlds(given.width).items() if name in ("tone", "restraint", "gsm8k")}
    sets = 3 if given.quick else given.sets
    predicted, asked = [], []
    for world in given.worlds or (["tone"] if given.quick else list(had)):
        if world not in had:
            parser.error(f"world {world} can't be had here; there are {', '.join(had)}")
        if given.scales:
            print(*scales(world, had[world], given.scales), sep="\n", flush=True)
            continue
        cells = [cell(world, had[world], seed, given) for seed in range(sets)]
        predicted += forecast_table(world, cells)
        asked += repeat_table(world, cells)
    if given.scales:
        return
    print("\n| world | labels | forecast of the stated risk | stated | forecast less stated | in the 80 % interval |")
    print("| --- " * 6 + "|")
    for row in predicted:
        covered = "today" if row["covered"] is None else f"{row['covered']:.0%}"
        print(
            f"| {row['world']} | {row['labels']} | {row['risk']:.1%} | {row['stated']:.1%} | "
            f"[{100 * row['off_low']:+.1f}, {100 * row['off_high']:+.1f}] | {covered} |"
        )
    print(f"\n| world | labels | forecast chance of {LOW_RISK:.0%} or less | came | said enough | of them it was |")
    print("| --- " * 6 + "|")
    for row in predicted:
        print(
            f"| {row['world']} | {row['labels']} | {row['certain']:.0%} | {row['low_enough']:.0%} | {row['said']} | "
            f"{row['kept']} |"
        )
    print("\n| world | labels | forecast share no better | share no better |\n| --- | --- | --- | --- |")
    for row in predicted:
        print(f"| {row['world']} | {row['labels']} | {row['realised']:.1%} | {row['worse']:.1%} |")
    print("\n| world | answers | outcome | different pairs | each pair twice | difference |")
    print("| --- " * 6 + "|")
    for row in asked:
        print(
            f"| {row['world']} | {row['answers']} | {row['outcome']} | {row['different']:.3f} | {row['twice']:.3f} | "
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] |"
        )
    figures = [
        results.figure(
            f"{row['world']}: forecast less stated risk at {row['labels']} labels", row["risk"] - row["stated"], unit=""
        )
        for row in predicted
    ]
    results.write(given.out, "Does the forecast of the risk hold?", figures, rows=predicted + asked)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
