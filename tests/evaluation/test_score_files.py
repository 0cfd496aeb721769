"""Benchmark and score files: every shape, matched by id, every bad row named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prudent.errors import DataError, PrudentError
from prudent.evaluation.benchmarks.contest import (
    Contestant,
    judge,
    length_baselines,
    member_uncertainty,
    of_scores,
    of_table,
)
from prudent.evaluation.benchmarks.items import read_items
from prudent.evaluation.benchmarks.score_files import items_of_scores, match, read_scores

OPTIONS = {
    "rule": "mean",
    "reduction": None,
    "rules": ["mean", "min", "lcb"],
    "weights": "counts",
    "prior": False,
    "rounds": 50,
    "seed": 0,
}


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}?",
            "chosen": "Yes, and why.",
            "rejected": f"No {i}.",
            "subset": "math-prm",
        }
        for i in range(4)
    ]
    return lines(tmp_path / "pairs.jsonl", rows)


def test_scores_match_by_id_whatever_the_order(pairs: Path, tmp_path: Path) -> None:
    items = read_items("rewardbench", pairs)
    rows = [{"id": f"p{i}", "scores": [float(i), 1.5]} for i in (3, 1, 0, 2)]
    (table,) = read_scores(lines(tmp_path / "s.jsonl", rows))
    result = judge(of_table(table, items), items, OPTIONS)
    assert result.view.credit.tolist() == [0, 0, 1, 1] and result.view.metrics["Reasoning, 1 of 7 subsets"].value == 0.5


def test_every_bad_score_row_is_named(pairs: Path, tmp_path: Path) -> None:
    items = read_items("rewardbench", pairs)
    rows = [{"id": "p0", "scores": [1, None]}, {"id": "p1", "scores": [1, 2, 3]}, {"id": "other", "scores": [1, 2]}]
    (table,) = read_scores(lines(tmp_path / "s.jsonl", rows))
    with pytest.raises(DataError) as caught:
        match(table, items)
    reasons = {(row.field, row.reason) for row in caught.value.rows}
    assert reasons == {
        ("p0", "not-finite"),
        ("p1", "wrong-length"),
        ("p2", "no-scores"),
        ("p3", "no-scores"),
        ("other", "unknown-id"),
    }
    good = lines(tmp_path / "g.jsonl", [{"id": "p3", "scores": [2, 1]}, {"id": "p0", "scores": [None, 1]}])
    contestant = of_table(read_scores(good)[0], items, "skip")
    assert contestant.indices == [3] and "3 of 4 items left out" in contestant.notes[0]


def test_duplicate_ids_and_unreadable_rows(tmp_path: Path) -> None:
    rows = [{"id": 1, "scores": [1, 2]}, {"id": 1, "scores": [1, 2]}, {"id": 2}, {"id": 3, "scores": [1, [2]]}]
    with pytest.raises(DataError) as caught:
        read_scores(lines(tmp_path / "s.jsonl", rows))
    assert [(row.line, row.reason) for row in caught.value.rows] == [
        (2, "duplicate-id"),
        (3, "no-scores"),
        (4, "not-scores"),
    ]
    with pytest.raises(DataError, match="duplicate-id"):
        same = [{"id": "a", "prompt": q, "chosen": "x", "rejected": "y"} for q in "QR"]
        read_items("preferences", lines(tmp_path / "d.jsonl", same))


def test_without_ids_only_equal_lengths_match(pairs: Path, tmp_path: Path) -> None:
    items = read_items("rewardbench", pairs)
    (table,) = read_scores(lines(tmp_path / "s.jsonl", [{"chosen": 2, "rejected": 1}] * 4))
    assert match(table, items)[0] == [0, 1, 2, 3]
    (short,) = read_scores(lines(tmp_path / "t.jsonl", [{"chosen": 2, "rejected": 1}] * 3))
    with pytest.raises(PrudentError, match="3 rows for 4 items"):
        match(short, items)


def test_ids_of_other_subsets_never_match(tmp_path: Path) -> None:
    rows = [
        {"id": f"{s}-{i}", "prompt": f"{s} {i}", "chosen": "a b", "rejected": "c", "subset": s}
        for s in ("llmbar-natural", "math-prm")
        for i in range(2)
    ]
    data = lines(tmp_path / "b.jsonl", rows)
    (table,) = read_scores(lines(tmp_path / "s.jsonl", [{"problem_id": i, "scores": [1, 0]} for i in range(2)]))
    with pytest.raises(DataError, match="unknown-id"):
        match(table, read_items("rewardbench", data))
    items = read_items("rewardbench", data, subset="math-prm")
    assert match(table, items)[0] == [0, 1] and items.left_out == {"other-subset": 2}


def test_kinds_of_scores(tmp_path: Path) -> None:
    rows = [
        {"id": i, "scores": {"members": [[1, 2], [0, 1]], "steps": [[0.9], [0.1, 0.2]], "plain": [1, 0]}}
        for i in range(3)
    ]
    tables = {table.name: table for table in read_scores(lines(tmp_path / "s.jsonl", rows))}
    assert {name: table.kind for name, table in tables.items()} == {
        "members": "members",
        "steps": "steps",
        "plain": "scores",
    }
    items = items_of_scores(tables["plain"], "rewardmath", "s.jsonl", None)
    result = judge(of_table(tables["steps"], items), items, OPTIONS)
    assert result.reductions is not None and result.views["last"].metrics["accuracy"].value == 1
    ensemble = judge(of_table(tables["members"], items), items, OPTIONS)
    assert set(ensemble.views) == {"mean", "min", "lcb", "member 0", "member 1"}


def test_judgements(pairs: Path, tmp_path: Path) -> None:
    items = read_items("preferences", pairs)
    rows = [
        {"id": "p0", "chosen_slot": "A", "output": "[[A]]", "output_swapped": "[[B]]"},
        {"id": "p1", "chosen_slot": "A", "output": "[[A]]", "output_swapped": "[[A]]"},
        {"id": "p2", "chosen_slot": "B", "output": "[[A]]", "output_swapped": "[[B]]"},
        {"id": "p3", "chosen_slot": "B", "output": "no verdict"},
    ]
    (table,) = read_scores(lines(tmp_path / "j.jsonl", rows))
    result = judge(of_table(table, items), items, OPTIONS)
    detail = result.view.detail
    assert (detail.right, detail.wrong, detail.tie, detail.invalid) == (1, 1, 1, 1)
    assert result.view.metrics["accuracy"].value == 0.375


def test_rewardbench2_and_solutions_are_read(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
        {"id": "tied:1", "prompt": "T", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"},
        {"id": "bad", "prompt": "T", "chosen": [], "rejected": ["c"], "subset": "Ties"},
    ]
    data = lines(tmp_path / "b.jsonl", rows)
    with pytest.raises(DataError, match="line 3"):
        read_items("rewardbench2", data)
    items = read_items("rewardbench2", data, on_error="skip")
    assert items.sizes == [4, 3] and items.correct == [1, 2] and items.left_out == {"not-texts": 1}
    rows = [
        {
            "problem": "P",
            "problem_id": 1,
            "eval_solution": ["s"],
            "solution_type": "rejected",
            "solution_reference": "m",
        },
        {"problem": "P", "problem_id": 1, "eval_solution": ["r", "t"], "solution_type": "chosen"},
        {"problem": "Q", "problem_id": 2, "eval_solution": ["r"], "solution_type": "rejected"},
    ]
    data = lines(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError, match=r"line 3.*no-correct-solution"):
        read_items("rewardmath", data)
    items = read_items("rewardmath", data, on_error="skip")
    assert items.candidates == [["r\nt", "s"]] and items.steps == [[["r", "t"], ["s"]]] and items.sources[0][1] == "m"


def test_real_formats(shared: Path) -> None:
    direct = read_items("rewardmath", shared / "data/evaluation/rewardmath_sample_direct.jsonl.gz")
    pairwise = read_items("rewardmath", shared / "data/evaluation/rewardmath_sample_pairwise.jsonl.gz")
    assert direct.sizes == pairwise.sizes == [10, 10] and direct.candidates == pairwise.candidates
    gsm = read_items("rewardmath", shared / "data/evaluation/gsm8k_rewardmath_format.jsonl.gz")
    assert len(gsm) == 526 and set(gsm.sizes) == {2, 3, 4}


def test_length_alone_nearly_solves_a_real_subset(shared: Path) -> None:
    items = read_items("rewardbench", shared / "data/evaluation/rewardbench_subsets.jsonl.gz", subset="math-prm")
    longest, shortest = (judge(c, items, OPTIONS) for c in length_baselines(items))
    assert shortest.view.metrics["micro"].value > 0.9 and longest.view.metrics["micro"].value < 0.1


def test_disagreement_finds_planted_errors() -> None:
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.uniform(0.1, 3, 600), 2)
    truth = np.tile([0.7, 0.0], 600)
    members = truth + noise * (0.6 * rng.normal(size=1200) + rng.normal(size=(10, 1200)))
    found = member_uncertainty(members, [2] * 600)
    assert all(values.shape == (600,) for values in found.values())
    items = fake_items(600)
    result = judge(of_scores("planted", members, items), items, OPTIONS)
    aurocs = {d.measure: d.auroc for d in result.disagreement}
    assert aurocs["deviation"].low > 0.55 and aurocs["deviation / |margin|"].value > aurocs["deviation"].value
    assert result.disagreement[0].bins[0].value > result.disagreement[0].bins[-1].value
    shifted = members + rng.normal(size=(10, 1))  # offsets of members mean nothing
    again = member_uncertainty(shifted, [2] * 600)
    assert np.allclose(found["deviation"], again["deviation"])


def fake_items(n: int):
    from prudent.evaluation.benchmarks.items import Items

    return Items(
        "preferences",
        "made",
        [str(i) for i in range(n)],
        [str(i) for i in range(n)],
        [["a", "b"]] * n,
        [1] * n,
        ["all"] * n,
        [["", ""]] * n,
    )


def test_scores_that_are_not_finite_name_the_item() -> None:
    with pytest.raises(PrudentError, match="row 1: bad gave it nan"):
        of_scores("bad", [1, 2, 3, float("nan")], fake_items(2))
    with pytest.raises(PrudentError, match="for 4 responses"):
        of_scores("bad", [1, 2, 3], fake_items(2))


def test_unknown_rule_is_named() -> None:
    contestant = Contestant("x", "members", [0, 1], np.zeros((2, 4)))
    with pytest.raises(PrudentError, match="rule 'median'"):
        judge(contestant, fake_items(2), OPTIONS | {"rule": "median"})


def test_steps_of_0_and_1_cost_one_item_in_one_reduction(pairs: Path, tmp_path: Path) -> None:
    items = read_items("preferences", pairs)
    rows = [{"id": f"p{i}", "steps": [[0.9, 0.8], [0.5, 0.4]]} for i in range(4)]
    rows[1]["steps"] = [[1.0, 0.9], [0.0, 1.0]]
    (table,) = read_scores(lines(tmp_path / "s.jsonl", rows))
    result = judge(of_table(table, items), items, OPTIONS)
    found = {name: view.metrics["accuracy"].n for name, view in result.views.items()}
    assert found == dict.fromkeys(found, 4) | {"mean_logit": 3, "mean_odds": 3}
    assert any("mean_odds has no value, so null, for 1 of 4 items" in note for note in result.notes)
    odds = judge(of_table(table, items), items, OPTIONS | {"reduction": "mean_odds"})
    assert odds.items.ids == ["p0", "p2", "p3"] and odds.indices == [0, 2, 3] and len(odds.scores) == 6
    with pytest.raises(PrudentError, match="reduction is 'sum'"):
        judge(of_table(table, items), items, OPTIONS | {"reduction": "sum"})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"steps": 0.5}, "steps are 0.5"),
        ({"steps": "0.5 0.6"}, "steps are '0.5 0.6'"),
        ({"steps": [0.5, 0.6]}, "steps of candidate 1 are 0.5"),
        ({"steps": [[0.5], "0.6"]}, "steps of candidate 2 are '0.6'"),
        ({"steps": [["0.5"], ["0.6"]]}, "text or true/false"),
        ({"members": [0.5, 0.6]}, "members of candidate 1 are 0.5"),
        ({"scores": ["0.5", "0.6"]}, "text or true/false"),
        ({"scores": [True, False]}, "text or true/false"),
    ],
)
def test_scores_that_are_no_lists_of_numbers_are_named(scores: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1") as caught:
        read_scores(lines(tmp_path / "s.jsonl", [{"id": "a", **scores}]))
    assert message in str(caught.value)
