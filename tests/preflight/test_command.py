"""``prudent preflight`` from files to report on a tiny random language model, and what bad input gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_causal_lm
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.preflight.options import PreflightOptions
from prudent.commands.preflight.run import preflight as run_options
from prudent.data.pools import read_pool
from prudent.errors import PrudentError
from prudent.rewards.columns import PairColumns
from prudent.rewards.containers import PairFeatures, combine
from prudent.runs import read_manifest

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tiny_causal_lm(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preferences (two rows a prompt), a pool with gold under two names and ragged rows."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"prompt": f"Question {i % 24}?", "chosen": f"good {EVIL} {i} " + "a" * (i % 9), "rejected": f"bad {i % 5} b"}
        for i in range(48)
    ]
    lines(folder / "pairs.jsonl", rows)
    pool = [
        {
            "prompt": f"Pool {p}?",
            "responses": (texts := [f"answer {p} {c} " + "a" * (c * p % 7) for c in range(3 + p % 2)]),
            "gold": [len(text) / 10 for text in texts],
            "quality": [(p + c) % 3 for c in range(len(texts))],
        }
        for p in range(5)
    ]
    lines(folder / "pool.jsonl", pool)
    lines(folder / "no_gold.jsonl", [{key: row[key] for key in ("prompt", "responses")} for row in pool])
    return folder


def lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def preflight(settings: PreflightOptions, out: Path) -> dict:
    return run_options(replace(settings, out=out))


def small(data: Path, model: str, **changes) -> PreflightOptions:
    options = {
        "preferences": (str(data / "pairs.jsonl"),),
        "policy": model,
        "encoder": model,
        "betas": (0.1, 1.0),
        "draws": 8,
        "members": 3,
        "prompts": 3,
        "samples": 3,
        "max_new_tokens": 4,
        "dtype": "float32",
        "ridge": "1.0",
        "images": False,
    }
    return PreflightOptions(out=Path("unused"), **{**options, **changes})


def test_sampled_candidates_then_the_saved_pool(data, model, tmp_path) -> None:
    found = preflight(small(data, model), tmp_path / "first")
    written = json.loads((tmp_path / "first/results.json").read_text(encoding="utf-8"))
    assert written["truth"] == found["truth"] == "posterior"
    assert len(written["equal_beta"]) == len(written["equal_kl"]) == 22
    assert written["facts"]["pairs"] < 48  # a fifth of the prompts is held out
    assert {"reading", "sampling", "encoding", "draws and policies", "report"} <= set(written["timings_s"])
    manifest = read_manifest(tmp_path / "first", "preflight")
    assert manifest["peak_memory_mib"] > 50 and {"preferences", "encoder", "pool"} <= set(manifest["hashes"])
    assert {"report.html", "pool.jsonl", "tables/draws.parquet", "tables/equal_kl.parquet"} <= set(manifest["files"])

    page = (tmp_path / "first/report.html").read_text(encoding="utf-8")
    assert EVIL not in page and "&lt;script&gt;document.title" in page  # a disputed pair in full
    assert "Most disputed" in page or "most disputed" in page

    pool = read_pool(tmp_path / "first/pool.jsonl")
    assert len(pool) == 3 and all(len(texts) == 3 for texts in pool.responses)
    again = preflight(small(data, model, pool=str(tmp_path / "first/pool.jsonl")), tmp_path / "second")
    assert again["equal_beta"] == found["equal_beta"]  # the same candidates, the same seed: the same numbers


def test_pairs_that_are_the_same_once_cut_are_left_out_and_told(data, model, tmp_path) -> None:
    """R01: their difference lies behind the encoder's limit, so they would teach nothing and be right by chance."""
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows[::4]:
        row["prompt"] = "long " * 60 + row["prompt"]
    file = lines(tmp_path / "long.jsonl", rows)
    found = preflight(small(data, model, preferences=(file,), max_length=64), tmp_path / "out")
    told = [note for note in found["notes"] if "same after truncation: left out" in note]
    left_out = sum(int(note.split(" pairs are the same")[0].split(", ")[-1]) for note in told)
    assert left_out == 12 and any("longer than --max-length 64 and were cut" in note for note in found["notes"])
    with pytest.raises(PrudentError, match="raise --max-length"):
        preflight(small(data, model, max_length=12), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_gold_shows_what_would_have_been_promised_without_it(data, model, tmp_path) -> None:
    texts = [f"answer {number} {'x' * number}" for number in range(4)]
    rows = [
        {"prompt": f"ask {row}", "responses": texts, "gold": [0, 1, 2, row % 3], "quality": [3, 0, 1, row % 2]}
        for row in range(9)
    ]
    file = lines(tmp_path / "pool.jsonl", rows)
    found = preflight(small(data, model, pool=file, draws=80), tmp_path / "gold")
    assert found["truth"] == "gold" and found["unit"] == "units of gold"
    rows = found["check"]["rows"]
    assert {"promised_risk", "procedure_risk", "true_gain", "came_out_below"} <= set(rows[0]) and len(rows) == 22
    assert all(row["procedure_risk"] is not None for row in found["equal_beta"])
    settings = small(data, model, pool=file, gold="quality", check=False)
    other = preflight(settings, tmp_path / "other")
    assert other["unit"] == "units of quality" and other["check"] is None
    assert other["equal_beta"][0]["gain"] != found["equal_beta"][0]["gain"]


@pytest.mark.parametrize("gold", [False, True])
def test_betas_0_takes_the_best_candidates_and_says_so(data, model, tmp_path, gold) -> None:
    rows = [{"prompt": f"ask {row}", "responses": [f"answer {row} {'x' * n}" for n in range(4)]} for row in range(9)]
    rows = [{**row, "gold": [0, 1, 2, number % 3]} if gold else row for number, row in enumerate(rows)]
    settings = small(data, model, pool=lines(tmp_path / "pool.jsonl", rows), betas=(0.0,))
    found = preflight(settings, tmp_path / "out")
    table = {row["method"]: row for row in found["equal_beta"]}
    assert all(row["kl"] == pytest.approx(np.log(4)) and row["beta"] == 0 for row in table.values())
    assert all(row["kl"] == pytest.approx(np.log(4)) for row in found["equal_kl"])
    assert "1.39 nats from your model, whichever the rule" in (tmp_path / "out/report.html").read_text("utf-8")


def test_the_members_mean_as_the_reward(data, model, tmp_path) -> None:
    found = preflight(small(data, model, pool=str(data / "no_gold.jsonl"), reward="mean"), tmp_path / "out")
    by = {(row["method"], row["setting"]): row["risk"] for row in found["equal_beta"]}
    assert found["truth"] == "posterior" and by["vanilla", 0.1] == pytest.approx(by["mean", 0.1])


def test_a_judge_is_named_and_tested_on_held_out_pairs(data, model, tmp_path) -> None:
    from prudent.data.preferences import read_preferences
    from prudent.rewards.families import fit_reward_model

    judge = fit_reward_model(
        read_preferences(data / "pairs.jsonl"),
        "heads",
        model=model,
        members=3,
        ridge=1.0,
        encoder_options={"dtype": "float32"},
    )
    judge.save(tmp_path / "judge")
    found = preflight(
        small(data, model, pool=str(data / "no_gold.jsonl"), judge=str(tmp_path / "judge")), tmp_path / "out"
    )
    assert found["truth"] == "judge" and found["facts"]["judge"]["accuracy"] > 0.5
    assert found["equal_beta"][0]["judge_gain_low"] <= found["equal_beta"][0]["judge_gain_high"]


def test_command_line_prints_one_json_object(data, model, tmp_path) -> None:
    pairs = str(data / "pairs.jsonl")
    options = (
        "--betas 0.2 2 --draws 4 --members 2 --ridge 1 --no-images --no-check --max-pairs 20 --dtype float32 --json"
    )
    files = ["--preferences", pairs, "--test", pairs, "--pool", str(data / "pool.jsonl"), "--encoder", model]
    arguments = ["preflight", *files, *options.split(), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["setting"] for row in found["equal_beta"]} == {0.2, 2.0}
    assert any("20 of 48 pairs used" in note for note in found["notes"])
    assert any("test prompts also occur" in note for note in found["notes"])


def test_an_automatic_depth_is_chosen_once_and_said_everywhere(data, model, tmp_path, monkeypatch) -> None:
    settings = small(data, model, layer="auto", pool=str(data / "no_gold.jsonl"))
    found = preflight(settings, tmp_path / "first")
    depth = found["depth"]
    assert depth["layer"] in (1, 2, 3) and [row["layer"] for row in depth["table"]] == [1, 2, 3]
    assert depth["words"] in found["notes"] and depth["words"] in (tmp_path / "first" / "report.html").read_text()
    monkeypatch.setattr("prudent.rewards.depth.encode_depths", lambda *_: pytest.fail("read again"))
    again = preflight(settings, tmp_path / "second")
    given = preflight(replace(settings, layer=str(depth["layer"])), tmp_path / "third")
    assert given["depth"] is None and again["depth"] == depth
    assert again["equal_beta"] == found["equal_beta"] == given["equal_beta"]


def test_files_with_and_without_weights_combine() -> None:
    plain = PairFeatures(torch.zeros(2, 3), torch.zeros(2, 3), ["a", "b"])
    weighted = PairFeatures(
        torch.ones(1, 3), torch.ones(1, 3), ["c"], PairColumns(weight=torch.tensor([0.5], dtype=torch.float64))
    )
    both = combine([plain, weighted])
    assert both.columns.weight.tolist() == [1.0, 1.0, 0.5] and both.columns.margin is None
    assert both.groups == ["a", "b", "c"] and both.chosen.shape == (3, 3)


BAD = {
    "missing columns": ({"pairs.jsonl": [{"question": "a", "answer": "b"}] * 9}, [], ("line 1", "unknown-columns")),
    "missing field": ({"pairs.jsonl": [{"prompt": "a", "chosen": "b"}] * 9}, [], ("line 9", "rejected")),
    "empty file": ({"pairs.jsonl": []}, [], ("pairs.jsonl",)),
    "too few pairs": (
        {"pairs.jsonl": [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(5)]},
        [],
        ("at least 8",),
    ),
    "one-class votes": (
        {
            "pairs.jsonl": [
                {"prompt": f"q{i}", "response_1": "a", "response_2": "b", "votes": [1, 1, 1]} for i in range(20)
            ]
        },
        [],
        ("votes of one class",),
    ),
    "single response": (
        {"pool.jsonl": [{"prompt": "a", "responses": ["b"]}]},
        ["--pool", "pool.jsonl"],
        ("line 1", "responses", "single-response"),
    ),
    "gold not finite": (
        {"pool.jsonl": '{"prompt": "a", "responses": ["b", "c"], "gold": [1, NaN]}\n'},
        ["--pool", "pool.jsonl"],
        ("line 1", "gold"),
    ),
    "gold column not there": (
        {"pool.jsonl": [{"prompt": "a", "responses": ["b", "c"]}]},
        ["--pool", "pool.jsonl", "--gold", "score"],
        ("no column 'score'",),
    ),
    "gold without pool": ({}, ["--gold", "score"], ("--pool",)),
    "no such model": ({}, ["--policy", "./nowhere"], ("nowhere",)),
    "no such judge": ({}, ["--judge", "./nowhere"], ("nowhere",)),
    "no such file": ({"pairs.jsonl": None}, [], ("pairs.jsonl is not there",)),
    "beta negative": ({}, ["--betas", "0.1", "-1"], ("--betas",)),
    "too few draws": ({}, ["--draws", "1"], ("--draws", "4")),
    "nothing to read": ({"pairs.jsonl": ...}, [], ("no preference file",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_2_and_leaves_nothing(case, data, model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, options, words = BAD[case]
    (tmp_path / "pairs.jsonl").write_bytes((data / "pairs.jsonl").read_bytes())
    preferences = ["--preferences", "pairs.jsonl"]
    for name, content in files.items():
        if content is None:
            (tmp_path / name).unlink()
        elif content is ...:
            preferences = []
        else:
            (tmp_path / name).write_text(content) if isinstance(content, str) else lines(tmp_path / name, content)
    before = {path.name for path in tmp_path.iterdir()}
    base = ["preflight", *preferences, "--policy", model, "--encoder", model, "--out", "out"]
    done = CliRunner().invoke(app, [*base, *options])
    assert done.exit_code == 2, done.output
    assert all(word in done.output for word in words), done.output
    assert "Traceback" not in done.output
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_output_folder_in_use_is_left_alone(data, model, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = ["preflight", "--preferences", str(data / "pairs.jsonl"), "--encoder", model, "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert (done.exit_code == 2 and "in use" in done.output) or "no finished run" in done.output
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("moment", ["reading", "draws and policies"])
def test_ctrl_c_leaves_nothing_behind(moment, data, model, tmp_path) -> None:
    arguments = [
        "preflight",
        "--preferences",
        str(data / "pairs.jsonl"),
        "--pool",
        str(data / "no_gold.jsonl"),
        "--encoder",
        model,
        "--dtype",
        "float32",
        "--out",
        str(tmp_path / "out"),
        "--draws",
        "4000",
        "--ridge",
        "1",
        "--no-images",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prudent.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        # A runner in the background ignores SIGINT and its children inherit that: a person's shell does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stderr:
        if line.startswith(f"{moment} ..."):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    # A shell shows 130 for both: where the interrupt meets an import in C, Python ends itself by the signal.
    assert process.wait(timeout=60) in (130, -signal.SIGINT), rest
    assert "interrupted" in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chromium
def test_the_report_draws_its_charts_in_a_browser(data, model, tmp_path, chromium) -> None:
    preflight(small(data, model, pool=str(data / "pool.jsonl")), tmp_path / "out")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=500,900",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=60000",
            "--dump-dom",
            (tmp_path / "out/report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count('data-state="drawn"') >= 8 and 'data-state="failed"' not in done.stdout
    assert "owned" not in done.stdout.split("</title>")[0]  # no text of others has run
