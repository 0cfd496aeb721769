"""``prudent score``: JSONL in, JSONL out with mean, standard deviation and members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prudent.commands.common import one_sum_order, say
from prudent.commands.score.options import ScoreOptions

if TYPE_CHECKING:
    import torch

    from prudent.data.responses import Item
    from prudent.errors import BadRow
    from prudent.rewards.model import RewardModel


def score(options: ScoreOptions) -> dict[str, Any]:
    """Score, write or print the rows; the summary."""
    from prudent.data.failing import counted, use_rows
    from prudent.features.limits import same_responses, words
    from prudent.files import dumps, write_output
    from prudent.rewards.model import RewardModel
    from prudent.runs import new_run

    one_sum_order()
    items, bad = read_rows(options.data, options.columns, options.on_error)
    reward_model = RewardModel.load(
        options.model, model=options.language_model, dtype=options.dtype, max_length=options.max_length
    )
    texts = sum(len(item.responses) for item in items)
    say(f"scoring {texts} responses with {reward_model.members} members ({reward_model.family})")
    scores, kept, failing = use_rows(
        lambda rows: score_items(scorer_of(options, reward_model), [items[row] for row in rows]),
        [item.origin for item in items],
        options.data,
        options.on_error,
    )
    used = [items[row] for row in kept]
    rows = [item.row for item in used]
    scored = scored_rows(rows, scores, options.rule, reward_model.one_origin)
    summary = summarise(reward_model, scores, len(rows), options.rule) | counted([*bad, *failing])
    owners, prompts, responses = flat(used)
    summary["shown"] = same_responses(reward_model.shown(prompts, responses), owners, responses)
    if said := words(summary["shown"]):
        say(f"warning: {said}")
    if summary["left_out"]:
        say("\n".join([f"{summary['left_out']} rows left out:", *summary["left_out_rows"]]))
    text = "".join(dumps(row, indent=None) + "\n" for row in scored)
    if options.output is not None:
        write_output(options.output, text)
        say(f"wrote {options.output}")
    if options.out is not None:
        chosen = {"model": options.model, "data": str(options.data), "rule": options.rule}
        with new_run(options.out, "score", chosen, options.seed, options.overwrite) as run:
            run.write_text("scores.jsonl", text)
            run.write_json("score.json", summary)
        say(f"wrote {options.out}")
    if options.out is None and options.output is None:
        print(text, end="", flush=True)
    return summary


def scorer_of(options: ScoreOptions, reward_model: RewardModel) -> Callable[[list[Any], list[Any]], torch.Tensor]:
    """What gives the scores (K, N) of N responses with their prompts: the model here, or Ray's workers."""
    engine = options.ray_engine()
    if engine is None:
        return reward_model.score
    from prudent.rewards.blocks import score_texts

    how = {"model": options.language_model, "dtype": options.dtype, "max_length": options.max_length}
    return lambda prompts, responses: score_texts(engine, options.model, prompts, responses, **how)


def flat(items: list[Item]) -> tuple[list[int], list[Any], list[Any]]:
    """(index of the item, prompt, response) of every response."""
    owners = [index for index, item in enumerate(items) for _ in item.responses]
    return owners, [p for item in items for p in item.prompts], [r for item in items for r in item.responses]


def score_items(score: Callable[[list[Any], list[Any]], torch.Tensor], items: list[Item]) -> torch.Tensor:
    """Scores (K, N) of all responses of the items; RowsError names the items that have none."""
    from prudent.errors import RowsError
    from prudent.rewards.uncertainty import finite_rows

    owners, prompts, responses = flat(items)
    try:
        return finite_rows(score(prompts, responses))
    except RowsError as error:
        raise error.moved(owners) from error


def read_rows(
    path: Path, columns: Mapping[str, str] | None = None, on_error: str = "raise"
) -> tuple[list[Item], list[BadRow]]:
    """The items of a file and the rows left out (none unless ``on_error`` is "skip"). DataError names every bad row."""
    from prudent.data.responses import read_items
    from prudent.errors import DataError, PrudentError

    bad: list[BadRow] = []
    items: list[Item] = []
    for item, faults in read_items(path, columns):
        bad += faults
        if item is not None:
            items.append(item)
    if bad and on_error != "skip":
        remedy = "every row needs a prompt and a response (or a list of responses); --on-error skip leaves these out"
        raise DataError(str(path), bad, remedy)
    if not items:
        raise PrudentError(f"{path} holds no row to score" + (f"; the first of {len(bad)}: {bad[0]}" if bad else ""))
    return items, bad


def scored_rows(
    rows: list[dict[str, Any]], scores: torch.Tensor, rule: str | None, together: bool = False
) -> list[dict[str, Any]]:
    """Rows with mean, standard_deviation and members of the raw scores (K, N); lists where a row has many responses.

    Such a row also has standard_deviation_centred: each member without its mean over the row's responses (together: all
    without their common mean, see ``uncertainty.centre_members``), as ``prudent best-of-n`` compares them. reward is
    the rule's, of centred members in a row of many responses and of raw ones in a row of one.
    """
    import torch

    from prudent.rewards.aggregation import aggregate
    from prudent.rewards.uncertainty import as_scores, centre_members

    scores = as_scores(scores)
    counts = [1 if row.get("responses") is None else len(row["responses"]) for row in rows]
    owners = [row for row, count in enumerate(counts) for _ in range(count)]
    alone = torch.tensor([row.get("responses") is None for row in rows])[owners]
    inner = torch.where(alone, scores, centre_members(scores.double(), owners, together=together).to(scores.dtype))
    nothing: list[Any] = [None] * scores.shape[1]
    several = len(scores) > 1
    columns: dict[str, list[Any]] = {
        "mean": scores.mean(0).tolist(),
        "standard_deviation": scores.std(0).tolist() if several else nothing,
        "standard_deviation_centred": inner.std(0).tolist() if several else nothing,
        "members": scores.T.tolist(),
    }
    if rule is not None:
        columns["reward"] = aggregate(inner, rule).tolist()
    scored, index = [], 0
    for row in rows:
        if row.get("responses") is not None:
            stop = index + len(row["responses"])
            found: dict[str, Any] = {name: values[index:stop] for name, values in columns.items()}
        else:
            stop = index + 1
            found = {name: values[index] for name, values in columns.items() if name != "standard_deviation_centred"}
        scored.append({**row, **found})
        index = stop
    return scored


def summarise(reward_model: RewardModel, scores: torch.Tensor, rows: int, rule: str | None) -> dict[str, Any]:
    """What ``--json`` prints: counts, the definition of sigma, and its mean (null for one member)."""
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
        summary["reason"] = {"mean_standard_deviation": "the standard deviation of one member is undefined"}
    return summary
