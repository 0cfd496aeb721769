"""Shapes of preference rows in the wild, each turned into one: prompt, chosen and rejected as lists of messages.

Pure functions on one row. A row that can't be used raises ``Reject`` with every reason found in it; what was changed or
deserves a look is noted as a flag. The rules are listed in docs/data.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prudent.data.messages import (
    Message,
    Note,
    Problem,
    Reject,
    is_transcript,
    number,
    parse_transcript,
    read_side,
    squeeze,
    unread_keys,
)
from prudent.data.records import brief, listed

WITHOUT_PROMPT = ("refuse", "shared", "empty")
KEEP_EMPTY = "--without-prompt empty keeps such pairs with an empty prompt"
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
NUMBERS = {"weight": (0.0, math.inf), "soft_label": (0.0, 1.0), "margin": (-math.inf, math.inf)}
NEUTRAL = {"weight": 1.0, "soft_label": 1.0, "margin": 0.0}  # what training takes where one is missing
# Left out rather than refused: the row is well formed, it just holds no preference that can be trained on.
LEFT_OUT = frozenset(
    {"tie", "undecided", "both-bad", "no-votes", "diverged", "prompt-mismatch", "missing-rating", "single"}
)


@dataclass(frozen=True)
class Choices:
    """Choices a user makes once for a whole file (see ``read_preferences``)."""

    ties: str = "drop"
    diverged: str = "drop"
    without_prompt: str = "refuse"  # or "shared", "empty": what a pair without a prompt is read as
    soft_votes: str | None = "half"
    min_share: float = 0.5
    allow: frozenset[str] = frozenset()  # of "empty", "blank", "identical-sides": noted, the row is kept


@dataclass
class Pair:
    """One normalised pair. numbers: any of weight, soft_label, margin. extra: other columns. shape: what it was."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    numbers: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    shape: str = "strings"


def _same_message(a: Message, b: Message) -> bool:
    return a["role"] == b["role"] and (a["content"] == b["content"] or squeeze(a["content"]) == squeeze(b["content"]))


def shared_turns(a: list[Message], b: list[Message]) -> int:
    """Number of messages that both lists begin with."""
    count = 0
    for left, right in zip(a, b):
        if not _same_message(left, right):
            break
        count += 1
    return count


def _agrees(prompt: str | list[Message], prefix: list[Message]) -> list[Message] | None:
    """The prompt that a prompt column and the sides' shared turns agree on, or None when they don't."""
    if isinstance(prompt, str):
        wanted = squeeze(prompt)
        turns = [squeeze(message["content"]) for message in prefix if message["role"] == "user"]
        return prefix if wanted in turns or wanted == squeeze(" ".join(turns)) else None
    short, long = sorted((prompt, prefix), key=len)
    tail = long[len(long) - len(short) :]
    return long if all(_same_message(a, b) for a, b in zip(short, tail)) else None


def _parted(chosen: list[Message], rejected: list[Message], choices: Choices) -> tuple[list[Message], ...]:
    """(prompt, chosen answer, rejected answer) of two whole conversations by their shared turns."""
    count = shared_turns(chosen, rejected)
    if count == len(chosen) == len(rejected):
        if "identical-sides" in choices.allow and count > 1:
            return chosen[:-1], chosen[-1:], rejected[-1:]
        raise Reject(Problem("chosen", "identical-sides", "chosen and rejected are the same conversation"))
    if count == len(chosen) or count == len(rejected):
        name = "chosen" if count == len(chosen) else "rejected"
        raise Reject(Problem(name, "empty", "no answer after the turns that both sides share"))
    if count == 0:
        a, b = squeeze(chosen[0]["content"])[:60], squeeze(rejected[0]["content"])[:60]
        raise Reject(Problem("chosen", "prompt-mismatch", f"the sides begin with different turns: {a!r} and {b!r}"))
    prompt, answers = chosen[:count], (chosen[count:], rejected[count:])
    parted_early = any(message["role"] not in ("assistant", "tool") for answer in answers for message in answer)
    keep = choices.diverged == "keep" and all(answer[0]["role"] == "assistant" for answer in answers)
    if parted_early and not keep:
        detail = f"the sides part after {count} of {max(len(chosen), len(rejected))} turns, before the last answer"
        raise Reject(Problem("rejected", "diverged", detail + '; diverged="keep" keeps both remainders'))
    return prompt, *answers


def _whole(side: Any) -> bool:
    return isinstance(side, list) and side[0]["role"] != "assistant"


