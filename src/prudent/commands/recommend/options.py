"""Options of ``prudent recommend``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from prudent.commands.options import READING, OptionalRun, RunOptions, command, pairs, said
from prudent.errors import PrudentError

BACKBONE, STAGE = "Backbone", "Uncertainty stage"


ThresholdOption = Annotated[
    float | None,
    typer.Option(help="A rating at or above it is a positive; without it, one above 0.", rich_help_panel=READING),
]
ColumnOption = Annotated[
    tuple[str, ...],
    typer.Option(help="OURS=THEIRS for user, item, rating, timestamp; e.g. item=movieId.", rich_help_panel=READING),
]
OnErrorOption = Annotated[
    Literal["raise", "drop"],
    typer.Option(help="Bad rows: raise (all of them listed) or drop (counted).", rich_help_panel=READING),
]
ScorerOption = Annotated[
    str | None, typer.Option(help="Outside scores instead: a file (user, item, score) or package.module:function.")
]


@command(
    "recommend fit",
    run="recommend.run:fit",
    show="recommend.run:show_fit",
    example="prudent recommend fit ratings.csv --threshold 4 --backbone mf --out runs/mf",
)
@dataclass(frozen=True, kw_only=True)
class RecommendFitOptions(RunOptions):
    """Fit a backbone and the uncertainty stage, choose the blend, and save the recommender."""

    data: Annotated[Path, typer.Argument(help="Interactions: CSV, TSV, JSONL (.gz too) or Parquet.", exists=True)]
    test: Annotated[
        Path | None, typer.Option(help="Test interactions of their own.", rich_help_panel=READING, exists=True)
    ] = None
    valid: Annotated[
        Path | None, typer.Option(help="Validation interactions of their own.", rich_help_panel=READING, exists=True)
    ] = None
    threshold: ThresholdOption = None
    column: ColumnOption = ()
    on_error: OnErrorOption = "raise"
    split: Annotated[
        Literal["user", "time", "random"],
        typer.Option(help="user (a share of each user's), time (one cut) or random.", rich_help_panel=READING),
    ] = "user"
    valid_share: Annotated[float, typer.Option(help="Share held out to validate.", rich_help_panel=READING)] = 0.1
    test_share: Annotated[
        float, typer.Option(help="Share held out to test, where no --test is given.", rich_help_panel=READING)
    ] = 0.1
    backbone: Annotated[str, typer.Option(help="mf, lightgcn, vae or als.", rich_help_panel=BACKBONE)] = "mf"
    scorer: ScorerOption = None
    width: Annotated[
        int, typer.Option(help="Embedding width (mf, lightgcn).", rich_help_panel=BACKBONE, min=1, max=100_000)
    ] = 128
    layers: Annotated[int, typer.Option(help="Layers (lightgcn).", rich_help_panel=BACKBONE, min=0, max=100)] = 3
    negatives: Annotated[
        float, typer.Option(help="Share of items whose missing pairs are drawn.", rich_help_panel=BACKBONE)
    ] = 0.1
    epochs: Annotated[
        int | None,
        typer.Option(help="Longest training; 300, or 150 for vae.", rich_help_panel=BACKBONE, min=1, max=1_000_000),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam; 0.01 for lightgcn, else 0.001.", rich_help_panel=BACKBONE)
    ] = None
    batch: Annotated[
        int | None, typer.Option(help="Users a step; 128.", rich_help_panel=BACKBONE, min=1, max=1_000_000)
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(help="L2; 0.01 for mf, 0.001 for lightgcn, else 0.", rich_help_panel=BACKBONE)
    ] = None
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Steps before patience counts; 600 for mf, 300 for lightgcn, 0 for vae.",
            rich_help_panel=BACKBONE,
            min=0,
            max=10**9,
        ),
    ] = None
    backbone_option: Annotated[
        tuple[str, ...],
        typer.Option(
            help="NAME=VALUE: alpha; hidden, latent, dropout, kl; factors, regularisation, confidence, iterations.",
            rich_help_panel=BACKBONE,
        ),
    ] = ()
    alpha: Annotated[float, typer.Option(help="Weight of positives.", rich_help_panel=STAGE)] = 1.0
    beta: Annotated[float, typer.Option(help="Weight of s.", rich_help_panel=STAGE)] = 1e-2
    gamma: Annotated[float, typer.Option(help="Weight of s squared.", rich_help_panel=STAGE)] = 1e-2
    share: Annotated[float, typer.Option(help="Share of items in the loss.", rich_help_panel=STAGE)] = 1.0
    hidden: Annotated[int, typer.Option(help="Width of the estimator.", rich_help_panel=STAGE, min=1, max=100_000)] = (
        1024
    )
    activation: Annotated[str, typer.Option(help="linear, tanh or relu.", rich_help_panel=STAGE)] = "linear"
    user_embedding: Annotated[
        bool, typer.Option("--user-embedding", help="Add one a user at the hidden layer.", rich_help_panel=STAGE)
    ] = False
    stage_epochs: Annotated[
        int | None, typer.Option(help="Longest training; 300.", rich_help_panel=STAGE, min=1, max=1_000_000)
    ] = None
    stage_learning_rate: Annotated[float | None, typer.Option(help="Of Adam; 0.001.", rich_help_panel=STAGE)] = None
    stage_batch: Annotated[
        int | None, typer.Option(help="Users a step; 128.", rich_help_panel=STAGE, min=1, max=1_000_000)
    ] = None
    patience: Annotated[
        int, typer.Option(help="Validations without gain before a stage ends.", min=1, max=1_000_000)
    ] = 10
    tail_percentile: Annotated[float, typer.Option(help="Tail: items under this percentile of popularity.")] = 80.0
    tail_below: Annotated[
        int | None, typer.Option(help="Tail: items under this many positives instead.", min=0, max=10**9)
    ] = None
    blend_by: Annotated[str, typer.Option(help="Blend: best overall, or best tail not worse overall.")] = "overall"

    @property
    def columns(self) -> dict[str, str]:
        """The file's name of each of our columns that it names otherwise."""
        found = pairs("--column", self.column, "OURS=THEIRS, for example item=movieId")
        unknown = sorted(set(found) - {"user", "item", "rating", "timestamp"})
        if unknown:
            raise PrudentError(f"--column {', '.join(unknown)}: choose from user, item, rating, timestamp")
        return found

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        return said(lambda: self.columns, lambda: pairs("--backbone-option", self.backbone_option, "NAME=VALUE"))


