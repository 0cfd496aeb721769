"""What ``prudent preflight`` says on the terminal."""

from __future__ import annotations

from typing import Any

from prudent.commands.common import result_console
from prudent.commands.preflight.options import PreflightOptions

TERMS = (
    "beta: weight of the KL term, the larger the closer to your model. gain: expected reward over your model's. KL: "
    "how far the policy moved, nats. worse: share of prompts whose expected reward falls. variance-only and permuted "
    "are controls. The report says why and shows every beta."
)
TITLE = "Risk: that the policy is no better than your model; procedure: over fresh data sets of this size"


def show(found: dict[str, Any], options: PreflightOptions) -> None:
    """The verdict in words and the table behind it, for a person."""
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    from prudent.commands.preflight.verdict import signed
    from prudent.reporting.numbers import percent

    verdict = found["verdict"]
    colour = {"good": "green", "warn": "yellow", "bad": "red"}[verdict["tone"]]
    console = result_console()
    body = "\n".join(plain(verdict[name]) for name in ("why", "todo", "rough") if verdict[name])
    console.print(Panel(escape(body), title=f"[bold]{escape(verdict['headline'])}[/bold]", border_style=colour))
    table = Table(title=TITLE, title_justify="left")
    for name in ("method", "beta", "risk", "interval", "procedure", "gain", "KL", "worse"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    at = verdict["vanilla"]["setting"]
    for row in found["equal_beta"]:
        if row["setting"] == at and row.get("risk") is not None:
            table.add_row(
                row["method"],
                f"{row['setting']:g}",
                percent(row["risk"]),
                f"{percent(row['low'])} to {percent(row['high'])}",
                "" if row["procedure_risk"] is None else percent(row["procedure_risk"]),
                signed(row["gain"]),
                f"{row['kl']:.2f}",
                percent(row["worse"]),
            )
    console.print(table)
    if found["depth"]:
        console.print(f"Depth: {found['depth']['words']}.", markup=False, highlight=False)
    console.print(TERMS, style="dim")
    console.print(f"Report: {options.out / 'report.html'}", soft_wrap=True)


def plain(text: str) -> str:
    """Text without the marks of the report."""
    return text.replace("**", "").replace("`", "")
