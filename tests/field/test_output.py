"""Field cases of output (R26, and the writing half of R07): every JSON file parses strictly, every text is UTF-8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prudent.errors import PrudentError
from prudent.files import dumps, room_named
from prudent.runs import new_run, resumable_run


def strict(text: str) -> Any:
    """JSON value of a text; NaN, Infinity and keys given twice are errors."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def test_r26_values_that_do_not_exist_are_null_with_a_reason() -> None:
    from prudent.data.lengths import length_report
    from prudent.data.votes import win_rates
    from prudent.evaluation.intervals import correlation, proportion
    from prudent.rewards.uncertainty import moments

    result = {
        "empty_subset": vars(proportion([])),
        "constant_scores": vars(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "spearman")),
        "win_rate": win_rates(0, 0, 0),
        "lengths": length_report(np.array([]), np.array([])),
        "spread_of_one_member": float("nan"),
        "array": torch.tensor([1.0, float("inf")]),
        "answer": "NaN is a text here, Infinity too",
    }
    found = strict(dumps(result))
    assert found["empty_subset"]["value"] is None and found["empty_subset"]["reason"]
    assert found["constant_scores"]["value"] is None and found["constant_scores"]["reason"]
    assert found["win_rate"] == {"wins_only": None, "half_ties": None}
    assert found["lengths"]["longer_accuracy"] is None and found["lengths"]["reasons"]
    assert found["spread_of_one_member"] is None and found["array"] == [1.0, None]
    assert found["undefined"]["paths"] == ["$.spread_of_one_member", "$.array[1]"]
    assert found["answer"] == "NaN is a text here, Infinity too"
    with pytest.raises(PrudentError, match="1 member is undefined"):  # K = 1 has no spread: neither 0 nor NaN
        moments(torch.zeros(1, 4))


def test_r26_a_constant_length_file_through_the_command(shared: Path, tmp_path: Path) -> None:
    from prudent.cli import app

    source = str(shared / "cases/R12_length_constant.jsonl")
    arguments = ["clean", source, "--encoder", "none", "--out", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = strict(result.stdout)
    assert printed["length"]["cohen_d_pooled"] is None and printed["length"]["reasons"]["cohen_d_pooled"]
    assert printed["strength"] is None and printed["proof"] is None
    for path in (tmp_path / "run").rglob("*.json*"):
        for line in [path.read_text("utf-8")] if path.suffix == ".json" else path.read_text("utf-8").splitlines():
            strict(line)


def test_r07_a_bad_character_costs_no_other_row(shared: Path, tmp_path: Path) -> None:
    from prudent.cli import app
    from prudent.data.preferences import read_preferences

    source = str(shared / "cases/R07_surrogates.jsonl")
    result = CliRunner().invoke(app, ["clean", source, "--encoder", "none", "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    flags = strict(result.stdout)["reading"]["counts"]["flagged"]
    assert flags == {"lone-surrogate": 1, "nul-character": 1}
    for path in (tmp_path / "run").iterdir():
        if path.suffix in (".json", ".jsonl", ".html"):
            path.read_bytes().decode("utf-8")
    cleaned = read_preferences(tmp_path / "run" / "cleaned.jsonl")
    assert [row["chosen"][0]["content"] for row in cleaned] == ["nice \ufffd", "nice \U0001f600", "a\0b"]


def test_r07_lone_surrogates_in_results(tmp_path: Path) -> None:
    with new_run(tmp_path / "run", "test", {}, 0) as run:
        run.write_jsonl("rows.jsonl", [{"text": "half \ud83d"}, {"text": "whole"}])
    lines = (tmp_path / "run" / "rows.jsonl").read_bytes().decode("utf-8").splitlines()
    assert [strict(line)["text"] for line in lines] == ["half \ufffd", "whole"]


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), torch.tensor(float("-inf"))])
def test_r26_scalars_of_every_kind(value: object) -> None:
    assert strict(dumps({"x": value}))["x"] is None


