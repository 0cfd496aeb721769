"""``prudent score``: JSONL in, JSONL out with mean, standard deviation and members."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prudent.commands.common import ConfigOption, JsonOption, OverwriteOption, SeedOption, guarded, print_json, say

if TYPE_CHECKING:
    import torch

    from prudent.rewards.model import RewardModel

EPILOG = "Example: prudent score --model runs/rm --data responses.jsonl --output scored.jsonl"


def register(app: typer.Typer) -> None:
    app.command(name="score", epilog=EPILOG)(score)


@guarded
def score(
    model: Annotated[str, typer.Option(help="Folder that prudent fit wrote, or a sequence-classification model.")],
    data: Annotated[
        Path, typer.Option(help="JSONL with prompt and response, or a pool with prompt and responses, in every row.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to write scores.jsonl and a summary to.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write the scored rows to.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Also give a reward by this rule: mean, min, lcb, uwo, median, cvar, ...")
    ] = None,
    language_model: Annotated[
        str | None, typer.Option(help="Language model to use in place of the one named in the folder (same weights).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of the language model: float32, bfloat16.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Score responses with every member of a reward model.

    Each row comes back with its own columns and mean, standard_deviation (sample, ddof=1, over members; null for one
    member) and members; in a pool these are lists over its responses. Without --out or --output rows go to stdout.
    Under accelerate launch the rows are shared among the processes, and the first one writes.
    """
    from prudent.errors import PrudentError
    from prudent.features.processes import Processes
    from prudent.rewards.model import RewardModel
    from prudent.runs import dumps, new_run, refuse_used, write_atomic

    if as_json and out is None and output is None:
        raise PrudentError("--json prints one object, so name a place for the rows: --out FOLDER or --output FILE")
    if out is not None:
        refuse_used(out, overwrite)
    rows, prompts, responses = read_rows(data)
    reward_model = RewardModel.load(model, model=language_model, dtype=dtype)
    processes = Processes()
    if processes.first:
        say(f"scoring {len(responses)} responses with {reward_model.members} members ({reward_model.family})")
    scores = reward_model.score(prompts, responses, distributed=True)
    if not processes.first:
        return  # under accelerate launch all processes score and the first one writes
    scored = scored_rows(rows, scores, rule)
    summary = summarise(reward_model, scores, len(rows), rule)
    text = "".join(dumps(row, indent=None) + "\n" for row in scored)
    if output is not None:
        write_atomic(output, text)
        say(f"wrote {output}")
    if out is not None:
        options = {"model": model, "data": str(data), "rule": rule}
        with new_run(out, "score", options, seed, overwrite) as run:
            run.write_text("scores.jsonl", text)
            run.write_json("score.json", summary)
        say(f"wrote {out}")
    if as_json:
        print_json(summary)
    elif out is None and output is None:
        print(text, end="", flush=True)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """(rows, prompts, responses): the rows as given, and one prompt and response for every response in them.

    A row has ``response`` (text or messages) or ``responses`` (a list of texts). DataError names every bad row.
    """
    from prudent.data.files import read_records
    from prudent.data.formats import Reject
    from prudent.data.ratings import read_response
    from prudent.errors import BadRow, DataError, PrudentError

    bad: list[BadRow] = []
    rows: list[dict[str, Any]] = []
    prompts: list[Any] = []
    responses: list[Any] = []
    for record in read_records(path):
        bad += record.errors
        row = record.value
        if row is None or record.errors:
            continue
        many = row.get("responses")
        if many is not None and (not isinstance(many, list) or not many):
            bad.append(BadRow(record.line, "responses", "not-a-list", "give a list with at least one text"))
            continue
        try:
            for answer in many if many is not None else [row.get("response")]:
                single = {"response": answer} if many is not None or "response" in row else {}
                prompt, response = read_response(
                    {**({"prompt": row["prompt"]} if "prompt" in row else {}), **single}, lambda *_: None
                )
                prompts.append(prompt)
                responses.append(response)
            rows.append(row)
        except Reject as reject:
            bad += [BadRow(record.line, p.field, p.reason, p.detail) for p in reject.problems]
    if bad:
        raise DataError(str(path), bad, "every row needs a prompt and a response (or a list of responses)")
    if not rows:
        raise PrudentError(f"{path} holds no row to score")
    return rows, prompts, responses


def scored_rows(rows: list[dict[str, Any]], scores: torch.Tensor, rule: str | None) -> list[dict[str, Any]]:
    """Rows with mean, standard_deviation and members (and reward), lists where a row has many responses."""
    from prudent.rewards.aggregation import aggregate
    from prudent.rewards.uncertainty import as_scores

    scores = as_scores(scores)
    columns: dict[str, list[Any]] = {
        "mean": scores.mean(0).tolist(),
        "standard_deviation": scores.std(0).tolist() if len(scores) > 1 else [None] * scores.shape[1],
        "members": scores.T.tolist(),
    }
    if rule is not None:
        columns["reward"] = aggregate(scores, rule).tolist()
    scored, place = [], 0
    for row in rows:
        if row.get("responses") is not None:
            stop = place + len(row["responses"])
            found: dict[str, Any] = {name: values[place:stop] for name, values in columns.items()}
        else:
            stop = place + 1
            found = {name: values[place] for name, values in columns.items()}
        scored.append({**row, **found})
        place = stop
    return scored


def summarise(reward_model: RewardModel, scores: torch.Tensor, rows: int, rule: str | None) -> dict[str, Any]:
    """What ``--json`` prints: counts, the spread's definition, and the mean spread (null for one member)."""
    from prudent.rewards.aggregation import describe
    from prudent.rewards.uncertainty import moments, warn_if_identical

    summary: dict[str, Any] = {
        "family": reward_model.family,
        "members": reward_model.members,
        "rows": rows,
        "responses": scores.shape[1],
        "mean": float(scores.mean()),
        "ddof": 1,
        "mean_standard_deviation": None,
        "rule": describe(rule) if rule else None,
        "identical_members": [],
    }
    if len(scores) > 1:
        summary["mean_standard_deviation"] = float(moments(scores)[1].sqrt().mean())
        if scores.shape[1] > 1:
            summary["identical_members"] = warn_if_identical(scores)
    else:
        summary["reason"] = {"mean_standard_deviation": "the spread of one member is undefined"}
    return summary
