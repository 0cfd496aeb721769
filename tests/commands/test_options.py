"""Options declared once: command line, YAML and Python read the same fields, and each fault is one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

import prudent
from prudent.cli import app
from prudent.commands.line import Group, add, repeat_names
from prudent.commands.options import COMMANDS, CommonOptions, build, command, fields_of
from prudent.errors import PrudentError


@command("toy", run="toy:toy", interrupted="resume with --name {name}")
class ToyOptions(CommonOptions):
    """Toy.

    Example: prudent toy --name x
    """

    name: Annotated[str, typer.Option(help="A name.")]
    rates: Annotated[tuple[float, ...], typer.Option(help="Rates.")] = (0.1, 1.0)
    tags: Annotated[tuple[str, ...], typer.Option("--tag", help="Tags.")] = ()
    count: Annotated[int, typer.Option(help="Count.", min=1, max=9)] = 3
    kind: Annotated[Literal["a", "b"], typer.Option(help="Kind.")] = "a"
    file: Annotated[Path | None, typer.Option(help="File.", exists=True)] = None
    check: Annotated[bool, typer.Option(help="Check.")] = True


COMMANDS.remove(ToyOptions)  # a test's own, none of the product's


def toy(options: ToyOptions) -> dict:
    if options.name == "wrong":
        raise PrudentError("wrong name")
    if options.name == "stop":
        raise KeyboardInterrupt
    print("a library's line")
    return options.chosen()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prudent.commands.toy", sys.modules[__name__])
    made = typer.Typer(cls=Group, pretty_exceptions_enable=False)
    add(made, ToyOptions, "toy")
    add(made, ToyOptions, "other")
    return lambda *words: CliRunner().invoke(made, ["toy", *map(str, words)])


def test_command_line_yaml_and_python_read_the_same(run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: x\nrates: [1e-4, 2]\ntag: [u, v]\nkind: b\ncheck: false\n")
    words = ("--name", "x", "--rates", "1e-4", "2", "--tag", "u", "v", "--kind", "b", "--no-check")
    results = [json.loads(run(*given, "--json").stdout) for given in (words, ("--config", file))]
    python = build(ToyOptions, {"name": "x", "rates": "1e-4,2", "tag": ["u", "v"], "kind": "b", "check": False})
    for found in results:
        assert found["rates"] == [1e-4, 2.0] == list(python.rates)
        assert found["tags"] == ["u", "v"] == list(python.tags)
        assert (found["kind"], found["check"]) == ("b", False) == (python.kind, python.check)
    assert json.loads(run("--config", file, "--kind", "a", "--json").stdout)["kind"] == "a"
    assert json.loads(run("--name", "x", "--json").stdout)["rates"] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--name"),
        (("--name", "x", "--count", "10"), "less than or equal to 9"),
        (("--name", "x", "--kind", "c"), "'a', 'b'"),
        (("--name", "x", "--file", "/none"), "does not exist"),
        (("--name", "x", "--rates", "much"), "--rates is 'much', must be a number"),
        (("--name", "wrong"), "wrong name"),
    ],
)
def test_user_errors_are_one_json_object_and_status_2(run, words: tuple[str, ...], said: str) -> None:
    done = run(*words, "--json")
    assert done.exit_code == 2
    assert said in json.loads(done.stdout)["error"]
    plain = run(*words)
    assert plain.exit_code == 2 and plain.stdout == ""


def test_ctrl_c_names_the_way_on(run) -> None:
    done = run("--name", "stop")
    assert done.exit_code == 130 and "resume with --name stop" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: \xff", "not UTF-8 at byte 6"),
        (b"name: x\nname: y", "line 2 has name twice"),
        (b"a: &a [x, x]\nname: *a", "line 2 has an alias"),
        (b"name: " + b"[" * 3000 + b"]" * 3000, "deeper than 20"),
        (b"count: true", "--count is 'True', must be a whole number"),
        (b"count: many", "--count is 'many', must be a whole number"),
        (b"check: 3", "--check is '3', must be true or false"),
        (b"name: [x]", "--name is"),
        (b"coun: 3", "near: count"),
        (b"- x", "found list"),
        (b"name: {", "can't be read as YAML"),
    ],
)
def test_a_fault_of_the_config_file_is_one_clear_error(run, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    done = run("--config", file, "--json")
    assert done.exit_code == 2
    assert said in json.loads(done.stdout)["error"]


def test_python_names_near_options_and_limits() -> None:
    with pytest.raises(PrudentError, match="near: count"):
        build(ToyOptions, {"name": "x", "cuont": 3})
    with pytest.raises(PrudentError, match="--count is 10, the limit is 9"):
        build(ToyOptions, {"name": "x", "count": 10})
    with pytest.raises(PrudentError, match="needs --name"):
        build(ToyOptions, {})


def test_version_and_a_group_called_wrongly() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"prudent {prudent.__version__}\n"
    wrong = CliRunner().invoke(app, ["evaluate", "rewardbnech", "--json"])
    assert wrong.exit_code == 2
    assert "rewardbench, rewardbench2, rewardmath, preferences, validity" in json.loads(wrong.stdout)["error"]


def test_repeated_names_stop_at_the_next_option() -> None:
    given = ["--betas", "0.1", "0.3", "--out", "x"]
    assert repeat_names(given, {"--betas"}) == ["--betas", "0.1", "--betas", "0.3", "--out", "x"]


def test_every_command_has_its_own_class_and_an_example() -> None:
    names = [options.__name__ for options in COMMANDS]
    assert len(set(names)) == len(names)
    for options in COMMANDS:
        assert options.command.example.startswith(f"prudent {options.command.words} "), options


def test_a_wrong_call_ends_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom prudent.cli import app\n"
        "try:\n    app(['evaluate', 'rewardbench', '--data', 'absent.jsonl'])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "sys.exit(code if 'torch' not in sys.modules and 'datasets' not in sys.modules else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "absent.jsonl" in done.stderr, done.stderr


def test_run_preflight_names_near_options_before_anything_is_read() -> None:
    with pytest.raises(PrudentError, match=r"no option 'max_pair'; near: .*max_pairs"):
        prudent.run_preflight(preferences="x", out="unused", max_pair=3)
    with pytest.raises(PrudentError, match="--members is 100000000, the limit is 10000"):
        prudent.run_preflight(preferences="x", out="unused", members=100_000_000)
    with pytest.raises(PrudentError, match=r"absent\.jsonl is not there"):
        prudent.run_preflight(preferences="absent.jsonl", out="unused")


def test_score_overwrites_nothing_that_was_not_named(tmp_path: Path) -> None:
    data, taken = tmp_path / "data.jsonl", tmp_path / "taken.jsonl"
    for file in (data, taken):
        file.write_text("kept")
    for output, more, said in ((taken, [], "--overwrite"), (data, ["--overwrite"], "is a file that is read")):
        words = ["score", "--model", "m", "--data", str(data), "--output", str(output), "--json", *more]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and said in json.loads(done.stdout)["error"]
        assert output.read_text() == "kept"


def test_numbers_that_no_command_can_use_are_refused_before_anything_is_read(tmp_path):
    """Infinity for every number, and step sizes, shares and weights out of their bounds."""
    from prudent.cli import _app

    _app()
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    seen = 0
    for options in COMMANDS:
        needed = {
            field.name: tmp_path / "out" if field.name == "out" else 1 if field.one is int else str(file)
            for field in fields_of(options)
            if field.default is MISSING
        }
        for field in fields_of(options):
            if field.one is float:
                seen += 1
                with pytest.raises(PrudentError, match=field.flag):
                    build(options, {**needed, field.name: "inf"})
    assert seen > 60
    fit = next(options for options in COMMANDS if options.command.words == "fit")
    for name, value in {
        "learning_rate": 0,
        "dropout": 1.5,
        "meta_rate": -1,
        "phase_one": 1,
        "weight_decay": -1,
    }.items():
        with pytest.raises(PrudentError, match=f"--{name.replace('_', '-')} is"):
            build(fit, {"preferences": str(file), "out": tmp_path / "out", name: value})


EARLY = """
import sys
import prudent.cli

def interrupted(names):
    raise KeyboardInterrupt

prudent.cli.built = interrupted
sys.argv = ["prudent", "demo", "--json"]
prudent.cli.main()
"""


def test_ctrl_c_before_a_command_begins_is_one_object_too():
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout) == {"error": "interrupted before the command began"}
