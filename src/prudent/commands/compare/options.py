"""Options of ``prudent compare``."""

from __future__ import annotations

from typing import Annotated

from prudent.commands.depth import DepthOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    MANY,
    SOURCE,
    Dtype,
    MaxLength,
    MaxPairs,
    MaxTestPairs,
    ModelName,
    OnError,
    PairOptions,
    Pooling,
    RunOptions,
    command,
    option,
)


@command("compare", run="compare.run:compare", show="compare.page:show")
class CompareOptions(DepthOptions, PairOptions, RunOptions):
    """Fit each family on the same pairs, each in a process of its own, and compare what its standard deviation says.

    Accuracy, calibration, whether the standard deviation finds errors (AUROC, risk-coverage), its size on unlike pairs,
    parameters, seconds and peak memory.

    Example: prudent compare --preferences train.jsonl --test test.jsonl --families heads,mlp,laplace --out runs/c
    """

    preferences: Annotated[tuple[str, ...], option("Preference file or hub id to train on."), SOURCE]
    families: Annotated[str, option("Families, comma-separated.")] = "heads,laplace,mlp,dropout,novelty"
    test: Annotated[tuple[str, ...], option("Test pairs; by default a fifth of the prompts."), SOURCE] = ()
    on_error: OnError = "raise"
    ood: Annotated[str | None, option("Pairs unlike these; by default shuffled words."), SOURCE] = None
    target: Annotated[str | None, option("Column of true margins in the test file, for conformal intervals.")] = None
    group: Annotated[str | None, option("Column to report the intervals' coverage by.")] = None
    model: ModelName = DEFAULT_MODEL
    members: Annotated[int | None, option("Members K; by default each family's own.", min=2, max=MANY)] = None
    max_pairs: MaxPairs = None
    max_test_pairs: MaxTestPairs = None
    pooling: Pooling = "last+mean"
    max_length: MaxLength = 1024
    dtype: Dtype = None
    set_: Annotated[tuple[str, ...], option("An option of one family: lora.epochs=2; may be repeated.", "--set")] = ()
    level: Annotated[float, option("Coverage wanted of the conformal intervals.")] = 0.9

    @property
    def names(self) -> list[str]:
        """Names of the families to compare."""
        return [name.strip() for name in self.families.split(",") if name.strip()]

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if not self.names:
            problems.append("--families names none; give --families heads,mlp,...")
        if not 0 < self.level < 1:
            problems.append(f"--level is {self.level}, it must lie between 0 and 1")
        return problems
