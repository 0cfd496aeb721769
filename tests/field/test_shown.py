"""Nothing is cut without a word: commands say how many texts a limit cut and what their model can't tell apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.field.test_items import STRIPS, classifier_with, last_json, model_with, run, think, write
from tests.tiny import TEMPLATE

LONG = "word " * 500  # 2,500 tokens of the byte tokenizer; the classifier reads 2,048


def pairs() -> list[dict[str, Any]]:
    """Two ordinary pairs, one whose sides part after the limit, one whose long sides differ at once."""
    rest = [{"id": f"s{i}", "prompt": f"say {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(2)]
    return [
        *rest,
        {"id": "far", "prompt": LONG, "chosen": "yes", "rejected": "no"},
        {"id": "near", "prompt": "say", "chosen": "a " + LONG, "rejected": "b " + LONG},
    ]


def pool(rows: int = 6) -> list[dict[str, Any]]:
    return [
        {"id": f"p{i}", "prompt": LONG if i == 1 else f"ask {i}", "responses": ["yes", f"no {i}"], "gold": [1, 0]}
        for i in range(rows)
    ]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_with(TEMPLATE, tmp_path_factory.mktemp("rm"))


def test_evaluate_counts_what_is_cut_and_leaves_out_what_it_cannot_tell_apart(tmp_path: Path, classifier: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs())
    command = ("evaluate", "preferences", "--model", classifier, "--data", data, "--json")
    done = run(*command)
    found = last_json(done)["models"][0]
    assert found["items"] == 3 and found["counts"]["tied"] == 0
    assert found["shown"] == {
        "limit": 2048,
        "texts": 8,
        "cut": 4,
        "cut_share": 0.5,
        "answers_cut_off": 2,
        "same": {"same after truncation": 1},
        "same_of": "items",
    }
    said = "4 of 8 texts are longer than 2048 tokens and were cut, 2 of them before the answer begins; "
    said += "1 items are the same after truncation, left out"
    assert found["warnings"][0] == said and f"warning: {classifier}: {said}" in done.stderr
    assert any("line 3" in note and "'far'" in note for note in found["notes"])
    shorter = last_json(run(*command, "--max-length", 64))["models"][0]["shown"]
    assert shorter["limit"] == 64 and shorter["cut"] == 4


def test_evaluate_names_what_the_template_makes_equal(tmp_path: Path) -> None:
    rows = [{**row, "subset": "hep-python"} for row in think()]
    data, model = write(tmp_path / "pairs.jsonl", rows), classifier_with(STRIPS, tmp_path / "rm")
    for benchmark in ("preferences", "rewardbench"):
        found = last_json(run("evaluate", benchmark, "--model", model, "--data", data, "--json"))["models"][0]
        assert found["items"] == 6 and found["shown"]["same"] == {"same after the template": 1}
        assert found["shown"]["cut"] == 0 and "1 items are the same after the template, left out" in found["warnings"]
    lm = model_with(STRIPS, tmp_path / "lm")
    found = last_json(run("evaluate", "preferences", "--model", f"dpo:{lm},{lm}", "--data", data, "--json"))
    assert found["models"][0]["items"] == 6


def test_best_of_four_leaves_out_an_item_with_a_wrong_answer_like_the_right_one(tmp_path: Path) -> None:
    rows = [
        {"id": "same", "prompt": "2+2?", "chosen": ["<think>a</think>4"], "rejected": ["<think>b</think>4", "5", "6"]},
        {"id": "wrong twins", "prompt": "2+3?", "chosen": ["5"], "rejected": ["<think>b</think>4", "4", "6"]},
        {"id": "equal texts", "prompt": "2+3?", "chosen": ["5"], "rejected": ["5", "4", "6"]},
    ]
    rows = [{**row, "subset": "Math"} for row in rows]
    data, model = write(tmp_path / "items.jsonl", rows), classifier_with(STRIPS, tmp_path / "rm")
    found = last_json(run("evaluate", "rewardbench2", "--model", model, "--data", data, "--json"))["models"][0]
    assert found["items"] == 2 and found["shown"]["same"] == {"same after the template": 1}


def test_score_counts_what_is_cut(tmp_path: Path, classifier: Path) -> None:
    rows = [{"id": 1, "prompt": LONG, "responses": ["yes", "no", "no"]}, {"id": 2, "prompt": "a", "response": "b"}]
    command = ("score", "--model", classifier, "--data", write(tmp_path / "rows.jsonl", rows), "--json")
    done = run(*command, "--output", tmp_path / "scored.jsonl")
    found = last_json(done)["shown"]
    assert (found["cut"], found["texts"], found["same"]) == (3, 4, {"same after truncation": 2})
    assert "warning: 3 of 4 texts are longer than 2048 tokens and were cut" in done.stderr
    assert "2 responses are the same after truncation as another of their prompt" in done.stderr
    shorter = last_json(run(*command, "--output", tmp_path / "more.jsonl", "--max-length", 8))["shown"]
    assert shorter["limit"] == 8 and shorter["cut"] == 4


def test_best_of_n_counts_what_is_cut(tmp_path: Path, classifier: Path) -> None:
    data = write(tmp_path / "pool.jsonl", pool())
    done = run("best-of-n", "--pool", data, "--model", classifier, "--rule", "mean", "--out", tmp_path / "a", "--json")
    found = last_json(done)["shown"]
    assert (found["cut"], found["same"]) == (2, {"same after truncation": 1})
    assert "warning: 2 of 12 texts are longer than 2048 tokens and were cut" in done.stderr


@pytest.mark.parametrize("command", ["rlp", "overoptimize", "overoptimize --model"])
def test_pool_commands_count_what_is_cut(tmp_path: Path, classifier: Path, tiny_folder: Path, command: str) -> None:
    words, given = command.split()[0], ["--pool", write(tmp_path / "pool.jsonl", pool(12)), "--out", tmp_path / "out"]
    if command == "rlp":
        given += ["--language-model", tiny_folder, "--repetitions", 2, "--pairs", 8, "--max-length", 1024]
    elif "--model" in command:
        given += ["--model", classifier]
    else:
        given += ["--language-model", tiny_folder, "--sweep", "none", "--draws", 2, "--pairs", 8]
    done = run(words, *given, "--json")
    limit = 2048 if "--model" in command else 1024
    said = f"2 of 24 texts are longer than {limit} tokens and were cut, 2 of them before the answer begins; "
    said += "1 responses are the same after truncation as another of their prompt"
    assert last_json(done)["notes"] == [said]
    assert f"warning: {said}" in done.stderr
    assert said in (tmp_path / "out/report.html").read_text()


def test_a_fitted_folder_keeps_its_own_limit(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
    data, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "rm"
    fitted = run("fit", "--preferences", data, "--model", tiny_folder, "--members", 2, "--out", out, "--max-length", 99)
    assert fitted.exit_code == 0, fitted.output
    rows_file = write(tmp_path / "rows.jsonl", [{"prompt": LONG, "response": "a"}])
    command = ("score", "--model", out, "--data", rows_file, "--output", tmp_path / "s.jsonl", "--json")
    assert last_json(run(*command))["shown"]["limit"] == 99
    refused = run(*command, "--max-length", 64, "--overwrite")
    assert refused.exit_code == 2 and "--max-length doesn't apply" in refused.output
    only = run("evaluate", "preferences", "--data", data, "--model", "prm:nowhere", "--max-length", 64)
    assert only.exit_code == 2 and "--max-length is for classifiers" in only.output


def test_skip_reaches_pools(tmp_path: Path, tiny_folder: Path) -> None:
    from tests.field.test_items import REFUSES, SYSTEM

    rows = pool(10)
    rows[3]["prompt"] = SYSTEM
    rows.append({"id": "one", "prompt": "x", "responses": ["a"], "gold": [1]})
    data = write(tmp_path / "pool.jsonl", rows)
    rm, lm = classifier_with(REFUSES, tmp_path / "rm"), model_with(REFUSES, tmp_path / "lm")
    commands: dict[str, list[Any]] = {
        "best-of-n": ["--model", rm, "--rule", "mean"],
        "overoptimize": ["--language-model", lm, "--sweep", "none", "--draws", 2, "--pairs", 8],
        "rlp": ["--language-model", lm, "--repetitions", 2, "--pairs", 8],
    }
    for name, given in commands.items():
        command = (name, "--pool", data, *given, "--json")
        refused = run(*command, "--out", tmp_path / f"{name}-a")
        assert refused.exit_code == 2 and "line 11, field 'responses'" in refused.output
        assert "--on-error skip" in refused.output
        found = last_json(run(*command, "--out", tmp_path / f"{name}-b", "--on-error", "skip"))
        assert found["prompts"] == 9
        told = json.dumps(found.get("notes", found.get("left_out_rows")))
        assert "line 11" in told and "line 4" in told and "'p3'" in told


def test_compare_leaves_out_what_the_model_cannot_tell_apart(tmp_path: Path, tiny_folder: Path) -> None:
    from tests.field.test_items import pairs as short

    train, test = write(tmp_path / "train.jsonl", short(24)), write(tmp_path / "test.jsonl", [*pairs(), *short(6)])
    command = ("compare", "--preferences", train, "--test", test, "--families", "heads", "--members", 3, "--model")
    found = last_json(run(*command, tiny_folder, "--pooling", "last", "--out", tmp_path / "out", "--json"))
    assert found["test_pairs"] == 9
    assert found["notes"][0].startswith("test: 4 of 20 texts are longer than 1024 tokens and were cut, 2 of them")
    assert "1 pairs are the same after truncation, left out" in found["notes"][0]
