"""Every reader of rows, with a good file of its own from which hostile ones are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prudent.commands.evaluate.validity import read_table
from prudent.commands.score.run import read_rows
from prudent.data.pools import Pool, read_pool, read_prompts
from prudent.data.preferences import read_preferences_with_report
from prudent.data.ratings import read_ratings
from prudent.evaluation.benchmarks.items import read_items
from prudent.evaluation.benchmarks.score_files import read_scores
from prudent.evaluation.overoptimization.worlds import read_solutions
from prudent.recommend.interactions import read_interactions

Row = dict[str, Any]
SAME = "same"  # what is read is what the good file gives
FINE = "fine"  # the value is a right one: read without a word


@dataclass(frozen=True)
class Reader:
    """read: path -> what was read, as plain values. rows: a good file. fields: which of its fields get wrong values.
    right: field -> kinds of value that are read all the same (FINE), or kept and flagged (the flag's reason).
    skip: the same with bad rows left out, the number of rows kept."""

    read: Callable[[Path], Any]
    rows: list[Row]
    fields: tuple[str, ...] = ()
    right: dict[str, dict[str, str]] = field(default_factory=dict)
    skip: Callable[[Path], int] | None = None
    flags: Callable[[Path], dict[str, int]] | None = None
    tables: tuple[str, ...] = ("parquet", "arrow")
    flat: bool = False  # cells are single values, so that a CSV holds them


def pairs(path: Path) -> Any:
    data, _ = read_preferences_with_report(path)
    return [[row[name] for name in ("prompt", "chosen", "rejected")] for row in data]


def kept(path: Path) -> int:
    return len(read_preferences_with_report(path, on_error="skip")[0])


def flagged(path: Path) -> dict[str, int]:
    report = read_preferences_with_report(path)[1]
    return {**report.counts()["flagged"], **report.counts()["left_out"]}


def ratings(path: Path) -> Any:
    return [(row["prompt"], row["response"]) for row in read_ratings(path, ["helpfulness"])[0]]


def items(benchmark: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        found = read_items(benchmark, path)
        return [found.ids, found.prompts, found.candidates, found.correct, found.subsets]

    return read


def items_kept(benchmark: str) -> Callable[[Path], int]:
    return lambda path: len(read_items(benchmark, path, on_error="skip"))


def of_pool(pool: Pool) -> Any:
    return [pool.prompts, pool.responses, pool.gold, pool.ids]


def tables(path: Path) -> Any:
    return [(table.kind, repr(table.rows)) for table in read_scores(path)]


def scored(path: Path) -> Any:
    return [(item.prompts, item.responses) for item in read_rows(path)[0]]


def scored_kept(path: Path) -> int:
    return len(read_rows(path, on_error="skip")[0])


def outcomes(path: Path) -> Any:
    names, columns = read_table(path, "outcome", "model")
    return names, columns["outcome"]


def interactions(path: Path) -> Any:
    return read_interactions(path)[0].pairs()


WORDS = ("oak", "elm", "ash")
PAIRS = [{"prompt": f"Name a tree, {w}?", "chosen": f"An {w}.", "rejected": "A rock."} for w in WORDS]
NUMBERS = {  # of a pair: what can't be used is missing and flagged
    **dict.fromkeys(("null", "empty text", "blank text", "missing"), FINE),
    **dict.fromkeys(("text", "true", "any list", "any object", "NaN", "1e999", "400 digits"), "not-a-number"),
    "900 deep": "too-deep",
}
IDS = dict.fromkeys(
    ("null", "empty text", "blank text", "number", "negative", "text", "NaN", "400 digits", "missing", "900 deep"), FINE
)  # of "900 deep" nothing is left: it is missing

TEXTS = dict.fromkeys(("text", "empty text", "blank text", "list of texts"), FINE)  # models do answer nothing

READERS: dict[str, Reader] = {
    "preferences": Reader(
        pairs,
        [{**pair, "score_chosen": 8, "score_rejected": 1} for pair in PAIRS],
        ("prompt", "chosen", "rejected", "weight", "soft_label", "margin", "score_chosen"),
        {
            "prompt": {"text": FINE},
            "chosen": {"text": FINE},
            "rejected": {"text": FINE},
            "weight": {**NUMBERS, "number": FINE, "negative": "out-of-range"},
            "soft_label": {**NUMBERS, "number": "out-of-range", "negative": "out-of-range"},
            "margin": {**NUMBERS, "number": FINE, "negative": FINE},
            "score_chosen": {**NUMBERS, "number": FINE, "negative": "inverted-scores"},
        },
        kept,
        flagged,
        flat=True,
    ),
    "votes": Reader(
        pairs,
        [
            {"prompt": f"Q {w}", "response_1": w, "response_2": "rock", "votes": [1, 1, 1, i]}
            for i, w in enumerate(WORDS)
        ],
        ("prompt", "response_1", "response_2", "votes"),
        {
            **{name: {"text": FINE} for name in ("prompt", "response_1", "response_2")},
            "votes": {
                **dict.fromkeys(("null", "list", "NaN", "900 deep"), "no-votes"),
                **dict.fromkeys(("list of numbers", "list of texts"), "undecided"),
            },
        },
        kept,
        flagged,
    ),
    "rated pairs": Reader(
        pairs,
        [{"prompt": "Q", "response": w, "helpfulness": i} for i, w in enumerate(WORDS)],
        ("prompt", "response", "helpfulness"),
        {
            "prompt": {"text": "single"},
            "response": {"text": FINE},
            "helpfulness": {
                **dict.fromkeys(("null", "empty text", "blank text", "NaN", "900 deep"), "missing-rating"),
                **dict.fromkeys(("number", "negative"), FINE),
            },
        },
        flags=flagged,
        flat=True,
    ),
    "ratings": Reader(
        ratings,
        [{"prompt": "Q", "response": w, "helpfulness": i} for i, w in enumerate(WORDS)],
        ("prompt", "response", "helpfulness"),
        {
            **{name: {"text": FINE} for name in ("prompt", "response")},
            "helpfulness": dict.fromkeys(
                ("null", "empty text", "blank text", "NaN", "number", "negative", "missing", "900 deep"), FINE
            ),
        },
        flat=True,
    ),
    "pool": Reader(
        lambda path: of_pool(read_pool(path)),
        [{"id": w, "prompt": f"Q {w}", "responses": [w, "rock"], "gold": [1.5, -2]} for w in WORDS],
        ("prompt", "responses", "gold", "id"),
        {"prompt": {"text": FINE}, "responses": {"list of texts": FINE}, "gold": {"list of numbers": FINE}, "id": IDS},
    ),
    "prompts": Reader(
        lambda path: read_prompts(path)[0],
        [{"prompt": f"Q {w}"} for w in WORDS],
        ("prompt",),
        {"prompt": {"text": FINE}},
        flat=True,
    ),
    "rewardbench": Reader(
        items("rewardbench"),
        [{**pair, "id": w, "subset": "xstest-should-respond"} for pair, w in zip(PAIRS, WORDS)],
        ("prompt", "chosen", "id"),
        {"prompt": {"text": FINE}, "chosen": {"text": FINE}, "id": IDS},
        items_kept("rewardbench"),
        flat=True,
    ),
    "rewardbench2": Reader(
        items("rewardbench2"),
        [{"id": w, "prompt": f"Q {w}", "chosen": [w], "rejected": ["rock", "sand"], "subset": "Math"} for w in WORDS],
        ("prompt", "chosen", "rejected", "subset", "id"),
        {"prompt": {"text": FINE}, "chosen": TEXTS, "rejected": TEXTS, "subset": {"text": FINE}, "id": IDS},
        items_kept("rewardbench2"),
    ),
    "rewardmath": Reader(
        items("rewardmath"),
        [
            {"problem_id": k // 2, "problem": "1+1?", "eval_solution": ["so", str(k)], "solution_type": kind}
            for k, kind in enumerate(("rejected", "chosen", "rejected", "chosen"))
        ],
        ("problem", "problem_id", "eval_solution", "solution_type"),
        {"eval_solution": TEXTS},
    ),
    "scores": Reader(
        tables,
        [{"id": w, "scores": [3.1, 2 - i]} for i, w in enumerate(WORDS)],
        ("scores", "id"),
        {"scores": {"list of numbers": FINE, "list of NaN": FINE, "list of null": FINE}, "id": IDS},
    ),
    "steps": Reader(
        tables,
        [{"id": w, "steps": [[0.9, 0.8, 0.1 * i], [0.5]]} for i, w in enumerate(WORDS)],
        ("steps",),
        {"steps": {"lists of numbers": FINE}},
    ),
    "members": Reader(
        tables,
        [{"id": w, "members": [[0.9, 0.8], [0.5, i]]} for i, w in enumerate(WORDS)],
        ("members",),
        {"members": {"lists of numbers": FINE}},
    ),
    "judge": Reader(
        tables,
        [{"id": w, "chosen_slot": "A", "output": "I say [[A]]"} for w in WORDS],
        ("output", "chosen_slot"),
        {"output": dict.fromkeys(("null", "text", "empty text", "blank text", "NaN", "900 deep"), FINE)},
        flat=True,
    ),
    "rows to score": Reader(
        scored,
        [{"id": w, "prompt": f"Q {w}", "response": w} for w in WORDS],
        ("prompt", "response", "responses"),
        {
            **{name: {"text": FINE} for name in ("prompt", "response")},
            "responses": {"null": FINE, "missing": FINE, "list of texts": FINE, "NaN": FINE, "900 deep": FINE},
        },
        scored_kept,
        flat=True,
    ),
    "solutions": Reader(
        lambda path: of_pool(read_solutions(path)),
        [
            {"question": f"{i}+1?", "solutions": [{"solution": f"{i + k}", "is_correct": k == 1} for k in range(2)]}
            for i in range(3)
        ],
        ("question", "solutions"),
        {"question": {"text": FINE}},
    ),
    "interactions": Reader(
        interactions,
        [{"user": w, "item": f"i{i % 2}", "rating": 1 + i} for i, w in enumerate(WORDS)],
        ("user", "item", "rating"),
        {
            "user": dict.fromkeys(("number", "negative", "text", "400 digits"), FINE),
            "item": dict.fromkeys(("number", "negative", "text", "400 digits"), FINE),
            "rating": {"number": FINE},
        },
        tables=("parquet",),
        flat=True,
    ),
    "validity": Reader(
        outcomes,
        [{"model": w, "score": i, "outcome": 0.5 * i} for i, w in enumerate(WORDS)],
        ("outcome",),
        {"outcome": {"number": FINE, "negative": FINE}},
        flat=True,
    ),
}
