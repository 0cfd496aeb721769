"""Every option of every command with values of a wrong type in YAML, and every damage of a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from tests.field.hostile.cases import Case, of_bytes
from tests.field.hostile.readers import Reader
from tests.field.hostile.values import DIGITS

from prudent.cli import app  # noqa: F401  (building it declares the commands)
from prudent.commands.fit.training_arguments import training_arguments
from prudent.commands.options import COMMANDS, CommonOptions, build, fields_of
from prudent.commands.yaml_file import read_yaml
from prudent.errors import PrudentError

# value as YAML -> types of options that may have it
VALUES: dict[str, tuple[str, tuple[type, ...]]] = {
    "true": ("true", (bool,)),
    "text": ("much", (str, Path)),
    "object": ("{a: 1}", ()),
    "NaN": (".nan", (str,)),
    "400 digits": (DIGITS, (str,)),
}
FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "Latin-1": (b"# \xe9\nseed: 1", ("not UTF-8 at byte 2",)),
    "UTF-16": ("seed: 1".encode("utf-16"), ()),
    "NUL": (b"seed: \x00", ()),
    "a list": (b"- seed", ("found list",)),
    "a text": (b"seed", ("found str",)),
    "a key twice": (b"seed: 1\nseed: 2", ("line 2", "seed")),
    "a key twice, spelt in two ways": (b"on-error: skip\non_error: raise", ("line 2", "on_error")),
    "an alias": (b"seed: &a 1\nsplit: *a", ("line 2", "alias")),
    "a bomb of aliases": (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", ("alias",)),
    "30 levels": (b"seed: " + b"[" * 30 + b"]" * 30, ("deeper than 20",)),
    "100,000 levels": (b"seed: " + b"[" * 100_000, ("deeper than 20",)),
    "2 MiB": (b"# " + b"x" * 2**21, ("larger than",)),
    "a list as a key": (b"? [a]\n: 1", ("as a key",)),
    "an object of Python": (b"seed: !!python/object/apply:os.system ['true']", ("YAML",)),
    "a tag": (b"seed: !x 1", ("YAML",)),
    "an unknown option": (b"sead: 1", ("sead", "near", "seed")),
    "a name with an escape": (b'"se\\u001b[2Jed": 1', ("no option",)),
    "a number as a name": (b"7: 1", ("no option '7'",)),
    "a brace left open": (b"seed: {", ("YAML",)),
    "a tab": (b"seed:\n\t- 1", ("YAML",)),
}


def required(options: type[CommonOptions], folder: Path) -> dict[str, Any]:
    """Values with which a command can be built."""
    given: dict[str, Any] = {}
    for field in fields_of(options):
        if field.default is MISSING:
            file = folder / f"{field.name}.jsonl"
            file.write_text("{}\n")
            given[field.name] = str(folder / "out") if field.name == "out" else str(file)
    return given


def built(options: type[CommonOptions]) -> Reader:
    """A reader of the command's options from YAML."""

    def read(path: Path) -> Any:
        try:
            return build(options, {**required(options, path.parent), **read_yaml(path)})
        except PrudentError as error:  # the command line says which file it read
            raise PrudentError(str(error) if path.name in str(error) else f"{path.name}: {error}") from error

    return Reader(read, [])


def config_cases() -> Iterator[Case]:
    for options in COMMANDS:
        reader, words = built(options), options.command.words
        for field in fields_of(options):
            if field.name in ("config", "as_json"):
                continue
            for what, (value, allowed) in VALUES.items():
                if field.one in allowed:
                    continue
                write = of_bytes("options.yaml", text(f"{field.key}: {value}"))
                yield Case(f"{words}: {field.flag} is {what}", reader, write, (field.flag,))
    fit = next(options for options in COMMANDS if options.command.words == "fit")
    for what, (content, said) in FILES.items():
        yield Case(f"options: {what}", built(fit), of_bytes("options.yaml", lambda content=content: content), said)
    wrong = {
        "an unknown name": ("learning_rat: 1", ("learning_rat", "near")),
        "a text for a number": ("learning_rate: fast", ("learning_rate", "number")),
        "true for a number": ("max_steps: true", ("max_steps", "number")),
        "a fraction for a whole number": ("max_steps: 1.5", ("max_steps", "whole")),
        "400 digits": (f"max_steps: {DIGITS}", ("max_steps",)),
        "a folder elsewhere": ("output_dir: /tmp/x", ("output_dir", "--out")),
        "the hub": ("push_to_hub: true", ("push_to_hub",)),
        "a reporter": ("report_to: wandb", ("report_to",)),
    }
    for what, (line, said) in wrong.items():
        yield Case(
            f"training arguments: {what}", Reader(training_arguments, []), of_bytes("args.yaml", text(line)), said
        )


def text(line: str) -> Callable[[], bytes]:
    return lambda: line.encode()
