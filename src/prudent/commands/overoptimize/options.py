"""Options of ``prudent overoptimize``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from prudent.commands.depth import DepthOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    MANY,
    MOST_TOKENS,
    OnError,
    RowOptions,
    RunOptions,
    command,
    numbers,
    option,
    said,
)

# What says how fresh reward models are drawn.
DRAWN = (
    "--sweep",
    "--pairs",
    "--slope",
    "--members",
    "--draws",
    "--language-model",
    "--layer",
    "--layers",
    "--pooling",
    "--max-length",
)


@dataclass(frozen=True, kw_only=True)
class WorldOptions(RowOptions):
    """Where prompts, responses and gold come from."""

    pool: Annotated[
        Path | None, option("Pool with gold, or solutions with is_correct; by default the embedded world.", exists=True)
    ] = None
    side: Annotated[
        Literal["balanced", "restraint", "demand"],
        option("Part of the embedded world: balanced (all), restraint or demand (a quarter each)."),
    ] = "balanced"
    gold: Annotated[str | None, option("Reward model that is the gold of a pool without gold.")] = None
    prompts: Annotated[int | None, option("Use so many prompts only.", min=4, max=1_000_000)] = None
    on_error: OnError = "raise"

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if self.pool is None and self.gold is not None:
            problems.append("--gold is for a --pool without gold; the embedded world brings its own")
        if self.pool is not None and self.side != "balanced":
            problems.append("--side is a part of the embedded world; leave it out, or --pool")
        return problems


@command("overoptimize", run="overoptimize.run:run", show="overoptimize.run:show")
class OveroptimizeOptions(DepthOptions, WorldOptions, RunOptions):
    """Gold and proxy against optimisation, with fits of the published forms, sweeps, and what is seen of the published.

    Best of n is the unbiased estimate from the samples, never with replacement; beyond the samples the pool's own
    exponential tilting stands in, labelled so. Half of the prompts give preferences, the others are judged on.

    Example: prudent overoptimize --prompts 60 --sweep pairs --sweep members --out runs/goodhart
    """

    chooses: ClassVar[bool] = False
    model: Annotated[str | None, option("Push this reward model (folder or hub id) instead of drawing fresh ones.")] = (
        None
    )
    runs: Annotated[tuple[Path, ...], option("Run folders of prudent align, for RL curves.", exists=True)] = ()
    sweep: Annotated[
        tuple[str, ...], option("pairs, layers, noise, members, rule, variance, all or none; several may be given.")
    ] = ()
    pairs: Annotated[int, option("Preferences a reward model is fitted on.", min=2, max=1_000_000)] = 400
    slope: Annotated[float, option("Bradley-Terry slope on gold; the larger, the less label noise.", min=0)] = 4.0
    members: Annotated[int, option("Heads of a reward model.", min=1, max=MANY)] = 5
    rule: Annotated[str, option("Rule over members: mean, min, lcb, uwo, ...")] = "mean"
    draws: Annotated[int, option("Reward models drawn for every curve.", min=1, max=100_000)] = 20
    n: Annotated[str | None, option("Values of n, comma-separated; by default 1, 2, 4, ...")] = None
    max_n: Annotated[int, option("Largest n of the default values.", min=1, max=2**40)] = 100_000
    language_model: Annotated[str, option("Feature model: smollm2 (embedded), folder, hub id.")] = DEFAULT_MODEL
    layers: Annotated[
        str, option("Depths of the feature model for --sweep layers, comma-separated; all of it is added.")
    ] = "2,8,15,22"
    pooling: Annotated[str, option("last, mean or last+mean token states.")] = "last+mean"
    max_length: Annotated[int, option("Longest text in tokens.", min=8, max=MOST_TOKENS)] = 1024

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems() + said(lambda: numbers("--layers", self.layers))
        if self.n is not None:
            problems += said(lambda: numbers("--n", self.n or ""))
        if {"layers", "all"} & set(self.sweep):
            problems += self.unusable(["--layer"], "--sweep layers reads all depths of --layers and")
        if self.model is not None:
            problems += self.unusable(DRAWN, f"--model {self.model} is pushed as it is, which")
        return problems
