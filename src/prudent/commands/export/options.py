"""Options of ``prudent export``."""

from __future__ import annotations

from typing import Annotated, Literal

from prudent.commands.options import LanguageModel, RunOptions, command, option


@command("export", run="export.run:run", show="export.run:show")
class ExportOptions(RunOptions):
    """Write a reward model as a standard sequence-classification folder (safetensors, tokenizer, chat template).

    Linear heads on the last token's state can be written so, their standardisation folded in. The folder is loaded
    again with plain transformers and its scores are compared before it appears.

    Example: prudent export --model runs/rm --to sequence-classifier --out runs/classifier
    """

    model: Annotated[str, option("Folder that prudent fit wrote.")]
    to: Annotated[Literal["sequence-classifier"], option("Form to write.")] = "sequence-classifier"
    labels: Annotated[
        Literal["members", "rule"], option("members: one label a member and their mean last. rule: their mean alone.")
    ] = "members"
    language_model: LanguageModel = None
