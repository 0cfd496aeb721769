"""Candidate pools, split by prompt, and hashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prudent.data.pools import Pool, read_pool, write_pool
from prudent.data.preferences import data_hash, draw_pairs, prompt_key, read_preferences, split_by_prompt
from prudent.errors import DataError, PrudentError


def test_pools_come_back_as_they_were_written(tmp_path: Path) -> None:
    prompts = [
        [{"role": "user", "content": "P"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
    ]
    pool = Pool(prompts, [["a", "b"], ["c", "d", "nice \U0001f600"]], [[0.0, 1.0], [0.5, -2.0, 3.0]], ["x", "y"])
    write_pool(tmp_path / "pool.jsonl", pool)
    assert read_pool(tmp_path / "pool.jsonl") == pool
    assert pool.flat()[2] == [0, 0, 1, 1, 1]
    write_pool(tmp_path / "bare.jsonl", Pool(prompts, pool.responses, None, pool.ids))
    assert read_pool(tmp_path / "bare.jsonl").gold is None


def test_every_bad_row_of_a_pool_is_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ok", "responses": ["a", "b"], "gold": [1, 2]},
        {"prompt": "one", "responses": ["a"], "gold": [1]},
        {"prompt": "length", "responses": ["a", "b"], "gold": [1]},
        {"prompt": "text", "responses": ["a", 3], "gold": [1, 2]},
        {"prompt": "no gold", "responses": ["a", "b"]},
        {"responses": ["a", "b"], "gold": [1, 2]},
        {"prompt": "no list", "responses": "a", "gold": [1, 2]},
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(4, '{"prompt": "nan", "responses": ["a", "b"], "gold": [1, NaN]}')
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_pool(path)
    found = {(row.line, row.field): row.reason for row in caught.value.rows}
    assert found[2, "responses"] == "single-response"
    assert found[3, "gold"] == "wrong-length"
    assert found[4, "responses"] == "not-text"
    assert found[5, "gold"] == "not-a-number"
    assert found[6, "gold"] == "missing-field"
    assert found[7, "prompt"] == "missing-field"
    assert (8, "responses") in found
    assert not any(line == 1 for line, _ in found)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(PrudentError, match="empty"):
        read_pool(tmp_path / "empty.jsonl")


def pairs(tmp_path: Path, rows: int = 60) -> Path:
    path = tmp_path / "pairs.jsonl"
    text = [{"prompt": f"P {i // 3}" + " " * (i % 2), "chosen": f"yes {i}", "rejected": "no"} for i in range(rows)]
    path.write_text("\n".join(json.dumps(row) for row in text))
    return path


def test_prompts_never_fall_on_both_sides(tmp_path: Path) -> None:
    data = read_preferences(pairs(tmp_path))
    one, other = split_by_prompt(data, 0.3, seed=1)
    keys = [{prompt_key(prompt) for prompt in part["prompt"]} for part in (one, other)]
    assert not keys[0] & keys[1] and len(keys[0]) == 6 and len(one) + len(other) == len(data)
    shuffled = data.shuffle(seed=3)
    again, _ = split_by_prompt(shuffled, 0.3, seed=1)
    assert {prompt_key(prompt) for prompt in again["prompt"]} == keys[0]  # row order does not matter
    assert {prompt_key(prompt) for prompt in split_by_prompt(data, 0.3, seed=2)[0]["prompt"]} != keys[0]
    with pytest.raises(PrudentError, match="one side empty"):
        split_by_prompt(data, 0.001, seed=0)


def test_some_pairs_are_drawn_by_the_seed_and_stay_in_order(tmp_path: Path) -> None:
    data = read_preferences(pairs(tmp_path))
    some = draw_pairs(data, 7, seed=1)["row"][:]
    assert len(some) == 7 and some == sorted(some) and some != list(range(1, 8))
    assert some == draw_pairs(data, 7, seed=1)["row"][:] != draw_pairs(data, 7, seed=2)["row"][:]
    assert draw_pairs(data, None, seed=1) is data and draw_pairs(data, len(data), seed=1) is data


def test_contradictions_share_a_side(shared: Path) -> None:
    data = read_preferences(shared / "cases/R10_conflicts.jsonl", on_error="skip")
    for seed in range(8):
        one, other = split_by_prompt(data, 0.5, seed=seed)
        sides = [any(row["prompt"][0]["content"] == "X" for row in part) for part in (one, other)]
        assert sides.count(True) == 1


def test_data_hash_sees_pairs_and_their_numbers_only(tmp_path: Path) -> None:
    data = read_preferences(pairs(tmp_path))
    assert data_hash(data) == data_hash(data.remove_columns("row"))
    assert data_hash(data) != data_hash(data.select(range(1, len(data))))
    assert data_hash(data) != data_hash(data.add_column("margin", [1.0] * len(data)))
