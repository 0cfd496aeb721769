"""Commands as Python functions: the same options, the same files, the results as a dictionary."""

from __future__ import annotations

from typing import Any

from prudent.commands.options import build


def run_preflight(**options: Any) -> dict[str, Any]:
    """What ``prudent preflight`` does: ``run_preflight(preferences="train.jsonl", out="runs/pf")``.

    options: those of the command by name (``max_pairs=400``), files and numbers as plain Python values. Returns what
    results.json holds, with ``out``. Raises PrudentError, which lists near names for an option that is unknown.
    """
    from prudent.commands.preflight.options import PreflightOptions

    chosen = build(PreflightOptions, options)  # before any model library is imported
    from prudent.commands.preflight.run import preflight

    return preflight(chosen)
