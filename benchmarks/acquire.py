"""Which pairs to label next: does any rule need fewer labels than drawing at random?

    python benchmarks/acquire.py [--quick] [--worlds tone restraint hh_harmless] [--seeds 20] [--cells DIR]

A seed: half of the prompts give the pool, the other half judges. The first 25 labels are random and the same for every
rule; then each rule labels batches of 25, 50 and 100 up to the budget, refitting in between. tone and restraint are the
embedded worlds: labels are Bradley-Terry on gold (slope 1 a standard deviation within prompts), one draw a pair and
seed, so that rules are compared on the same answers, and policies are valued by gold. hh_harmless and alpacaeval_gpt4
(../shared/data) are labelled by their own choices, gsm8k by which of two real solutions of a problem is correct.
Features are the principal components (--width) of the pool's. The prior's strength is one number a seed for all rules
and budgets: the ridge cross-validated on 400 random labels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from acquire_worlds import Split, worlds

from prudent.acquisition import RULES, AcquireSettings, acquire
from prudent.evaluation.posterior_risk import reward_posterior, risk_without_gold
from prudent.files import dumps, write_atomic
from prudent.policies.finite import beta_for_kl, solve
from prudent.rewards.accuracy import credit
from prudent.rewards.draws import choose_ridge
from prudent.rewards.laplace import LaplacePosterior

BUDGETS, QUICK_BUDGETS = (50, 75, 100, 150, 200, 400, 800, 1600), (50, 75, 100)
START, MATCHED, KL, BETA, LOW_RISK = 25, 400, 1.0, 0.1, 0.05
LOWER_IS_BETTER = {"log loss": True, "accuracy": False, "risk": True, "gain": False, "gain at beta": False}


def labelled(split: Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chosen, rejected) features of pool rows, by their labels."""
    pairs, first = split.pool[rows], split.first[rows][:, None]
    return np.where(first, pairs[:, 0], pairs[:, 1]), np.where(first, pairs[:, 1], pairs[:, 0])


def outcomes(split: Split, rows: np.ndarray, prior: float) -> dict[str, float]:
    """What the head fitted on these rows is worth: held-out log loss and accuracy; the risk that preflight states for
    the vanilla policy at BETA, and the gold gain of the policy at KL, where gold is known."""
    chosen, rejected = labelled(split, rows)
    head = LaplacePosterior.fit(chosen, rejected, ridge=prior / len(rows), members=2)
    logit = (head.expected(split.test[:, 0]) - head.expected(split.test[:, 1])).numpy()
    margin = np.where(split.test_first, logit, -logit)
    found = {"log loss": float(np.logaddexp(0, -margin).mean()), "accuracy": float(credit(margin).mean())}
    if split.candidates is None or split.gold is None:
        return found
    flat = torch.from_numpy(split.candidates).flatten(0, 1)
    reward = head.expected(flat).reshape(split.gold.shape)
    reference = torch.full_like(reward, 1 / reward.shape[1])
    beta = beta_for_kl(lambda value: solve(reward, reference, value), reference, KL, shape=())
    found["gain"] = float(((solve(reward, reference, beta) - reference).numpy() * split.gold).sum(1).mean())
    moved = (solve(reward, reference, BETA) - reference).flatten()
    found["gain at beta"] = float((moved.reshape(split.gold.shape).numpy() * split.gold).sum(1).mean())
    standard = (flat.double() - head.mean) / head.scale
    pairs = (torch.from_numpy(chosen - rejected).double() / head.scale).numpy()
    move = (moved @ standard / len(reward)).numpy()[None]
    found["risk"] = float(risk_without_gold(reward_posterior(pairs), move).risk[0])
    return found


def run(split: Split, rule: str, budgets: tuple[int, ...], prior: float, seed: int) -> list[dict[str, float]]:
    """Outcomes at each budget of one rule that labels, refits and labels again."""
    g = np.random.default_rng(seed)
    known = g.permutation(len(split.pool))[:START]
    left = np.setdiff1d(np.arange(len(split.pool)), known)
    found = []
    for budget in budgets:
        while len(known) < budget:
            k = min(budget - len(known), 25 if len(known) < 100 else 50 if len(known) < 200 else 100)
            settings = AcquireSettings(ridge=prior / len(known), beta=BETA)
            picked = acquire(
                *labelled(split, known),
                split.pool[left],
                k,
                rule=rule,
                groups=split.prompts[left].tolist(),
                seed=seed * 1000 + len(known),
                settings=settings,
            )[0].numpy()
            known = np.concatenate([known, left[picked]])
            left = np.delete(left, picked)
        found.append(outcomes(split, known, prior))
    return found