def split_sides(
    prompt: str | list[Message] | None,
    chosen: str | list[Message],
    rejected: str | list[Message],
    choices: Choices,
    note: Note,
) -> tuple[list[Message], list[Message], list[Message], str]:
    """(prompt, chosen answer, rejected answer, shape), the prompt exactly once."""
    shape = "strings" if isinstance(chosen, str) and isinstance(rejected, str) else "messages"
    transcripts = [is_transcript(chosen), is_transcript(rejected)]
    if all(transcripts):
        chosen, rejected = parse_transcript(chosen, "chosen", note), parse_transcript(rejected, "rejected", note)  # type: ignore[arg-type]
        if isinstance(prompt, str) and is_transcript(prompt):
            prompt = parse_transcript(prompt, "prompt", note)
            prompt = prompt[:-1] if prompt[-1] == {"role": "assistant", "content": ""} else prompt
        shape = "transcripts"
    elif prompt is None and any(transcripts) and shape == "strings":
        name = "rejected" if transcripts[0] else "chosen"
        raise Reject(Problem(name, "no-speaker-mark", 'does not begin with "Human:" as the other side does'))
    elif prompt is None and shape == "strings" and choices.without_prompt == "shared":
        prompt, chosen, rejected = _text_prefix(chosen, rejected)  # type: ignore[arg-type]
    if isinstance(prompt, str) and is_transcript(prompt) and prompt.rstrip().endswith("Assistant:"):
        prompt = parse_transcript(prompt, "prompt", note)[:-1]
    if _whole(chosen) and _whole(rejected):
        found, better, worse = _parted(chosen, rejected, choices)  # type: ignore[arg-type]
        if prompt is not None:
            agreed = _agrees(prompt, found)
            if agreed is None:
                raise Reject(
                    Problem("prompt", "prompt-mismatch", "the prompt column is not the turn that the sides share")
                )
            return agreed, better, worse, shape if shape == "transcripts" else "repeated-prompt"
        return found, better, worse, shape if shape == "transcripts" else "implicit-prompt"
    if prompt is None and choices.without_prompt == "empty":
        prompt = ""
    if prompt is None:
        raise Reject(Problem("prompt", "no-prompt", _no_prompt(chosen, rejected)))
    start = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answers = [_answer(side, start, name) for name, side in (("chosen", chosen), ("rejected", rejected))]
    return start, answers[0], answers[1], shape


def _answer(side: str | list[Message], prompt: list[Message], name: str) -> list[Message]:
    """Answer turns of one side; a conversation that begins with the prompt loses it."""
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    if not _whole(side):
        return side
    if shared_turns(side, prompt) == len(prompt) < len(side):
        return side[len(prompt) :]
    raise Reject(Problem(name, "prompt-mismatch", "a whole conversation that does not begin with the prompt"))


def _no_prompt(chosen: str | list[Message], rejected: str | list[Message]) -> str:
    """What to do about two answers without a prompt."""
    what, shared = "no prompt column and the sides hold answers alone", ""
    if isinstance(chosen, str) and isinstance(rejected, str):
        what = 'two plain texts without a prompt column or a "Human:" mark'
        shared = ", shared takes what both begin with" if _shared_length(chosen, rejected) else ""
    return f"{what}; name the column that holds the prompts (--column prompt=your_column); {KEEP_EMPTY}{shared}"


def _shared_length(chosen: str, rejected: str) -> int:
    """Characters that both texts begin with, cut at a blank; 0 where they hold no text."""
    count = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    while count and not chosen[count - 1].isspace():
        count -= 1
    return count if chosen[:count].strip() else 0


