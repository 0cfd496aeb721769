"""``prudent preflight``: how likely is a policy to end up worse than its start, and what should beta be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from prudent.commands.common import (
    ConfigOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    guarded,
    print_json,
    say,
)

EPILOG = "Example: prudent preflight --preferences train.jsonl --policy smollm2 --out runs/preflight"
MANY = ("--preferences", "--test", "--betas")  # options that take all values up to the next option
FEATURES, DRAWS, SAMPLING = "Features", "Draws and risk", "Candidates sampled from the policy"


def register(app: typer.Typer) -> None:
    app.command(name="preflight", epilog=EPILOG, cls=ManyValues)(preflight)


class ManyValues(TyperCommand):
    """A command whose options named in ``MANY`` may be followed by several values: ``--betas 0.1 0.3 1``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(arguments: list[str]) -> list[str]:
    """``--betas 0.1 0.3`` as ``--betas 0.1 --betas 0.3``; everything else as it is."""
    out: list[str] = []
    name = ""
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1:
            name = argument if argument in MANY else ""
            out.append(argument)
        elif name and out[-1] != name:
            out += [name, argument]
        else:
            out.append(argument)
    return out


@guarded
def preflight(
    context: typer.Context,
    out: OutOption,
    preferences: Annotated[list[str] | None, typer.Option(help="Preference files or hub ids, one or several.")] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Held-out preference files; without any, part of the prompts is held out.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Model to optimise: smollm2 (embedded), a folder or a hub id.")
    ] = "smollm2",
    pool: Annotated[
        str | None, typer.Option(help="JSONL with prompt, responses and optionally gold, in place of sampling.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Reward model that says what is true: a folder or a hub id.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option(help="Column of the pool with the true reward; a column named gold is used anyway.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run on a part of the embedded world, whose truth is known.")
    ] = False,
    betas: Annotated[
        list[str] | None,
        typer.Option(help="KL weights, several.", rich_help_panel=DRAWS, show_default="0.03 0.1 0.3 1"),
    ] = None,
    draws: Annotated[int, typer.Option(help="Reward models drawn.", rich_help_panel=DRAWS)] = 200,
    members: Annotated[int, typer.Option(help="Members of each.", rich_help_panel=DRAWS)] = 10,
    reward: Annotated[
        str, typer.Option(help="Reward of a draw: one member, or their mean.", rich_help_panel=DRAWS)
    ] = "member",
    max_risk: Annotated[
        float, typer.Option(help="Risk that a recommended setting's interval must lie under.", rich_help_panel=DRAWS)
    ] = 0.05,
    ridge: Annotated[str, typer.Option(help='Ridge of the heads: a number, or "cv".', rich_help_panel=DRAWS)] = "cv",
    floor: Annotated[
        float, typer.Option(help="Least variance, as a share of its mean over the pool.", rich_help_panel=DRAWS)
    ] = 0.01,
    check: Annotated[
        bool, typer.Option(help="With gold: cross-fit too, and show both side by side.", rich_help_panel=DRAWS)
    ] = True,
    max_pairs: Annotated[int | None, typer.Option(help="Use at most so many pairs, drawn at random.")] = None,
    max_test_pairs: Annotated[int | None, typer.Option(help="The same for each test file.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of prompts held out without a test file.")] = 0.2,
    on_error: Annotated[
        str, typer.Option(help="Bad rows: raise (list all and stop) or skip (drop, counted).")
    ] = "raise",
    encoder: Annotated[
        str, typer.Option(help="Language model that gives the features.", rich_help_panel=FEATURES)
    ] = "smollm2",
    pooling: Annotated[
        str, typer.Option(help="Token states: last, mean or last+mean.", rich_help_panel=FEATURES)
    ] = "last+mean",
    max_length: Annotated[int, typer.Option(help="Longest text in tokens.", rich_help_panel=FEATURES)] = 1024,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision of language models; by default what is fast.", rich_help_panel=FEATURES),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.", rich_help_panel=SAMPLING)] = 40,
    samples: Annotated[int, typer.Option(help="Responses a prompt.", rich_help_panel=SAMPLING)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response.", rich_help_panel=SAMPLING)] = 48,
    images: Annotated[bool, typer.Option(help="Also write each chart as PNG and SVG.")] = True,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Tell the risk of optimising a policy against reward models trained on these preferences, before any training."""
    from prudent.commands.preflight.options import Settings
    from prudent.commands.preflight.run import preflight as run

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in context.params.items()
        if name in Settings.__dataclass_fields__ and value not in (None, [], ())
    }
    if betas:
        given["betas"] = parse_betas(betas)
    found = run(Settings(**given), out, overwrite=overwrite, say=say)
    if as_json:
        print_json(found)
    else:
        print_summary(found, out)


def parse_betas(values: Sequence[str]) -> tuple[float, ...]:
    """Numbers of ``0.1 0.3 1`` or ``0.1,0.3,1``."""
    try:
        return tuple(float(part) for value in values for part in str(value).replace(",", " ").split())
    except ValueError:
        raise typer.BadParameter(f"betas {' '.join(values)!r} are not numbers; give for example 0.1 0.3 1") from None


def print_summary(found: dict[str, Any], out: Path) -> None:
    """The verdict in words and the table behind it, for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    from prudent.commands.preflight.verdict import percent, signed

    verdict = found["verdict"]
    colour = {"good": "green", "warn": "yellow", "bad": "red"}[verdict["tone"]]
    console = Console()
    body = "\n\n".join([*map(plain, verdict["sentences"]), *(plain(line) for line in verdict["advice"])])
    console.print(Panel(escape(body), title=f"[bold]{escape(verdict['headline'])}[/bold]", border_style=colour))
    table = Table(title="Risk (95 % interval) and gain at equal beta", title_justify="left")
    for name in ("method", "beta", "risk", "interval", "gain", "KL", "worse"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    at = verdict["vanilla"]["setting"]
    for row in found["equal_beta"]:
        if row["setting"] == at and row.get("risk") is not None:
            table.add_row(
                row["method"],
                f"{row['setting']:g}",
                percent(row["risk"]),
                f"{percent(row['low'])} to {percent(row['high'])}",
                signed(row["gain"]),
                f"{row['kl']:.2f}",
                percent(row["worse"]),
            )
    console.print(table)
    console.print(f"Report: {Path(out) / 'report.html'}", soft_wrap=True)


def plain(text: str) -> str:
    """Text without the marks of the report."""
    return text.replace("**", "").replace("`", "")
