"""RL curves of overoptimisation from the run folders that ``prudent align`` writes: true value and proxy against KL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate
from prudent.evaluation.overoptimization.fits import Overoptimization, fit_overoptimization
from prudent.runs import read_manifest


@dataclass
class RLCurve:
    """One objective's runs, averaged step by step. Gold: from the reference, on the very prompts of a step.

    rows: step, kl, distance, gold, gold_low, gold_high (2 standard errors over runs; None for one run), proxy.
    """

    label: str
    runs: int
    rows: list[dict[str, Any]]
    fit: Overoptimization | None
    peak: Estimate
    notes: list[str]


def read_rl_curves(folder: str | Path) -> list[RLCurve]:
    """Curves by objective of one finished ``prudent align`` folder. PrudentError where its runs have no true value."""
    read_manifest(folder, "align")
    files = sorted(Path(folder, "runs").glob("*.json"))
    if not files:
        raise PrudentError(f"{folder} holds no runs; give a folder that prudent align wrote")
    groups: dict[str, list[list[dict[str, float]]]] = {}
    for file in files:
        run = json.loads(file.read_text(encoding="utf-8"))
        steps = run["history"]
        if not steps or any("truth_gain" not in step or "kl" not in step for step in steps):
            raise PrudentError(f"{file} has no true value at every step, so it gives no gold curve")
        groups.setdefault(str(run["objective"]), []).append(steps)
    name = Path(folder).name
    return [rl_curve(f"{name}: {objective}", runs) for objective, runs in groups.items()]


def rl_curve(label: str, runs: list[list[dict[str, float]]]) -> RLCurve:
    """Curve of runs of equal settings, each a list of steps with ``kl``, ``truth_gain`` and ``reward``."""
    steps = min(map(len, runs))
    if steps < 3:
        raise PrudentError(f"{label} has {steps} steps; a curve needs at least three")
    kl, gold, proxy = (
        np.array([[step[name] for step in run[:steps]] for run in runs], dtype=np.float64)
        for name in ("kl", "truth_gain", "reward")
    )
    mean_kl = kl.mean(0)
    notes = []
    below = int((mean_kl < 0).sum())
    if below:
        notes.append(f"{below} steps have a sampled KL below 0 (an estimate may be); they are drawn at distance 0")
    distance = np.sqrt(np.clip(mean_kl, 0, None))
    error = gold.std(0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else None
    rows = [
        {
            "step": step,
            "kl": float(mean_kl[step]),
            "distance": float(distance[step]),
            "gold": float(gold[:, step].mean()),
            "gold_low": None if error is None else float(gold[:, step].mean() - 2 * error[step]),
            "gold_high": None if error is None else float(gold[:, step].mean() + 2 * error[step]),
            "proxy": float(proxy[:, step].mean()),
        }
        for step in range(steps)
    ]
    fit = None
    try:
        fit = fit_overoptimization(torch.from_numpy(distance), torch.from_numpy(gold.mean(0)), "rl")
    except PrudentError as error_:
        notes.append(f"no fit: {error_}")
    reason = None if fit is not None and fit.peak is not None else "; ".join(fit.warnings if fit else notes)
    peak = Estimate(
        fit.peak if fit else None,
        fit.peak_low if fit else None,
        fit.peak_high if fit else None,
        steps,
        0.95,
        "Fieller over steps",
        reason,
    )
    return RLCurve(label, len(runs), rows, fit, peak, notes)
