"""Options of ``prudent best-of-n``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prudent.commands.options import ModelDtype, OnError, RowOptions, RunOptions, ScorerLength, command, option


@command("best-of-n", run="best_of_n.run:best_of_n", show="best_of_n.page:show")
class BestOfNOptions(RowOptions, RunOptions):
    """Best of n: every prompt's picked response, its score's mean and deviation, and what other rules pick.

    Example: prudent best-of-n --pool pool.jsonl --model runs/rm --rule lcb --out runs/picks
    """

    pool: Annotated[
        Path, option("Pool: prompt and responses a row, gold where known; or solutions with is_correct.", exists=True)
    ]
    model: Annotated[str, option("Reward model: folder that prudent fit wrote, or a hub id.")]
    rule: Annotated[str, option("Rule over members: mean, min, lcb, uwo, median, cvar, entropic.")] = "lcb"
    n: Annotated[int | None, option("Use the first n candidates of each prompt only.", min=1, max=1_000_000)] = None
    coefficient: Annotated[float | None, option("Coefficient of lcb, uwo or entropic.")] = None
    language_model: Annotated[str | None, option("Language model in place of the folder's own.")] = None
    dtype: ModelDtype = None
    max_length: ScorerLength = None
    on_error: OnError = "raise"
