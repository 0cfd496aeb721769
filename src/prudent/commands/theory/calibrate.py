"""The steps of ``prudent theory certify --embedded``: promised against realised in a world whose truth is known, and
why the variance-aware forms differ there at equal KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prudent.commands.common import say
from prudent.commands.theory.certify import risk_chart
from prudent.reporting import charts
from prudent.reporting.report import Report
from prudent.runs import new_run
from prudent.theory.embedded import calibrate, forms_table, methods_table, risk_curves, summarise

SURE = 0.1  # a promised risk below this reads as: it will improve


def calibrate_embedded(
    out: Path,
    *,
    betas: Sequence[float],
    kls: Sequence[float],
    delta: float,
    prompts: int | None,
    side: str,
    draws: int,
    pairs: int,
    slope: float,
    images: bool,
    overwrite: bool,
    seed: int,
) -> dict[str, Any]:
    """Promised against realised on the embedded world; returns what results.json holds."""
    from prudent.demo.world import draw_preferences, load_world, split
    from prudent.features.encoder import Encoder

    options = {
        "prompts": prompts,
        "side": side,
        "draws": draws,
        "betas": list(betas),
        "kls": list(kls),
        "delta": delta,
        "pairs": pairs,
        "slope": slope,
    }
    with new_run(out, "theory certify --embedded", options, seed, overwrite) as run:
        world = load_world(prompts, side)
        say(f"encoding the responses of {len(world)} embedded prompts ...")
        encoder = Encoder("smollm2", pooling="last+mean", max_length=1024)
        owners, texts = world.flat()
        features = encoder.encode(owners, texts).reshape(*world.gold.shape, -1)
        train, test = split(world, seed=seed)
        say("training, promising and checking ...")
        rows = calibrate(
            features,
            world.gold,
            lambda child: draw_preferences(world, train, pairs, slope, child),
            test,
            slope=slope,
            betas=betas,
            kls=kls,
            draws=draws,
            delta=delta,
            seed=seed,
            tick=lambda number: say(f"draw {number + 1} of {draws}") if (number + 1) % 10 == 0 else None,
        )
        gold = world.gold[test].double()
        table = summarise(rows["promises"])
        curves = risk_curves(rows["promises"], torch.full_like(gold, 1.0 / gold.shape[1]), gold)
        result = {
            "settings": options | {"prompts": len(world)},
            "summary": table,
            "risk_curves": curves,
            "methods": methods_table(rows["gains"], draws),
            "forms": forms_table(rows["forms"]),
            "verdict": _calibration(table, curves, delta),
        }
        run.write_json("results.json", result)
        promises = [{name: value for name, value in row.items() if name != "by_prompt"} for row in rows["promises"]]
        run.write_jsonl("draws.jsonl", [*promises, *rows["gains"], *rows["forms"]])
        _page(result, promises).write(run, images=images)
    return result


MEANS = ("plug_in", "corrected", "realised", "risk", "realised_risk", "covered")


def _means(table: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over methods and betas by belief."""
    found: dict[str, dict[str, float]] = {}
    for belief in dict.fromkeys(row["belief"] for row in table):
        own = [row for row in table if row["belief"] == belief]
        found[belief] = {name: sum(row[name] for row in own) / len(own) for name in MEANS}
    return found


def _calibration(table: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]], delta: float) -> str:
    held = ", ".join(f"{100 * row['covered']:.0f} % ({belief})" for belief, row in _means(table).items())
    text = f"The {100 * (1 - delta):g} % bound on a whole pool held in {held} of cases. "
    sure = [row for row in curves if row["belief"] == "ensemble" and row["promised"] < SURE]
    count = sum(row["n"] for row in sure)
    if not count:
        return text.strip()
    failed = sum(row["n"] * row["realised"] for row in sure) / count
    return text + (
        f"Single prompts are another matter: of those that the ensemble gives a chance below {100 * SURE:.0f} % of "
        f"ending no better than the reference, {100 * failed:.0f} % did."
    )


