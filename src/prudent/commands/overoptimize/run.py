"""What ``prudent overoptimize`` does: a world, curves, sweeps, findings, files."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from prudent.commands.common import result_console, say
from prudent.commands.options import numbers
from prudent.commands.overoptimize.options import OveroptimizeOptions, WorldOptions
from prudent.errors import PrudentError
from prudent.evaluation.overoptimization.curves import Curve, MethodCurve, curve, drawn_curve
from prudent.evaluation.overoptimization.goodhart import Setting, World, held_out_pairs, pair_accuracy, reward_of
from prudent.evaluation.overoptimization.rl_curves import RLCurve, read_rl_curves
from prudent.evaluation.overoptimization.sweeps import (
    SWEEPS,
    curve_rows,
    findings,
    steps_of,
    sweep_curves,
    variance_sweep,
)
from prudent.evaluation.overoptimization.worlds import TextWorld, embedded, encode_world, read_world
from prudent.features.limits import words
from prudent.files import hash_file
from prudent.progress import meter
from prudent.rewards.uncertainty import centre, deviation_within, finite_rows
from prudent.runs import new_run
from prudent.seeding import spawn


def run(given: OveroptimizeOptions) -> dict[str, Any]:
    """Draw or push, write the run folder; what overoptimize.json holds."""
    started = time.perf_counter()
    rl = [found for folder in given.runs for found in read_rl_curves(folder)]
    text = text_world(given)
    sizes = sorted({len(r) for r in text.responses})
    say(f"{len(text)} prompts with {', '.join(map(str, sizes))} responses; gold: {text.unit}")
    sweeps = _sweeps_of(given)
    if given.model is not None:
        curves, text = pushed(text, given, given.model)
        methods: list[MethodCurve] = []
    else:
        curves, methods, text = drawn(text, sweeps, given)
    held = findings(curves, methods)
    payload = describe(text, curves, methods, rl, held, given)
    payload["seconds"] = time.perf_counter() - started
    write(given, payload, text, curves, methods, rl, held)
    say(f"wrote {given.out}")
    return payload


def text_world(given: WorldOptions) -> TextWorld:
    """Prompts with responses and gold: a pool's or the embedded ones."""
    if given.pool is None:
        return embedded(given.prompts, given.side)
    text = read_world(given.pool, given.gold, given.columns, given.on_error)
    most = given.prompts
    if most is None or most >= len(text):
        return text
    return text.take(range(most))


def _sweeps_of(given: OveroptimizeOptions) -> list[str]:
    named = given.sweep if given.sweep else [s for s in SWEEPS if s != "layers"]
    unknown = [name for name in named if name not in (*SWEEPS, "all", "none")]
    if unknown:
        raise PrudentError(f"sweep {unknown[0]!r} is unknown; known: {', '.join(SWEEPS)}, all, none")
    if "none" in named:
        return []
    return list(SWEEPS) if "all" in named else list(dict.fromkeys(named))


def values_of_n(given: OveroptimizeOptions, samples: int) -> list[int]:
    """The n asked for, or half powers of two up to the samples, and powers of two up to ``max_n`` beyond them."""
    if given.n:
        return list(numbers("--n", given.n))
    halves = {round(2 ** (power / 2)) for power in range(2 * int(math.log2(max(2, samples))) + 1)}
    beyond = {2**power for power in range(1, 64) if samples < 2**power <= given.max_n}
    return sorted(n for n in {samples, *halves, *beyond} if n <= given.max_n)


def with_notes_said(text: TextWorld, counts: dict[str, Any]) -> TextWorld:
    """The world with what its model is shown of it among its notes; all notes said."""
    found = text.noted(words(counts))
    for note in found.notes:
        say(f"warning: {note}")
    return found


def drawn(
    text: TextWorld, sweeps: list[str], given: OveroptimizeOptions
) -> tuple[dict[str, list[Curve]], list[MethodCurve], TextWorld]:
    """Curves of freshly drawn reward models: the base setting, and every sweep. And the prompts that were used."""
    layers: list[int | None] = [*numbers("--layers", given.layers), None] if "layers" in sweeps else [given.blocks]
    split = spawn(given.seed, 3)[0]

    def encoded(part: TextWorld) -> tuple[dict[int, World], dict[str, Any]]:
        reading: dict[str, Any] = {"pooling": given.pooling, "max_length": given.max_length}
        return encode_world(part, given.language_model, layers, seed=split, **reading)

    (worlds, counts), text = text.use(encoded, given.on_error)
    text = with_notes_said(text, counts)
    world = worlds[max(worlds)]
    base = Setting(given.pairs, given.slope, given.members, given.rule)
    n = values_of_n(given, world.samples)
    _, seed, variance_seed = spawn(given.seed, 3)
    with meter("drawing reward models", (1 + steps_of(sweeps, base, worlds)) * given.draws) as advance:
        label = f"{base.pairs} pairs, K = {base.members}, {base.rule}"
        curves = {"base": [drawn_curve(label, world, base, n, draws=given.draws, seed=seed, advance=advance)]}
        for sweep in sweeps:
            if sweep != "variance":
                curves[sweep] = sweep_curves(sweep, worlds, base, n, draws=given.draws, seed=seed, advance=advance)
        methods = []
        if "variance" in sweeps:
            methods = variance_sweep(world, base, draws=given.draws, seed=variance_seed, advance=advance)
    return curves, methods, text