def prior_of(split: Split, seed: int) -> float:
    """Ridge times pairs, cross-validated on 400 random labels: the same prior for every rule and budget."""
    rows = np.random.default_rng(seed + 10_000).permutation(len(split.pool))[:MATCHED]
    chosen, rejected = labelled(split, rows)
    scale = np.concatenate([chosen, rejected]).std(0)
    difference = torch.from_numpy((chosen - rejected) / np.maximum(scale, 1e-6)).float()
    return choose_ridge(difference, groups=split.prompts[rows].tolist(), seed=seed)[0] * len(rows)


def labels_to_match(curve: np.ndarray, target: float, budgets: np.ndarray) -> float:
    """Where a falling curve over budgets first reaches the target, straight in log labels between; inf: not reached."""
    below = np.flatnonzero(curve <= target)
    if not len(below):
        return np.inf
    i = int(below[0])
    if i == 0:
        return float(budgets[0])
    share = (curve[i - 1] - target) / (curve[i - 1] - curve[i])
    return float(np.exp(np.log(budgets[i - 1]) + share * np.log(budgets[i] / budgets[i - 1])))


def compare(table: np.ndarray, rules: list[str], budgets: tuple[int, ...], lower: bool) -> list[dict[str, Any]]:
    """table (seeds, rules, budgets) of one outcome: each rule at MATCHED labels, its paired difference from random
    there, and the labels it needs for random's mean at MATCHED, with 95 % bootstrap intervals over seeds."""
    sign = 1.0 if lower else -1.0
    matched = budgets.index(MATCHED) if MATCHED in budgets else len(budgets) - 1
    g = np.random.default_rng(0)
    draws = g.integers(0, len(table), (2000, len(table)))
    base = rules.index("random")
    found = []
    for number, rule in enumerate(rules):
        difference = table[:, number, matched] - table[:, base, matched]
        low, high = np.quantile(difference[draws].mean(1), [0.025, 0.975])
        counts = [
            labels_to_match(
                sign * table[rows, number].mean(0), float(sign * table[rows, base, matched].mean()), np.array(budgets)
            )
            for rows in (np.arange(len(table)), *draws[:1000])
        ]
        ends = np.quantile(np.array(counts[1:]), [0.025, 0.975], method="nearest")
        found.append(
            {
                "rule": rule,
                "curve": table[:, number].mean(0).tolist(),
                "difference": float(difference.mean()),
                "low": float(low),
                "high": float(high),
                "labels": counts[0],
                "labels_low": float(ends[0]),
                "labels_high": float(ends[1]),
            }
        )
    return found


def shown(count: float, most: int) -> str:
    return f"over {most}" if np.isinf(count) else f"{count:.0f}"


def show(world: str, outcome: str, rows: list[dict[str, Any]], budgets: tuple[int, ...], seeds: int) -> str:
    """A Markdown table: the curve, the paired difference from random (bold: excludes 0), the labels needed."""
    at = MATCHED if MATCHED in budgets else budgets[-1]
    lines = [
        f"\n**{world}, {outcome}** ({seeds} seeds)\n",
        f"| rule | {' | '.join(map(str, budgets))} | less random at {at} | labels for random's {at} |",
        "| --- " * (len(budgets) + 3) + "|",
    ]
    for row in rows:
        curve = " | ".join(f"{value:.3f}" for value in row["curve"])
        sure = "**" if row["low"] > 0 or row["high"] < 0 else ""
        needs = f"{shown(row['labels'], budgets[-1])} [{shown(row['labels_low'], budgets[-1])}, "
        needs += f"{shown(row['labels_high'], budgets[-1])}]"
        step = f"{sure}{row['difference']:+.3f}{sure} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(f"| {row['rule']} | {curve} | {step} | {needs} |")
    return "\n".join(lines)


