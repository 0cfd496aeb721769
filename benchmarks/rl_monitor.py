"""What are the monitor's alarms worth? Runs that rise to their end and runs that overoptimise, with the truth known.

    python benchmarks/rl_monitor.py --minutes 9 --out benchmarks/results/rl_monitor.json    # goes on where it stopped

Two regimes of the testbed (``rl_testbed.py``), 40 steps each: ``rises`` (400 pairs, a strong KL) and ``turns`` (30
noisy pairs, hardly any KL, a high rate). Gold of 256 fresh samples at every fourth step says what was true: a run has
risen to its end where its last value is within the noise of its best one, else it has turned after its best step.
Three monitors watch the same 24 completions a step: drift without labels, and gold probes of 24 and of 96 labels.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import results
import rl_text
import torch
from rl_study import Regime, draw, runs_of, world
from rl_tables import begin, options, read_cells
from rl_testbed import Batch, Settings, gold_of, pool_of

from prudent.evaluation.intervals import wilson
from prudent.files import dumps, write_atomic
from prudent.policies.monitoring.monitor import Monitor, Probe

STEPS, EVERY, JUDGE, BLOCK = 40, 4, 8, 8
FALSE_ALARM = 0.05
BRANCH = 3
REGIMES = {
    "rises": Regime(400, 2.0, None, Settings(steps=STEPS, prompts=6, rate=8e-3), 0.3),
    "turns": Regime(30, 0.5, None, Settings(steps=STEPS, prompts=6, rate=2e-2), 0.01),
}
RUNS = {"rises": 88, "turns": 48}  # one past the last
MONITORS = ("drift", "gold, 24 labels", "gold, 96 labels")


def monitors(heads: Any, pool: tuple[torch.Tensor, torch.Tensor], texts: list[str]) -> dict[str, Monitor]:
    """The three, with samples of the reference."""
    owner = torch.arange(pool[1].shape[0]).repeat_interleave(pool[1].shape[1])
    flat = pool[1].flatten(0, 1)
    drift = Monitor(steps=STEPS, false_alarm=FALSE_ALARM, stop="drift")
    made = {"drift": drift.set_reference(texts, owner, scores=heads.scores(flat), features=flat.numpy())}
    for labels in (24, 96):
        probe = Probe(None, labels, EVERY, -1.0, 1.0)
        made[f"gold, {labels} labels"] = Monitor(steps=STEPS, false_alarm=FALSE_ALARM, probe=probe)
    return made


def block(name: str, first: int) -> dict[str, Any]:
    """BLOCK runs of vanilla: gold at every EVERY steps, its standard error, and each monitor's alarm and its step."""
    regime, started = REGIMES[name], time.process_time()
    drawn = [draw(regime, BRANCH, first + i) for i in range(BLOCK)]
    batch = Batch(world().base, [runs_of(one, regime, {"vanilla": regime.beta})[0] for one in drawn], regime.settings)
    pool = pool_of(world().base, 16, 11)
    texts = [rl_text.decode(row) for row in pool[0].flatten(0, 1)[:, 1:].tolist()]
    watching = [monitors(one.heads, (pool[0], pool[1]), texts) for one in drawn]
    alarms: list[dict[str, Any]] = [{} for _ in drawn]
    gold, errors, kl, metrics = [], [], [], []
    for step in range(STEPS):
        extra = None
        if step % EVERY == 0:  # the policy that the coming step's completions are from
            judged = batch.judge(JUDGE)
            gold.append((judged["gold"] - world().reference).mean(1).tolist())
            errors.append(judged["error"].tolist())
            extra = batch.labels(4)
        found = batch.step()
        kl.append(found["kl"].tolist())
        seen = []
        for i, some in enumerate(watching):
            said = [rl_text.decode(row) for row in found["ids"][i, :, 1:].tolist()]
            asked = found["prompts"][i].tolist()
            own = gold_of(found["ids"][i]).tolist() if extra is not None else None
            for which, monitor in some.items():
                kind, *rest = which.split(", ")
                labels = None
                if extra is not None and kind != "drift":
                    labels = extra[i].tolist() if rest == ["96 labels"] else own
                shown = monitor.observe(
                    asked,
                    said,
                    scores=found["scores"][i] if kind == "drift" else None,
                    features=found["features"][i].numpy() if kind == "drift" else None,
                    gold=labels,
                )
                if kind == "drift":
                    seen.append(shown)
                if monitor.alarm is not None and which not in alarms[i]:
                    alarms[i][which] = {"step": step + 1, "keep": monitor.alarm.keep}
        metrics.append(seen)
    judged = batch.judge(JUDGE)
    gold.append((judged["gold"] - world().reference).mean(1).tolist())
    errors.append(judged["error"].tolist())
    rows = [
        {
            "run": first + i,
            "gold": [values[i] for values in gold],
            "errors": [values[i] for values in errors],
            "kl": [values[i] for values in kl],
            "alarms": alarms[i],
            "drift": [seen[i].get("drift") for seen in metrics],
        }
        for i in range(BLOCK)
    ]
    return {"regime": name, "rows": rows, "seconds_a_run": (time.process_time() - started) / BLOCK}


