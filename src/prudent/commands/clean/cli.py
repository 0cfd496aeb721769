"""``prudent clean``: find faulty preference pairs, show why, and give back a cleaned file with its provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    JsonOption,
    MaxLengthOption,
    MaxPairsOption,
    MaxTestPairsOption,
    OutOption,
    OverwriteOption,
    PoolingOption,
    SeedOption,
    guarded,
    number_or_cv,
    print_json,
    say,
)

if TYPE_CHECKING:
    from prudent.commands.clean.run import Outcome
    from prudent.runs import Run

EPILOG = "Example: prudent clean train.jsonl --flip 0.1 --test test.jsonl --out runs/clean"
READING = "Reading"
REPAIRS = "Repairs (by strength)"
PROOF = "Proof"


def register(app: typer.Typer) -> None:
    app.command(name="clean", epilog=EPILOG)(clean)


@guarded
def clean(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Preference file or hub id.")],
    out: OutOption,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=flag, drop, apply (what is suggested) or keep (off); NAME may be all. See docs/clean.md."
        ),
    ] = None,
    encoder: Annotated[str, typer.Option(help='Model that gives the features; "none" for rules alone.')] = "smollm2",
    features: Annotated[
        Path | None, typer.Option(help="Safetensors file of features (chosen, rejected), in place of --encoder.")
    ] = None,
    pooling: PoolingOption = "last+mean",
    max_length: MaxLengthOption = 1024,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.", rich_help_panel=READING)] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS, for example prompt=question.", rich_help_panel=READING)
    ] = None,
    max_pairs: MaxPairsOption = None,
    rating: Annotated[
        str | None, typer.Option(help="Rating column of single responses.", rich_help_panel=READING)
    ] = None,
    ties: Annotated[str, typer.Option(help="drop, or keep (soft label 1/2).", rich_help_panel=READING)] = "drop",
    soft_votes: Annotated[
        str,
        typer.Option(help="Soft labels from votes: half (of a tie), ignore (ties) or none.", rich_help_panel=READING),
    ] = "half",
    min_share: Annotated[
        float, typer.Option(help="Share of votes that wins; 0.75 is three of four.", rich_help_panel=READING)
    ] = 0.5,
    against: Annotated[list[str] | None, typer.Option(help="Other splits whose prompts must not recur.")] = None,
    flip: Annotated[float, typer.Option(help="Share of the weakest labels to flip.", rich_help_panel=REPAIRS)] = 0.0,
    soften: Annotated[str, typer.Option(help="Deciles to soften, as 1-4 or all.", rich_help_panel=REPAIRS)] = "",
    soft_label: Annotated[
        str, typer.Option(help='"strength" (the members\' probability) or a number.', rich_help_panel=REPAIRS)
    ] = "strength",
    widen: Annotated[str, typer.Option(help="Deciles that get a margin.", rich_help_panel=REPAIRS)] = "",
    weigh: Annotated[str, typer.Option(help="Deciles that count less.", rich_help_panel=REPAIRS)] = "",
    weight: Annotated[float, typer.Option(help="What they count.", rich_help_panel=REPAIRS)] = 0.5,
    drop_deciles: Annotated[str, typer.Option(help="Deciles to drop.", rich_help_panel=REPAIRS)] = "",
    members: Annotated[int, typer.Option(min=2, help="Members that judge a pair.", rich_help_panel=REPAIRS)] = 10,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-fit.", rich_help_panel=REPAIRS)] = 5,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Let members judge pairs they trained on.", rich_help_panel=REPAIRS)
    ] = False,
    ridge: Annotated[str, typer.Option(help='Number or "cv".', rich_help_panel=REPAIRS)] = "cv",
    second_label: Annotated[
        str | None, typer.Option(help="Column with another judge's probability.", rich_help_panel=REPAIRS)
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Untouched test files.", rich_help_panel=PROOF)] = None,
    max_test_pairs: MaxTestPairsOption = None,
    holdout: Annotated[
        float, typer.Option(help="Share of prompts to test on without --test; 0 for none.", rich_help_panel=PROOF)
    ] = 0.25,
    seeds: Annotated[int, typer.Option(min=2, help="Reward models per variant.", rich_help_panel=PROOF)] = 20,
    plant: Annotated[
        list[float] | None, typer.Option(help="Share of labels to turn round and seek.", rich_help_panel=PROOF)
    ] = None,
    decisions: Annotated[Path | None, typer.Option(help="Decisions saved on the page review.html.")] = None,
    review: Annotated[int, typer.Option(min=0, help="Changes of one rule on the review page.")] = 100,
    output: Annotated[str, typer.Option(help="Cleaned file: jsonl or parquet.")] = "jsonl",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Find faulty preference pairs, show why, and write a cleaned file in which every change has its evidence."""
    asked = dict(locals())  # the settings, by name
    from dataclasses import fields

    from prudent.commands.clean.options import Settings
    from prudent.commands.clean.run import clean as run_clean
    from prudent.commands.clean.run import summary
    from prudent.data.preferences import data_hash
    from prudent.errors import PrudentError
    from prudent.runs import new_run, refuse_used

    refuse_used(out, overwrite)
    if output not in ("jsonl", "parquet"):
        raise PrudentError(f"output {output!r}: give jsonl or parquet")
    asked |= {name: tuple(asked[name] or ()) for name in ("rule", "against", "test", "plant")}
    asked |= {name: str(asked[name]) if asked[name] else None for name in ("features", "decisions")}
    asked["encoder"] = None if features or encoder == "none" else encoder
    asked |= {"columns": _mapping(column or []), "ridge": number_or_cv(ridge)}
    settings = Settings(**{part.name: asked[part.name] for part in fields(Settings)})
    outcome = run_clean(settings)
    result = summary(outcome)
    with new_run(out, "clean", vars(settings), seed, overwrite) as run:
        run.manifest["hashes"]["preferences"] = data_hash(outcome.inputs.data)
        run.manifest["timings_s"] = outcome.timings
        write(run, outcome, result, output)
    if as_json:
        print_json({**result, "out": str(out)})
    else:
        _say(result, out)


