"""What every command prints: results on stdout, progress on stderr."""

from __future__ import annotations

import sys
from typing import Any


def say(message: str) -> None:
    """A line for a person, on stderr, so that stdout holds results alone."""
    print(message, file=sys.stderr, flush=True)


def result_console(width: int = 120) -> Any:
    """Console for tables on stdout; into a file or a pipe it is ``width`` wide, so that no cell is cut or wrapped."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def print_json(value: Any) -> None:
    """One strict JSON object on stdout."""
    from prudent.runs import dumps

    print(dumps(value), flush=True)
