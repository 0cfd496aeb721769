"""Options of ``prudent best-of-n``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.options import ModelDtype, OnError, RowOptions, RunOptions, ScorerLength, command


@command(
    "best-of-n",
    run="best_of_n.run:best_of_n",
    show="best_of_n.page:show",
    example="prudent best-of-n --pool pool.jsonl --model runs/rm --rule lcb --out runs/picks",
)
@dataclass(frozen=True, kw_only=True)
class BestOfNOptions(RowOptions, RunOptions):
    """Best of n: every prompt's picked response, its score's mean and deviation, and what other rules pick."""

    pool: Annotated[
        Path,
        typer.Option(
            help="Pool: prompt and responses a row, gold where known; or solutions with is_correct.", exists=True
        ),
    ]
    model: Annotated[str, typer.Option(help="Reward model: folder that prudent fit wrote, or a hub id.")]
    rule: Annotated[str, typer.Option(help="Rule over members: mean, min, lcb, uwo, median, cvar, entropic.")] = "lcb"
    n: Annotated[
        int | None, typer.Option(min=1, help="Use the first n candidates of each prompt only.", max=1_000_000)
    ] = None
    coefficient: Annotated[float | None, typer.Option(help="Coefficient of lcb, uwo or entropic.")] = None
    language_model: Annotated[str | None, typer.Option(help="Language model in place of the folder's own.")] = None
    dtype: ModelDtype = None
    max_length: ScorerLength = None
    on_error: OnError = "raise"
