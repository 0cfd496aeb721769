"""``prudent demo``: the risk that is promised and the risk that comes, where the truth is known, in under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.common import JsonOption, OutOption, OverwriteOption, SeedOption, guarded, print_json


def register(app: typer.Typer) -> None:
    app.command(name="demo", epilog="Example: prudent demo --out demo-report")(demo)


@guarded
def demo(
    out: OutOption = Path("demo-report"),
    images: Annotated[bool, typer.Option(help="Also write the chart as PNG and SVG.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Show the promised risk of each method beside what comes, in an embedded world whose truth is known."""
    import torch

    from prudent.commands.demo.run import printed, run

    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other most of the time
    found = run(out, seed=seed, overwrite=overwrite, images=images)
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join([*printed(found), f"Report: {out / 'report.html'}"]))
