"""Blocks of texts, and ``prudent encode`` in this process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.encode.run import item_blocks, rows_of
from prudent.errors import BadRow, PrudentError, RowsError
from prudent.features.blocks import (
    Result,
    Text,
    block_of,
    in_blocks,
    packed,
    texts_folder,
    unpacked,
    use_block,
    write_texts,
)
from prudent.features.encoder import Encoder
from prudent.features.ray import RayEngine, cause_of


def test_a_group_of_texts_is_never_divided() -> None:
    groups = [[Text("f", line, "p", str(n)) for n in range(size)] for line, size in enumerate((2, 2, 2, 5, 1), 1)]
    lines = [block.to_pylist()[0]["line"] for block in in_blocks(groups, 4)]
    assert lines == [[1, 1, 2, 2], [3, 3], [4, 4, 4, 4, 4], [5]]
    assert list(in_blocks([], 4)) == []


def test_a_text_that_fails_is_named_and_the_others_are_used() -> None:
    def use(prompts: list[str], responses: list[str]) -> np.ndarray:
        if "bad" in responses:
            raise RowsError({responses.index("bad"): "it is bad"})
        return np.array([[len(text)] for text in responses])

    texts = [Text("f", line, [{"role": "user", "content": "p"}], text) for line, text in enumerate(["a", "bad", "ccc"])]
    fault = Text("g", 7, fault=("prompt", "missing-field", "it isn't there"))
    lines, values, bad, done = use_block(block_of([*texts, fault, Text("f", 3, "", "bad")]), use)
    assert (lines.tolist(), values.tolist(), done) == ([0, 2], [[1], [3]], 5)
    assert bad == [
        ("g", BadRow(7, "prompt", "missing-field", "it isn't there")),
        ("f", BadRow(1, "", "not-encoded", "it is bad")),
        ("f", BadRow(3, "", "not-encoded", "it is bad")),
    ]
    result = Result(lines, values, bad, done, {"rows": 2}, "abc")
    again = unpacked(packed(result).to_pylist()[0])
    assert again[2:] == result[2:]
    assert np.array_equal(again.lines, lines) and np.array_equal(again.values, values)


def test_written_texts_are_read_in_their_order(tmp_path: Path) -> None:
    prompts, responses = [f"p{i}" for i in range(50)], [[{"role": "assistant", "content": f"r{i}"}] for i in range(50)]
    reads = write_texts(tmp_path, prompts, responses, np.arange(50)[::-1], 3)
    assert len(reads) == 2
    rows = [row for read in reads for block in read() for row in [block.to_pylist()[0]]]
    assert [line for row in rows for line in row["line"]] == list(range(50))[::-1]
    assert json.loads(rows[0]["response"][0]) == responses[49]


def test_texts_on_their_way_leave_nothing(tmp_path: Path) -> None:
    old, young = tmp_path / "texts-old", tmp_path / "texts-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    with texts_folder(tmp_path) as folder:
        write_texts(folder, ["p"], ["r"], np.arange(1), 3)
        assert folder.parent == tmp_path and list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [young]


def test_encode_fills_the_cache_for_the_command_that_follows(tiny_folder: Path, tmp_path: Path) -> None:
    pairs, pool = tmp_path / "pairs.jsonl", tmp_path / "pool.jsonl"
    rows = [json.dumps({"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) for i in range(5)]
    pairs.write_text("\n".join([*rows[:2], "{broken", *rows[2:]]) + "\n")
    pool.write_text(json.dumps({"prompt": "q", "responses": ["a", "b", "c"]}) + '\n{"prompt": "q"}\n')
    command = ["encode", "--model", str(tiny_folder), "--preferences", str(pairs), "--data", str(pool)]
    command += ["--dtype", "float32", "--pooling", "mean", "--block-rows", "3"]
    failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 2
    assert "line 3: not-json: pairs.jsonl" in failed.output and "line 2, field 'response'" in failed.output
    assert "the other 13 texts are in the cache" in failed.output
    done = json.loads(CliRunner().invoke(app, [*command, "--on-error", "skip", "--json"]).stdout)
    counts = ("rows", "texts", "encoded", "cached", "left_out")
    assert [done[name] for name in counts] == [8, 13, 0, 13, 2]
    encoder = Encoder(tiny_folder, pooling="mean", dtype="float32", progress=False)
    assert done["fingerprint"] == encoder.fingerprint
    features = encoder.encode(["p1", "p1", "q", "q"], ["good 1", "bad 1", "c", "new"])
    assert (encoder.stats.cached, encoder.stats.encoded) == (3, 1)
    tables = [pq.read_table(path) for path in Path(done["folder"]).glob("*.parquet")]
    vectors = [row["features"] for table in tables for row in table.to_pylist()]
    assert len(vectors) == 14, "each text once"
    for row in features:
        assert min(np.abs(np.array(vectors, np.float32) - row.numpy()).max(1)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to encode"),
        (["--preferences", "gone.jsonl"], "gone.jsonl is not there"),
        (["--preferences", "org/set", "--num-gpus", "1"], "--engine local doesn't use --num-gpus"),
    ],
)
def test_what_can_not_be_encoded_is_an_error(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["encode", *options])
    assert done.exit_code == 2 and message in done.output


def test_an_engine_needs_a_name_and_a_cache(tiny_model: tuple, tiny_folder: Path) -> None:
    for model, cache in ((tiny_model, True), (tiny_folder, None)):
        with pytest.raises(PrudentError, match="needs the model's name and the cache"):
            Encoder(model, cache=cache, engine=RayEngine())
    with pytest.raises(PrudentError, match="this machine has 0; give --num-gpus 0"):
        RayEngine(num_gpus=1).workers({"CPU": 4.0})
    assert RayEngine().workers({"CPU": 4.0}) == (4, 0.0)
    assert RayEngine().workers({"CPU": 4.0, "GPU": 2.0}) == (2, 1.0)
    assert RayEngine(num_gpus=0.5).workers({"CPU": 4.0, "GPU": 2.0}) == (4, 0.5)
    assert RayEngine(concurrency=3, num_gpus=0).workers({"CPU": 4.0, "GPU": 2.0}) == (3, 0.0)


def test_what_ray_raises_is_one_error() -> None:
    class Task(Exception):
        cause = None

    inner, outer = PrudentError("it isn't there"), Task("Traceback ...")
    outer.cause = inner  # type: ignore[assignment]
    assert cause_of(outer) is inner
    died = Task("ray.exceptions.ActorDiedError: ...\n  File x\nprudent.errors.PrudentError: no such model; give one\n")
    assert str(cause_of(died)) == "no such model; give one"
    assert str(cause_of(Task("first\nlast line"))) == "Ray's workers failed: last line"


def test_rows_in_the_cache_are_read_where_they_lie(tiny_folder: Path) -> None:
    prompts, responses = [f"Prompt {i // 2}" for i in range(24)], [f"answer {i}" for i in range(24)]
    encoder = Encoder(tiny_folder, dtype="float32", progress=False)
    stored = encoder.stored(prompts, responses)
    whole = encoder.encode(prompts, responses).numpy()
    assert stored.shape == (24, encoder.width) == whole.shape
    assert np.array_equal(np.asarray(stored), whole)
    assert np.array_equal(np.asarray(stored[5:9]), whole[5:9])
    assert np.array_equal(np.asarray(stored[torch.tensor([3, 20, 3])][1:]), whole[[20, 3]])


def test_rows_are_counted_where_that_is_quick(tmp_path: Path) -> None:
    (tmp_path / "three.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 3)
    pq.write_table(pa.table({"prompt": ["a"] * 5, "response": ["b"] * 5}), tmp_path / "five.parquet")
    (tmp_path / "two.csv").write_text("prompt,response\na,b\nc,d\n")
    assert rows_of([str(tmp_path / "three.jsonl"), str(tmp_path / "five.parquet")]) == 8
    assert rows_of([str(tmp_path / "three.jsonl"), str(tmp_path / "two.csv")]) is None
    blocks = item_blocks(str(tmp_path / "five.parquet"), 4, {})
    assert [block.to_pylist()[0]["line"] for block in blocks] == [[1, 2, 3, 4], [5]]
