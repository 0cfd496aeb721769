"""Options of ``prudent demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prudent.commands.options import OUT_HELP, CommonOptions, Overwrite, command, option


@command("demo", run="demo.run:demo", show="demo.run:show")
class DemoOptions(CommonOptions):
    """Show the promised risk of each method beside what comes, in an embedded world whose truth is known.

    Example: prudent demo --out demo-report
    """

    out: Annotated[Path, option(OUT_HELP, "--out")] = Path("demo-report")
    images: Annotated[bool, option("Also write the chart as PNG and SVG.")] = False
    overwrite: Overwrite = False