def _mapping(columns: list[str]) -> dict[str, str]:
    from prudent.errors import PrudentError

    pairs = [column.partition("=") for column in columns]
    for ours, _, theirs in pairs:
        if not ours or not theirs:
            raise PrudentError(f"column {ours!r}: give OURS=THEIRS, for example prompt=question")
    return {ours: theirs for ours, _, theirs in pairs}


def write(run: Run, outcome: Outcome, result: dict[str, Any], output: str) -> None:
    """Cleaned pairs, provenance, strength, results, report and review page."""
    from prudent.commands.clean.page import build_report
    from prudent.commands.clean.review import review_page

    reading = outcome.inputs.report
    unread = [
        {
            "pair": None,
            "row": row.line,
            "rule": row.reason,
            "suggestion": "drop",
            "action": "drop",
            "before": None,
            "after": None,
            "evidence": {"field": row.field, "detail": row.detail},
            "decided": None,
            "hash": None,
        }
        for row in [*reading.bad, *reading.left_out]
    ]
    run.write_jsonl("changes.jsonl", [*unread, *outcome.cleaned.log])
    if output == "jsonl":
        run.write_jsonl("cleaned.jsonl", outcome.cleaned.rows)
    else:
        from datasets import Dataset

        Dataset.from_list(outcome.cleaned.rows).to_parquet(str(run.path("cleaned.parquet")))
    if outcome.judged is not None:
        judged = outcome.judged
        lines = outcome.inputs.data["row"]
        run.write_table(
            "strength.parquet",
            {
                "pair": judged.places + 1,
                "row": [lines[int(place)] for place in judged.places],
                "mean": judged.mean,
                "sigma": judged.std,
                "decile": judged.decile,
                "fold": judged.strength.fold,
                "members": judged.strength.margins.T,
            },
        )
    run.write_json("result.json", result)
    build_report(outcome).write(run)
    rows = outcome.inputs.data.select_columns(["prompt", "chosen", "rejected"])
    run.write_text("review.html", review_page(rows, outcome.changes, outcome.settings.source, outcome.settings.review))


def _say(result: dict[str, Any], out: Path) -> None:
    say(
        f"{result['pairs']} pairs read, {result['kept']} kept: {result['dropped']} dropped, {result['flipped']} flipped"
    )
    for row in result["changes"]:
        say(
            f"  {row['rule']}: {row['found']} found, {row['dropped']} dropped, {row['flipped']} flipped, "
            f"{row['set']} set"
        )
    for name, counts in result["reading"]["counts"].items():
        if counts:
            say(f"  reading, {name.replace('_', ' ')}: " + ", ".join(f"{n} {reason}" for reason, n in counts.items()))
    strength = result["strength"]
    if strength:
        shares = strength["shares"]
        say(
            f"strength ({strength['mode']}): {shares['below_zero']:.1%} below zero, {shares['near_zero']:.1%} near zero"
        )
    if result["proof"]:
        for row in result["proof"]["table"]:
            gain = row["gain"]
            more = "" if gain is None else f", gain {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            say(f"  {row['labels']}: test accuracy {row['accuracy']['value']:.3f}{more}")
    say(f"report: {out / 'report.html'}; review: {out / 'review.html'}")
