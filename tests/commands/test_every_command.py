"""What holds of every command: one JSON object on failure, limits of sizes, columns by a person's names."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path

import pytest
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.common import keeping_interrupts
from prudent.commands.line import load
from prudent.commands.options import COMMANDS, CommonOptions, RowOptions, build, faults, fields_of
from prudent.errors import PrudentError

BY_WORDS = {options.command.words: options for options in COMMANDS}
UNBOUNDED = {"--seed", "--max-pairs", "--max-test-pairs"}  # a number, and caps that only ever make a run smaller


def required(options: type[CommonOptions], folder: Path, absent: Path) -> list[str]:
    """Words for the required options, with ``absent`` wherever a file or folder is read."""
    words = []
    for field in fields_of(options):
        if field.default is MISSING:
            value = folder / "out" if field.name == "out" else absent
            words += [str(value)] if isinstance(field.info, ArgumentInfo) else [field.flag, str(value)]
    return words


@pytest.mark.parametrize("words", sorted(BY_WORDS))
def test_a_missing_file_is_one_json_error(words: str, tmp_path: Path) -> None:
    options, absent = BY_WORDS[words], tmp_path / "absent.jsonl"
    given = [*words.split(), *required(options, tmp_path, absent), "--json"]
    names = {field.name for field in fields_of(options)}
    if not any("absent" in word for word in given):  # nothing is required: name a file by an option
        flag = next((f"--{n}" for n in ("preferences", "pool", "data", "config") if n in names), "--config")
        given += [flag, str(absent)]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2, done.output
    assert list(found := json.loads(done.stdout)) == ["error"]
    assert "absent" in found["error"] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", sorted(BY_WORDS))
def test_absurd_sizes_are_refused_with_the_limit(words: str) -> None:
    for field in fields_of(BY_WORDS[words]):
        if field.one is int and field.flag not in UNBOUNDED:
            huge = 10**13
            (fault,) = faults(field, (huge,) if field.many else huge)
            assert f"{field.flag} is {huge}, the limit is" in fault


def test_members_by_the_hundred_million_are_refused_everywhere() -> None:
    for options in COMMANDS:
        for field in fields_of(options):
            if field.name == "members":
                assert "the limit is 10000" in faults(field, 100_000_000)[0], options


def test_an_option_at_its_default_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    cases = {
        "--engine trl doesn't take --steps": ("align", {"engine": "trl", "steps": 40}),
        "doesn't use --draws": ("overoptimize", {"model": "rm", "draws": 20}),
        "doesn't use --repetitions": ("rlp", {"policy": "align", "repetitions": 100}),
        "doesn't use --max-length": ("fit", {"family": "external", "models": ["a"], "max_length": 1024}),
    }
    for message, (words, given) in cases.items():
        rest = {"preferences": [__file__]} if words == "fit" else {}
        with pytest.raises(PrudentError, match=message):
            build(BY_WORDS[words], {"out": tmp_path / "out", **given, **rest})


def test_columns_are_mapped_wherever_rows_are_read() -> None:
    readers = {words for words, options in BY_WORDS.items() if "column" in {f.name for f in fields_of(options)}}
    none = {"demo", "export", "theory reproduce", "evaluate validity", "recommend top", "recommend evaluate"}
    assert set(BY_WORDS) - readers == none
    with pytest.raises(PrudentError, match="--column 'prompt': give OURS=THEIRS"):
        build(BY_WORDS["score"], {"model": "m", "data": __file__, "column": ["prompt"]})
    with pytest.raises(PrudentError, match="names 'prompt' twice"):
        build(BY_WORDS["score"], {"model": "m", "data": __file__, "column": ["prompt=a", "prompt=b"]})
    assert issubclass(BY_WORDS["best-of-n"], RowOptions)


def test_a_pool_and_rows_to_score_by_other_names(tmp_path: Path) -> None:
    from prudent.commands.score.run import read_rows
    from prudent.evaluation.overoptimization.worlds import read_candidates

    file = tmp_path / "pool.jsonl"
    file.write_text(json.dumps({"question": "Why?", "answers": ["a", "b"], "truth": [0, 1], "prompt": "no"}) + "\n")
    columns = {"prompt": "question", "responses": "answers", "gold": "truth"}
    pool = read_candidates(file, columns)
    assert pool.prompts[0][0]["content"] == "Why?" and pool.responses == [["a", "b"]] and pool.gold == [[0.0, 1.0]]
    with pytest.raises(PrudentError, match="columns found: prompt, answers, truth"):
        read_candidates(file, {"prompt": "question"})
    items, left_out = read_rows(file, columns)
    assert items[0].row["responses"] == ["a", "b"] and len(items[0].responses) == 2 and not left_out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_train_epoch: 2", "'num_train_epoch' is unknown; near: num_train_epochs"),
        ("learning_rate: fast", "learning_rate is 'fast', must be a number"),
        ("max_steps: 2.5", "max_steps is '2.5', must be a whole number"),
        ("bf16: 'yes please'", "bf16 is 'yes please', must be true or false"),
        ("max_steps: true", "max_steps is 'True', must be a number"),
        ("push_to_hub: true", "push_to_hub would send the run elsewhere"),
        ("report_to: wandb", "report_to would send the run elsewhere"),
        ("output_dir: /tmp/x", "output_dir is set by --out"),
    ],
)
def test_training_arguments_are_checked_by_name_and_type(tmp_path: Path, text: str, said: str) -> None:
    from prudent.commands.fit.training_arguments import training_arguments

    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(PrudentError, match="--training-args") as caught:
        training_arguments(file)
    assert said in str(caught.value)
    file.write_text("learning_rate: 1e-4\nmax_steps: 3\nbf16: false")
    assert training_arguments(file) == {"learning_rate": 1e-4, "max_steps": 3, "bf16": False}


def test_options_that_a_family_lacks_are_refused_by_name(tmp_path: Path) -> None:
    from prudent.commands.fit.run import family_options

    def asked(**given: object) -> dict:
        return family_options(build(BY_WORDS["fit"], {"preferences": [__file__], "out": tmp_path / "o", **given}))

    assert asked(family="mlp", epochs=2) == {"epochs": 2}
    with pytest.raises(PrudentError, match="--family laplace has no --epochs; it has --ridge, --sandwich"):
        asked(family="laplace", epochs=2)
    with pytest.raises(PrudentError, match="solved exactly, without --epochs"):
        asked(epochs=2)
    assert asked(epochs=2, diversity="shuffle") == {"epochs": 2, "diversity": "shuffle"}


@pytest.mark.parametrize("words", sorted(BY_WORDS))
def test_what_runs_and_shows_a_command_is_there(words: str) -> None:
    about = BY_WORDS[words].command
    assert callable(load(about.run)) and (not about.show or callable(load(about.show)))


def test_a_wrong_option_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, prudent.cli\n"
        "sys.argv = ['prudent', 'preflight', '--preferences', 'absent.jsonl', '--out', 'out']\n"
        "try: prudent.cli.main()\n"
        "except SystemExit as end: print(end.code)\n"
        "heavy = ('torch', 'transformers', 'datasets', 'numpy', 'prudent.commands.align.options')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "--preferences absent.jsonl is not there" in done.stderr and done.stdout.split("\n")[:2] == ["2", "[]"]


def test_nothing_but_the_object_reaches_stdout(tmp_path: Path) -> None:
    code = (
        "import atexit, os\n"
        "import prudent.cli as cli\n"
        "cli.keep_stdout_clean()\n"
        "atexit.register(lambda: os.write(1, b'written by a library as it ends'))\n"
        "print('{}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "{}\n" and "as it ends" in done.stderr and done.returncode == 0


def test_an_interrupt_that_code_in_c_swallows_is_raised_at_the_end() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        swallowing = contextlib.suppress(KeyboardInterrupt)  # as an import in C does
        with pytest.raises(KeyboardInterrupt), keeping_interrupts(), swallowing:
            signal.raise_signal(signal.SIGINT)
        with keeping_interrupts():
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
