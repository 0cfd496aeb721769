"""What every command shares: errors to exit status 2, YAML config, strict JSON on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from prudent.errors import PrudentError
from prudent.runs import room_named

F = TypeVar("F", bound=Callable[..., Any])


def say(message: str) -> None:
    """A line for a person, on stderr, so that stdout holds results alone."""
    print(message, file=sys.stderr, flush=True)


def result_console(width: int = 120) -> Any:
    """Console for tables on stdout; into a file or a pipe it is ``width`` wide, so that no cell is cut or wrapped."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take option values from a YAML file (keys are option names); the command line wins over the file."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must hold option names and values, found {type(values).__name__}")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    known = {parameter.name for parameter in context.command.params}
    unknown = sorted(set(named) - known)
    if unknown:
        raise typer.BadParameter(
            f"{path} has unknown options {', '.join(unknown)}; known: {', '.join(sorted(map(str, known)))}"
        )
    context.default_map = {**(context.default_map or {}), **named}
    return path


SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice below this command.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one strict JSON object on stdout and nothing else there.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a finished run that is in --out.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of option names and values.", callback=load_config, is_eager=True),
]

ModelOption = Annotated[str, typer.Option("--model", help="Language model: smollm2 (embedded), a folder or a hub id.")]
PoolingOption = Annotated[str, typer.Option("--pooling", help="Features: last, mean or last+mean token states.")]
MaxLengthOption = Annotated[int, typer.Option("--max-length", min=1, help="Longest conversation in tokens.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="Precision of the language model; by default what is fast.")
]
MaxPairsOption = Annotated[
    int | None, typer.Option("--max-pairs", min=2, help="Use at most so many pairs, drawn at random.")
]
MaxTestPairsOption = Annotated[
    int | None, typer.Option("--max-test-pairs", min=2, help="Use at most so many test pairs, drawn at random.")
]


def yaml_value(value: Any) -> Any:
    """What was read from YAML, where 1e-4 is a text: as the number that a person means."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def number_or_cv(value: str | None, option: str = "ridge") -> float | str | None:
    """A number from the command line, or the word "cv", or nothing."""
    if value is None or value == "cv":
        return value
    try:
        return float(value)
    except ValueError:
        raise PrudentError(f'{option} {value!r} is neither a number nor "cv"') from None


def guarded(function: F) -> F:
    """Turn a PrudentError into its message and exit status 2, and Ctrl-C into status 130; nothing else is caught."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        # Quiet and offline-safe before any model library is imported: telemetry is off unless a person turns it on.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Threads that wait spin a thousand turns, then sleep: nearly as fast as spinning on where the machine is quiet,
        # and five times as fast where it is busy (benchmarks/waiting.py).
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for other runtimes than GNU's, which obeys its own variable
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        try:
            with room_named():
                return function(*arguments, **options)
        except PrudentError as error:
            say(f"error: {error}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            say("interrupted; nothing half-written is left")
            raise typer.Exit(130) from None

    return wrapper  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """One strict JSON object on stdout."""
    from prudent.runs import dumps

    print(dumps(value), flush=True)