@command(
    "recommend top",
    run="recommend.run:top",
    show="recommend.run:show_top",
    example="prudent recommend top runs/mf --user 42 --k 10 --rank blend",
)
@dataclass(frozen=True, kw_only=True)
class RecommendTopOptions(OptionalRun):
    """Recommend unseen items; a user without history gets the popular ones, and that is said."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.", exists=True)]
    user: Annotated[tuple[str, ...], typer.Option(help="User id; again for more. Without it, all users.")] = ()
    k: Annotated[int, typer.Option(help="Items a user.", min=1, max=1_000_000)] = 20
    rank: Annotated[str, typer.Option(help="score, uncertainty or blend.")] = "blend"
    scorer: ScorerOption = None
    out: Annotated[Path | None, typer.Option(help="Folder to write top.parquet to; without it, print.")] = None


@command(
    "recommend evaluate",
    run="recommend.run:evaluate",
    show="recommend.run:show_evaluate",
    example="prudent recommend evaluate runs/mf --out runs/mf-report",
)
@dataclass(frozen=True, kw_only=True)
class RecommendEvaluateOptions(RunOptions):
    """Judge score, uncertainty, blend and baselines on the test side; table, intervals and report."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.", exists=True)]
    test: Annotated[
        Path | None, typer.Option(help="Test interactions; without it, those held out by fit.", exists=True)
    ] = None
    baselines: Annotated[str, typer.Option(help="Of popularity,knn,als,ipw; none for none.")] = "popularity,knn,als,ipw"
    lists: Annotated[
        tuple[str, ...], typer.Option(help="NAME=FILE of recommendations from elsewhere (user, item[, rank]).")
    ] = ()
    k: Annotated[
        tuple[int, ...], typer.Option(help="List lengths to judge; again for more.", min=1, max=1_000_000)
    ] = ()
    rounds: Annotated[int, typer.Option(min=100, help="Bootstrap rounds over users.", max=1_000_000)] = 1000
    scorer: ScorerOption = None

    @property
    def named_lists(self) -> dict[str, str]:
        """Files of other systems' recommendations by name."""
        return pairs("--lists", self.lists, "NAME=FILE")

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        return said(lambda: self.named_lists)
