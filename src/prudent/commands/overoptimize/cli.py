"""``prudent overoptimize``: how far can this reward be pushed before the truth turns down?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.common import ConfigOption, JsonOption, OutOption, OverwriteOption, SeedOption, guarded

EPILOG = "Example: prudent overoptimize --prompts 60 --sweep pairs --sweep members --out runs/goodhart"


def register(app: typer.Typer) -> None:
    app.command(name="overoptimize", epilog=EPILOG)(overoptimize)


@guarded
def overoptimize(
    out: OutOption,
    pool: Annotated[
        Path | None, typer.Option(help="Pool with gold, or solutions with is_correct; by default the embedded world.")
    ] = None,
    side: Annotated[
        str, typer.Option(help="Part of the embedded world: balanced (all), restraint or demand (a quarter each).")
    ] = "balanced",
    model: Annotated[
        str | None, typer.Option(help="Push this reward model (folder or hub id) instead of drawing fresh ones.")
    ] = None,
    gold: Annotated[str | None, typer.Option(help="Reward model that is the gold of a pool without gold.")] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="Run folders of prudent align, for RL curves.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="pairs, layers, noise, members, rule, variance, all or none; several may be given."),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=4, help="Use so many prompts only.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Preferences a reward model is fitted on.")] = 400,
    slope: Annotated[float, typer.Option(min=0, help="Bradley-Terry slope on gold; inf means no label noise.")] = 4.0,
    members: Annotated[int, typer.Option(min=1, help="Heads of a reward model.")] = 5,
    rule: Annotated[str, typer.Option(help="Rule over members: mean, min, lcb, uwo, ...")] = "mean",
    draws: Annotated[int, typer.Option(min=1, help="Reward models drawn for every curve.")] = 20,
    n: Annotated[str | None, typer.Option(help="Values of n, comma-separated; by default 1, 2, 4, ...")] = None,
    max_n: Annotated[int, typer.Option(min=1, help="Largest n of the default values.")] = 100_000,
    language_model: Annotated[str, typer.Option(help="Feature model: smollm2 (embedded), folder, hub id.")] = "smollm2",
    layers: Annotated[
        str, typer.Option(help="Depths of the feature model for --sweep layers, comma-separated; all of it is added.")
    ] = "2,8,15,22",
    pooling: Annotated[str, typer.Option(help="last, mean or last+mean token states.")] = "last+mean",
    max_length: Annotated[int, typer.Option(min=8, help="Longest text in tokens.")] = 1024,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Gold and proxy against optimisation, with fits of the published forms, sweeps, and what is seen of the published.

    Best of n is the unbiased estimate from the samples, never with replacement; beyond the samples the pool's own
    exponential tilting stands in, labelled so. Half of the prompts give preferences, the others are judged on.
    """
    from prudent.commands.overoptimize.run import run

    given = {name: value for name, value in locals().items() if name not in ("run", "config")}
    run(given)
