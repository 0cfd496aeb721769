"""Changes, repairs by decile, decisions; what the cleaned rows hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from prudent.data.cleaning import Change, apply_changes, changes_of_repairs, decide, flip_row, hashes_of, read_decisions
from prudent.data.repairs import Plan, parse_deciles, plan_repairs
from prudent.errors import DataError, PrudentError


def pairs(n: int = 10, **more: list) -> Dataset:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"P{i}"}],
            "chosen": [{"role": "assistant", "content": f"a{i}"}],
            "rejected": [{"role": "assistant", "content": f"b{i}"}],
            "row": i + 1,
            "chosen_model": "one",
            "rejected_model": "two",
        }
        for i in range(n)
    ]
    data = Dataset.from_list(rows)
    for name, values in more.items():
        data = data.add_column(name, values)
    return data


MEAN = np.array([-2.0, -1.0, -0.5, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0])
DECILE = np.arange(1, 11)


def repair(plan: Plan, data: Dataset) -> Any:
    repairs = plan_repairs(MEAN, 1 / (1 + np.exp(-MEAN)), DECILE, plan)
    return changes_of_repairs(repairs, list(range(10)), MEAN, np.ones(10), DECILE, data["row"], hashes_of(data))


def test_flips_swap_sides_and_what_belongs_to_them() -> None:
    data = pairs(soft_label=[0.8] * 10, votes=[[1, 1, 2]] * 10)
    cleaned = apply_changes(data, repair(Plan(flip=0.2), data))
    first = cleaned.rows[0]
    assert first["chosen"][0]["content"] == "b0" and first["rejected"][0]["content"] == "a0"
    assert (first["chosen_model"], first["rejected_model"]) == ("two", "one")
    assert first["votes"] == [2, 2, 1] and first["soft_label"] == 0.8 and first["flipped"]
    assert cleaned.flipped == [True, True] + [False] * 8
    entry = cleaned.log[0]
    assert entry["before"] == {"chosen": data[0]["chosen"], "rejected": data[0]["rejected"]}
    assert entry["after"] == {"chosen": data[0]["rejected"], "rejected": data[0]["chosen"]}
    assert entry["evidence"] == {"strength": -2.0, "sigma": 1.0, "decile": 1}
    assert flip_row(flip_row(data[0])) == data[0]


def test_repairs_mix_and_follow_the_flipped_label() -> None:
    plan = Plan(flip=0.1, drop={2}, soften={1, 3}, widen={1, 10})
    repairs = plan_repairs(MEAN, 1 / (1 + np.exp(-MEAN)), DECILE, plan)
    assert repairs.flip.tolist() == [True] + [False] * 9
    assert repairs.drop.tolist() == [False, True] + [False] * 8
    assert repairs.margin[0] == 2.0 and repairs.margin[9] == 3.0  # of the label as it stands after the flip
    assert repairs.soft_label[0] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert repairs.soft_label[2] == pytest.approx(1 / (1 + np.exp(0.5)))
    assert np.isnan(repairs.soft_label[4]) and np.isnan(repairs.margin[4])
    assert plan_repairs(MEAN, MEAN, DECILE, Plan(soften={5}, soft_value=0.9)).soft_label[4] == 0.9
    assert plan_repairs(MEAN, MEAN, DECILE, Plan(flip=0.2)).flip.sum() == 2
    weighed = plan_repairs(MEAN, MEAN, DECILE, Plan(drop={1}, weigh={1, 2}, weight_value=0.25)).weight
    assert np.isnan(weighed[0]) and weighed[1] == 0.25 and np.isnan(weighed[2:]).all()
    with pytest.raises(PrudentError, match="weight -1"):
        Plan(weigh={1}, weight_value=-1)


def test_columns_are_whole_for_trl(tmp_path: Path) -> None:
    data = pairs()
    cleaned = apply_changes(data, repair(Plan(widen={10}, soften={1}, weigh={2}), data))
    assert cleaned.columns == ["margin", "soft_label", "weight"]
    assert [row["weight"] for row in cleaned.rows] == [1.0, 0.5, *[1.0] * 8]
    assert [row["margin"] for row in cleaned.rows] == [0.0] * 9 + [3.0]
    assert [row["soft_label"] for row in cleaned.rows][1:] == [1.0] * 9


def test_drop_wins_over_flip() -> None:
    data = pairs()
    hashes = hashes_of(data)
    changes = [
        Change(1, 1, "strength-flip", "flip", "flip", hashes[0]),
        Change(1, 1, "duplicate", "drop", "drop", hashes[0]),
    ]
    cleaned = apply_changes(data, changes)
    assert len(cleaned.rows) == 9 and sum(cleaned.flipped) == 0
    assert [entry["action"] for entry in cleaned.log] == ["drop", "drop"]


def decisions(data: Dataset, accept: bool, pair: int = 1, rule: str = "strength-flip", **more: Any) -> list[dict]:
    suggestion = more.pop("suggestion", "flip")
    entry = {"pair": pair, "rule": rule, "suggestion": suggestion, "hash": hashes_of(data)[pair - 1], "accept": accept}
    return [{**entry, **more}]


def test_decisions_win_over_rules() -> None:
    data = pairs()
    lines, hashes = data["row"], hashes_of(data)
    changes = repair(Plan(flip=0.1), data)
    rejected = decide(changes, decisions(data, False), lines, hashes)
    assert rejected[0].done == "none" and rejected[0].decided is False
    assert not any(apply_changes(data, rejected).flipped)
    flagged = [Change(3, 3, "near-duplicate", "drop", "none", hashes[2])]
    accepted = decide(flagged, decisions(data, True, 3, "near-duplicate", suggestion="drop"), lines, hashes)
    assert len(apply_changes(data, accepted).rows) == 9
    unsuggested = decide([], decisions(data, True), lines, hashes)  # other options this time: the person's word stands
    assert apply_changes(data, unsuggested).flipped[0]


def test_decisions_about_other_text_are_refused() -> None:
    data = pairs()
    stale = [
        *decisions(data, True, 2, hash="0" * 64),
        *decisions(data, True, 1),
        {**decisions(data, True)[0], "pair": 99},
    ]
    with pytest.raises(DataError, match="Nothing was written") as caught:
        decide([], stale, data["row"], hashes_of(data))
    assert [(row.line, row.reason) for row in caught.value.rows] == [(2, "changed-since"), (99, "unknown-pair")]


def test_decision_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    data = pairs()
    good = {"format": "prudent-decisions-1", "decisions": decisions(data, True)}
    path.write_text(json.dumps(good))
    assert read_decisions(path) == good["decisions"]
    for wrong, message in (
        ([1], "holds no decisions"),
        ({**good, "decisions": [{}]}, "decision 1 has no valid pair, rule, hash, accept"),
        ({**good, "decisions": decisions(data, True, rule="magic")}, "unknown rule 'magic'"),
        ({**good, "decisions": decisions(data, True, suggestion="burn")}, "suggestion 'burn'"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(PrudentError, match=message):
            read_decisions(path)
    with pytest.raises(PrudentError, match="can't be read"):
        read_decisions(tmp_path / "none.json")


def test_deciles_as_people_write_them() -> None:
    assert parse_deciles("1-3, 10") == {1, 2, 3, 10}
    assert parse_deciles("all") == set(range(1, 11)) and parse_deciles("") == frozenset()
    for wrong in ("0-3", "11", "x", "5-2"):
        with pytest.raises(PrudentError, match="deciles"):
            parse_deciles(wrong)
    with pytest.raises(PrudentError, match=r"flip is 1\.5"):
        Plan(flip=1.5)
