"""Options of ``prudent clean``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prudent.commands.engine import EngineOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    MANY,
    READING,
    SOURCE,
    MaxLength,
    MaxPairs,
    MaxTestPairs,
    PairOptions,
    Pooling,
    RunOptions,
    command,
    number_or_cv,
    said,
)

if TYPE_CHECKING:
    from prudent.data.conflicts import Conflict

REPAIRS, PROOF = "Repairs (by strength)", "Proof"
BY_STRENGTH = ("--flip", "--soften", "--widen", "--weigh", "--drop-deciles", "--plant", "--second-label")


@command(
    "clean",
    run="clean.run:run",
    show="clean.output:show",
    example="prudent clean train.jsonl --flip 0.1 --test test.jsonl --out runs/clean",
)
@dataclass(frozen=True, kw_only=True)
class CleanOptions(EngineOptions, PairOptions, RunOptions):
    """Find faulty preference pairs, show why, and write a cleaned file in which every change has its evidence."""

    source: Annotated[str, typer.Argument(metavar="FILE", help="Preference file or hub id."), SOURCE]
    rule: Annotated[
        tuple[str, ...],
        typer.Option(
            help="NAME=flag, drop, apply (what is suggested) or keep (off); NAME may be all. See docs/clean.md."
        ),
    ] = ()
    encoder: Annotated[str, typer.Option(help='Model that gives the features; "none" for rules alone.')] = DEFAULT_MODEL
    features: Annotated[
        Path | None,
        typer.Option(help="Safetensors file of features (chosen, rejected), in place of --encoder.", exists=True),
    ] = None
    pooling: Pooling = "last+mean"
    max_length: MaxLength = 1024
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.", rich_help_panel=READING)] = None
    max_pairs: MaxPairs = None
    rating: Annotated[str | None, typer.Option(help="Rating column of single responses.", rich_help_panel=READING)] = (
        None
    )
    ties: Annotated[
        Literal["drop", "keep"], typer.Option(help="drop, or keep (soft label 1/2).", rich_help_panel=READING)
    ] = "drop"
    soft_votes: Annotated[
        Literal["half", "ignore", "none"],
        typer.Option(help="Soft labels from votes: half (of a tie), ignore (ties) or none.", rich_help_panel=READING),
    ] = "half"
    min_share: Annotated[
        float, typer.Option(help="Share of votes that wins; 0.75 is three of four.", rich_help_panel=READING)
    ] = 0.5
    against: Annotated[tuple[str, ...], typer.Option(help="Other splits whose prompts must not recur."), SOURCE] = ()
    conflict: Annotated[
        str | None,
        typer.Option(
            help="Two sources of score to compare: ONE,OTHER, each a column or CHOSEN:REJECTED; dots reach into a "
            "column (ratings.helpfulness). Rows are ranked by how far the two are apart."
        ),
    ] = None
    conflict_size: Annotated[
        float, typer.Option(min=0.0, help="Standard deviations apart from which a pair is found.")
    ] = 2.0
    flip: Annotated[float, typer.Option(help="Share of the weakest labels to flip.", rich_help_panel=REPAIRS)] = 0.0
    soften: Annotated[str, typer.Option(help="Deciles to soften, as 1-4 or all.", rich_help_panel=REPAIRS)] = ""
    soft_label: Annotated[
        str, typer.Option(help='"strength" (the members\' probability) or a number.', rich_help_panel=REPAIRS)
    ] = "strength"
    widen: Annotated[str, typer.Option(help="Deciles that get a margin.", rich_help_panel=REPAIRS)] = ""
    weigh: Annotated[str, typer.Option(help="Deciles that count less.", rich_help_panel=REPAIRS)] = ""
    weight: Annotated[float, typer.Option(help="What they count.", rich_help_panel=REPAIRS)] = 0.5
    drop_deciles: Annotated[str, typer.Option(help="Deciles to drop.", rich_help_panel=REPAIRS)] = ""
    members: Annotated[
        int, typer.Option(min=2, help="Members that judge a pair.", rich_help_panel=REPAIRS, max=MANY)
    ] = 10
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-fit.", rich_help_panel=REPAIRS, max=MANY)] = 5
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Let members judge pairs they trained on.", rich_help_panel=REPAIRS)
    ] = False
    ridge: Annotated[str, typer.Option(help='Number or "cv".', rich_help_panel=REPAIRS)] = "cv"
    second_label: Annotated[
        str | None, typer.Option(help="Column with another judge's probability.", rich_help_panel=REPAIRS)
    ] = None
    test: Annotated[tuple[str, ...], typer.Option(help="Untouched test files.", rich_help_panel=PROOF), SOURCE] = ()
    max_test_pairs: MaxTestPairs = None
    holdout: Annotated[
        float, typer.Option(help="Share of prompts to test on without --test; 0 for none.", rich_help_panel=PROOF)
    ] = 0.25
    seeds: Annotated[int, typer.Option(min=2, help="Reward models per variant.", rich_help_panel=PROOF, max=MANY)] = 20
    plant: Annotated[
        tuple[float, ...], typer.Option(help="Share of labels to turn round and seek.", rich_help_panel=PROOF)
    ] = ()
    decisions: Annotated[Path | None, typer.Option(help="Decisions saved on the page review.html.", exists=True)] = None
    review: Annotated[int, typer.Option(min=0, help="Changes of one rule on the review page.", max=1_000_000)] = 100
    output: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Cleaned file: jsonl or parquet.")] = "jsonl"

    @property
    def model(self) -> str | None:
        """Model that gives the features, or None for rules alone and for features from a file."""
        return None if self.features is not None or self.encoder == "none" else self.encoder

    @property
    def sources_of_score(self) -> Conflict | None:
        """What ``--conflict`` names."""
        from prudent.data.conflicts import parse_conflict

        return None if self.conflict is None else parse_conflict(self.conflict, self.conflict_size)

    @property
    def ridge_value(self) -> float | str:
        """The ridge as a number, or "cv"."""
        return number_or_cv("--ridge", self.ridge) or "cv"

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems() + said(lambda: self.ridge_value, lambda: self.sources_of_score)
        if self.conflict is None:
            problems += self.unusable(["--conflict-size"], "without --conflict, clean")
        if self.model is None and self.features is None:
            problems += [
                f"{flag} works on the strength of pairs, which needs --encoder or --features"
                for flag in self.changed()
                if flag in BY_STRENGTH
            ]
        if self.features is not None and (self.max_pairs is not None or self.max_test_pairs is not None):
            problems.append(
                "--features holds one row for every pair of the files, so --max-pairs and --max-test-pairs can't go "
                "with it; leave them out"
            )
        if not 0 <= self.holdout < 1:
            problems.append(f"--holdout is {self.holdout}; it is a share of the prompts, 0 (no proof) to below 1")
        problems += [
            f"--plant is {share}: a share of labels to turn round, above 0 and below 0.5"
            for share in self.plant
            if not 0 < share < 0.5
        ]
        return problems
