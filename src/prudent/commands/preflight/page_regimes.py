"""The report's map: in which regime the variance-aware forms beat vanilla, with both controls in every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prudent.commands.preflight.regimes import METHODS, pick
from prudent.commands.preflight.verdict import percent, signed
from prudent.reporting import charts
from prudent.reporting.report import Report

Row = Mapping[str, Any]
AWARE = ("proportional", "bregman", "exact")
COLUMNS = ("", "vanilla", *AWARE, "variance-only", "permuted")


def regime_section(report: Report, learned: Sequence[dict[str, Any]], assumed: Sequence[dict[str, Any]]) -> None:
    """Both maps; each table holds both controls."""
    report.heading("When does it pay, and when not?")
    report.text(
        "Gold is exact in this world, so reward models can be trained again and again on fresh preferences, and each "
        "policy's true value is known. All comparisons are at the KL that vanilla spends in the same draw."
    )
    if learned:
        _learned(report, learned)
    if assumed:
        _assumed(report, assumed)


def blind_section(report: Report, rows: Sequence[Row]) -> None:
    """What is to be had in this world without reading the prompt."""
    report.heading("What a rule gains that never reads the prompt")
    *rules, gold = rows
    best = max(rules, key=lambda row: row["gain"])
    report.text(
        "The world's constraints and their opposites balance, so that an advantage can't come from a taste for short "
        f"or plain answers. Each rule below is made a policy {gold['kl']:g} nats from the reference; the best of "
        f"{len(rules)}, *{best['rule']}*, gains {signed(best['gain'])} ({signed(best['low'])} to "
        f"{signed(best['high'])}), where gold itself would gain {signed(gold['gain'])}."
    )
    report.chart(
        charts.dot_intervals(
            rules,
            "rule",
            "gain",
            "low",
            "high",
            x_title="gain over the reference, units of gold",
            reference=0.0,
            reference_label="reference",
            title=f"Blind rules at {gold['kl']:g} nats",
        ),
        "blind-rules",
        "Bars: 95 % bootstrap intervals over prompts.",
    )


SIDES = {
    "balanced": "Opposites in balance: a reward model has next to nothing to learn",
    "restraint": "All prompts ask for less (fewer words, no commas, ...): something to learn",
    "demand": "All prompts ask for more (more words, commas, ...): the opposite to learn",
}


def _learned(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    report.heading("Reward models that learn from preferences", 3)
    report.text(
        "Whether caution pays depends first on whether there is something to learn. So the map is drawn three times: "
        "on all prompts, whose constraints and their opposites balance, and on the parts whose constraints all pull "
        "one way or all the other. An advantage that shows in both of these opposite worlds, and that the controls "
        "don't share, is no luck of one world's bias."
    )
    beta = min(row["setting"] for row in rows)
    for side, meaning in SIDES.items():
        mine = pick(rows, side=side)
        orders = [row["order"] for row in mine]
        report.text(
            f"**{meaning}.** {summary(mine)} A member orders two candidates of a prompt that it has not seen as gold "
            f"does in {percent(min(orders))} to {percent(max(orders))} of cases, by regime."
        )
        cells = [
            {
                "pairs": f"{row['pairs']} pairs",
                "slope": f"slope {row['slope']:g}",
                "difference": 100 * row["vs_risk"],
                "gain": row["vs_gain"],
            }
            for row in pick(mine, comparison="equal kl", method="proportional", setting=beta)
            if row.get("vs_risk") is not None
        ]
        report.chart(
            charts.heatmap(
                cells,
                "pairs",
                "slope",
                "difference",
                x_title="",
                y_title="labels",
                text_format="+.0f",
                diverging_at=0.0,
                value_title="points of risk",
                tooltip=("gain",),
                reverse=True,
                title=f"Proportional minus vanilla, {side} prompts, KL of vanilla at beta {beta:g}",
            ),
            f"regime-{side}",
            "Points of risk at equal KL: blue, the variance-aware form is safer; orange, riskier. A slope is how sure "
            "the preferences are: 2 is noisy, 8 nearly clean.",
        )
    table = []
    for row in pick(rows, comparison="equal kl", method="vanilla"):
        same = {
            r["method"]: r
            for r in pick(
                rows,
                comparison="equal kl",
                side=row["side"],
                pairs=row["pairs"],
                slope=row["slope"],
                setting=row["setting"],
            )
        }
        table.append(
            [
                row["side"],
                row["pairs"],
                f"{row['slope']:g}",
                f"{row['setting']:g}",
                *map(risk_and_gain, _ordered(same)),
                percent(row["order"]),
                f"{row['inequality']:.2f}",
                f"{row['link']:+.2f}",
            ]
        )
    with report.details("Every regime: risk and gain, with both controls"):
        report.table(
            ("prompts", "pairs", "slope", "beta of vanilla", *METHODS, "right order", "inequality", "link"),
            table,
            "Each cell: risk, gain. Right order: share of held-out candidate pairs that one member orders as gold "
            "does. Inequality: coefficient of variation of the variance. Link: correlation of log variance and gold "
            "within a prompt (negative: low variance goes with truth).",
        )


def _ordered(same: Mapping[str, Row]) -> list[Row | None]:
    return [same.get(method) for method in METHODS]


def risk_and_gain(row: Row | None) -> str:
    return "–" if row is None or row.get("risk") is None else f"{percent(row['risk'])}, {signed(row['gain'])}"


def average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def counts(rows: Sequence[Row], method: str) -> dict[str, int]:
    """In how many regimes a method gains surely more than vanilla at equal KL, surely less, or neither."""
    found = [row for row in rows if row["method"] == method and row["comparison"] == "equal kl"]
    found = [row for row in found if row.get("vs_gain_low") is not None]
    better = sum(row["vs_gain_low"] > 0 for row in found)
    worse = sum(row["vs_gain_high"] < 0 for row in found)
    return {"regimes": len(found), "better": better, "worse": worse, "neither": len(found) - better - worse}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The map in words: better, worse or neither for each form and control."""
    parts = []
    for method in (*AWARE, "variance-only", "permuted"):
        found = counts(rows, method)
        if found["regimes"]:
            parts.append(
                f"`{method}` gains more than vanilla in {found['better']} of {found['regimes']} regimes, "
                f"less in {found['worse']}"
            )
    return "At equal KL, by the 95 % interval of the paired difference: " + "; ".join(parts) + "."