def cell(world: str, split: Callable[[int], Split], seed: int, budgets: tuple[int, ...], given: Any) -> dict[str, Any]:
    """Budgets and outcomes by rule of one seed; read from --cells where they are there already."""
    path = None if given.cells is None else Path(given.cells) / f"{world}-{given.width}-{len(budgets)}-{seed}.json"
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    made, started = split(seed), time.perf_counter()
    there = tuple(budget for budget in budgets if budget <= 0.9 * len(made.pool))
    prior = prior_of(made, seed)
    found = {"budgets": there, "rules": {rule: run(made, rule, there, prior, seed) for rule in RULES}}
    print(f"{world} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    if path is not None:
        write_atomic(path, dumps(found))
    return found


def promised(world: str, cells: list[dict[str, Any]], there: tuple[int, ...]) -> list[dict[str, Any]]:
    """What came of the risk that preflight states on a rule's picks: by rule and budget, over seeds, the mean stated
    risk and the share of policies that truly gained nothing; and the labels until the mean stated risk is 5 %."""
    rows = []
    for rule in cells[0]["rules"]:
        stated, gain = (
            np.array([[at[name] for at in one["rules"][rule][: len(there)]] for one in cells])
            for name in ("risk", "gain at beta")
        )
        rows.append(
            {
                "world": world,
                "outcome": "stated and realised risk",
                "budgets": there,
                "rule": rule,
                "stated": stated.mean(0).tolist(),
                "came": (gain <= 0).mean(0).tolist(),
                "labels": labels_to_match(stated.mean(0), LOW_RISK, np.array(there)),
            }
        )
    return rows


def show_promised(rows: list[dict[str, Any]], seeds: int) -> str:
    """A Markdown table of ``promised``."""
    there = rows[0]["budgets"]
    lines = [
        f"\n**{rows[0]['world']}, stated risk and what came, in %** ({seeds} seeds)\n",
        f"| rule | {' | '.join(map(str, there))} | labels until {LOW_RISK:.0%} is stated |",
        "| --- " * (len(there) + 2) + "|",
    ]
    for row in rows:
        both = " | ".join(f"{100 * said:.0f}, {100 * came:.0f}" for said, came in zip(row["stated"], row["came"]))
        lines.append(f"| {row['rule']} | {both} | {shown(row['labels'], there[-1])} |")
    return "\n".join(lines)


def speed(pairs: int = 100_000, width: int = 1152, picks: int = 200, responses: int = 5) -> list[dict[str, Any]]:
    """Seconds, reading apart, that 200 picks of 100,000 candidate pairs (every two of five responses to 10,000
    prompts) take from 500 labelled ones, by every rule: of the clock, and of the processor."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=g) * (torch.arange(1, width + 1) ** -0.5)[:, None]
    a, b = torch.triu_indices(responses, responses, 1)
    prompts = pairs // len(a)
    chosen, rejected, texts = (torch.randn(n, width, generator=g) @ mix for n in (500, 500, prompts * responses))
    of_prompt = texts.reshape(prompts, responses, width)
    pool = torch.stack([of_prompt[:, a], of_prompt[:, b]], 2).flatten(0, 1)
    groups = np.repeat(np.arange(prompts), len(a)).tolist()
    found = []
    for rule in RULES:
        clock, processor = time.perf_counter(), time.process_time()
        acquire(chosen, rejected, pool, picks, rule=rule, groups=groups, settings=AcquireSettings(ridge=0.01))
        name = f"{rule}: {picks} of {len(pool):,} pairs x {width}"
        found += [
            results.figure(name, time.perf_counter() - clock, unit="s", at_most=30),
            results.figure(f"{name}, processor", time.process_time() - processor, unit="s of processor"),
        ]
        print(results.line(found[-2]), results.line(found[-1]), sep="\n", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--width", type=int, default=96, help="principal components")
    parser.add_argument("--quick", action="store_true", help="two seeds, three budgets, the tone world")
    parser.add_argument("--cells", default=None, help="folder that keeps each seed's outcomes")
    parser.add_argument("--out", default=None)
    parser.add_argument("--speed", action="store_true", help="only how long picking takes")
    given = parser.parse_args()
    if given.speed:
        results.write(given.out, "How long does picking take?", speed())
        return
    seeds, budgets = (2, QUICK_BUDGETS) if given.quick else (given.seeds, BUDGETS)
    had = worlds(given.width)
    rules, rows, figures = list(RULES), [], []
    for world in given.worlds or (["tone"] if given.quick else list(had)):
        if world not in had:
            parser.error(f"world {world} can't be had here; there are {', '.join(had)}")
        cells = [cell(world, had[world], seed, budgets, given) for seed in range(seeds)]
        there = min((tuple(one["budgets"]) for one in cells), key=len)  # pools of seeds differ in size
        for outcome in cells[0]["rules"]["random"][0]:
            table = np.array(
                [[[at[outcome] for at in one["rules"][rule][: len(there)]] for rule in rules] for one in cells]
            )
            compared = compare(table, rules, there, LOWER_IS_BETTER[outcome])
            print(show(world, outcome, compared, there, seeds), flush=True)
            rows += [{"world": world, "outcome": outcome, "budgets": there, **row} for row in compared]
            if outcome == "log loss":
                figures += [
                    results.figure(
                        f"{world}: labels of {row['rule']} for random's log loss", row["labels"], unit="labels"
                    )
                    for row in compared
                    if np.isfinite(row["labels"])
                ]
        if "risk" in cells[0]["rules"]["random"][0]:
            held = promised(world, cells, there)
            print(show_promised(held, seeds), flush=True)
            rows += held
    results.write(given.out, "Does any rule need fewer labels than drawing at random?", figures, rows=rows)


if __name__ == "__main__":
    main()
