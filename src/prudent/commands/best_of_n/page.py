"""Page and table of ``prudent best-of-n``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from prudent.commands.common import result_console
from prudent.features.limits import words
from prudent.reporting import charts
from prudent.reporting.report import Report

if TYPE_CHECKING:
    from prudent.commands.best_of_n.options import BestOfNOptions
    from prudent.data.pools import Pool
    from prudent.policies.best_of_n import Pick


def page(pool: Pool, found: list[Pick], summary: dict[str, Any], rule: str) -> Report:
    report = Report(f"Best of n by {rule}", f"{len(pool)} prompts, {summary['members']} members")
    others = {name: share for name, share in summary["agreement"].items() if name != rule}
    least = min(others, key=lambda name: others[name]) if others else None
    text = f"The rule is {summary['rule']}. KL from the reference: {summary['kl_nats']:.2f} nats (analytic)."
    if least is not None:
        text += f" Other rules pick the same candidate for {others[least]:.0%} ({least}) of prompts or more."
    report.verdict(text, "neutral", "Result")
    if summary["gold"] is not None:
        rows = [
            {"rule": name, "gain": g.value, "low": g.low, "high": g.high}
            for name, g in summary["gold"].items()
            if name != "reference"
        ]
        report.heading("Gold by rule")
        report.chart(
            charts.dot_intervals(
                rows, "rule", "gain", "low", "high", x_title="gold, from a random candidate", reference=0.0
            ),
            "gold",
            f"Mean gain over a random candidate ({summary['gold']['reference']:.3f}), bootstrap over prompts.",
        )
    if said := words(summary["shown"]):
        report.text(f"{said}.")
    report.heading("Picks")
    wins = Counter(p.index for p in found)
    report.text(
        f"Picked places among the candidates: {len(wins)} different ones; {summary['ties']} ties (the first "
        "is written; gold and agreement are means over the tied)."
    )
    doubtful = sorted(range(len(found)), key=lambda i: -(found[i].deviation or 0.0))[:10]
    report.table(
        ["prompt", "pick", "reward", "mean", "deviation", "margin", "other picks"],
        [
            [
                pool.ids[i],
                found[i].index,
                found[i].reward,
                found[i].mean,
                found[i].deviation,
                found[i].margin,
                ", ".join(f"{name} {k}" for name, k in found[i].by_rule.items() if k != found[i].index),
            ]
            for i in doubtful
        ],
        "The ten picks on which members disagree most.",
    )
    with report.details("The most disputed picks in full"):
        for i in doubtful[:5]:
            report.text(f"**{pool.ids[i]}**: {' '.join(turn['content'] for turn in pool.prompts[i])[:600]}")
            report.code(pool.responses[i][found[i].index])
    return report


def show(summary: dict[str, Any], options: BestOfNOptions) -> None:
    from rich.table import Table

    table = Table(title=f"Best of n: {summary['prompts']} prompts, {summary['rule']}")
    table.add_column("rule")
    table.add_column("same pick", justify="right")
    table.add_column("gold, from a random candidate", justify="right")
    for name, share in summary["agreement"].items():
        gold = summary["gold"][name].text if summary["gold"] else "–"
        table.add_row(name, f"{share:.0%}", gold)
    result_console().print(table)
    if said := words(summary["shown"]):
        print(said)
    if summary["left_out"]:
        print(f"{summary['left_out']} prompts that can't be scored were left out")
