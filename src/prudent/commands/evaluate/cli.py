"""``prudent evaluate``: RewardBench 1 and 2, RewardMATH, preference pairs, and what a benchmark predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prudent.commands.common import ConfigOption, JsonOption, OverwriteOption, SeedOption, guarded, print_json, say

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Scorer; may be given several times: a folder that prudent fit wrote, a sequence-classification model "
        "(folder or hub id), module:function, dpo:POLICY,REFERENCE, prm:MODEL or judge:MODEL.",
    ),
]
Scores = Annotated[
    list[Path] | None, typer.Option("--scores", help="File of precomputed scores, of one or several models.")
]
Against = Annotated[
    list[str] | None, typer.Option("--against", help="Another scorer or scores file to compare the first one with.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Benchmark file or hub data set; not needed where scores say everything.")
]
Only = Annotated[list[str] | None, typer.Option("--only", help="Of a scores file, these models only.")]
Subset = Annotated[str | None, typer.Option(help="Only this subset; rows that name none are taken to be of it.")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set.")]
Rule = Annotated[str, typer.Option(help="Rule over members for the headline: mean, median, min, lcb, uwo, cvar, ...")]
Reduction = Annotated[
    str | None, typer.Option(help="Reduction of step scores for the headline; by default the best of all eight.")
]
OnError = Annotated[str, typer.Option(help="Unusable rows and scores: raise (list all) or skip (leave out, counted).")]
Rounds = Annotated[int, typer.Option(min=10, help="Bootstrap rounds.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder to write: JSON, items, tables, report.html.")]
Beta = Annotated[float, typer.Option("--dpo-beta", help="Beta of DPO's implicit reward.")]
Tag = Annotated[str, typer.Option(help="Step tag of a process reward model that is a language model.")]
Good = Annotated[str, typer.Option(help="Its token for a right step.")]
Bad = Annotated[str, typer.Option(help="Its token for a wrong step.")]
Swap = Annotated[bool, typer.Option("--swap", help="Judges read each item in both orders.")]
Ratings = Annotated[bool, typer.Option("--ratings", help="Judges rate each answer alone (what Ties needs).")]
LanguageModel = Annotated[str | None, typer.Option(help="Language model to use in place of the one a folder names.")]
Dtype = Annotated[str | None, typer.Option(help="Precision of language models: float32, bfloat16.")]

app = typer.Typer(
    no_args_is_help=True,
    help="Measure reward models on public benchmarks, with intervals, ties, baselines and paired tests.",
)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="evaluate")


def run(benchmark: str, given: dict[str, Any]) -> None:
    """Check, evaluate, write and print; ``given`` holds the command's options by name."""
    from prudent.commands.evaluate.run import evaluate

    evaluate(benchmark, {name: value for name, value in given.items() if name != "config"})


@app.command(
    epilog="Example: prudent evaluate rewardbench --data rb.jsonl --model runs/rm --against other/rm --out runs/rb"
)
@guarded
def rewardbench(
    data: Data = None,
    model: Models = None,
    scores: Scores = None,
    against: Against = None,
    out: Out = None,
    only: Only = None,
    subset: Subset = None,
    split: Split = None,
    rule: Rule = "mean",
    reduction: Reduction = None,
    weights: Annotated[str, typer.Option(help="counts (of the data set) or leaderboard (of the released code).")] = (
        "counts"
    ),
    prior: Annotated[bool, typer.Option("--prior", help="Add the prior sets at half weight.")] = False,
    on_error: OnError = "raise",
    rounds: Rounds = 1000,
    dpo_beta: Beta = 0.1,
    step_tag: Tag = "ки",
    good: Good = "+",
    bad: Bad = "-",
    swap: Swap = False,
    ratings: Ratings = False,
    language_model: LanguageModel = None,
    dtype: Dtype = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """RewardBench 1: pairs in four sections. A tie is wrong in the headline and half right beside it."""
    run("rewardbench", locals())


@app.command(
    epilog="Example: prudent evaluate rewardbench2 --data allenai/reward-bench-2 --model runs/rm --out runs/rb2"
)
@guarded
def rewardbench2(
    data: Data = None,
    model: Models = None,
    scores: Scores = None,
    against: Against = None,
    out: Out = None,
    only: Only = None,
    subset: Subset = None,
    split: Split = None,
    rule: Rule = "mean",
    reduction: Reduction = None,
    on_error: OnError = "raise",
    rounds: Rounds = 1000,
    dpo_beta: Beta = 0.1,
    step_tag: Tag = "ки",
    good: Good = "+",
    bad: Bad = "-",
    swap: Swap = False,
    ratings: Ratings = False,
    language_model: LanguageModel = None,
    dtype: Dtype = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """RewardBench 2: the best of four in five domains, and Ties with its own score."""
    run("rewardbench2", locals())


@app.command(epilog="Example: prudent evaluate rewardmath --scores rewardmath_scores.jsonl --out runs/rewardmath")
@guarded
def rewardmath(
    data: Data = None,
    model: Models = None,
    scores: Scores = None,
    against: Against = None,
    out: Out = None,
    only: Only = None,
    subset: Subset = None,
    split: Split = None,
    rule: Rule = "mean",
    reduction: Reduction = None,
    leave_out: Annotated[bool, typer.Option("--leave-out", help="Also without each source model's solutions.")] = False,
    on_error: OnError = "raise",
    rounds: Rounds = 1000,
    dpo_beta: Beta = 0.1,
    step_tag: Tag = "ки",
    good: Good = "+",
    bad: Bad = "-",
    swap: Swap = False,
    ratings: Ratings = False,
    language_model: LanguageModel = None,
    dtype: Dtype = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """RewardMATH: one correct solution against many. Process models are read in all eight ways."""
    run("rewardmath", locals())


@app.command(epilog="Example: prudent evaluate preferences --data test.jsonl --model runs/rm --out runs/eval")
@guarded
def preferences(
    data: Data = None,
    model: Models = None,
    scores: Scores = None,
    against: Against = None,
    out: Out = None,
    only: Only = None,
    subset: Subset = None,
    split: Split = None,
    rule: Rule = "mean",
    reduction: Reduction = None,
    on_error: OnError = "raise",
    rounds: Rounds = 1000,
    dpo_beta: Beta = 0.1,
    step_tag: Tag = "ки",
    good: Good = "+",
    bad: Bad = "-",
    swap: Swap = False,
    ratings: Ratings = False,
    language_model: LanguageModel = None,
    dtype: Dtype = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Any preference pairs: accuracy, calibration, errors against disagreement."""
    run("preferences", locals())


@app.command(epilog="Example: prudent evaluate validity --data results.csv --outcome best_of_64 --out runs/validity")
@guarded
def validity(
    data: Annotated[Path, typer.Option(help="Table with a row a reward model: benchmark scores and an outcome.")],
    outcome: Annotated[str, typer.Option(help="Column of the outcome: best-of-n accuracy, gold of a policy, ...")],
    name: Annotated[str, typer.Option(help="Column of the models' names.")] = "model",
    out: Out = None,
    rounds: Rounds = 2000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Does a benchmark predict the outcome? Pearson and Spearman of every numeric column with it, with intervals."""
    from prudent.commands.evaluate.validity import study

    result = study(data, outcome, name, rounds, seed, out, overwrite)
    if as_json:
        print_json(result)
    elif out is not None:
        say(f"wrote {out}")
