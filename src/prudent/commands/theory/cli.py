"""``prudent theory``: recompute every claim of the theory, map where it helps, certify a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    guarded,
    print_json,
    say,
)

REPRODUCE = "Example: prudent theory reproduce --out runs/theory"
MAP = "Example: prudent theory map --out runs/map"
WORLD = "With --embedded"
CERTIFY = "Example: prudent theory certify --model runs/heads --pool pool.jsonl --out runs/certificate"


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        name="theory",
        help="The theorems as running code: recompute every claim, map where it helps, certify a reward model.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(name="reproduce", epilog=REPRODUCE)(reproduce)
    group.command(name="map", epilog=MAP)(map_)
    group.command(name="certify", epilog=CERTIFY)(certify)
    app.add_typer(group)


@guarded
def reproduce(
    context: typer.Context,
    out: OutOption,
    images: Annotated[bool, typer.Option(help="Write PNG and SVG of each chart.")] = True,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Recompute the theory section: claim, predicted, measured, interval and verdict, with charts."""
    from prudent.commands.theory.page import reproduce_page
    from prudent.runs import new_run
    from prudent.theory.claims import all_claims

    with new_run(out, "theory reproduce", {"images": images}, seed, overwrite) as run:
        claims, rows = all_claims(seed, lambda name: say(f"{name} ..."))
        failed = sum(not claim.holds for claim in claims)
        result = {"claims": [claim._asdict() for claim in claims], "failed": failed}
        run.write_json("results.json", result)
        reproduce_page(claims, rows).write(run, images=images)
    _finish(result | {"out": str(out)}, as_json, f"{len(claims) - failed} of {len(claims)} claims hold", out)


@guarded
def map_(
    context: typer.Context,
    out: OutOption,
    count: Annotated[int, typer.Option(help="Worlds (prompts) a cell averages over.", min=20)] = 150,
    draws: Annotated[int, typer.Option(help="Reward estimates a world.", min=2)] = 10,
    nats: Annotated[float, typer.Option("--kl", help="Nats that every method spends.")] = 0.5,
    images: Annotated[bool, typer.Option(help="Write PNG and SVG of each chart.")] = True,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """When does it help? Risk and gain as the variance's inequality, link, estimation and error grow, at equal KL."""
    from prudent.commands.theory.page import map_page
    from prudent.runs import new_run
    from prudent.theory.maps import draw_maps

    options = {"count": count, "draws": draws, "kl": nats, "images": images}
    with new_run(out, "theory map", options, seed, overwrite) as run:
        maps = draw_maps(count=count, draws=draws, nats=nats, seed=seed, tick=lambda name: say(f"{name} ..."))
        run.write_json("results.json", maps)
        map_page(maps).write(run, images=images)
    _finish(maps | {"out": str(out)}, as_json, maps["verdict"], out)


@guarded
def certify(
    context: typer.Context,
    out: OutOption,
    model: Annotated[Path | None, typer.Option(help="Reward model folder: an ensemble or a Laplace posterior.")] = None,
    pool: Annotated[
        Path | None, typer.Option(help="Prompts with responses and optionally gold, or solutions with is_correct.")
    ] = None,
    betas: Annotated[str, typer.Option(help="KL weights, separated by commas.")] = "0.03,0.1,0.3,1",
    delta: Annotated[float, typer.Option(help="Chance of being wrong that the bounds allow.")] = 0.05,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Calibrate on the embedded world: promised against realised.")
    ] = False,
    prompts: Annotated[
        int | None, typer.Option(help="Prompts of the embedded world; by default all.", min=20, rich_help_panel=WORLD)
    ] = None,
    side: Annotated[
        str, typer.Option(help="balanced (all of it), restraint or demand (a quarter each).", rich_help_panel=WORLD)
    ] = "balanced",
    draws: Annotated[int, typer.Option(help="Fresh sets of preferences.", min=2, rich_help_panel=WORLD)] = 40,
    pairs: Annotated[int, typer.Option(help="Preferences a draw.", min=10, rich_help_panel=WORLD)] = 400,
    slope: Annotated[float, typer.Option(help="Their Bradley-Terry slope.", min=0.01, rich_help_panel=WORLD)] = 4.0,
    kls: Annotated[
        str, typer.Option("--kls", help="Nats at which the methods are compared.", rich_help_panel=WORLD)
    ] = "0.1,0.3,1",
    images: Annotated[bool, typer.Option(help="Write PNG and SVG of each chart.")] = True,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Bounds on what a policy tuned against this reward model is worth, per prompt and overall, at each beta."""
    from prudent.errors import PrudentError

    values = _numbers("--betas", betas)
    if not 0 < delta < 0.5:
        raise PrudentError(f"--delta is {delta}, must lie between 0 and 0.5")
    if embedded == (model is not None or pool is not None):
        raise PrudentError("give --model FOLDER and --pool FILE, or --embedded alone")
    if embedded:
        from prudent.commands.theory.calibrate import calibrate_embedded

        result = calibrate_embedded(
            out,
            betas=values,
            kls=_numbers("--kls", kls),
            delta=delta,
            prompts=prompts,
            side=side,
            draws=draws,
            pairs=pairs,
            slope=slope,
            images=images,
            overwrite=overwrite,
            seed=seed,
        )
    elif model is None or pool is None:
        raise PrudentError("certify needs both --model FOLDER and --pool FILE")
    else:
        from prudent.commands.theory.certify import certify_model

        result = certify_model(
            out, model, pool, betas=values, delta=delta, images=images, overwrite=overwrite, seed=seed
        )
    _finish(result | {"out": str(out)}, as_json, result["verdict"], out)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from prudent.errors import PrudentError

    try:
        values = tuple(float(part) for part in str(text).split(","))
    except ValueError as error:
        raise PrudentError(f"{option} is {text!r}, must be numbers separated by commas, such as 0.1,0.3,1") from error
    if any(not 0 < value < float("inf") for value in values):
        raise PrudentError(f"{option} is {text!r}, every value must be positive and finite")
    return values


def _finish(result: dict[str, Any], as_json: bool, verdict: str, out: Path) -> None:
    if as_json:
        print_json(result)
    else:
        print(f"{verdict}\nReport: {out / 'report.html'}")
