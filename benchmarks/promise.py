"""Is the promised risk what comes? Worlds whose truth is known, fresh pairs each time, promised beside realised.

    python benchmarks/promise.py [--quick] [--held-out] [--worlds tone gsm8k] [--sets 40] [--cells runs/promise]

A data set: half of the prompts give pairs (Bradley-Terry on gold, slope 1 a standard deviation of gold within prompts),
the policies are valued by gold on the other half. ``--held-out`` takes the worlds that no setting was chosen on. Cells
that are there already aren't computed again. gsm8k needs ../shared/data (its gold: correct; its candidates: four real
models' solutions). Features come from the package's encoder and its cache.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import results
import torch

from prudent.demo.world import load_world, side_places
from prudent.evaluation.intervals import wilson
from prudent.evaluation.risk_estimate import fit_policies, promised

METHODS, BETAS = ("vanilla", "lcb", "proportional"), (0.1, 0.3)
SIZES, QUICK_SIZES = (50, 100, 200, 400, 800, 1600), (50, 200)
QUICK = ("tone", "restraint", "planted_linear", "no_signal")
HELD_OUT = ("questions", "first_person", "planted_sparse", "planted_steps")
GSM8K = Path(__file__).resolve().parents[2] / "shared/data/evaluation/gsm8k_solutions.jsonl.gz"
GOOD = set(re.findall(r"\w+", "good great best fresh love enjoy happy wonderful beautiful easy")) | set(
    re.findall(r"\w+", "perfect safe fun warm nice")
)
BAD = set(re.findall(r"\w+", "bad worst hate sad ugly hard difficult never no not")) | set(
    re.findall(r"\w+", "wrong problem worry fear danger risk hurt")
)
POLITE = frozenset(["please", "thank", "thanks", "you", "your", "hello", "hi", "dear", "hope", "sorry", "kindly"])


class World(NamedTuple):
    """features (P, C, d) float32. gold: a generator to (P, C), drawn anew for each data set where planted. pairs_from:
    the prompts that pairs come from and those that policies are valued on; None halves them at random. half: pairs come
    from the half of each prompt's responses with fewer words only."""

    features: np.ndarray
    gold: Callable[[np.random.Generator], np.ndarray]
    sides: tuple[np.ndarray, np.ndarray] | None = None
    half: np.ndarray | None = None


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def tone(text: str) -> float:
    found = words(text)
    return (sum(w in GOOD for w in found) - sum(w in BAD for w in found)) / max(3, len(found)) ** 0.5


GOLDS: dict[str, Callable[[str], float]] = {
    "tone": tone,
    "letters": lambda text: -float(np.mean([len(w) for w in words(text)] or [4])),
    "polite": lambda text: float(sum(w in POLITE for w in words(text)) >= 2),
    "lists": lambda text: float(len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s", text)) >= 2),
    "questions": lambda text: float(min(2, text.count("?"))),
    "first_person": lambda text: sum(w in {"i", "me", "my", "i'm"} for w in words(text)) / max(5, len(words(text))),
}


def unit(gold: np.ndarray) -> np.ndarray:
    """Centred within prompts, root mean square 1."""
    centred = gold - gold.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean())


def planted(z: np.ndarray) -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    """Golds drawn anew on standardised features z (P, C, d)."""
    width = z.shape[-1]

    def linear(g: np.random.Generator) -> np.ndarray:
        return unit(z @ g.normal(size=width))

    def nonlinear(g: np.random.Generator) -> np.ndarray:
        inner = z @ g.normal(size=(width, 300)) / width**0.5 * 1.5
        return unit(np.cos(inner + g.uniform(0, 2 * np.pi, 300)) @ g.normal(size=300))

    return {
        "planted_linear": linear,
        "planted_weak": lambda g: unit(0.5 * linear(g) + unit(g.normal(size=z.shape[:2]))),
        "planted_nonlinear": nonlinear,
        "no_signal": lambda g: unit(g.normal(size=z.shape[:2])),
        "planted_sparse": lambda g: unit(z[..., g.permutation(width)[:20]] @ g.standard_t(3, 20)),
        "planted_steps": lambda g: unit(np.sign(linear(g)) + np.sign(linear(g))),
    }