def _page(result: dict[str, Any], promises: Sequence[dict[str, Any]]) -> Report:
    settings = result["settings"]
    report = Report(
        "Promised against realised",
        f"The embedded world, whose gold reward is known: {settings['prompts']} prompts ({settings['side']}), "
        f"{settings['draws']} draws of {settings['pairs']} preferences of slope {settings['slope']:g}",
    )
    report.verdict(result["verdict"], "neutral")
    report.table(
        ["belief", "plug-in", "corrected", "realised", "risk promised", "risk realised", "bound held"],
        [[belief, *(f"{row[name]:.3f}" for name in MEANS)] for belief, row in _means(result["summary"]).items()],
        "Means over methods and betas; improvements in log-odds, risk of the whole pool.",
    )
    report.text(
        "Each draw trains reward models on fresh noisy preferences, promises what each policy is worth on other "
        "prompts, and is held against gold (times the slope of the preferences, so that both are log-odds). "
        "**ensemble**: ten heads on bootstraps. **sandwich**: noise of one head from its residuals. **posterior**: "
        "Laplace, which also counts the prior, and so what the data are silent on."
    )
    risk_chart(report, [row for row in result["risk_curves"] if row["method"] == "proportional"], "belief")
    report.heading("Promised against realised improvement")
    for kind, title in (("plug_in", "Plug-in promise"), ("corrected", "Promise without its optimism")):
        data = [
            {"promised": row[kind], "realised": row["realised"], "belief": row["belief"]}
            for row in promises
            if row["method"] == "proportional"
        ]
        chart = charts.scatter(data, "promised", "realised", group="belief", diagonal=True, title=title)
        report.chart(
            chart, kind.replace("_", "-"), "Each dot is a draw at one beta; on the dashed line promises are kept."
        )
    columns = list(dict.fromkeys(name for row in result["summary"] for name in row))
    with report.details("Table: every belief, method and beta"):
        report.table(
            columns,
            [[row.get(name) for name in columns] for row in result["summary"]],
            "covered: share of draws whose realised improvement reached the bound.",
        )
    if result["methods"]:
        _equal_kl(report, result)
    return report


def _equal_kl(report: Report, result: dict[str, Any]) -> None:
    report.heading("At equal KL, and why the forms differ")
    report.text(
        "The proportional form counts rewards from their plain mean, the Bregman form from their precision-weighted "
        "mean; nothing else differs (docs/theory.md, equation 40). The difference pulls towards low variance and never "
        "looks at which response is better. **variance-only** is such a pull alone, **permuted** shuffles the "
        "variances among a prompt's responses: an advantage that neither of them has is the methods' own."
    )
    rows = result["methods"]
    report.chart(
        charts.lines(
            [row for row in rows if row["reached"] == 1],
            "kl",
            "gain",
            low="low",
            high="high",
            group="method",
            x_title="KL from the reference, nats",
            y_title="gold, from the reference",
            reference=0.0,
            reference_label="reference",
        ),
        "equal-kl",
        "Mean gain over draws, with bootstrap intervals.",
    )
    report.table(
        ["KL", "method", "gold", "more than vanilla", "risk", "reached in"],
        [
            [
                f"{row['kl']:g}",
                row["method"],
                _range(row, "gain", "low", "high"),
                _range(row, "over", "over_low", "over_high"),
                _range(row, "risk", "risk_low", "risk_high"),
                f"{row['reached']:.0%}",
            ]
            for row in rows
        ],
        "95 % intervals over draws of the preferences; the prompts are the same throughout.",
    )
    report.table(
        ["KL", "Bregman", "gives up", "link", "proportional", "gap", "first order", "KL within", "correlation"],
        [
            [
                f"{row['kl']:g}",
                row["bregman"],
                row["given_up"],
                row["link"],
                row["proportional"],
                _range(row, "gap", "gap_low", "gap_high"),
                row["first_order"],
                row["kl_within"],
                row["correlation"],
            ]
            for row in result["forms"]
        ],
        "proportional = Bregman + gives up + link, gold. gives up: what the Bregman part loses by moving less (KL "
        "within). first order: the gap by equations (31) and (32). correlation: of log variance and gold.",
    )


def _range(row: dict[str, Any], value: str, low: str, high: str) -> str | None:
    if row.get(value) is None:
        return None
    ends = "" if row.get(low) is None else f" [{row[low]:.4f}, {row[high]:.4f}]"
    return f"{row[value]:.4f}{ends}"
