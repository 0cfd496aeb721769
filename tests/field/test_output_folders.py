"""Nothing is ever lost: where a run can't be written, every command says so in one line and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.field.test_items import classifier_with, pairs, run, write
from tests.tiny import TEMPLATE

RESUMABLE = ("rlp", "align")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("given")
    rm, given = classifier_with(TEMPLATE, folder / "rm"), write(folder / "pairs.jsonl", pairs(40))
    rows = [{"prompt": f"ask {i}", "responses": ["a b", f"c {i}", "d"], "gold": [0.1, 0.5, 0.2]} for i in range(12)]
    pool = write(folder / "pool.jsonl", rows)
    draws, small = ["--draws", 2, "--pairs", 8], ["--steps", 1, "--runs", 1, "--members", 2, "--max-new-tokens", 4]
    return {
        "score": ["score", "--model", rm, "--data", pool],
        "best-of-n": ["best-of-n", "--pool", pool, "--model", rm, "--rule", "mean"],
        "fit": ["fit", "--preferences", given, "--model", tiny_folder, "--members", 2],
        "evaluate": ["evaluate", "preferences", "--data", given, "--model", rm],
        "clean": ["clean", given, "--holdout", 0, "--encoder", tiny_folder],
        "preflight": ["preflight", "--preferences", given, "--pool", pool, "--encoder", tiny_folder, "--draws", 4],
        "acquire": ["acquire", "--preferences", given, "--candidates", pool, "--encoder", tiny_folder, "--budget", 2],
        "overoptimize": ["overoptimize", "--pool", pool, "--language-model", tiny_folder, "--sweep", "none", *draws],
        "rlp": ["rlp", "--pool", pool, "--language-model", tiny_folder, "--repetitions", 2, "--pairs", 8],
        "align": ["align", "--preferences", given, "--policy", tiny_folder, *small],
    }


NAMES = ("score", "best-of-n", "fit", "evaluate", "clean", "preflight", "acquire", "overoptimize", "rlp", "align")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, no file may grow beyond so many bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_can_t_be_written_is_refused_before_anything_is_read(
    name: str, tmp_path: Path, commands: dict[str, list[Any]]
) -> None:
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_text("mine")
    loop.symlink_to(loop)
    for out in (file, file / "x", loop, tmp_path / ("n" * 300)):
        refused = run(*commands[name], "--out", out)
        assert refused.exit_code == 2 and "name another --out" in refused.output, (out, refused.output)
        assert "scoring" not in refused.output and "encoding" not in refused.output
    assert file.read_text() == "mine" and {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize("name", ["score", "fit", "evaluate", "acquire", "rlp", "align"])
def test_a_file_size_limit_is_named_and_leaves_nothing_half_written(
    name: str, tmp_path: Path, commands: dict[str, list[Any]]
) -> None:
    out = tmp_path / "out"
    with files_of_at_most(1500):
        refused = run(*commands[name], "--out", out)
    assert refused.exit_code == 2, refused.output + repr(refused.exception)
    assert "can't be written" in refused.output and "free some room there" in refused.output
    assert not (out / "manifest.json").exists() and not list(tmp_path.glob("*.part*"))
    if name not in RESUMABLE:
        assert not out.exists()


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_damaged_state_is_named(name: str, tmp_path: Path, commands: dict[str, list[Any]]) -> None:
    for text in ("", '{"command": 3', "[]", json.dumps({"command": name, "options": 3, "seed": 0})):
        (tmp_path / "state.json").write_text(text)
        refused = run(*commands[name], "--out", tmp_path)
        assert refused.exit_code == 2 and "state.json is damaged" in refused.output
        assert "remove its folder to start anew, or name another --out" in refused.output


@pytest.mark.parametrize("name", RESUMABLE)
def test_ctrl_c_says_that_the_same_command_goes_on(
    name: str, tmp_path: Path, commands: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prudent.features.encoder import Encoder

    def interrupt(*given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", interrupt)
    stopped = run(*commands[name], "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert f"give the same command with --out {tmp_path / 'out'} again: it goes on" in stopped.output


def test_a_full_device_is_named(commands: dict[str, list[Any]]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    refused = run(*commands["score"], "--output", "/dev/full", "--json")
    assert refused.exit_code == 2 and "the disk is full" in json.loads(refused.stdout)["error"]


SEALED = """
import decimal, importlib, json, os, sys
from pathlib import Path
from typer.testing import CliRunner
from prudent.cli import app
from prudent.commands.options import COMMANDS
for command in COMMANDS:  # what is installed may be closed to others
    importlib.import_module("prudent.commands." + command.command.run.partition(":")[0])
os.setgid(65534)
os.setuid(65534)
for name, words in json.loads(Path(sys.argv[1]).read_text()).items():
    for out in ("sealed/x", "sealed"):
        found = CliRunner().invoke(app, [*words, "--out", str(Path(sys.argv[1]).parent / out)])
        print(json.dumps([name, found.exit_code, found.output + repr(found.exception)]))
"""


def test_a_folder_of_somebody_else_is_refused_before_anything_is_read(commands: dict[str, list[Any]]) -> None:
    """As another user, since a folder without write permission stops nobody who is root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        folder.chmod(0o755)
        (folder / "sealed").mkdir(mode=0o555)
        words = {name: [str(word) for word in given] for name, given in commands.items()}
        inputs = {Path(word) for given in words.values() for word in given if word.startswith("/")}
        for path in inputs:  # the test's own folders are closed to others
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
            (folder / path.name).chmod(0o755)
        moved = {
            name: [str(folder / Path(word).name) if word.startswith("/") else word for word in given]
            for name, given in words.items()
        }
        (folder / "commands.json").write_text(json.dumps(moved))
        done = subprocess.run(
            [sys.executable, "-B", "-c", SEALED, str(folder / "commands.json")], capture_output=True, text=True
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(found) == 2 * len(commands), done.stderr
        for name, code, output in found:
            assert code == 2 and "not a writable folder; name another --out" in output, (name, output)
            assert "scoring" not in output and "encoding" not in output, name


KILLED = """
import os, signal, sys
from prudent.runs import new_run
with new_run(sys.argv[1], "fit", {}) as run:
    run.write_text("half.txt", "half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RESUMABLE])
def test_what_a_killed_run_left_is_removed_by_the_next(
    name: str, tmp_path: Path, commands: dict[str, list[Any]]
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    [left] = tmp_path.iterdir()
    assert killed.returncode < 0 and (left / "half.txt").is_file()
    elsewhere = left.with_name(re.sub("-[0-9a-f]{8}[.]", "-00000000.", left.name))  # of another machine: at work
    shutil.copytree(left, elsewhere)
    done = run(*commands[name], "--out", out)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {"out", elsewhere.name}


def test_a_cache_that_can_t_be_written_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: dict[str, list[Any]]
) -> None:
    from prudent.features.backbone import Runner

    monkeypatch.setattr(Runner, "run", lambda *given: pytest.fail("encoded"))
    monkeypatch.setenv("PRUDENT_CACHE", str(tmp_path))
    access = os.access
    sealed = str(tmp_path / "features")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(sealed) and access(path, mode))
    refused = run(*commands["fit"], "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "set PRUDENT_CACHE to a folder that can be written" in refused.output
    monkeypatch.setattr(os, "access", access)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUDENT_CACHE", str(tmp_path / "file"))
    refused = run(*commands["fit"], "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "can't be made (Not a directory); set PRUDENT_CACHE" in refused.output