def encoded(prompts: list[Any], responses: list[str], shape: tuple[int, int]) -> np.ndarray:
    from prudent.features.encoder import Encoder

    return np.asarray(Encoder("smollm2", pooling="last+mean").encode(prompts, responses)).reshape(*shape, -1)


def worlds(real: bool) -> dict[str, World]:
    """All worlds, by name; real: gsm8k, too, whose texts take minutes to encode the first time."""
    embedded = load_world()
    features = encoded(*embedded.flat(), (len(embedded), 16))
    flat = features.reshape(-1, features.shape[-1])
    z = (features - flat.mean(0)) / np.where(flat.std(0) > 0, flat.std(0), 1.0)
    texts = embedded.responses
    golds = {name: unit(np.array([[rule(t) for t in row] for row in texts])) for name, rule in GOLDS.items()}
    golds["balanced"] = unit(embedded.gold.numpy())
    found = {name: World(features, lambda g, gold=gold: gold) for name, gold in golds.items()}
    found |= {name: World(features, draw) for name, draw in planted(z).items()}
    restraint, demand = (side_places(embedded, side).numpy() for side in ("restraint", "demand"))
    own = unit(embedded.gold.numpy()[restraint])
    found["restraint"] = World(features[restraint], lambda g: own)
    short = np.argsort([[len(words(t)) for t in row] for row in texts], axis=1)[:, :8]
    found["polite_short"] = found["polite"]._replace(half=short)
    found["other_prompts"] = found["balanced"]._replace(sides=(restraint, demand))
    if real and GSM8K.exists():
        with gzip.open(GSM8K, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts = [solution["solution"] for row in rows for solution in row["solutions"]]
        problems = [row["question"] for row in rows for _ in row["solutions"]]
        right = unit(np.array([[float(s["is_correct"]) for s in row["solutions"]] for row in rows]))
        found["gsm8k"] = World(encoded(problems, texts, right.shape), lambda g: right)
    return found


def draw_pairs(world: World, gold: np.ndarray, n: int, g: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Prompts of the n pairs, places of chosen and rejected, and the prompts that the policies are valued on."""
    order = g.permutation(len(gold))
    train, test = world.sides or (order[: len(order) // 2], order[len(order) // 2 :])
    prompts = np.concatenate([g.permutation(train) for _ in range(-(-n // len(train)))])[:n]
    many = gold.shape[1] if world.half is None else world.half.shape[1]
    first = g.integers(0, many, n)
    second = (first + g.integers(1, many, n)) % many
    if world.half is not None:
        first, second = world.half[prompts, first], world.half[prompts, second]
    wins = g.random(n) < 1 / (1 + np.exp(-(gold[prompts, first] - gold[prompts, second])))
    return prompts, np.where(wins, first, second), np.where(wins, second, first), test


def data_set(world: World, n: int, seed: int, draws: int) -> list[dict[str, Any]]:
    """Rows of ``estimate_risk`` for one data set, and ``realised``: its own policy's gain in gold."""
    g = np.random.default_rng([seed, n])
    gold = world.gold(g)
    prompts, won, lost, test = draw_pairs(world, gold, n, g)
    features = world.features
    better, worse, pool = (
        torch.tensor(x).double() for x in (features[prompts, won], features[prompts, lost], features[test])
    )
    weight = torch.full(pool.shape[:2], 1 / pool.shape[1], dtype=torch.float64)
    rows: list[dict[str, Any]] = [{"method": name, "beta": beta} for name in METHODS for beta in BETAS]
    groups = prompts.tolist()
    fit = fit_policies(better, worse, groups, pool, weight, rows, members=10, seed=seed)
    gains = (fit.moved * torch.tensor(gold[test])).sum(-1).mean(-1)
    said = promised(fit, groups, weight, rows, draws=draws, seed=seed)
    return [{**row, "realised": float(gain)} for row, gain in zip(said, gains)]


def cell(folder: Path, name: str, world: World, n: int, sets: int, forecasts: int) -> list[list[dict[str, Any]]]:
    """Rows of a cell's data sets, from its file where they are there."""
    path = folder / f"{name}-{n}-{sets}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    started = time.perf_counter()
    rows = [data_set(world, n, seed, 200 if seed < forecasts else 0) for seed in range(sets)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = summary(name, n, rows)[0]
    print(
        f"{name}, {n} pairs: promised {found['promised']:.0%}, realised {found['realised']:.0%}, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )
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
                "low": float(np.mean([row["low"] for row in column])),
                "high": float(np.mean([row["high"] for row in column])),
                "holds": float(np.mean([row["low"] <= share <= row["high"] for row in column])),
                "holds_counting": float(np.mean([overlaps(row["low"], row["high"], below, count) for row in column])),
                "procedure": float(np.mean([row["procedure_risk"] for row in procedure])) if procedure else None,
                "procedure_holds": float(
                    np.mean([overlaps(r["procedure_low"], r["procedure_high"], below, count) for r in procedure])
                )
                if procedure
                else None,
                "outside": float(np.mean(["outside what" in (row["reason"] or "") for row in column])),
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
            "worlds whose Brier score is no worse than their own mean's", 100 * np.mean(beaten), unit="%", at_least=100
        ),
        results.figure(
            "low to high hold the realised share", 100 * np.mean([r["holds"] for r in cells]), unit="%", at_least=95
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
        "| world | pairs | promised | low | high | realised | Brier | own mean | holds | procedure | holds |",
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
                *(f"{100 * row[name]:.0f}" for name in ("promised", "low", "high", "realised")),
                *(f"{row[name]:.3f}" for name in ("brier", "own_mean")),
                f"{row['holds_counting']:.2f}",
                *other,
            ]
            lines.append(f"| {' | '.join(found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four worlds, two sizes, 20 data sets")
    parser.add_argument("--held-out", action="store_true", help="the worlds that no setting was chosen on")
    parser.add_argument("--worlds", nargs="+", default=None)
    parser.add_argument("--sizes", nargs="+", type=int, default=None)
    parser.add_argument("--sets", type=int, default=None, help="data sets a cell (40; quick: 20)")
    parser.add_argument("--forecasts", type=int, default=10, help="data sets a cell whose procedure risk is estimated")
    parser.add_argument("--cells", default="runs/promise", help="folder of finished cells")
    parser.add_argument("--out", default=None, help="result file as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(options.cells)
    folder.mkdir(parents=True, exist_ok=True)
    every = worlds("gsm8k" in (options.worlds or (["gsm8k"] * (not options.quick and not options.held_out))))
    chosen = options.worlds or (QUICK if options.quick else [w for w in every if (w in HELD_OUT) == options.held_out])
    many = options.sets or (20 if options.quick else 40)
    collected: list[dict[str, Any]] = []
    for size in options.sizes or (QUICK_SIZES if options.quick else SIZES):
        for world_name in chosen:
            collected += summary(
                world_name, size, cell(folder, world_name, every[world_name], size, many, options.forecasts)
            )
    collected.sort(key=lambda row: (row["world"], row["pairs"]))
    print(table(collected))
    for one in bins(collected):
        print(f"promised {100 * one['promised']:.1f} %, realised {100 * one['realised']:.1f} % ({one['count']})")
    kept = [{key: value for key, value in row.items() if key not in ("risks", "failed")} for row in collected]
    question = "Is the promised risk what comes?" + (" Held-out worlds." if options.held_out else "")
    results.write(options.out, question, figures(collected), rows=kept, reliability=bins(collected))
