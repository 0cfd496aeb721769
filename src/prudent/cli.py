"""The ``prudent`` command, built from the options that each command declares; its rooms are imported when it runs."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from prudent import __version__
from prudent.commands.line import Group, add
from prudent.commands.options import COMMANDS

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="prudent",
    cls=Group,
    help="Reward models that know what they don't know, and policies that heed it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP,
)
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


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def _build() -> None:
    for name, text in NAMES.items():
        importlib.import_module(f"prudent.commands.{name}.options")
        declared = [options for options in COMMANDS if options.command.words.split()[0] == name.replace("_", "-")]
        parent = app
        if text:
            parent = typer.Typer(name=name, cls=Group, help=text, no_args_is_help=True, rich_markup_mode="rich")
            app.add_typer(parent)
        for options in declared:
            add(parent, options, options.command.words.split()[-1])


_build()


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
