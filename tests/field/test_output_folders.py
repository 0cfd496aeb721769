"""Nothing is ever lost: where a run can't be written, every command says so in one line and leaves nothing behind."""

from __future__ import annotations

import json
import resource
import signal
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
