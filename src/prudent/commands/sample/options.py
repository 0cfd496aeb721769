"""Options of ``prudent sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prudent.commands.options import SOURCE, Dtype, OnError, RowOptions, command, option
from prudent.files import output_faults


@command("sample", run="sample.run:run", show="sample.run:show")
class SampleOptions(RowOptions):
    """Sample a policy's responses to every prompt of a file and write them as a pool.

    A pool has a prompt and its responses a row. Reward functions in TRL take it as reference=pool.jsonl, best-of-n and
    score take it as it is.

    Example: prudent sample --prompts train.jsonl --policy smollm2 --output pool.jsonl
    """

    prompts: Annotated[
        tuple[str, ...],
        option("Files with a column prompt, such as the preference pairs; each prompt once.", "--prompts"),
        SOURCE,
    ]
    output: Annotated[Path, option("Pool to write (JSONL).", "--output")]
    policy: Annotated[str, option("Model to sample: smollm2 (embedded), a folder or a hub id.")] = "smollm2"
    samples: Annotated[int, option("Responses a prompt.", min=2, max=10_000)] = 8
    max_new_tokens: Annotated[int, option("Longest response in tokens.", min=1, max=100_000)] = 64
    temperature: Annotated[float, option("Divides the logits; 1 samples the policy itself.", min=0)] = 1.0
    dtype: Dtype = None
    on_error: OnError = "raise"
    overwrite: Annotated[bool, option("Replace the file --output.", "--overwrite")] = False

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        inputs = [Path(file) for file in self.prompts]
        return super().problems() + output_faults(self.output, self.overwrite, inputs)
