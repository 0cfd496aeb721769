"""The README's commands and lines of Python are run as they are written, with a tiny model in the place of theirs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.field.test_items import pairs, run, write

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_its_lines_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", pairs(40))
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    found: dict[str, Any] = {}
    exec(first.replace("smollm2", str(tiny_folder)), found)
    assert found["scores"].shape == (10, 2) and found["variance"].shape == (2,) and bool((found["variance"] > 0).all())

    lines = [" ".join(text.split()) for text in re.findall(r"`(prudent (?:fit|sample) [^`]*--out[^`]*)`", README)]
    assert [line.split()[1] for line in lines] == ["fit", "sample"]
    for line in lines:
        words = shlex.split(line.replace("YOUR_MODEL", str(tiny_folder)))[1:]
        extra = ["--model", tiny_folder] if words[0] == "fit" else ["--samples", 2, "--max-new-tokens", 4]
        done = run(*words, *extra)
        assert done.exit_code == 0, done.output
    usable = second.split("GRPOTrainer(")[0]  # the trainer itself: docs/tutorials/trl.md, which is run
    exec(usable, found)
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rewards = found["reward"](prompts=prompts[:2], completions=["yes", "no"])
    assert len(rewards) == 2


def test_every_command_that_it_names_exists() -> None:
    from prudent.cli import NAMES

    named = re.findall(r"`(?:prudent )?([a-z-]+)`", README.split("## The commands")[1].split("## What it")[0])
    known = {name.replace("_", "-") for name in NAMES}
    assert known <= set(named), known - set(named)
