"""Filling the cache from files, as ``accelerate launch -m prudent.features.launch`` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prudent.features.encoder import Encoder
from prudent.features.launch import main


def test_files_are_encoded_for_the_command_that_follows(tiny_folder: Path, tmp_path: Path) -> None:
    pairs, pool = tmp_path / "pairs.jsonl", tmp_path / "pool.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) + "\n" for i in range(5))
    )
    pool.write_text(json.dumps({"prompt": "q", "responses": ["a", "b", "c"]}) + "\n")
    arguments = ["--model", str(tiny_folder), "--preferences", str(pairs), "--pool", str(pool), "--dtype", "float32"]
    assert main([*arguments, "--pooling", "mean"]) == 0
    encoder = Encoder(tiny_folder, pooling="mean", dtype="float32", progress=False)
    encoder.encode(["p1", "p1", "q", "q"], ["good 1", "bad 1", "c", "new"])
    assert (encoder.stats.cached, encoder.stats.encoded) == (3, 1)


@pytest.mark.parametrize("arguments", [[], ["--preferences", "gone.jsonl"]])
def test_nothing_to_encode_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
