"""A person's own TrainingArguments from YAML, checked by name and type before anything is read or trained."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from prudent.commands.yaml_file import read_yaml
from prudent.errors import PrudentError

ELSEWHERE = ("push_to_hub", "hub_", "report_to", "trackio_")  # what would send the run to others


def training_arguments(path: Path) -> dict[str, Any]:
    """Names and values for transformers' TrainingArguments. 1e-4, a text in YAML, is the number that a person means.

    PrudentError names every fault: a name that TrainingArguments lacks, a value of another type, and what would publish
    the run or write it elsewhere.
    """
    from transformers import TrainingArguments

    known = TrainingArguments.__dataclass_fields__
    found, problems = {}, []
    for name, value in read_yaml(path).items():
        if name == "output_dir":
            problems.append("output_dir is set by --out and --checkpoints; leave it out")
        elif str(name).startswith(ELSEWHERE):
            problems.append(f"{name} would send the run elsewhere; leave it out")
        elif name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
            problems.append(f"{str(name)[:60]!r} is unknown; near: {', '.join(near) or 'none'}")
        else:
            try:
                found[name] = typed(known[name].type, value)
            except ValueError as error:
                problems.append(f"{name} is {str(value)[:60]!r}, must be {error}")
    if problems:
        raise PrudentError(f"--training-args {path}: {'; '.join(problems)}")
    return found


def typed(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` wants it; ValueError says in words what it must be. Only single values are checked."""
    kinds = set(get_args(hint) or (hint,))
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, bool):
        if bool not in kinds:
            raise ValueError("a number" if kinds & {int, float} else "a text")
        return value
    if kinds & {int, float}:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("a number") from None
        if float in kinds:
            return number
        if not number.is_integer():
            raise ValueError("a whole number")
        return int(number)
    if bool in kinds and not kinds & {str, dict}:
        raise ValueError("true or false")
    if str in kinds and isinstance(value, (int, float)):
        raise ValueError("a text")
    return value
