"""Options of ``prudent recommend``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from prudent.commands.options import ABOVE_ZERO, READING, OptionalRun, RunOptions, command, option, pairs, said
from prudent.errors import PrudentError

_reading, _backbone, _stage = (
    functools.partial(option, panel=name) for name in (READING, "Backbone", "Uncertainty stage")
)


ThresholdOption = Annotated[float | None, _reading("A rating at or above it is a positive; without it, one above 0.")]
ColumnOption = Annotated[tuple[str, ...], _reading("OURS=THEIRS for user, item, rating, timestamp; e.g. item=movieId.")]
OnErrorOption = Annotated[Literal["raise", "drop"], _reading("Bad rows: raise (all of them listed) or drop (counted).")]
ScorerOption = Annotated[
    str | None, option("Outside scores instead: a file (user, item, score) or package.module:function.")
]


@command("recommend fit", run="recommend.run:fit", show="recommend.run:show_fit")
class RecommendFitOptions(RunOptions):
    """Fit a backbone and the uncertainty stage, choose the blend, and save the recommender.

    Example: prudent recommend fit ratings.csv --threshold 4 --backbone mf --out runs/mf
    """

    data: Annotated[Path, typer.Argument(help="Interactions: CSV, TSV, JSONL (.gz too) or Parquet.", exists=True)]
    test: Annotated[Path | None, _reading("Test interactions of their own.", exists=True)] = None
    valid: Annotated[Path | None, _reading("Validation interactions of their own.", exists=True)] = None
    threshold: ThresholdOption = None
    column: ColumnOption = ()
    on_error: OnErrorOption = "raise"
    split: Annotated[
        Literal["user", "time", "random"], _reading("user (a share of each user's), time (one cut) or random.")
    ] = "user"
    valid_share: Annotated[float, _reading("Share held out to validate.")] = 0.1
    test_share: Annotated[float, _reading("Share held out to test, where no --test is given.")] = 0.1
    backbone: Annotated[str, _backbone("mf, lightgcn, vae or als.")] = "mf"
    scorer: ScorerOption = None
    width: Annotated[int, _backbone("Embedding width (mf, lightgcn).", min=1, max=100_000)] = 128
    layers: Annotated[int, _backbone("Layers (lightgcn).", min=0, max=100)] = 3
    negatives: Annotated[float, _backbone("Share of items whose missing pairs are drawn.")] = 0.1
    epochs: Annotated[int | None, _backbone("Longest training; 300, or 150 for vae.", min=1, max=1_000_000)] = None
    learning_rate: Annotated[float | None, _backbone("Of Adam; 0.01 for lightgcn, else 0.001."), ABOVE_ZERO] = None
    batch: Annotated[int | None, _backbone("Users a step; 128.", min=1, max=1_000_000)] = None
    weight_decay: Annotated[float | None, _backbone("L2; 0.01 for mf, 0.001 for lightgcn, else 0.")] = None
    warmup: Annotated[
        int | None,
        _backbone("Steps before patience counts; 600 for mf, 300 for lightgcn, 0 for vae.", min=0, max=10**9),
    ] = None
    backbone_option: Annotated[
        tuple[str, ...],
        _backbone("NAME=VALUE: alpha; hidden, latent, dropout, kl; factors, regularisation, confidence, iterations."),
    ] = ()
    alpha: Annotated[float, _stage("Weight of positives.")] = 1.0
    beta: Annotated[float, _stage("Weight of s.")] = 1e-2
    gamma: Annotated[float, _stage("Weight of s squared.")] = 1e-2
    share: Annotated[float, _stage("Share of items in the loss.")] = 1.0
    hidden: Annotated[int, _stage("Width of the estimator.", min=1, max=100_000)] = 1024
    activation: Annotated[str, _stage("linear, tanh or relu.")] = "linear"
    user_embedding: Annotated[bool, _stage("Add one a user at the hidden layer.", "--user-embedding")] = False
    stage_epochs: Annotated[int | None, _stage("Longest training; 300.", min=1, max=1_000_000)] = None
    stage_learning_rate: Annotated[float | None, _stage("Of Adam; 0.001."), ABOVE_ZERO] = None
    stage_batch: Annotated[int | None, _stage("Users a step; 128.", min=1, max=1_000_000)] = None
    patience: Annotated[int, option("Validations without gain before a stage ends.", min=1, max=1_000_000)] = 10
    tail_percentile: Annotated[float, option("Tail: items under this percentile of popularity.", min=0, max=100)] = 80.0
    tail_below: Annotated[int | None, option("Tail: items under this many positives instead.", min=0, max=10**9)] = None
    blend_by: Annotated[str, option("Blend: best overall, or best tail not worse overall.")] = "overall"

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


@command("recommend top", run="recommend.run:top", show="recommend.run:show_top")
class RecommendTopOptions(OptionalRun):
    """Recommend unseen items; a user without history gets the popular ones, and that is said.

    Example: prudent recommend top runs/mf --user 42 --k 10 --rank blend
    """

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.", exists=True)]
    user: Annotated[tuple[str, ...], option("User id; again for more. Without it, all users.")] = ()
    k: Annotated[int, option("Items a user.", min=1, max=1_000_000)] = 20
    rank: Annotated[str, option("score, uncertainty or blend.")] = "blend"
    scorer: ScorerOption = None
    out: Annotated[Path | None, option("Folder to write top.parquet to; without it, print.")] = None


@command("recommend evaluate", run="recommend.run:evaluate", show="recommend.run:show_evaluate")
class RecommendEvaluateOptions(RunOptions):
    """Judge score, uncertainty, blend and baselines on the test side; table, intervals and report.

    Example: prudent recommend evaluate runs/mf --out runs/mf-report
    """

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.", exists=True)]
    test: Annotated[Path | None, option("Test interactions; without it, those held out by fit.", exists=True)] = None
    baselines: Annotated[str, option("Of popularity,knn,als,ipw; none for none.")] = "popularity,knn,als,ipw"
    lists: Annotated[tuple[str, ...], option("NAME=FILE of recommendations from elsewhere (user, item[, rank]).")] = ()
    k: Annotated[tuple[int, ...], option("List lengths to judge; again for more.", min=1, max=1_000_000)] = ()
    rounds: Annotated[int, option("Bootstrap rounds over users.", min=100, max=1_000_000)] = 1000
    scorer: ScorerOption = None

    @property
    def named_lists(self) -> dict[str, str]:
        """Files of other systems' recommendations by name."""
        return pairs("--lists", self.lists, "NAME=FILE")

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        return said(lambda: self.named_lists)
