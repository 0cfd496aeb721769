"""``prudent theory``: recompute every claim of the theory, certify a reward model."""

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
CERTIFY = "Example: prudent theory certify --model runs/heads --pool pool.jsonl --out runs/certificate"


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        name="theory",
        help="The theorems as running code: recompute every claim, certify a reward model.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(name="reproduce", epilog=REPRODUCE)(reproduce)
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
def certify(
    context: typer.Context,
    out: OutOption,
    model: Annotated[Path, typer.Option(help="Reward model folder: an ensemble or a Laplace posterior.")],
    pool: Annotated[
        Path, typer.Option(help="Prompts with responses and optionally gold, or solutions with is_correct.")
    ],
    betas: Annotated[str, typer.Option(help="KL weights, separated by commas.")] = "0.03,0.1,0.3,1",
    delta: Annotated[float, typer.Option(help="Chance of being wrong that the bounds allow.")] = 0.05,
    images: Annotated[bool, typer.Option(help="Write PNG and SVG of each chart.")] = True,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Bounds on what a policy tuned against this reward model is worth, per prompt and overall, at each beta."""
    from prudent.commands.theory.certify import certify_model
    from prudent.errors import PrudentError

    values = _numbers("--betas", betas)
    if not 0 < delta < 0.5:
        raise PrudentError(f"--delta is {delta}, must lie between 0 and 0.5")
    result = certify_model(out, model, pool, betas=values, delta=delta, images=images, overwrite=overwrite, seed=seed)
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
