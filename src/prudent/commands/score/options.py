"""Options of ``prudent score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prudent.commands.engine import EngineOptions
from prudent.commands.options import LanguageModel, ModelDtype, RowOptions, ScorerLength, command, option
from prudent.files import output_faults


@command("score", run="score.run:score")
class ScoreOptions(EngineOptions, RowOptions):
    """Score responses with every member of a reward model.

    Each row comes back with its own columns and mean, standard_deviation (sample, ddof=1, over members' raw scores;
    null for one member) and members; in a pool these are lists over its responses. A pool's row also has
    standard_deviation_centred, of members without their mean over the row's responses; its reward by --rule is of the
    same: what best-of-n picks by. Without --out or --output rows go to stdout.

    Example: prudent score --model runs/rm --data responses.jsonl --output scored.jsonl
    """

    model: Annotated[str, option("Folder that prudent fit wrote, or a sequence-classification model.")]
    data: Annotated[
        Path, option("JSONL with prompt and response, or a pool with prompt and responses, in every row.", exists=True)
    ]
    out: Annotated[Path | None, option("Run folder to write scores.jsonl and a summary to.", "--out")] = None
    output: Annotated[Path | None, option("File to write the scored rows to.", "--output")] = None
    rule: Annotated[str | None, option("Also give a reward by this rule: mean, min, lcb, uwo, median, cvar, ...")] = (
        None
    )
    language_model: LanguageModel = None
    on_error: Annotated[
        Literal["raise", "skip"], option("Rows that can't be scored: raise (list all) or skip (counted).")
    ] = "raise"
    dtype: ModelDtype = None
    max_length: ScorerLength = None
    overwrite: Annotated[
        bool, option("Replace a finished run that is in --out, or the file --output.", "--overwrite")
    ] = False

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if self.as_json and self.out is None and self.output is None:
            problems.append("--json prints one object, so name where the rows go: --out FOLDER or --output FILE")
        if self.output is not None:
            problems += output_faults(self.output, self.overwrite, [self.data])
        return problems
