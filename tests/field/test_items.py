"""One bad item is one bad item: what can't be rendered or scored is named by item and line, and skip leaves it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.options import COMMANDS, PairOptions
from prudent.data.preferences import read_preferences_with_report

REFUSES = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPS = REFUSES.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
SYSTEM = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hi"}]


def model_with(template: str, folder: Path) -> Path:
    """A tiny language model whose tokenizer has this chat template."""
    tiny_causal_lm(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def classifier_with(template: str, folder: Path) -> Path:
    """A tiny sequence-classification reward model with this chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, system: int = -1) -> list[dict[str, Any]]:
    """Pairs with ids q0, q1, ..., of which one has a system turn."""
    return [
        {
            "id": f"q{i}",
            "prompt": SYSTEM if i == system else [{"role": "user", "content": f"hi {i}"}],
            "chosen": f"yes good {i}",
            "rejected": f"no bad {i * 7 % 5}",
        }
        for i in range(count)
    ]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_json(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


def test_evaluate_names_the_item_and_skips_it(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(5, system=3))
    model = classifier_with(REFUSES, tmp_path / "rm")
    command = ("evaluate", "preferences", "--model", model, "--data", data, "--json")
    refused = run(*command)
    assert refused.exit_code == 2
    assert "line 4" in refused.output and "'q3'" in refused.output and "no system turn" in refused.output
    assert "q2" not in refused.output
    found = last_json(run(*command, "--on-error", "skip"))["models"][0]
    assert found["items"] == 4
    assert any("1 of 5 items left out" in note for note in found["notes"])


def test_score_names_the_row_and_skips_it(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "prompt": row["prompt"], "responses": [row["chosen"], "b"]} for row in pairs(5, system=3)]
    data = write(tmp_path / "rows.jsonl", rows)
    model = classifier_with(REFUSES, tmp_path / "rm")
    command = ("score", "--model", model, "--data", data, "--output", tmp_path / "scored.jsonl", "--json")
    refused = run(*command)
    assert refused.exit_code == 2 and "line 4: not-scored: item 'q3'" in refused.output
    assert not (tmp_path / "scored.jsonl").exists()
    found = last_json(run(*command, "--on-error", "skip"))
    assert found["rows"] == 4 and found["left_out"] == 1 and "q3" in found["left_out_rows"][0]
    written = [json.loads(line)["id"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert written == ["q0", "q1", "q2", "q4"]


@pytest.mark.parametrize("family", ["heads", "linear", "external"])
def test_fit_names_the_pair_and_skips_it(tmp_path: Path, family: str) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(12, system=3))
    if family == "external":
        options = ("--models", classifier_with(REFUSES, tmp_path / "rm"))
    else:
        options = ("--model", model_with(REFUSES, tmp_path / "lm"), "--members", 2)
    command = ("fit", "--preferences", data, "--test", data, "--family", family, *options, "--json")
    refused = run(*command, "--out", tmp_path / "a")
    assert refused.exit_code == 2 and "line 4: not-scored: item 'q3'" in refused.output
    found = last_json(run(*command, "--out", tmp_path / "b", "--on-error", "skip"))
    assert found["pairs"] == 11 and found["reading"]["left_out"] == 1
    assert found["test"]["pairs"] == 11 and found["test"]["left_out"] == 1


def test_several_files_are_told_apart(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", pairs(4)), write(tmp_path / "b.jsonl", pairs(4, system=2))
    model = model_with(REFUSES, tmp_path / "lm")
    found = run("fit", "--preferences", first, "--preferences", second, "--model", model, "--out", tmp_path / "out")
    assert found.exit_code == 2 and "line 3: not-scored: b.jsonl: item 'q2'" in found.output


def test_a_scorer_of_the_user_that_raises_is_named_with_its_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_raises.py").write_text(
        "def score(prompts, responses):\n"
        "    return [len(r) if 'good 3' not in r else 1 / 0 for r in responses]\n"
        "def together(prompts, responses):\n"
        "    if len(responses) > 3: raise RuntimeError('too many')\n"
        "    return [len(r) for r in responses]\n"
        "def nan(prompts, responses):\n"
        "    return [float('nan') if 'good 3' in r else len(r) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write(tmp_path / "pairs.jsonl", pairs(5))
    for name, said in (("score", "ZeroDivisionError"), ("nan", "nan")):
        command = ("evaluate", "preferences", "--model", f"mine_raises:{name}", "--data", data, "--json")
        refused = run(*command)
        assert refused.exit_code == 2 and "line 4: not-scored: item 'q3'" in refused.output and said in refused.output
        assert last_json(run(*command, "--on-error", "skip"))["models"][0]["items"] == 4
    whole = run("evaluate", "preferences", "--model", "mine_raises:together", "--data", data)
    assert whole.exit_code == 2 and "mine_raises:together raised RuntimeError: too many" in whole.output


def test_preflight_names_the_pair_and_skips_it(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(40, system=3))
    pool = [
        {"id": f"p{i}", "prompt": SYSTEM if i == 1 else f"ask {i}", "responses": ["a b", f"c {i}", "d"]}
        for i in range(4)
    ]
    model = model_with(REFUSES, tmp_path / "lm")
    command = ("preflight", "--preferences", data, "--pool", write(tmp_path / "pool.jsonl", pool), "--encoder", model)
    command += ("--draws", 4, "--members", 2, "--no-check", "--json")
    refused = run(*command, "--out", tmp_path / "a")
    assert refused.exit_code == 2 and "line 4: not-scored: item 'q3'" in refused.output
    found = last_json(run(*command, "--out", tmp_path / "b", "--on-error", "skip"))
    notes = "; ".join(found["notes"])
    assert "1 pairs can't be rendered" in notes and "'q3'" in notes and "'p1'" in notes


def test_clean_counts_the_pair_out(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(30, system=3))
    model = model_with(REFUSES, tmp_path / "lm")
    found = last_json(run("clean", data, "--encoder", model, "--holdout", 0, "--out", tmp_path / "out", "--json"))
    assert found["pairs"] == 29
    [bad] = found["reading"]["rows"]["bad"]
    assert bad["line"] == 4 and "q3" in bad["detail"] and "no system turn" in bad["detail"]


def think(count: int = 6) -> list[dict[str, Any]]:
    """One pair whose sides differ in their reasoning alone, and ``count`` others."""
    first = {"id": "reason", "prompt": "2+2?", "chosen": "<think>add</think>\n4", "rejected": "<think>guess</think>\n4"}
    rest = [
        {"id": f"r{i}", "prompt": f"{i}+1?", "chosen": f"<think>a</think>\n{i + 1}", "rejected": f"{i}"}
        for i in range(count)
    ]
    return [first, *rest]


def test_a_pair_that_the_template_makes_equal_is_left_out_by_that_name(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", think())
    model = model_with(STRIPS, tmp_path / "lm")
    for family in ("heads", "linear"):
        command = ("fit", "--preferences", data, "--model", model, "--members", 2, "--family", family)
        found = last_json(run(*command, "--out", tmp_path / family, "--json"))
        assert found["pairs"] == found["train"]["pairs"] == 6 and found["pairs_given"] == 7
        assert found["info"]["identical_after_template"] == 1 and found["info"]["identical_after_truncation"] == 0
        assert found["train"]["shown"]["same"] == {"same after the template": 1}
    said = run(*command, "--out", tmp_path / "words").output
    assert "on 6 pairs" in said and "1 pairs are the same after the template" in said
    cleaned = last_json(
        run("clean", data, "--encoder", model, "--holdout", 0, "--out", tmp_path / "c", "--json", "--folds", 2)
    )
    assert cleaned["kept"] == 6
    assert [row["dropped"] for row in cleaned["changes"] if row["rule"] == "truncated"] == [1]
    assert any("same after the template" in path.read_text() for path in (tmp_path / "c").glob("*.jsonl"))


def test_pairs_without_a_prompt_are_kept_by_one_option_in_every_command(tmp_path: Path) -> None:
    words = ["oak", "elm", "ash", "fir", "yew", "box", "bay", "fig", "nut", "pear", "plum", "lime"]
    rows = [{"id": f"q{i}", "chosen": f"Yes {word} {i}", "rejected": f"No {word}"} for i, word in enumerate(words)]
    data = write(tmp_path / "pairs.jsonl", rows)
    model = model_with(REFUSES, tmp_path / "lm")
    commands = {
        "fit": ("fit", "--preferences", data, "--model", model, "--members", 2),
        "clean": ("clean", data, "--encoder", model, "--folds", 2, "--members", 2, "--holdout", 0),
        "evaluate": ("evaluate", "preferences", "--data", data, "--model", f"{tmp_path / 'fit'}"),
    }
    for name, command in commands.items():
        refused = run(*command, "--out", tmp_path / f"{name}-refused")
        assert refused.exit_code == 2 and "--without-prompt empty" in refused.output, (name, refused.output)
        found = run(*command, "--out", tmp_path / name, "--without-prompt", "empty", "--json")
        last_json(found)
        assert any((tmp_path / name).iterdir()), name

    with_it = {one.command.words for one in COMMANDS if issubclass(one, PairOptions)}
    reading = {one.command.words for one in COMMANDS if "preferences" in one.__dataclass_fields__}
    assert with_it == reading | {"clean", "evaluate preferences", "evaluate rewardbench"}


def test_rows_beside_the_pairs_are_named_and_skipped(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(24))
    model = model_with(REFUSES, tmp_path / "lm")
    rated = [
        {"prompt": SYSTEM if i == 3 else f"q {i}", "said": f"good {i % 4}", "fine": "no" if i == 5 else i % 3}
        for i in range(20)
    ]
    pool = [
        {"id": f"p{i}", "prompt": SYSTEM if i == 2 else f"ask {i}", "responses": ["a"] if i == 4 else ["a b", f"c {i}"]}
        for i in range(6)
    ]
    beside = {
        "ratings": (
            "--family",
            "quantile",
            "--ratings",
            write(tmp_path / "rated.jsonl", rated),
            "--epochs",
            2,
            "--column",
            "response=said",
        ),
        "meta_pool": ("--family", "mlp", "--meta-pool", write(tmp_path / "pool.jsonl", pool), "--meta-rate", 0.1),
    }
    beside["linear"] = ("--family", "linear", "--members", 2, *beside["meta_pool"][2:])
    rows = {"ratings": (6, 4), "meta_pool": (5, 3), "linear": (5, 3)}
    for name, words in beside.items():
        command = ("fit", "--preferences", data, "--model", model, *words)
        first, second = rows[name]
        refused = run(*command, "--out", tmp_path / "no")
        assert refused.exit_code == 2 and f"line {first}" in refused.output, refused.output
        assert "--on-error skip" in refused.output
        found = last_json(run(*command, "--on-error", "skip", "--out", tmp_path / name, "--json"))["info"]
        key = "ratings" if name == "ratings" else "meta_pool"
        assert found[f"{key}_left_out"] == 2
        left = " ".join(found[f"{key}_left_out_rows"])
        assert f"line {first}" in left and f"line {second}" in left and "no system turn" in left
    wide = write(tmp_path / "wide.jsonl", [{"prompt": f"p{i}", "responses": ["a"] * 2000} for i in range(3)])
    refused = run(
        "fit", "--preferences", data, "--model", model, *beside["meta_pool"][:2], "--meta-pool", wide, "--out", 1
    )
    assert refused.exit_code == 2 and "the limit is 5,000,000" in refused.output


def test_a_row_with_two_faults_is_one_row_and_two_files_are_two(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    bad = [*pairs(4), {"prompt": 3, "chosen": 4, "rejected": "x"}]
    files = [write(tmp_path / folder / "same.jsonl", bad) for folder in ("a", "b")]
    model = model_with(REFUSES, tmp_path / "lm")
    command = ("fit", "--preferences", files[0], "--preferences", files[1], "--model", model, "--members", 2)
    refused = run(*command, "--out", tmp_path / "out")
    assert "2 bad rows" in refused.output and files[0] in refused.output.split("\n", 1)[1]
    found = read_preferences_with_report(files, on_error="skip")[1]
    assert (found.read, found.kept, found.dropped) == (10, 8, 2)
    rows = write(tmp_path / "rows.jsonl", [{"prompt": 1, "response": 2}, {"prompt": "a", "response": "b"}])
    scored = run("score", "--model", classifier_with(REFUSES, tmp_path / "rm"), "--data", rows, "--on-error", "skip",
                 "--output", tmp_path / "s.jsonl", "--json")  # fmt: skip
    assert last_json(scored)["left_out"] == 1
