"""Field cases of preference data (R02 to R09): what files in the wild hold, and what reading them must give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prudent.data.preferences import read_preferences, read_preferences_with_report
from prudent.data.ratings import read_ratings
from prudent.errors import DataError, PrudentError


def texts(row: dict, name: str) -> list[str]:
    return [message["content"] for message in row[name]]


def lines(rows: list, reason: str) -> list[int]:
    return [row.line for row in rows if row.reason == reason]


def test_r02_sides_that_part_early(shared: Path) -> None:
    data, report = read_preferences_with_report(shared / "cases/R02_hh_diverge.jsonl", on_error="skip")
    assert data["row"] == [1, 4]
    assert [message["role"] for message in data[0]["prompt"]] == ["user", "assistant", "user"]
    assert texts(data[0], "chosen") == ["In the Black Sea."]
    assert texts(data[0], "rejected") == ["In a lake in Norway."]
    assert texts(data[1], "prompt") == ["Suggest a hat."]
    assert lines(report.left_out, "diverged") == [2]
    assert [(row.line, row.field) for row in report.bad] == [(3, "rejected")]


def test_r02_diverged_remainders_can_be_kept(shared: Path) -> None:
    data = read_preferences(shared / "cases/R02_hh_diverge.jsonl", on_error="skip", diverged="keep")
    row = data[1]
    assert texts(row, "prompt") == ["Name a river."]
    assert texts(row, "chosen") == ["The Danube.", "Where does it end?", "In the Black Sea."]
    assert texts(row, "rejected")[0] == "Perhaps the Rhine?"  # never chosen's history under rejected's answer


def test_r03_marks_and_repeated_speakers(shared: Path) -> None:
    data, report = read_preferences_with_report(shared / "cases/R03_hh_markers.jsonl", on_error="skip")
    assert data["row"] == [1, 2, 3]
    assert texts(data[0], "prompt") == ["Continue the play. Stage note: Human: enters left."]
    assert texts(data[1], "prompt") == ["Hello\n\nAnyone there?"]
    assert texts(data[2], "chosen") == ["One.\n\nTwo."]
    assert lines(report.flagged, "joined-turns") == [2, 2, 3]
    assert [(row.line, row.field, row.reason) for row in report.bad] == [(4, "chosen", "no-speaker-mark")]
    with pytest.raises(DataError, match="line 4"):
        read_preferences(shared / "cases/R03_hh_markers.jsonl")


def test_r04_the_prompt_occurs_once(shared: Path) -> None:
    data, report = read_preferences_with_report(shared / "cases/R04_binarized.jsonl")
    assert data["prompt_id"] == ["a1", "a3", "a5"]
    for row in data:
        for side in ("chosen", "rejected"):
            whole = " ".join(texts(row, "prompt") + texts(row, side))
            assert whole.count(texts(row, "prompt")[-1]) == 1
            assert [message["role"] for message in row[side]] == ["assistant"]
    assert data[1]["prompt"] == [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Be brief: 3+3?"},
    ]
    assert lines(report.left_out, "tie") == [2]
    assert lines(report.left_out, "prompt-mismatch") == [4]
    assert lines(report.flagged, "inverted-scores") == [5]
    assert texts(data[2], "chosen") == ["22"]  # inverted scores are shown, never swapped


def test_r04_ties_on_request_and_flags_as_errors(shared: Path) -> None:
    path = shared / "cases/R04_binarized.jsonl"
    data = read_preferences(path, ties="keep")
    assert data["prompt_id"] == ["a1", "a2", "a3", "a5"]
    assert data["soft_label"] == [None, 0.5, None, None]
    with pytest.raises(DataError, match="inverted-scores"):
        read_preferences(path, errors=["inverted-scores"])


def test_r05_bom_crlf_and_empty_lines(shared: Path) -> None:
    data, _ = read_preferences_with_report(shared / "cases/R05_bom_crlf.jsonl")
    assert data["row"] == [1, 2, 5]
    assert data.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert texts(data[1], "chosen") == ["gut über"]
    every = [text for row in data for side in ("prompt", "chosen", "rejected") for text in texts(row, side)]
    assert not any("\r" in text or "\ufeff" in text for text in every)


def test_r05_other_encodings_are_named(tmp_path: Path) -> None:
    for name, encoding in (("UTF-16", "utf-16"), ("UTF-16", "utf-16-le"), ("UTF-32", "utf-32")):
        path = tmp_path / "pairs.jsonl"
        path.write_text('{"prompt": "P", "chosen": "a", "rejected": "b"}\n', encoding=encoding)
        with pytest.raises(PrudentError, match=name) as caught:
            read_preferences(path)
        assert "UTF-8" in str(caught.value)


def test_r06_every_bad_row_in_one_pass(shared: Path) -> None:
    path = shared / "cases/R06_bad_rows.jsonl"
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    found = {row.line: row for row in caught.value.rows}
    assert sorted(found) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 14]
    assert found[2].field == "rejected" and found[2].reason == "missing-field"
    reasons = {3: "null", 4: "empty", 5: "blank", 6: "not-text", 7: "not-messages", 8: "not-json", 9: "not-an-object"}
    assert {line: found[line].reason for line in reasons} == reasons
    assert "column 30" in found[8].detail
    assert found[10].reason == "identical-sides"
    for name in ("question", "response_a", "response_b", "columns="):
        assert name in found[14].detail
    message = str(caught.value)
    assert all(f"line {line}" in message for line in found) and "skip" in message


def test_r06_skipping_keeps_four_and_says_so(shared: Path) -> None:
    path = shared / "cases/R06_bad_rows.jsonl"
    data, report = read_preferences_with_report(path, on_error="skip")
    assert data["row"] == [1, 11, 12, 13]
    assert (report.read, report.kept, report.dropped) == (14, 4, 10)
    flags = {row.line: row for row in report.flagged}
    assert flags[11].reason == "not-a-number" and flags[11].field == "margin"
    assert flags[12].reason == "duplicate-key" and "maybe" in flags[12].detail
    assert texts(data[2], "chosen") == ["maybe"]
    mapped = read_preferences(
        path, on_error="skip", columns={"prompt": "question", "chosen": "response_a", "rejected": "response_b"}
    )
    assert mapped["row"] == [14]


def test_r07_half_an_emoji(shared: Path) -> None:
    data, report = read_preferences_with_report(shared / "cases/R07_surrogates.jsonl")
    assert texts(data[0], "chosen") == ["nice \ufffd"]
    assert texts(data[1], "chosen") == ["nice \U0001f600"] and len(texts(data[1], "chosen")[0]) == 6
    assert texts(data[2], "chosen") == ["a\0b"]
    assert lines(report.flagged, "lone-surrogate") == [1]
    assert lines(report.flagged, "nul-character") == [3]


def test_r08_ratings_into_pairs(shared: Path) -> None:
    path = shared / "cases/R08_ratings.jsonl"
    with pytest.raises(DataError) as caught:
        read_preferences(path, rating="helpfulness")
    assert [(row.line, row.field) for row in caught.value.rows] == [(13, "helpfulness")]
    data, report = read_preferences_with_report(path, rating="helpfulness", on_error="skip")
    pairs = [(texts(row, "chosen")[0], texts(row, "rejected")[0]) for row in data]
    assert sorted(pairs) == [
        ("A-first", "A-second"),
        ("C-second", "C-first"),
        ("E-first", "E-second"),
        ("E-first", "E-third"),
    ]
    assert lines(report.left_out, "tie") == [4, 10]
    assert 8 in lines(report.left_out, "single")
    assert lines(report.left_out, "missing-rating") == [11]


def test_r08_attributes_are_masked(shared: Path) -> None:
    data, report = read_ratings(shared / "cases/R08_ratings.jsonl", on_error="skip")
    row = next(row for row in data if texts(row, "response") == ["F-second"])
    assert row["helpfulness"] == 2 and row["correctness"] is None
    first = next(row for row in data if texts(row, "response") == ["F-first"])
    assert first["helpfulness"] is None and first["correctness"] == 3
    assert [bad.line for bad in report.bad] == [13]


ROWS = [
    {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
    },
    {
        "prompt": [{"role": "system", "content": "Be kind", "name": "setup"}, {"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello, hello"}],
        "rejected": [{"role": "assistant", "content": "No"}],
    },
]


def write_kinds(folder: Path, rows: list[dict]) -> list[Path]:
    """The same rows as JSONL, Parquet, Arrow, JSON and a CSV whose cells hold JSON."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer_ = csv.writer(file)
        writer_.writerow(rows[0])
        writer_.writerows([json.dumps(value) for value in row.values()] for row in rows)
    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return [folder / f"rows.{kind}" for kind in ("jsonl", "json", "parquet", "arrow", "csv")] + [folder / "saved"]


