"""Rated single responses: into pairs (by one rating) or as they are (for attribute regression)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prudent.data.formats import Message, Note, Pair, Problem, Reject, number, read_side
from prudent.errors import BadRow

RATINGS = ("helpfulness", "rating", "score", "overall_score", "label", "reward")


@dataclass
class Rated:
    """One response with its rating (None: missing) and the other columns."""

    line: int
    prompt: list[Message]
    response: list[Message]
    rating: float | None
    extra: dict[str, Any]


def pick_rating(columns: Sequence[str], wanted: str | None) -> str:
    """Rating column: the one asked for, or the first known name; Reject says what there is."""
    found = wanted or next((name for name in RATINGS if name in columns), None)
    if found is None or found not in columns:
        what = f"no rating column {wanted!r}" if wanted else "responses without a known rating column"
        raise Reject(
            Problem(wanted or "rating", "missing-field", f"{what}; columns found: {', '.join(columns)}; give rating=")
        )
    return found


def read_rated(row: Mapping[str, Any], line: int, rating: str | None, note: Note) -> Rated:
    """Rated response of a row with prompt, response and a rating. "N/A", null and NaN are missing; 0 is a rating."""
    problems: list[Problem] = []
    sides: list[list[Message]] = []
    for name, role in (("prompt", "user"), ("response", "assistant")):
        try:
            if name not in row:
                raise Reject(Problem(name, "missing-field", f"columns found: {', '.join(map(str, row))}"))
            side = read_side(row[name], name, note)
            sides.append([{"role": role, "content": side}] if isinstance(side, str) else side)
        except Reject as reject:
            problems += reject.problems
    value = None
    try:
        column = pick_rating(list(row), rating)
        value = number(row[column])
    except Reject as reject:
        problems += reject.problems
    except (TypeError, ValueError):
        problems.append(Problem(column, "not-a-number", f"{row[column]!r} is no rating; give a number or leave it out"))
    if problems:
        raise Reject(*problems)
    return Rated(line, sides[0], sides[1], value, {k: v for k, v in row.items() if k not in ("prompt", "response")})


def pairs_of_ratings(
    rows: Sequence[Rated], rating: str, ties: str = "drop"
) -> tuple[list[tuple[int, Pair]], list[BadRow]]:
    """Every pair of one prompt's responses with different ratings, the higher one chosen, in order of first appearance.

    Rows of one prompt need not be neighbours. Left out, with reasons: ties, prompts with one rated response, missing
    ratings. The line is that of the chosen response; ``rating_gap`` and both rows' lines are kept as columns.
    """
    groups: dict[str, list[Rated]] = {}
    for row in rows:
        groups.setdefault(repr(row.prompt), []).append(row)
    pairs: list[tuple[int, Pair]] = []
    left_out: list[BadRow] = []
    for group in groups.values():
        rated = [row for row in group if row.rating is not None]
        left_out += [
            BadRow(row.line, rating, "missing-rating", "no rating in this row") for row in group if row.rating is None
        ]
        if len(rated) < 2:
            left_out += [BadRow(row.line, "prompt", "single", "the only rated response to its prompt") for row in rated]
        for place, one in enumerate(rated):
            for other in rated[place + 1 :]:
                outcome = _pair(one, other, ties)
                if isinstance(outcome, BadRow):
                    left_out.append(outcome)
                else:
                    pairs.append((outcome[0].line, outcome[1]))
    return pairs, left_out


def _pair(one: Rated, other: Rated, ties: str) -> tuple[Rated, Pair] | BadRow:
    """(chosen row, pair) of two rated responses, or why they give none."""
    if one.response == other.response:
        return BadRow(other.line, "response", "identical-sides", f"the same response as line {one.line}")
    high, low = (one, other) if (one.rating or 0.0) >= (other.rating or 0.0) else (other, one)
    gap = float(high.rating) - float(low.rating)  # type: ignore[arg-type]
    if gap == 0 and ties != "keep":
        return BadRow(other.line, "rating", "tie", f"rated {high.rating:g} like line {one.line}")
    extra = {"rating_gap": gap, "chosen_line": high.line, "rejected_line": low.line}
    numbers = {"soft_label": 0.5} if gap == 0 else {}
    return high, Pair(high.prompt, high.response, low.response, numbers, extra, "ratings")
