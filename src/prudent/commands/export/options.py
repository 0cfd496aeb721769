"""Options of ``prudent export``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from prudent.commands.options import LanguageModel, RunOptions, command


@command(
    "export",
    run="export.run:run",
    show="export.run:show",
    example="prudent export --model runs/rm --to sequence-classifier --out runs/classifier",
)
@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Write a reward model as a standard sequence-classification folder (safetensors, tokenizer, chat template).

    Linear heads on the last token's state can be written so, their standardisation folded in. The folder is loaded
    again with plain transformers and its scores are compared before it appears.
    """

    model: Annotated[str, typer.Option(help="Folder that prudent fit wrote.")]
    to: Annotated[Literal["sequence-classifier"], typer.Option(help="Form to write.")] = "sequence-classifier"
    labels: Annotated[
        Literal["members", "rule"],
        typer.Option(help="members: one label a member and their mean last. rule: their mean alone."),
    ] = "members"
    language_model: LanguageModel = None
