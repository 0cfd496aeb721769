"""Options of ``prudent compare``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

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
)


@command(
    "compare",
    run="compare.run:compare",
    show="compare.page:show",
    example="prudent compare --preferences train.jsonl --test test.jsonl --families heads,mlp,laplace --out runs/c",
)
@dataclass(frozen=True, kw_only=True)
class CompareOptions(PairOptions, RunOptions):
    """Fit each family on the same pairs, each in a process of its own, and compare what its standard deviation says.

    Accuracy, calibration, whether the standard deviation finds errors (AUROC, risk-coverage), its size on unlike pairs,
    parameters, seconds and peak memory.
    """

    preferences: Annotated[tuple[str, ...], typer.Option(help="Preference file or hub id to train on."), SOURCE]
    families: Annotated[str, typer.Option(help="Families, comma-separated.")] = "heads,laplace,mlp,dropout,novelty"
    test: Annotated[tuple[str, ...], typer.Option(help="Test pairs; by default a fifth of the prompts."), SOURCE] = ()
    on_error: OnError = "raise"
    ood: Annotated[str | None, typer.Option(help="Pairs unlike these; by default shuffled words."), SOURCE] = None
    target: Annotated[
        str | None, typer.Option(help="Column of true margins in the test file, for conformal intervals.")
    ] = None
    group: Annotated[str | None, typer.Option(help="Column to report the intervals' coverage by.")] = None
    model: ModelName = DEFAULT_MODEL
    members: Annotated[int | None, typer.Option(min=2, help="Members K; by default each family's own.", max=MANY)] = (
        None
    )
    max_pairs: MaxPairs = None
    max_test_pairs: MaxTestPairs = None
    pooling: Pooling = "last+mean"
    max_length: MaxLength = 1024
    dtype: Dtype = None
    set_: Annotated[
        tuple[str, ...], typer.Option("--set", help="An option of one family: lora.epochs=2; may be repeated.")
    ] = ()
    level: Annotated[float, typer.Option(help="Coverage wanted of the conformal intervals.")] = 0.9

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
