"""Why do trained policies end below their reference more often than promised? One thing changed at a time.

    python benchmarks/rl_causes.py --minutes 9 --out benchmarks/results/rl_causes.json

On the same data sets, vanilla: the exact policy over the reference's samples; that policy at the KL that the run spent;
the run's own policy reweighted onto those samples, which holds no new text; the run; and the run trained otherwise.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from rl_study import BLOCK, REGIMES, STUDY, Draw, cell, draw, fit_of, runs_of, shift, world
from rl_tables import begin, column, options
from rl_testbed import LINEARS, Batch, Settings, log_probabilities, merge, pool_of

from prudent.evaluation.posterior_risk import risk_without_gold
from prudent.evaluation.risk import policy_risk
from prudent.files import dumps, write_atomic
from prudent.policies.finite import beta_for_kl, kl, solve
from prudent.seeding import spawn

AS_IT_WAS = "the run"
TRAININGS = {
    "a quarter of the rate": Settings(rate=2.5e-3),
    "4 times the completions a step": Settings(prompts=8, completions=8),
    "64 steps": Settings(steps=64),
    "16 times the completions a step": Settings(prompts=16, completions=16),
}


@cache
def candidate_ids() -> torch.Tensor:
    """The texts (P, C, 1 + LENGTH) behind the world's candidates."""
    return pool_of(world().base, world().gold.shape[1], spawn(0, 4)[1])[0]


@torch.no_grad()
def reweighted(batch: Batch, number: int) -> torch.Tensor:
    """A trained policy on the reference's samples alone: probabilities (P, C), self-normalised importance weights."""
    adapters = {name: tensor[number : number + 1] for name, tensor in batch.adapters.items()}
    ids = candidate_ids().flatten(0, 1)[None]
    merged, base = merge(batch.base, adapters), {name: batch.base[name][None] for name in LINEARS}
    ratio = log_probabilities(batch.base, merged, ids)[0] - log_probabilities(batch.base, base, ids)[0]
    return ratio.double().view(world().gold.shape).softmax(-1)


def apart(one: Draw, batch: Batch, number: int, judged: dict[str, torch.Tensor], beta: float) -> dict[str, Any]:
    """One run's row: gains, KL and promised risk of the exact policy at its beta and at the run's KL, of the run
    reweighted onto the reference's samples, and of the run."""
    known, fit = world(), fit_of(one)
    spent = float(judged["kl"][number])
    reward = fit.full[0] - fit.full[0].mean(-1, keepdim=True)

    def policy(strength: Any) -> torch.Tensor:
        return solve(reward, fit.weight, strength)

    most = 0.9 * math.log(fit.weight.shape[1])  # as near to the run's as so many samples allow
    matched = beta_for_kl(policy, fit.weight, min(spent, most), strict=False)
    kinds = {"exact": policy(beta), "exact at the run's KL": policy(matched), "reweighted": reweighted(batch, number)}
    moves = np.concatenate([fit.feature_moves((found - fit.weight)[None]) for found in kinds.values()])
    fresh = shift(one, judged["features"][number : number + 1]).numpy()
    risks = risk_without_gold(fit.posterior, np.concatenate([moves, fresh])).risk
    head = one.heads.weights[0].double().numpy()
    proxies = np.concatenate([moves, fresh]) @ head
    found = {
        kind: {
            "gain": float(((weights - fit.weight) * known.gold).sum(-1).mean()),
            "kl": float(kl(weights, fit.weight).mean()),
        }
        for kind, weights in kinds.items()
    }
    found[AS_IT_WAS] = {"gain": float((judged["gold"][number] - known.reference).mean()), "kl": spent}
    return {
        kind: {**row, "promised": float(risk), "own_reward": float(proxy)}
        for (kind, row), risk, proxy in zip(found.items(), risks, proxies)
    }


def block(name: str, draws: range, folder: Path) -> list[dict[str, Any]]:
    """Rows of ``apart`` for a block of draws, computed or read."""
    path, regime = folder / f"apart-{name}-{draws.start:04d}.json", REGIMES[name]
    if not path.is_file():
        drawn = [draw(regime, STUDY, number) for number in draws]
        runs = [run for one in drawn for run in runs_of(one, regime, {"vanilla": regime.beta})]
        batch = Batch(world().base, runs, regime.settings)
        for _ in range(regime.settings.steps):
            batch.step()
        judged = batch.judge(16, features=True)
        write_atomic(path, dumps([apart(one, batch, i, judged, regime.beta) for i, one in enumerate(drawn)]))
    return json.loads(path.read_text(encoding="utf-8"))


def summary(regime: str, kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a kind of policy came to beside what was promised of it."""
    risk = policy_risk(column(rows, "gain"))
    return {
        "regime": regime,
        "policy": kind,
        "draws": len(rows),
        "kl": float(column(rows, "kl").mean()),
        "gain": [risk.gain, risk.gain_low, risk.gain_high],
        "deviation": risk.deviation,
        "at_or_below": [risk.risk, risk.low, risk.high],
        "promised": float(column(rows, "promised" if "promised" in rows[0] else "promised_after").mean()),
        **({"own_reward": float(column(rows, "own_reward").mean())} if "own_reward" in rows[0] else {}),
    }


def main() -> None:
    parser = options(__doc__, "runs/rl-study")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=["high", "low"])
    parser.add_argument("--draws", type=int, default=32)
    given, time_left = begin(parser)
    rows = []
    starts = range(0, given.draws, BLOCK)
    for name in given.regimes:
        found: dict[str, list[dict[str, Any]]] = {}
        for first in starts:
            for row in block(name, range(first, first + BLOCK), given.cells):
                for kind, one in row.items():
                    found.setdefault(kind, []).append(one)
        for kind, settings in TRAININGS.items():
            regime, label = replace(REGIMES[name], settings=settings), f"cause-{name}-{kind.replace(' ', '-')}"
            for first in starts:
                made = (given.cells / f"{label}-{first:04d}.json").is_file()
                if made or time_left():
                    betas, draws = {"vanilla": regime.beta}, range(first, first + BLOCK)
                    found.setdefault(kind, []).extend(cell(label, regime, draws, betas, given.cells)["rows"])
        rows += [summary(name, kind, some) for kind, some in found.items()]
    lines = [
        "| regime, policy | draws | KL | own reward | gain | deviation | promised | at or below |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        risk = "{:.0%} [{:.0%}, {:.0%}]".format(*row["at_or_below"])
        reward = f"{row['own_reward']:.3f}" if "own_reward" in row else ""
        lines.append(
            f"| {row['regime']}, {row['policy']} | {row['draws']} | {row['kl']:.3f} | {reward} | {row['gain'][0]:.3f} "
            f"[{row['gain'][1]:.3f}, {row['gain'][2]:.3f}] | {row['deviation']:.3f} | {row['promised']:.0%} | {risk} |"
        )
    print("\n".join(lines))
    if given.page:
        results.fill(given.page, "causes", "\n".join(lines))
    results.write(given.out, "Why do trained policies break the promise?", [], rows=rows)


if __name__ == "__main__":
    main()