def test_r09_tables_and_texts_give_equal_records(tmp_path: Path) -> None:
    paths = write_kinds(tmp_path, ROWS)
    first = read_preferences(paths[0]).remove_columns("row").to_list()
    assert first[0]["prompt"] == [{"role": "user", "content": "Hi"}]  # no "name" from the other row
    assert first[0]["chosen"] == [{"role": "assistant", "content": "Hello"}]
    for path in paths[1:]:
        assert read_preferences(path).remove_columns("row").to_list() == first, path


def test_r09_null_content_and_cells_that_are_not_json(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    null = [{"role": "assistant", "content": None}]
    pq.write_table(pa.Table.from_pylist([*ROWS, {**ROWS[1], "chosen": null}]), tmp_path / "null.parquet")
    with pytest.raises(DataError) as caught:
        read_preferences(tmp_path / "null.parquet")
    assert [(row.line, row.field, row.reason) for row in caught.value.rows] == [(3, "chosen", "null-content")]
    cell = json.dumps(ROWS[1]["chosen"]).replace('"', '""')
    (tmp_path / "cells.csv").write_text(f'prompt,chosen,rejected\nHi,"{cell}",No\nHi,just text,No\n')
    data, report = read_preferences_with_report(tmp_path / "cells.csv", on_error="skip")
    assert len(data) == 1
    assert [(row.line, row.field, row.reason) for row in report.bad] == [(3, "chosen", "not-json")]
    python = "[{'role': 'assistant', 'content': 'Hello'}]"
    (tmp_path / "python.csv").write_text(f'prompt,chosen,rejected\nHi,"{python}",No\n')
    with pytest.raises(DataError, match=r"json\.dumps"):
        read_preferences(tmp_path / "python.csv")


def test_r11_votes(shared: Path) -> None:
    path = shared / "cases/R11_votes.jsonl"
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert [(row.line, row.field) for row in caught.value.rows] == [(9, "votes")]
    data, report = read_preferences_with_report(path, on_error="skip")
    assert data["id"] == [1, 4]
    assert texts(data[0], "chosen") == ["left"] and texts(data[1], "chosen") == ["right"]
    assert data["soft_label"] == [pytest.approx(0.8333, abs=1e-4), 1.0]
    assert any("half a vote" in note for note in report.notes)
    assert read_preferences(path, on_error="skip", soft_votes="ignore")["soft_label"] == [1.0, 1.0]
    assert {row.line: row.reason for row in report.left_out} == {
        2: "tie",
        3: "undecided",
        5: "tie",
        6: "undecided",
        7: "both-bad",
        8: "no-votes",
    }


def test_every_shared_preference_file_reads(shared: Path) -> None:
    import gzip

    for path in sorted((shared / "data/preference").glob("*.jsonl.gz")):
        data, report = read_preferences_with_report(path)
        with gzip.open(path, "rb") as file:
            rows = sum(1 for _ in file)
        assert report.read == rows and not report.bad
        assert report.kept + len(report.left_out) == rows, path.name
        row = data[0]
        assert row["prompt"][-1]["role"] == "user" and row["chosen"][0]["role"] == "assistant"
        assert len(data) == (rows if "votes" not in path.name else 666)


def rows_of(path: Path):
    """What the cleaning rules look at, for a case file."""
    from prudent.data.preferences import prompt_key
    from prudent.data.rules import Rows

    allow = ("empty", "blank", "identical-sides")
    data = read_preferences(path, on_error="skip", allow=allow)
    return data, Rows(data.to_list(), [prompt_key(prompt) for prompt in data["prompt"]])


def test_r01_identical_after_truncation_by_words(shared: Path) -> None:
    from prudent.data.rules import RULES

    data, rows = rows_of(shared / "cases/R01_truncation.jsonl")
    words: dict[str, int] = {}

    def ids(prompts: list, answers: list) -> list[list[int]]:
        texts = [" ".join(m["content"] for m in [*p, *a]).split() for p, a in zip(prompts, answers)]
        return [[words.setdefault(word, len(words)) for word in text] for text in texts]

    rows.ids, rows.limit = ids, 24
    found = {data["id"][f.index]: f for f in RULES["truncated"].find(rows)}
    assert sorted(found) == ["far-difference", "prompt-too-long"]
    assert found["far-difference"].evidence["reason"] == "identical after truncation at 24"
    rows.limit = 200
    assert not list(RULES["truncated"].find(rows))


def test_r01_by_the_tokenisation_that_training_uses(shared: Path) -> None:
    from tests.tiny import tiny_tokenizer

    from prudent.data.rules import RULES
    from prudent.features.rendering import Renderer

    data, rows = rows_of(shared / "cases/R01_truncation.jsonl")
    limit = 120  # one token a byte, template included
    renderer = Renderer(tiny_tokenizer(), limit)
    rows.ids = lambda prompts, answers: [found.ids for found in renderer.conversations(prompts, answers)]
    rows.limit = limit
    assert [data["id"][f.index] for f in RULES["truncated"].find(rows)] == ["far-difference", "prompt-too-long"]


def test_r01_a_dead_pair_adds_a_constant() -> None:
    import math

    import torch

    from prudent.rewards.losses import bradley_terry

    margin = torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    losses = bradley_terry(margin)
    assert losses[0].item() == pytest.approx(0.126928, abs=1e-6)
    assert losses[1].item() == pytest.approx(math.log(2), abs=1e-6)
    assert losses.mean().item() == pytest.approx(0.504407, abs=1e-6)


def test_r10_contradictions_and_the_ceiling(shared: Path) -> None:
    from prudent.data.duplicates import group_pairs, noise_ceiling, squeezed_text
    from prudent.data.rules import parse_actions, run_rules

    data, rows = rows_of(shared / "cases/R10_conflicts.jsonl")
    findings = run_rules(rows, parse_actions(["truncated=keep", "votes=keep", "scores=keep", "leak=keep"]))
    contested = {data["id"][f.index]: f.evidence for f in findings if f.rule == "contradiction"}
    assert contested[3] == {"same_label": 1, "opposite_label": 3, "verdict": "minority", "agreement": 0.75}
    assert contested[5]["verdict"] == contested[6]["verdict"] == "undecided" and sorted(contested) == [3, 5, 6]
    assert [data["id"][f.index] for f in findings if f.rule == "identical"] == [9]
    near = [f for f in findings if f.rule == "near-duplicate"]
    assert [(data["id"][f.index], f.evidence["similarity"]) for f in near] == [(8, 1.0)]
    assert not [f for f in findings if f.rule == "duplicate"]  # X's repeats are votes, Z's differ in white space
    assert len(group_pairs(rows.rows[6:8]).counts) == 2 and len(group_pairs(rows.rows[6:8], squeezed_text).counts) == 1
    ceiling = noise_ceiling(rows.rows[:6])
    assert ceiling["best_accuracy"] == pytest.approx(4 / 6)
    assert ceiling["lowest_loss"] == pytest.approx(0.605939, abs=1e-6)
    assert noise_ceiling(rows.rows[:4])["lowest_loss"] == pytest.approx(0.562335, abs=1e-6)
    assert noise_ceiling(rows.rows[4:6])["lowest_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert noise_ceiling(rows.rows)["pairs"] == 8  # identical sides are no comparison


def test_r11_win_rates_say_what_a_tie_counts() -> None:
    from prudent.data.votes import win_rates

    assert win_rates(42, 0, 58) == {"wins_only": 0.42, "half_ties": 0.42}
    assert win_rates(35, 30, 35) == {"wins_only": 0.35, "half_ties": 0.5}
    assert win_rates(0, 0, 0) == {"wins_only": None, "half_ties": None}


def test_r12_length(shared: Path) -> None:
    from prudent.data.lengths import length_report, word_counts
    from prudent.data.rules import RULES

    data, rows = rows_of(shared / "cases/R12_length.jsonl")
    found = length_report(word_counts(data["chosen"]), word_counts(data["rejected"]))
    assert found["longer_accuracy"] == 1.0 and found["severe"]
    assert (found["mean_chosen"], found["mean_rejected"]) == (31.0, 10.0)
    assert found["cohen_d_pooled"] == pytest.approx(10.011, abs=1e-3)
    assert found["cohen_d_paired"] == pytest.approx(6.275, abs=1e-3)
    assert len(list(RULES["length"].find(rows))) == 6
    data, rows = rows_of(shared / "cases/R12_length_constant.jsonl")
    found = length_report(word_counts(data["chosen"]), word_counts(data["rejected"]))
    assert found["longer_accuracy"] == 1.0 and not found["severe"]
    assert found["cohen_d_pooled"] is None and "vary" in found["reasons"]["cohen_d_pooled"]
    assert found["relative_gap"] == pytest.approx(0.049, abs=5e-4)
    assert not list(RULES["length"].find(rows))
