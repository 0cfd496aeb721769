"""Prompts that leave no room for a completion are named by item, left out or refused, before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.field.test_items import REFUSES, SYSTEM, model_with, run, write

LONG = "why " * 600  # 2,400 tokens; the policy's context is 2,048


def rows(long: tuple[int, ...] = (3, 7)) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "prompt": LONG + str(i) if i in long else f"ask {i}", "chosen": f"yes {i}", "rejected": "no"}
        for i in range(30)
    ]


def words(tmp_path: Path, policy: Path, data: str) -> list[Any]:
    small = {"steps": 1, "runs": 1, "members": 2, "train-prompts": 4, "eval-prompts": 4, "prompts-per-step": 2}
    small |= {"completions": 2, "reference-samples": 2, "eval-samples": 1, "max-new-tokens": 4, "ridge": 1.0}
    given = [word for name, value in small.items() for word in (f"--{name}", value)]
    common = ["--objective", "vanilla", "--no-images", "--dtype", "float32", "--max-length", 4096]
    return ["align", "--preferences", data, "--policy", policy, *given, *common]


def test_align_leaves_long_prompts_out_by_item(tmp_path: Path, tiny_folder: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", rows())
    prompts = write(tmp_path / "prompts.jsonl", [{"id": r["id"], "prompt": r["prompt"]} for r in rows((5, 6))])
    done = run(*words(tmp_path, tiny_folder, data), "--prompts", prompts, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    [note] = [n for n in json.loads((tmp_path / "out/results.json").read_text())["notes"] if "prompts.jsonl" in n]
    assert "2 of 30 prompts were left out" in note and "line 6" in note and "'q5'" in note and "'q6'" in note
    assert "tokens leave no room for --max-new-tokens 4 within 2048" in note and note in done.output
    every = write(tmp_path / "long.jsonl", [{"prompt": LONG}])
    refused = run(*words(tmp_path, tiny_folder, data), "--prompts", every, "--out", tmp_path / "none")
    assert refused.exit_code == 2 and "no prompt is left of 1, the first: line 1" in refused.output


def test_align_names_prompts_that_can_t_be_rendered(tmp_path: Path) -> None:
    policy = model_with(REFUSES, tmp_path / "lm")
    data, prompts = write(tmp_path / "pairs.jsonl", rows(())), [{"prompt": f"ask {i}"} for i in range(8)]
    file = write(tmp_path / "prompts.jsonl", [*prompts, {"id": "sys", "prompt": SYSTEM}])
    command = (*words(tmp_path, policy, data), "--prompts", file, "--out", tmp_path / "out")
    refused = run(*command)
    assert refused.exit_code == 2 and "line 9: not-scored: item 'sys'" in refused.output
    done = run(*command, "--on-error", "skip")
    assert done.exit_code == 0 and "1 of 9 prompts were left out" in done.output


def test_trl_refuses_long_prompts_by_item(tmp_path: Path, tiny_folder: Path) -> None:
    pytest.importorskip("trl")
    prompts = write(tmp_path / "prompts.jsonl", [{"id": r["id"], "prompt": r["prompt"]} for r in rows()])
    command = ("align", "--engine", "trl", "--policy", tiny_folder, "--reward-model", tiny_folder, "--prompts", prompts)
    refused = run(*command, "--max-new-tokens", 4, "--reference-samples", 2, "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "2 bad rows" in refused.output
    for line, item in ((4, "q3"), (8, "q7")):
        assert f"line {line}: not-scored: item '{item}': its 24" in refused.output
    assert "tokens and 4 new ones are over the model's context of 2048" in refused.output


def test_sample_names_long_prompts_and_skips_them(tmp_path: Path, tiny_folder: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", rows())
    command = ("sample", "--prompts", prompts, "--policy", tiny_folder, "--samples", 2, "--max-new-tokens", 4)
    out = tmp_path / "pool.jsonl"
    refused = run(*command, "--output", out)
    assert refused.exit_code == 2 and "line 4: not-scored: prompts.jsonl: item 'q3'" in refused.output
    done = run(*command, "--output", out, "--on-error", "skip", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["left_out"] == 2 and len(out.read_text().splitlines()) == 28
    for path, said in ((prompts, "is a file that is read"), (tmp_path, "is a folder"), (out, "exists")):
        assert said in run(*command, "--output", path).output
    assert "is not a writable folder" in run(*command, "--output", Path(prompts) / "x.jsonl").output
    assert "longer than 230 bytes" in run(*command, "--output", tmp_path / ("x" * 250)).output