def _text_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(shared beginning, rest of chosen, rest of rejected) of two texts (TRL's implicit prompt); the beginning is empty
    where they differ from the first word on."""
    count = _shared_length(chosen, rejected)
    return chosen[:count], chosen[count:], rejected[count:]


def check_answers(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], choices: Choices, note: Note
) -> None:
    """Reject a pair whose prompt or answer holds no text or whose answers are the same; allowed reasons are noted."""
    problems = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer[-1]["content"].strip():
            reason = "blank" if answer[-1]["content"] else "empty"
            problems.append(Problem(name, reason, "the answer holds no text"))
    if not any(message["content"].strip() for message in prompt):
        if choices.without_prompt == "refuse":
            problems.append(Problem("prompt", "blank", f"the prompt holds no text; {KEEP_EMPTY}"))
        else:
            note("prompt", "empty-prompt", "there is no prompt; kept with an empty one")
    if not problems and chosen == rejected:
        problems.append(Problem("chosen", "identical-sides", "chosen and rejected are the same text"))
    for problem in problems:
        if problem.reason in choices.allow:
            note(problem.field, problem.reason, problem.detail)
    problems = [problem for problem in problems if problem.reason not in choices.allow]
    if problems:
        raise Reject(*problems)


def read_numbers(row: Mapping[str, Any], note: Note) -> dict[str, float]:
    """weight, soft_label and margin of a row where they are given and in range; anything else is noted and missing."""
    found = {}
    for name, (low, high) in NUMBERS.items():
        missing = f"treated as missing: training takes {NEUTRAL[name]:g}"
        try:
            value = number(row.get(name))
        except (TypeError, ValueError):
            note(name, "not-a-number", f"{brief(row[name])} is no finite number; {missing}")
            continue
        if value is None:
            continue
        if low <= value <= high:
            found[name] = value
        else:
            note(name, "out-of-range", f"{value} lies outside {low} to {high}; {missing}")
    return found


def compare_scores(row: Mapping[str, Any], choices: Choices, numbers: dict[str, float], note: Note) -> None:
    """Ties by equal scores are left out (or kept with soft label 1/2); inverted scores are noted, never swapped."""
    for better, worse in SCORES:
        if better not in row or worse not in row:
            continue
        try:
            high, low = number(row[better]), number(row[worse])
        except (TypeError, ValueError):
            given = f"{brief(row[better])} and {brief(row[worse])}"
            note(better, "not-a-number", f"{given} are not two finite numbers; not compared")
            return
        if high is None or low is None:
            return
        if high == low:
            if choices.ties != "keep":
                raise Reject(
                    Problem(better, "tie", f'both scores are {high:g}; ties="keep" keeps it with soft label 0.5')
                )
            numbers["soft_label"] = 0.5
            note(better, "kept-tie", f"both scores are {high:g}; soft label 0.5")
        elif high < low:
            note(better, "inverted-scores", f"{high:g} is lower than {worse} {low:g}; kept as it stands, not swapped")
        return


def is_absent(prompt: Any, choices: Choices) -> bool:
    """Whether a prompt counts as not given: null, as in mixed files whose sides carry it; an empty text on request."""
    return prompt is None or (choices.without_prompt != "refuse" and isinstance(prompt, str) and not prompt.strip())


def _with_remedy(problem: Problem) -> Problem:
    """An empty prompt, with the option that keeps it."""
    if problem.field != "prompt" or problem.reason not in ("empty", "blank"):
        return problem
    return Problem(problem.field, problem.reason, f"{problem.detail}; {KEEP_EMPTY}")


def _with_columns(problem: Problem, row: Mapping[str, Any]) -> Problem:
    """A missing prompt, with the columns that might hold it."""
    if problem.reason != "no-prompt":
        return problem
    return Problem(problem.field, problem.reason, f"{problem.detail}; columns found: {listed(row)}")


def pair_of_sides(row: Mapping[str, Any], choices: Choices, note: Note) -> Pair:
    """Pair of a row with chosen and rejected (and perhaps a prompt)."""
    problems: list[Problem] = []
    sides: dict[str, Any] = {"prompt": None}
    for name in ("prompt", "chosen", "rejected"):
        if name not in row:
            if name != "prompt":
                problems.append(Problem(name, "missing-field", f"columns found: {listed(row)}"))
            continue
        if name == "prompt" and is_absent(row[name], choices):
            continue
        try:
            sides[name] = read_side(row[name], name, note, choices.allow if name != "prompt" else frozenset())
        except Reject as reject:
            problems += [_with_remedy(problem) for problem in reject.problems]
    known = {"prompt", "chosen", "rejected", *NUMBERS}
    if "prompt" not in row and isinstance(row.get("conversations"), (list, tuple)) and not _whole(sides.get("chosen")):
        known.add("conversations")  # ShareGPT's pairs: the turns before, and one answer a side
        try:
            sides["prompt"] = read_side(row["conversations"], "conversations", note)
        except Reject as reject:
            problems += reject.problems
    if problems:
        raise Reject(*problems)
    unread = unread_keys(row["chosen"]), unread_keys(row["rejected"])
    if sides["chosen"] == sides["rejected"] and unread[0] != unread[1]:
        names = sorted({key for side in unread for turn in side for key in turn})
        detail = f"the sides differ in {listed(names)} only, which isn't read"
        raise Reject(Problem("chosen", "differs-unread", detail))
    try:
        prompt, chosen, rejected, shape = split_sides(
            sides["prompt"], sides["chosen"], sides["rejected"], choices, note
        )
    except Reject as reject:
        raise Reject(*(_with_columns(problem, row) for problem in reject.problems)) from None
    check_answers(prompt, chosen, rejected, choices, note)
    numbers = read_numbers(row, note)
    compare_scores(row, choices, numbers, note)
    return Pair(prompt, chosen, rejected, numbers, {k: v for k, v in row.items() if k not in known}, shape)
