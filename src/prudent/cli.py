"""The ``prudent`` command. Each command lives in a module of its own that imports its rooms only when it runs."""

from __future__ import annotations

import importlib

import typer

app = typer.Typer(
    name="prudent",
    help="Reward models that know what they don't know, and policies that heed it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which a person meets them. Each module offers register(app).
COMMANDS = (
    "preflight",
    "fit",
    "score",
    "align",
    "evaluate",
    "clean",
    "compare",
    "overoptimize",
    "best_of_n",
    "rlp",
    "theory",
    "recommend",
)

for _name in COMMANDS:
    importlib.import_module(f"prudent.commands.{_name}.cli").register(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
