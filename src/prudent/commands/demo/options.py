"""Options of ``prudent demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.options import OUT_HELP, CommonOptions, Overwrite, command


@command("demo", run="demo.run:demo", show="demo.run:show", example="prudent demo --out demo-report")
@dataclass(frozen=True, kw_only=True)
class DemoOptions(CommonOptions):
    """Show the promised risk of each method beside what comes, in an embedded world whose truth is known."""

    out: Annotated[Path, typer.Option("--out", help=OUT_HELP)] = Path("demo-report")
    images: Annotated[bool, typer.Option(help="Also write the chart as PNG and SVG.")] = False
    overwrite: Overwrite = False
