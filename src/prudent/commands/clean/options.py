"""Options of ``prudent clean``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prudent.commands.depth import DepthOptions
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
    option,
    said,
)

if TYPE_CHECKING:
    from prudent.data.conflicts import Conflict

REPAIRS, PROOF = "Repairs (by strength)", "Proof"
BY_STRENGTH = ("--flip", "--soften", "--widen", "--weigh", "--drop-deciles", "--plant", "--second-label")


@command("clean", run="clean.run:run", show="clean.output:show")
class CleanOptions(DepthOptions, EngineOptions, PairOptions, RunOptions):
    """Find faulty preference pairs, show why, and write a cleaned file in which every change has its evidence.

    Example: prudent clean train.jsonl --flip 0.1 --test test.jsonl --out runs/clean
    """

    source: Annotated[str, typer.Argument(metavar="FILE", help="Preference file or hub id."), SOURCE]
    rule: Annotated[
        tuple[str, ...],
        option("NAME=flag, drop, apply (what is suggested) or keep (off); NAME may be all. See docs/clean.md."),
    ] = ()
    encoder: Annotated[str, option('Model that gives the features; "none" for rules alone.')] = DEFAULT_MODEL
    features: Annotated[
        Path | None, option("Safetensors file of features (chosen, rejected), in place of --encoder.", exists=True)
    ] = None
    pooling: Pooling = "last+mean"
    max_length: MaxLength = 1024
    split: Annotated[str | None, option("Split of a hub data set.", panel=READING)] = None
    max_pairs: MaxPairs = None
    rating: Annotated[str | None, option("Rating column of single responses.", panel=READING)] = None
    ties: Annotated[Literal["drop", "keep"], option("drop, or keep (soft label 1/2).", panel=READING)] = "drop"
    soft_votes: Annotated[
        Literal["half", "ignore", "none"],
        option("Soft labels from votes: half (of a tie), ignore (ties) or none.", panel=READING),
    ] = "half"
    min_share: Annotated[
        float, option("Share of votes that wins; 0.75 is three of four.", panel=READING, min=0, max=1)
    ] = 0.5
    against: Annotated[tuple[str, ...], option("Other splits whose prompts must not recur."), SOURCE] = ()
    conflict: Annotated[
        str | None,
        option(
            "Two sources of score to compare: ONE,OTHER, each a column or CHOSEN:REJECTED; dots reach into a "
            "column (ratings.helpfulness). Rows are ranked by how far the two are apart."
        ),
    ] = None
    conflict_size: Annotated[float, option("Standard deviations apart from which a pair is found.", min=0.0)] = 2.0
    flip: Annotated[float, option("Share of the weakest labels to flip.", panel=REPAIRS, min=0, max=1)] = 0.0
    soften: Annotated[str, option("Deciles to soften, as 1-4 or all.", panel=REPAIRS)] = ""
    soft_label: Annotated[str, option('"strength" (the members\' probability) or a number.', panel=REPAIRS)] = (
        "strength"
    )
    widen: Annotated[str, option("Deciles that get a margin.", panel=REPAIRS)] = ""
    weigh: Annotated[str, option("Deciles that count less.", panel=REPAIRS)] = ""
    weight: Annotated[float, option("What they count.", panel=REPAIRS, min=0)] = 0.5
    drop_deciles: Annotated[str, option("Deciles to drop.", panel=REPAIRS)] = ""
    members: Annotated[int, option("Members that judge a pair.", min=2, max=MANY, panel=REPAIRS)] = 10
    folds: Annotated[int, option("Parts of the cross-fit.", min=2, max=MANY, panel=REPAIRS)] = 5
    in_sample: Annotated[bool, option("Let members judge pairs they trained on.", "--in-sample", panel=REPAIRS)] = False
    ridge: Annotated[str, option('Number or "cv".', panel=REPAIRS)] = "cv"
    second_label: Annotated[str | None, option("Column with another judge's probability.", panel=REPAIRS)] = None
    test: Annotated[tuple[str, ...], option("Untouched test files.", panel=PROOF), SOURCE] = ()
    max_test_pairs: MaxTestPairs = None
    holdout: Annotated[float, option("Share of prompts to test on without --test; 0 for none.", panel=PROOF)] = 0.25
    seeds: Annotated[int, option("Reward models per variant.", min=2, max=MANY, panel=PROOF)] = 20
    plant: Annotated[tuple[float, ...], option("Share of labels to turn round and seek.", panel=PROOF)] = ()
    decisions: Annotated[Path | None, option("Decisions saved on the page review.html.", exists=True)] = None
    review: Annotated[int, option("Changes of one rule on the review page.", min=0, max=1_000_000)] = 100
    output: Annotated[Literal["jsonl", "parquet"], option("Cleaned file: jsonl or parquet.")] = "jsonl"

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
