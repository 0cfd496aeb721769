"""The command line of options that are declared as dataclasses (``commands.options``): typer's commands and groups."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from prudent.commands.common import print_json, say
from prudent.commands.options import CommonOptions, Field, build, fields_of, named
from prudent.commands.yaml_file import read_yaml
from prudent.errors import PrudentError
from prudent.files import room_named

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer carries its own click


SAID: list[str] = []  # what this process ended with


def fail(message: str, as_json: bool, status: int = 2) -> NoReturn:
    """Say what is wrong, as one JSON object on stdout too where --json is given, and end."""
    SAID.append(message)
    if as_json:
        print_json({"error": message})
    say(f"error: {message}")
    raise typer.Exit(status)


class Group(TyperGroup):
    """A group that names its commands when it is called wrongly."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The subcommand; an unknown name is answered with the names there are."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            fail(f"{ctx.command_path} has no command {args[0]!r}; it has {', '.join(self.commands)}", "--json" in args)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments of a group."""
        with usage_errors("--json" in args):
            return super().parse_args(ctx, args)


@contextlib.contextmanager
def usage_errors(as_json: bool) -> Iterator[None]:
    """Usage errors as one JSON object where --json is given."""
    try:
        yield
    except USAGE_ERROR as error:
        if as_json:
            fail(error.format_message(), True)
        raise


class Line(TyperCommand):
    """A command whose options of several values may be followed by them, ``--betas 0.1 0.3``, and whose usage errors
    are JSON where --json is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments of a command."""
        with usage_errors("--json" in args):
            if all(param.param_type_name == "option" for param in self.params):
                args = repeat_names(
                    args, {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
                )
            return super().parse_args(ctx, args)


def repeat_names(arguments: list[str], many: set[str]) -> list[str]:
    """``--betas 0.1 0.3`` as ``--betas 0.1 --betas 0.3``; everything else as it is."""
    out: list[str] = []
    name = ""
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and not argument[1:2].isdigit():
            name = argument if argument in many else ""
            out.append(argument)
        elif name and out[-1] != name:
            out += [name, argument]
        else:
            out.append(argument)
    return out


def add(app: typer.Typer, options: type[CommonOptions], name: str) -> None:
    """Give ``app`` the command ``name`` of these options."""
    own = fields_of(options)

    def call(context: typer.Context, **found: Any) -> None:
        given = {name: v for name, v in found.items() if context.get_parameter_source(name).name != "DEFAULT"}  # type: ignore[union-attr]
        execute(options, {name: value for name, value in given.items() if value not in (None, [])})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("context", kind, annotation=typer.Context),
        *(_parameter(field, options) for field in own),
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    about = options.command
    app.command(name, epilog=f"Example: {about.example}", help=about.help, cls=Line)(call)


def _parameter(field: Field, options: type[CommonOptions]) -> inspect.Parameter:
    """The option as typer takes it: a tuple as a list, of which the empty one stands for the default."""
    hint, default, info = field.hint, field.default, copy.copy(field.info)
    if field.many:
        one = str if field.one is float else field.one
        required = default is MISSING
        if default and not required:
            info.show_default = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
        hint, default = (list[one], MISSING) if required else (list[one] | None, None)  # type: ignore[valid-type]
    if field.name == "config":
        info.is_eager, info.callback = True, config_reader(options)
    empty = inspect.Parameter.empty
    kind, default = inspect.Parameter.KEYWORD_ONLY, empty if default is MISSING else default
    return inspect.Parameter(field.name, kind, default=default, annotation=Annotated[hint, info])


def execute(options: type[CommonOptions], given: dict[str, Any]) -> None:
    """Build and check the options, run the command, print what it found; PrudentError is exit status 2, Ctrl-C 130."""
    # Quiet and offline-safe before any model library is imported: telemetry is off unless a person turns it on.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in (
        "HF_HUB",
        "HF_DATASETS",
    ):  # transformers takes the hub's; progress is Prudent's own (prudent.progress)
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    # Threads that wait spin a thousand turns, then sleep: nearly as fast as spinning on where the machine is quiet,
    # and five times as fast where it is busy (benchmarks/waiting.py).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for other runtimes than GNU's, which obeys its own variable
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    as_json, about = bool(given.get("as_json")), options.command
    try:
        with room_named():
            chosen = build(options, given)
        # Libraries that print do so beside the one object.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(), room_named():
            result = load(about.run)(chosen)
    except PrudentError as error:
        fail(str(error), as_json)
    except KeyboardInterrupt:
        message = "interrupted; " + about.interrupted.format(**given)
        fail(message, as_json, 130)
    except Exception as error:
        if as_json:
            print_json({"error": f"{type(error).__name__}: {error}"})
        raise
    if result is None:  # a process that computes along with the one that writes
        return
    if as_json:
        print_json(result)
    elif about.show:
        load(about.show)(result, chosen)


def load(entry: str) -> Callable[..., Any]:
    """The function at ``module:function``, under ``prudent.commands``."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(f"prudent.commands.{module}"), name)


def config_reader(options: type[CommonOptions]) -> Callable[[typer.Context, Path | None], Path | None]:
    """Callback of --config: option values from a YAML file (keys are option names); the command line wins over it."""

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is None or context.resilient_parsing:
            return path
        try:
            values = named(options, read_yaml(path), f"{path}: ")
        except PrudentError as error:
            raise typer.BadParameter(str(error)) from error
        texts = {name: list(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
        context.default_map = {**(context.default_map or {}), **texts}
        return path

    return read