def pushed(text: TextWorld, given: OveroptimizeOptions, model: str) -> tuple[dict[str, list[Curve]], TextWorld]:
    """Curves of one given reward model: its members by the rule, and each member alone. And the prompts used."""
    from prudent.rewards.model import RewardModel

    reward_model = RewardModel.load(model)
    scores, text = text.use(lambda part: finite_rows(reward_model.score(*part.flat())), given.on_error)
    text = with_notes_said(text, text.shown(reward_model.shown))
    gold, present = text.padded_gold()
    members = torch.zeros(len(scores), *present.shape, dtype=torch.float64)
    members[:, present] = scores.double()
    reference = present.double() / present.double().sum(1, keepdim=True)
    setting = Setting(members=len(scores), rule=given.rule)
    held, n = held_out_pairs(gold, present), values_of_n(given, int(present.sum(1).min()))
    truth = centre(gold, weights=reference)

    def one(label: str, rewards: list[torch.Tensor]) -> Curve:
        slopes = [float((reference * r * truth).sum(-1).mean()) for r in rewards]
        accuracy = [pair_accuracy(r, held) for r in rewards]
        made = curve(label, rewards, gold, present, n, accuracy=accuracy, seed=given.seed)
        deviation = float(deviation_within(gold, reference))
        made.facts = {"gold_per_proxy": sum(slopes) / len(slopes), "gold_deviation": deviation}
        return made

    whole = one(f"{model}, {given.rule}", [reward_of(members, reference, setting)])
    if len(scores) == 1:
        return {"base": [whole]}, text
    alone = [reward_of(member[None], reference, setting) for member in members]
    return {"base": [whole], "rule": [whole, one(f"its {len(scores)} members alone", alone)]}, text


def describe(
    text: TextWorld,
    curves: dict[str, list[Curve]],
    methods: list[MethodCurve],
    rl: list[RLCurve],
    held: list[Any],
    given: OveroptimizeOptions,
) -> dict[str, Any]:
    """What overoptimize.json holds."""
    return {
        "world": text.name,
        "prompts": len(text),
        "notes": text.notes,
        "gold": text.unit,
        "units": {
            "gold": f"{text.unit}, difference from the reference",
            "proxy": "standard deviations of the proxy within a prompt, difference from the reference",
            "kl": "nats; best of n: analytic, ln n - (n - 1) / n",
        },
        "draws": given.draws if given.model is None else 1,
        "curves": {name: [replace(c, ends=None) for c in group] for name, group in curves.items()},
        "matched_kl": methods,
        "rl": rl,
        "findings": held,
    }


def write(
    given: OveroptimizeOptions,
    payload: dict[str, Any],
    text: TextWorld,
    curves: dict[str, list[Curve]],
    methods: list[MethodCurve],
    rl: list[RLCurve],
    held: list[Any],
) -> None:
    """Write the run folder: JSON, curves and report."""
    from prudent.commands.overoptimize.page import report

    with new_run(given.out, "overoptimize", given.chosen(), given.seed, given.overwrite) as run:
        if given.pool is not None and given.pool.is_file():
            run.manifest["hashes"]["pool"] = hash_file(given.pool)
        run.write_json("overoptimize.json", payload)
        rows = curve_rows(curves)
        run.write_table("curves.parquet", {name: [row[name] for row in rows] for name in rows[0]})
        report(text, curves, methods, rl, held, given).write(run)


def show(payload: dict[str, Any], options: OveroptimizeOptions) -> None:
    """The table of curves and what of the published findings is there."""
    from rich.table import Table

    console = result_console(150)
    table = Table(title="Gold of best of n, from the reference")
    for name in ("reward model", "held-out accuracy", "largest n", "gold there", "peak n, d*"):
        table.add_column(name)
    for group in payload["curves"].values():
        for c in group:
            last = [point for point in c.points if point.how == "best of n"][-1]
            table.add_row(c.label, c.accuracy.text, f"{last.n:.0f}", last.gold.text, c.peak.text)
    console.print(table)
    for finding in payload["findings"]:
        mark = {True: "holds here", False: "doesn't hold here", None: "can't tell"}[finding.confirmed]
        console.print(f"{mark}: {finding.claim} ({finding.evidence})", markup=False, highlight=False)