def _assumed(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    report.heading("The theory's own assumption: independent noise of known kind", 3)
    ends = [
        [
            row["vs_gain"]
            for row in pick(rows, comparison="equal kl", method="proportional", unequal=unequal)
            if row.get("vs_gain") is not None
        ]
        for unequal in (min(row["unequal"] for row in rows), max(row["unequal"] for row in rows))
    ]
    blind = [
        row["gain"] for row in pick(rows, comparison="equal kl", method="variance-only") if row.get("gain") is not None
    ]
    report.text(
        "Here a reward estimate is gold plus independent Gaussian noise, as the theory assumes, and the variance is "
        f"estimated from the members. {summary(rows)} The mean advantage of `proportional` is "
        f"{signed(average(ends[0]))} with the most equal variances and {signed(average(ends[1]))} with the most "
        f"unequal ones; `variance-only` gains {signed(average(blind))} on average, since this noise knows nothing of "
        "truth."
    )
    noises = sorted({row["noise"] for row in rows})
    beta = sorted({row["setting"] for row in rows})[0]
    chosen = [
        {**row, "unequal": row["unequal"]}
        for row in pick(rows, comparison="equal kl", noise=noises[-1], setting=beta)
        if row["method"] in ("vanilla", *AWARE, "variance-only", "permuted") and row.get("gain") is not None
    ]
    report.chart(
        charts.lines(
            chosen,
            "unequal",
            "gain",
            low="gain_low",
            high="gain_high",
            group="method",
            x_title="sd of log variance (how unequal)",
            y_title="gain, sd within a prompt",
            title=f"Gain at equal KL, noise variance {noises[-1]:g} times the signal's",
            reference=0.0,
        ),
        "assumed-noise",
        f"KL of vanilla at beta {beta:g}. Bands: bootstrap intervals over the draws.",
    )
    table = []
    for row in pick(rows, comparison="equal kl", method="vanilla"):
        same = {
            r["method"]: r
            for r in pick(
                rows, comparison="equal kl", unequal=row["unequal"], noise=row["noise"], setting=row["setting"]
            )
        }
        table.append(
            [
                f"{row['unequal']:g}",
                f"{row['noise']:g}",
                f"{row['setting']:g}",
                *map(risk_and_gain, _ordered(same)),
                f"{row['inequality']:.2f}",
            ]
        )
    with report.details("Every cell: risk and gain, with both controls"):
        report.table(("unequal", "noise", "beta of vanilla", *METHODS, "inequality"), table)
