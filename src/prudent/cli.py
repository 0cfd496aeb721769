"""The ``prudent`` command, built from the options that each command declares; its rooms are imported when it runs."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from prudent import __version__
from prudent.commands.line import SAID, Group, add, fail
from prudent.commands.options import COMMANDS

HELP = {"help_option_names": ["-h", "--help"]}
# In the order in which a person meets them; a group with its help.
NAMES: dict[str, str] = {
    "demo": "",
    "preflight": "",
    "encode": "",
    "fit": "",
    "sample": "",
    "score": "",
    "serve": "",
    "export": "",
    "acquire": "",
    "align": "",
    "evaluate": "Measure reward models on public benchmarks, with intervals, ties, baselines and paired tests.",
    "clean": "",
    "compare": "",
    "overoptimize": "",
    "best_of_n": "",
    "rlp": "",
    "theory": "The theorems as running code: recompute every claim, certify a reward model.",
    "recommend": "Recommend by how uncertain a missing label is (AUR), and see what that does to the tail.",
}


def _version(asked: bool) -> None:
    if asked:
        print(f"prudent {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def built(names: Iterable[str]) -> typer.Typer:
    """The command line with these of the commands."""
    whole = typer.Typer(
        name="prudent",
        cls=Group,
        help="Reward models that know what they don't know, and policies that heed it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings=HELP,
    )
    whole.callback()(_root)
    for name in names:
        importlib.import_module(f"prudent.commands.{name}.options")
        declared = [options for options in COMMANDS if options.command.words.split()[0] == name.replace("_", "-")]
        parent = whole
        if NAMES[name]:
            parent = typer.Typer(name=name, cls=Group, help=NAMES[name], no_args_is_help=True, rich_markup_mode="rich")
            whole.add_typer(parent)
        for options in declared:
            add(parent, options, options.command.words.split()[-1])
    return whole


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _app() -> typer.Typer:
    """All commands; also ``prudent.cli.app``."""
    return built(NAMES)


def keep_stdout_clean() -> None:
    """From here on only our own prints reach stdout: what libraries' C code and child processes write there, even while
    the interpreter ends, goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def main() -> None:
    """Run the command line. A command that is named is built alone: a wrong word is refused in half the time."""
    gc.set_threshold(50_000)  # what libraries make when they are imported stays: looking through it takes half a second
    if {"--json", "--config"} & set(sys.argv):  # a file may ask for JSON too
        keep_stdout_clean()
    asked = (sys.argv[1] if len(sys.argv) > 1 else "").replace("-", "_")
    try:
        app = built([asked]) if asked in NAMES else _app()
        app()
    except (KeyboardInterrupt, SystemExit) as end:  # typer turns Ctrl-C into an exit status of 130
        early = isinstance(end, KeyboardInterrupt) or end.code == 130
        if not early or SAID:
            raise
        with contextlib.suppress(typer.Exit):
            fail("interrupted before the command began", "--json" in sys.argv)
        sys.exit(130)


if __name__ == "__main__":
    main()
