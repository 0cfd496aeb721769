"""Annotator votes on two responses: one verdict, a soft label and how far annotators agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent.data.formats import Choices, Pair, check_answers, is_absent, read_numbers
from prudent.data.messages import Note, Problem, Reject, read_side
from prudent.data.records import brief, listed
from prudent.errors import PrudentError

TIE, FIRST, SECOND, BOTH_BAD = 0, 1, 2, 3
WORDS = {
    "1": FIRST,
    "2": SECOND,
    "0": TIE,
    "a": FIRST,
    "b": SECOND,
    "model_a": FIRST,
    "model_b": SECOND,
    "tie": TIE,
    "response_1": FIRST,
    "response_2": SECOND,
    "tie (bothbad)": BOTH_BAD,
    "bothbad": BOTH_BAD,
    "both bad": BOTH_BAD,
    "both-bad": BOTH_BAD,
    "both_bad": BOTH_BAD,
}
SOFT_RULES = ("half", "ignore")


@dataclass(frozen=True)
class Verdict:
    """outcome: "first", "second", "tie", "both-bad", "undecided" or "no-votes". share: votes for the outcome over all.

    soft_label: probability that the first response is better by the stated rule; None where the rule leaves no vote.
    """

    outcome: str
    share: float | None
    soft_label: float | None
    counts: dict[str, int]


def read_votes(value: Any) -> list[int]:
    """Votes as codes. Takes 1, 2, 0 (tie), "model_a", "model_b", "tie", "tie (bothbad)"; ValueError names the value
    that is no vote."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return []
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    votes = []
    for vote in values:
        word = str(int(vote)) if isinstance(vote, float) and vote.is_integer() else str(vote).strip().lower()
        if isinstance(vote, bool) or word not in WORDS:
            raise ValueError(f"{brief(vote)} is not a vote; known: 1, 2, 0 for a tie, {', '.join(sorted(WORDS))}")
        votes.append(WORDS[word])
    return votes


