"""Encoding and scoring by a local Ray of two workers, with tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ray", reason="needs the extra ray: pip install 'prudent[ray]'")

from prudent.cli import app
from prudent.features.blocks import EncodeBlocks, Result, packed, write_texts
from prudent.features.encoder import Encoder
from prudent.features.ray import RayEngine
from prudent.features.shards import open_shard
from prudent.rewards.model import RewardModel

pytestmark = pytest.mark.timeout(900)  # each pool of workers imports torch and transformers anew
WORDS = ["harbour", "lamp", "river", "answer", "quiet", "seven", "bread", "window", "clock", "red"]
BLOCK = 16


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    engine = RayEngine(concurrency=2, rows=BLOCK)
    yield engine
    engine.connect().shutdown()


def texts(count: int) -> tuple[list[str], list[str]]:
    return [f"Say {i // 2}." for i in range(count)], [f"{WORDS[i % 10]} {i} " * (1 + i % 3) for i in range(count)]


def test_a_worker_that_is_killed_costs_its_block_at_most(tiny_folder: Path, tmp_path: Path, engine: RayEngine) -> None:
    flag = tmp_path / "killed"

    class Dying(EncodeBlocks):
        """Whoever is first ends by kill -9, with its block in the cache and nothing given back."""

        def __call__(self, block: Any) -> Any:
            found = super().__call__(block)
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    prompts, responses = texts(200)
    alone = Encoder(tiny_folder, dtype="float32", cache=tmp_path / "alone", progress=False)
    options = {"dtype": "float32", "cache": str(tmp_path / "shared")}
    reads = write_texts(tmp_path, prompts, responses, np.arange(200), BLOCK)
    results = list(engine.map(reads, Dying, (str(tiny_folder), options, alone.fingerprint)))
    assert flag.exists()
    assert sorted(line for result in results for line in result.lines) == list(range(200)), "no row is lost or doubled"
    folder = tmp_path / "shared" / alone.fingerprint[:32]
    written = sum(len(open_shard(path, alone.width).keys) for path in folder.glob("*.parquet"))
    assert 200 <= written <= 200 + BLOCK
    together = Encoder(tiny_folder, dtype="float32", cache=tmp_path / "shared", progress=False, engine=engine)
    found = together.encode(prompts[:30], responses[:30])  # too few for workers: read from what they wrote
    assert together.stats.cached == 30
    torch.testing.assert_close(found, alone.encode(prompts, responses)[:30], atol=1e-5, rtol=1e-5)


def test_one_file_is_shared_by_the_workers(tmp_path: Path, engine: RayEngine) -> None:
    class Meeting:
        """Holds its first block until another worker has one, too."""

        def __call__(self, block: Any) -> Any:
            (tmp_path / f"worker-{os.getpid()}").touch()
            until = time.monotonic() + 120
            while len(list(tmp_path.glob("worker-*"))) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            lines = np.array(block.to_pylist()[0]["line"])
            return packed(Result(lines, np.full((len(lines), 1), os.getpid()), [], len(lines), {}, ""))

    reads = write_texts(tmp_path, *texts(160), np.arange(160), BLOCK)
    assert len(reads) == 1
    results = list(engine.map(reads, Meeting, ()))
    assert sorted(line for result in results for line in result.lines) == list(range(160))
    assert {len(result.lines) for result in results} == {BLOCK}
    assert len({int(result.values[0, 0]) for result in results}) == 2


def test_fit_and_score_as_in_one_process(tiny_folder: Path, tmp_path: Path, engine: RayEngine) -> None:
    random = np.random.default_rng(0)
    pairs = [
        {
            "prompt": f"Say {WORDS[i // 2 % 10]} {i // 2}.",
            "chosen": " ".join(random.choice(WORDS, 4)),
            "rejected": " ".join(random.choice(WORDS, 3)) + " no",
        }
        for i in range(30)
    ]
    asked = [{"prompt": f"Say {word}.", "responses": [f"{word} {i}" for i in range(4)]} for word in WORDS]
    for name, rows in (("pairs", pairs), ("asked", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = ["fit", "--preferences", str(tmp_path / "pairs.jsonl"), "--model", str(tiny_folder), "--members", "3"]
    fit += ["--dtype", "float32", "--ridge", "0.1", "--out"]
    score = ["score", "--model", str(tmp_path / "one"), "--data", str(tmp_path / "asked.jsonl"), "--output"]
    ray = ["--engine", "ray", "--concurrency", "2", "--block-rows", "16"]
    commands = [[*fit, str(tmp_path / "one")], [*score, str(tmp_path / "one.jsonl")]]
    cache = os.environ["PRUDENT_CACHE"]
    for command in commands:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    os.environ["PRUDENT_CACHE"] = str(tmp_path / "cache")
    try:
        for command in ([*fit, str(tmp_path / "two"), *ray], [*score, str(tmp_path / "two.jsonl"), *ray]):
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.output
    finally:
        os.environ["PRUDENT_CACHE"] = cache
    one, two = (RewardModel.load(tmp_path / name).scorer.weights for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
    alone, shared = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("one.jsonl", "two.jsonl")
    )
    assert [row["prompt"] for row in shared] == [row["prompt"] for row in alone]
    for left, right in zip(alone, shared):
        torch.testing.assert_close(torch.tensor(right["members"]), torch.tensor(left["members"]), atol=1e-5, rtol=1e-5)


def test_what_a_worker_says_is_said(tmp_path: Path, engine: RayEngine) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    gone = str(tmp_path / "gone")
    command = ["encode", "--data", str(tmp_path / "asked.jsonl"), "--model", gone, "--engine", "ray"]
    done = CliRunner().invoke(app, [*command, "--concurrency", "1"])
    assert done.exit_code == 2
    assert "error: language model" in done.output and "gone" in done.output


@pytest.mark.slow  # the cache's own tests kill writers; here a whole command and its workers die
def test_a_command_that_is_killed_goes_on_where_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    prompts, responses = texts(3000)
    rows: list[dict] = [{"prompt": prompt, "response": response} for prompt, response in zip(prompts, responses)]
    (tmp_path / "asked.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows[:7], {"prompt": "no"}, *rows[7:]])
    )
    command = [sys.executable, "-m", "prudent.cli", "encode", "--data", str(tmp_path / "asked.jsonl"), "--json"]
    command += ["--model", str(tiny_folder), "--dtype", "float32", "--engine", "ray", "--on-error", "skip"]
    command += ["--concurrency", "2", "--block-rows", str(BLOCK)]
    environment = {**os.environ, "PRUDENT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "cache").glob("features/*/*.parquet")):
        assert first.poll() is None
        time.sleep(0.05)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(children, timeout=60)
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    done = json.loads(again.stdout)
    assert done["texts"] == 3000 and done["cached"] + done["encoded"] == 3000 and 0 < done["cached"] < 3000
    assert done["left_out_rows"][0].startswith("line 8")
