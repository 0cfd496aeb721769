"""Options of the evaluate commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from prudent.commands.options import SOURCE, OptionalRun, PairOptions, RowOptions, ScorerLength, command

RUN = "evaluate.run:evaluate"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RowOptions, OptionalRun):
    """What every benchmark takes."""

    data: Annotated[
        str | None,
        typer.Option("--data", help="Benchmark file or hub data set; not needed where scores say everything."),
        SOURCE,
    ] = None
    model: Annotated[
        tuple[str, ...],
        typer.Option(
            "--model",
            help="Scorer; may be given several times: a folder that prudent fit wrote, a sequence-classification model "
            "(folder or hub id), module:function, dpo:POLICY,REFERENCE, prm:MODEL or judge:MODEL.",
        ),
    ] = ()
    scores: Annotated[
        tuple[Path, ...],
        typer.Option("--scores", help="File of precomputed scores, of one or several models.", exists=True),
    ] = ()
    against: Annotated[
        tuple[str, ...],
        typer.Option("--against", help="Another scorer or scores file to compare the first one with."),
        SOURCE,
    ] = ()
    only: Annotated[tuple[str, ...], typer.Option("--only", help="Of a scores file, these models only.")] = ()
    subset: Annotated[str | None, typer.Option(help="Only this subset; rows that name none are taken to be of it.")] = (
        None
    )
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None
    rule: Annotated[
        str, typer.Option(help="Rule over members for the headline: mean, median, min, lcb, uwo, cvar, ...")
    ] = "mean"
    reduction: Annotated[
        str | None, typer.Option(help="Reduction of step scores for the headline; by default the best of all eight.")
    ] = None
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Unusable rows and scores: raise (list all) or skip (leave out, counted)."),
    ] = "raise"
    rounds: Annotated[int, typer.Option(min=10, max=1_000_000, help="Bootstrap rounds.")] = 1000
    dpo_beta: Annotated[float, typer.Option("--dpo-beta", help="Beta of DPO's implicit reward.")] = 0.1
    step_tag: Annotated[str, typer.Option(help="Step tag of a process reward model that is a language model.")] = "ки"
    good: Annotated[str, typer.Option(help="Its token for a right step.")] = "+"
    bad: Annotated[str, typer.Option(help="Its token for a wrong step.")] = "-"
    swap: Annotated[bool, typer.Option("--swap", help="Judges read each item in both orders.")] = False
    ratings: Annotated[bool, typer.Option("--ratings", help="Judges rate each answer alone (what Ties needs).")] = False
    language_model: Annotated[
        str | None, typer.Option(help="Language model to use in place of the one a folder names.")
    ] = None
    dtype: Annotated[str | None, typer.Option(help="Precision of language models: float32, bfloat16.")] = None
    max_length: ScorerLength = None


@command(
    "evaluate rewardbench",
    run=RUN,
    example="prudent evaluate rewardbench --data rb.jsonl --model runs/rm --against other/rm --out runs/rb",
)
@dataclass(frozen=True, kw_only=True)
class RewardBenchOptions(EvaluateOptions, PairOptions):
    """RewardBench 1: pairs in four sections. A tie is wrong in the headline and half right beside it."""

    weights: Annotated[
        Literal["counts", "leaderboard"],
        typer.Option(help="counts (of the data set) or leaderboard (of the released code)."),
    ] = "counts"
    prior: Annotated[bool, typer.Option("--prior", help="Add the prior sets at half weight.")] = False


@command(
    "evaluate rewardbench2",
    run=RUN,
    example="prudent evaluate rewardbench2 --data allenai/reward-bench-2 --model runs/rm --out runs/rb2",
)
@dataclass(frozen=True, kw_only=True)
class RewardBench2Options(EvaluateOptions):
    """RewardBench 2: the best of four in five domains, and Ties with its own score."""


@command(
    "evaluate rewardmath",
    run=RUN,
    example="prudent evaluate rewardmath --scores rewardmath_scores.jsonl --out runs/rewardmath",
)
@dataclass(frozen=True, kw_only=True)
class RewardMathOptions(EvaluateOptions):
    """RewardMATH: one correct solution against many. Process models are read in all eight ways."""

    leave_out: Annotated[bool, typer.Option("--leave-out", help="Also without each source model's solutions.")] = False


@command(
    "evaluate preferences",
    run=RUN,
    example="prudent evaluate preferences --data test.jsonl --model runs/rm --out runs/eval",
)
@dataclass(frozen=True, kw_only=True)
class PreferencesOptions(EvaluateOptions, PairOptions):
    """Any preference pairs: accuracy, calibration, errors against disagreement."""


@command(
    "evaluate validity",
    run="evaluate.validity:study",
    example="prudent evaluate validity --data results.csv --outcome best_of_64 --out runs/validity",
)
@dataclass(frozen=True, kw_only=True)
class ValidityOptions(OptionalRun):
    """Does a benchmark predict the outcome? Pearson and Spearman of every numeric column with it, with intervals."""

    data: Annotated[
        Path, typer.Option(help="Table with a row a reward model: benchmark scores and an outcome.", exists=True)
    ]
    outcome: Annotated[str, typer.Option(help="Column of the outcome: best-of-n accuracy, gold of a policy, ...")]
    name: Annotated[str, typer.Option(help="Column of the models' names.")] = "model"
    rounds: Annotated[int, typer.Option(min=10, max=1_000_000, help="Bootstrap rounds.")] = 2000