def of_argilla(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record as Argilla exports it, as a row of votes; any other row as it is.

    fields: prompt, response_1, response_2. responses: answers by question, of which ``votes`` (or the only one) counts.
    """
    fields, responses = row.get("fields"), row.get("responses")
    if not isinstance(fields, Mapping) or "response_1" not in fields or not isinstance(responses, Mapping):
        return dict(row)
    answers = responses.get("votes", next(iter(responses.values())) if len(responses) == 1 else None) or []
    listed_answers = answers if isinstance(answers, list) else [answers]
    votes = [answer.get("value") if isinstance(answer, Mapping) else answer for answer in listed_answers]
    return {**fields, "votes": votes, "id": row.get("id")}


def merge_votes(votes: Sequence[int], soft: str | None = "half", min_share: float = 0.5) -> Verdict:
    """One verdict of k annotators (codes as ``read_votes`` gives them).

    A response wins with more than half of all votes and at least ``min_share`` of them (0.75: three of four). More than
    half of ties is a tie ("both-bad" when most of those ties say so). Anything else is undecided.
    soft: "half" counts a tie as half a vote for each response, "ignore" leaves ties out, None gives no soft label.
    """
    if soft is not None and soft not in SOFT_RULES:
        raise PrudentError(f"unknown rule for soft labels {soft!r}; known: {', '.join(SOFT_RULES)}, or None")
    counts = {
        name: list(votes).count(code)
        for name, code in (("first", FIRST), ("second", SECOND), ("tie", TIE), ("both_bad", BOTH_BAD))
    }
    total, ties = len(votes), counts["tie"] + counts["both_bad"]
    if total == 0:
        return Verdict("no-votes", None, None, counts)
    label: float | None = None
    if soft == "half":
        label = (counts["first"] + ties / 2) / total
    elif soft == "ignore" and total > ties:
        label = counts["first"] / (total - ties)
    for outcome in ("first", "second"):
        if 2 * counts[outcome] > total and counts[outcome] >= min_share * total:
            return Verdict(outcome, counts[outcome] / total, label, counts)
    if 2 * ties > total and ties >= min_share * total:
        outcome = "both-bad" if 2 * counts["both_bad"] > ties else "tie"
        return Verdict(outcome, ties / total, label, counts)
    return Verdict("undecided", None, label, counts)


def pair_of_votes(row: Mapping[str, Any], choices: Choices, note: Note) -> Pair:
    """Pair of a row with response_1, response_2 and votes; ties and undecided rows are rejected as left out.

    With ties="keep" they come back with soft label 1/2, response_1 as chosen by convention.
    """
    problems: list[Problem] = []
    sides: dict[str, Any] = {}
    for name in ("prompt", "response_1", "response_2"):
        try:
            if name == "prompt" and choices.without_prompt != "refuse" and is_absent(row.get(name), choices):
                sides[name] = ""
                continue
            if name not in row:
                raise Reject(Problem(name, "missing-field", f"columns found: {listed(row)}"))
            sides[name] = read_side(row[name], name, note, choices.allow if name != "prompt" else frozenset())
        except Reject as reject:
            problems += reject.problems
    votes: list[int] = []
    try:
        votes = read_votes(row.get("votes"))
    except ValueError as error:
        problems.append(Problem("votes", "not-a-vote", str(error)))
    if problems:
        raise Reject(*problems)
    prompt, first, second = (
        [{"role": role, "content": side}] if isinstance(side, str) else side
        for role, side in zip(("user", "assistant", "assistant"), (sides[name] for name in sides))
    )
    check_answers(prompt, first, second, choices, note)
    verdict = merge_votes(votes, choices.soft_votes, choices.min_share)
    extra = {k: v for k, v in row.items() if k not in ("prompt", "response_1", "response_2")}
    extra["agreement"] = verdict.share
    numbers = read_numbers({k: v for k, v in row.items() if k != "soft_label"}, note)
    if verdict.outcome in ("first", "second"):
        if verdict.soft_label is not None:
            numbers["soft_label"] = verdict.soft_label if verdict.outcome == "first" else 1 - verdict.soft_label
        chosen, rejected = (first, second) if verdict.outcome == "first" else (second, first)
        extra["votes"] = recode(votes, swap=verdict.outcome == "second")
        return Pair(prompt, chosen, rejected, numbers, extra, "votes")
    if choices.ties == "keep" and verdict.outcome in ("tie", "undecided"):
        note("votes", "kept-tie", f"{verdict.outcome} ({votes}); soft label 0.5")
        extra["votes"] = recode(votes)
        return Pair(prompt, first, second, {**numbers, "soft_label": 0.5}, extra, "votes")
    named = {0: "tie", 1: "1", 2: "2", 3: "both bad"}
    detail = "no votes in this row" if not votes else "votes " + ", ".join(named[vote] for vote in votes)
    raise Reject(Problem("votes", verdict.outcome, detail))


def recode(votes: Sequence[int], swap: bool = False) -> list[int]:
    """Votes about (chosen, rejected): 1 for chosen, 2 for rejected, 0 for a tie of either kind."""
    codes = {FIRST: SECOND, SECOND: FIRST} if swap else {}
    return [TIE if vote == BOTH_BAD else codes.get(vote, vote) for vote in votes]


def krippendorff_alpha(votes: Sequence[Sequence[int]], both_bad_is_tie: bool = True) -> float | None:
    """Krippendorff's alpha (nominal) of annotators' votes, one list a row; rows may differ in length.

    Votes are taken as interchangeable annotators in the order given. None when it is undefined: fewer than two votes in
    every row, or a single value throughout.
    """
    import krippendorff

    rows = [[TIE if both_bad_is_tie and vote == BOTH_BAD else vote for vote in row] for row in votes if len(row) > 1]
    if len({vote for row in rows for vote in row}) < 2:
        return None
    table = np.full((max(map(len, rows)), len(rows)), np.nan)
    for index, row in enumerate(rows):
        table[: len(row), index] = row
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))


def win_rates(wins: int, ties: int, losses: int) -> dict[str, float | None]:
    """Win rate under both conventions: by wins only, and with a tie as half a win; None without a comparison."""
    total = wins + ties + losses
    if total == 0:
        return {"wins_only": None, "half_ties": None}
    return {"wins_only": wins / total, "half_ties": (wins + ties / 2) / total}