def standing(pools: int, runs: int) -> tuple[int, int]:
    """Runs of a policy that never leaves its reference: how many raised the drift alarm, of how many."""
    generator = np.random.default_rng(0)
    alarms = 0
    for number in range(pools):
        ids, features, _ = pool_of(world().base, 16, 100 + number)
        texts = [rl_text.decode(row) for row in ids.flatten(0, 1)[:, 1:].tolist()]
        fresh, fresh_features, _ = pool_of(world().base, 40, 200 + number)
        heads = draw(REGIMES["rises"], BRANCH, 1000 + number).heads
        for _ in range(runs):
            monitor = monitors(heads, (ids, features), texts)["drift"]
            for _ in range(STEPS):
                prompts = generator.permutation(len(ids))[:6].repeat(4)
                which = generator.integers(40, size=24)
                said = [rl_text.decode(row) for row in fresh[prompts, which][:, 1:].tolist()]
                found = fresh_features[prompts, which]
                monitor.observe(prompts.tolist(), said, scores=heads.scores(found), features=found.numpy())
            alarms += monitor.alarm is not None
    return alarms, pools * runs


def truth(row: dict[str, Any]) -> tuple[bool, int]:
    """Whether the run turned, and the step of its best gold (steps taken before it was judged).

    Turned: the end lies below the best by more than 3 standard errors of their difference.
    """
    gold, errors = np.array(row["gold"]), np.array(row["errors"])
    best = int(gold.argmax())
    fall = (gold[best] - gold[-1]) / np.hypot(errors[best], errors[-1])
    return bool(fall > 3), min(best * EVERY, STEPS)


def at(row: dict[str, Any], step: int) -> float:
    """Gold of the policy after ``step`` steps, between judgements by straight lines."""
    return float(np.interp(step, [*range(0, STEPS, EVERY), STEPS], row["gold"]))


def points(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a monitor: false alarms on risen runs, detection and delay on turned ones, gold by what one does."""
    turned = [row for row in rows if truth(row)[0]]
    risen = [row for row in rows if not truth(row)[0]]
    grid = [*range(0, STEPS + 1, EVERY)]
    fixed = max(grid, key=lambda step: float(np.mean([at(row, step) for row in rows])))
    out = []
    for which in MONITORS:
        false = sum(which in row["alarms"] for row in risen)
        hit = [row for row in turned if which in row["alarms"]]
        early = sum(row["alarms"][which]["step"] < truth(row)[1] for row in hit)
        delays = [row["alarms"][which]["step"] - truth(row)[1] for row in hit]
        stop = [row["alarms"].get(which, {}).get("step", STEPS) for row in rows]
        keep = [row["alarms"].get(which, {}).get("keep", STEPS + 1) - 1 for row in rows]
        out.append(
            {
                "regime": name,
                "monitor": which,
                "risen": len(risen),
                "false_alarms": false,
                "false_alarm_interval": list(map(float, wilson(false, len(risen)))) if risen else None,
                "turned": len(turned),
                "alarms_on_turned": len(hit),
                "before_the_turn": early,
                "delay_median": float(np.median(delays)) if delays else None,
                "gold_at_end": float(np.mean([at(row, STEPS) for row in rows])),
                "gold_when_stopped": float(np.mean([at(row, s) for row, s in zip(rows, stop)])),
                "gold_of_kept": float(np.mean([at(row, s) for row, s in zip(rows, keep)])),
                "gold_at_best_fixed": float(np.mean([at(row, fixed) for row in rows])),
                "best_fixed_step": fixed,
                "gold_at_own_best": float(np.mean([max(row["gold"]) for row in rows])),
            }
        )
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/rl-study.md."""
    lines = [
        "| regime | rule | alarms on runs that rose to their end | on runs that turned | of those, before the turn | "
        "median delay, steps | gold at the end | when stopped | of the step it says to keep | at the best fixed step | "
        "each at its own best |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        interval = row["false_alarm_interval"]
        said = "" if interval is None else f" = {row['false_alarms'] / row['risen']:.0%} [{interval[0]:.0%}, "
        said += "" if interval is None else f"{interval[1]:.0%}]"
        delay = "" if row["delay_median"] is None else f"{row['delay_median']:.0f}"
        gold = " | ".join(f"{row[name]:.3f}" for name in ("gold_at_end", "gold_when_stopped", "gold_of_kept"))
        lines.append(
            f"| {row['regime']} | {row['monitor']} | {row['false_alarms']} of {row['risen']}{said} | "
            f"{row['alarms_on_turned']} of {row['turned']} | {row['before_the_turn']} | {delay} | {gold} | "
            f"{row['gold_at_best_fixed']:.3f} ({row['best_fixed_step']}) | {row['gold_at_own_best']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__, "runs/rl-monitor")
    parser.add_argument("--first", type=int, default=8, help="runs before it served to choose the rules")
    given, time_left = begin(parser)
    for first in range(given.first, max(RUNS.values()), BLOCK):
        for name in REGIMES:
            if first >= RUNS[name]:
                continue
            path = given.cells / f"{name}-{first:04d}.json"
            if not path.is_file() and time_left():
                write_atomic(path, dumps(block(name, first)))
    rows, seconds = [], []
    for name in REGIMES:
        runs, took = read_cells(given.cells, name)
        seconds += took
        rows += points(name, runs) if runs else []
    print(markdown(rows))
    if given.page:
        results.fill(given.page, "monitor", markdown(rows))
    false, still = standing(8, 5)
    low, high = wilson(false, still)
    note = f"{false} of {still} runs, interval {100 * low:.0f} to {100 * high:.0f} %"
    figures = [
        results.figure("a monitored run of 40 steps", seconds, unit="s of processor"),
        results.figure("drift alarms on the reference itself", 100 * false / still, unit="%", at_most=5, note=note),
    ]
    results.write(given.out, "What are the monitor's alarms worth?", figures, rows=rows)


if __name__ == "__main__":
    main()
