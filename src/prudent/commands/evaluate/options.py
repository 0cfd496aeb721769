"""Options of the evaluate commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from prudent.commands.options import (
    ABOVE_ZERO,
    SOURCE,
    OptionalRun,
    PairOptions,
    RowOptions,
    ScorerLength,
    command,
    option,
)

RUN = "evaluate.run:evaluate"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RowOptions, OptionalRun):
    """What every benchmark takes."""

    data: Annotated[
        str | None, option("Benchmark file or hub data set; not needed where scores say everything.", "--data"), SOURCE
    ] = None
    model: Annotated[
        tuple[str, ...],
        option(
            "Scorer; may be given several times: a folder that prudent fit wrote, a sequence-classification model "
            "(folder or hub id), module:function, dpo:POLICY,REFERENCE, prm:MODEL or judge:MODEL.",
            "--model",
        ),
    ] = ()
    scores: Annotated[
        tuple[Path, ...], option("File of precomputed scores, of one or several models.", "--scores", exists=True)
    ] = ()
    against: Annotated[
        tuple[str, ...], option("Another scorer or scores file to compare the first one with.", "--against"), SOURCE
    ] = ()
    only: Annotated[tuple[str, ...], option("Of a scores file, these models only.", "--only")] = ()
    subset: Annotated[str | None, option("Only this subset; rows that name none are taken to be of it.")] = None
    split: Annotated[str | None, option("Split of a hub data set.")] = None
    rule: Annotated[str, option("Rule over members for the headline: mean, median, min, lcb, uwo, cvar, ...")] = "mean"
    reduction: Annotated[
        str | None, option("Reduction of step scores for the headline; by default the best of all eight.")
    ] = None
    on_error: Annotated[
        Literal["raise", "skip"], option("Unusable rows and scores: raise (list all) or skip (leave out, counted).")
    ] = "raise"
    rounds: Annotated[int, option("Bootstrap rounds.", min=10, max=1_000_000)] = 1000
    dpo_beta: Annotated[float, option("Beta of DPO's implicit reward.", "--dpo-beta"), ABOVE_ZERO] = 0.1
    step_tag: Annotated[str, option("Step tag of a process reward model that is a language model.")] = "ки"
    good: Annotated[str, option("Its token for a right step.")] = "+"
    bad: Annotated[str, option("Its token for a wrong step.")] = "-"
    swap: Annotated[bool, option("Judges read each item in both orders.", "--swap")] = False
    ratings: Annotated[bool, option("Judges rate each answer alone (what Ties needs).", "--ratings")] = False
    language_model: Annotated[str | None, option("Language model to use in place of the one a folder names.")] = None
    dtype: Annotated[str | None, option("Precision of language models: float32, bfloat16.")] = None
    max_length: ScorerLength = None


@command("evaluate rewardbench", run=RUN)
class RewardBenchOptions(EvaluateOptions, PairOptions):
    """RewardBench 1: pairs in four sections. A tie is wrong in the headline and half right beside it.

    Example: prudent evaluate rewardbench --data rb.jsonl --model runs/rm --against other/rm --out runs/rb
    """

    weights: Annotated[
        Literal["counts", "leaderboard"], option("counts (of the data set) or leaderboard (of the released code).")
    ] = "counts"
    prior: Annotated[bool, option("Add the prior sets at half weight.", "--prior")] = False


@command("evaluate rewardbench2", run=RUN)
class RewardBench2Options(EvaluateOptions):
    """RewardBench 2: the best of four in five domains, and Ties with its own score.

    Example: prudent evaluate rewardbench2 --data allenai/reward-bench-2 --model runs/rm --out runs/rb2
    """


@command("evaluate rewardmath", run=RUN)
class RewardMathOptions(EvaluateOptions):
    """RewardMATH: one correct solution against many. Process models are read in all eight ways.

    Example: prudent evaluate rewardmath --scores rewardmath_scores.jsonl --out runs/rewardmath
    """

    leave_out: Annotated[bool, option("Also without each source model's solutions.", "--leave-out")] = False


@command("evaluate preferences", run=RUN)
class PreferencesOptions(EvaluateOptions, PairOptions):
    """Any preference pairs: accuracy, calibration, errors against disagreement.

    Example: prudent evaluate preferences --data test.jsonl --model runs/rm --out runs/eval
    """


@command("evaluate validity", run="evaluate.validity:study")
class ValidityOptions(OptionalRun):
    """Does a benchmark predict the outcome? Pearson and Spearman of every numeric column with it, with intervals.

    Example: prudent evaluate validity --data results.csv --outcome best_of_64 --out runs/validity
    """

    data: Annotated[Path, option("Table with a row a reward model: benchmark scores and an outcome.", exists=True)]
    outcome: Annotated[str, option("Column of the outcome: best-of-n accuracy, gold of a policy, ...")]
    name: Annotated[str, option("Column of the models' names.")] = "model"
    rounds: Annotated[int, option("Bootstrap rounds.", min=10, max=1_000_000)] = 2000