def test_files_put_into_out_while_a_run_is_written_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(PrudentError, match="the finished run is in") as caught, new_run(out, "fit", {}) as run:
        run.write_text("mine.txt", "result")
        out.mkdir()
        (out / "notes.txt").write_text("a person's")
    assert (out / "notes.txt").read_text() == "a person's"
    assert (Path(str(caught.value).rsplit(" ", 1)[1]) / "mine.txt").read_text() == "result"


def test_overwrite_takes_only_a_run_of_prudents_with_nothing_else_in_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for text in ("old", "new"):
        with new_run(out, "fit", {}, overwrite=True) as run:
            run.write_text("result.txt", text)
    assert (out / "result.txt").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["run"]
    (out / "notes.txt").write_text("a person's")
    with pytest.raises(PrudentError, match=r"didn't write \(notes.txt\)"), new_run(out, "fit", {}, overwrite=True):
        pass
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(PrudentError, match="isn't Prudent's"), new_run(other, "fit", {}, overwrite=True):
        pass


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for out in (tmp_path / "file" / "run", tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(PrudentError, match="--out"), new_run(out, "fit", {}):
            raise AssertionError("computed")
    for out in (tmp_path / ("x" * 250), tmp_path / "link"):
        with new_run(out, "fit", {}) as run:
            run.write_text("result.txt", "")
        assert (out / "result.txt").is_file()
    assert (tmp_path / "link").is_symlink()
    left = tmp_path / f".prudent-{'0' * 12}.999999999.partial"
    left.mkdir()  # of another folder's run: not touched
    with new_run(tmp_path / "next", "fit", {}):
        pass
    assert left.is_dir()


def test_align_refuses_by_name_what_trl_would_not_honour(tmp_path: Path) -> None:
    from prudent.cli import app

    words = (
        f"align --engine trl --out {tmp_path} --steps 999 --lora-rank 64 --preferences a.jsonl --judge j --runs 7 "
        "--objective exact --objective nonsense"
    )
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    for named in ("--steps", "--lora-rank", "--preferences", "--judge", "--runs", "one --objective", "nonsense"):
        assert named in result.output + result.stderr


LIMITED = """
import resource, sys, torch
from pathlib import Path
from prudent.errors import PrudentError
from prudent.runs import new_run, resumable_run
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
out = Path(sys.argv[1])
ways = {
    "text": lambda run: run.write_text("a.txt", "x" * 200_000),
    "tensors": lambda run: run.write_tensors("a.safetensors", {"a": torch.zeros(100_000)}),
    "table": lambda run: run.write_table("a.parquet", {"a": torch.randn(100_000)}),
}
for name, write in ways.items():
    for start in (new_run, resumable_run):
        try:
            with start(out / name, "test", {}) as run:
                write(run[0] if isinstance(run, tuple) else run)
        except PrudentError as error:
            assert "file-size limit" in str(error) and str(out / name) in str(error), error
            print("named")
"""


def test_a_file_size_limit_is_named_whichever_library_meets_it(tmp_path):
    found = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert found.stdout.split() == ["named"] * 6, found.stderr


def test_a_full_disk_is_named_in_every_command(monkeypatch, tmp_path):
    from prudent.cli import app

    def full(options):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    monkeypatch.setattr("prudent.commands.line.load", lambda place: full)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 2 and "the disk is full" in strict(done.stdout)["error"]
    with pytest.raises(PrudentError, match="the disk is full"), room_named("output o"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(FileNotFoundError), room_named("output o"):
        Path("/nowhere/at/all").read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"options": 3}', '{"options": {}, "seed": 0}', "\x00"])
def test_a_damaged_state_is_named(tmp_path, text):
    with pytest.raises(KeyboardInterrupt), resumable_run(tmp_path / "run", "align", {"a": 1}, 0) as (run, _):
        run.write_text("step", "1")
        raise KeyboardInterrupt
    (tmp_path / "run" / "state.json").write_text(text)
    with (
        pytest.raises(PrudentError, match=r"state\.json is damaged.*remove its folder"),
        resumable_run(tmp_path / "run", "align", {"a": 1}, 0),
    ):
        pass
