"""Options of ``prudent sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.options import SOURCE, Dtype, OnError, RowOptions, command
from prudent.files import output_faults


@command(
    "sample",
    run="sample.run:run",
    show="sample.run:show",
    example="prudent sample --prompts train.jsonl --policy smollm2 --output pool.jsonl",
)
@dataclass(frozen=True, kw_only=True)
class SampleOptions(RowOptions):
    """Sample a policy's responses to every prompt of a file and write them as a pool.

    A pool has a prompt and its responses a row. Reward functions in TRL take it as reference=pool.jsonl, best-of-n and
    score take it as it is.
    """

    prompts: Annotated[
        tuple[str, ...],
        typer.Option("--prompts", help="Files with a column prompt, such as the preference pairs; each prompt once."),
        SOURCE,
    ]
    output: Annotated[Path, typer.Option("--output", help="Pool to write (JSONL).")]
    policy: Annotated[str, typer.Option(help="Model to sample: smollm2 (embedded), a folder or a hub id.")] = "smollm2"
    samples: Annotated[int, typer.Option(min=2, max=10_000, help="Responses a prompt.")] = 8
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest response in tokens.")] = 64
    temperature: Annotated[float, typer.Option(min=0, help="Divides the logits; 1 samples the policy itself.")] = 1.0
    dtype: Dtype = None
    on_error: OnError = "raise"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --output.")] = False

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        inputs = [Path(file) for file in self.prompts]
        return super().problems() + output_faults(self.output, self.overwrite, inputs)
