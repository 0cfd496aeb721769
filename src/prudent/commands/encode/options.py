"""Options of ``prudent encode``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from prudent.commands.depth import DepthOptions
from prudent.commands.engine import EngineOptions, Split
from prudent.commands.options import (
    DEFAULT_MODEL,
    SOURCE,
    Dtype,
    MaxLength,
    ModelName,
    OnError,
    PairOptions,
    Pooling,
    command,
    option,
)


@command(
    "encode",
    run="encode.run:encode",
    show="encode.run:show",
    interrupted="what was encoded is in the cache; the same command goes on from there",
)
class EncodeOptions(DepthOptions, EngineOptions, PairOptions):
    """Encode texts into the feature cache, from which fit, score, clean and preflight read them.

    Files are read piece by piece and memory stays flat. What is in the cache already isn't encoded again, so that a run
    that was stopped goes on where it was. The cache is $PRUDENT_CACHE, which all workers must see.

    Example: prudent encode --preferences train.jsonl --model smollm2 --engine ray
    """

    chooses: ClassVar[bool] = False
    preferences: Annotated[
        tuple[str, ...], option("Preference files or hub ids: both answers of every pair."), SOURCE
    ] = ()
    data: Annotated[tuple[str, ...], option("Files with prompt and response, or pools with responses."), SOURCE] = ()
    model: ModelName = DEFAULT_MODEL
    pooling: Pooling = "last+mean"
    max_length: MaxLength = 1024
    dtype: Dtype = None
    split: Split = None
    on_error: OnError = "raise"

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if not (self.preferences or self.data):
            problems.append("nothing to encode; name a file with --preferences or --data")
        return problems
