"""Rules that find faulty preference pairs, each with a reason a person can check. Pure functions on rows.

The taxonomy follows CHH-RLHF (arXiv 2409.19024): empty, identical, near-identical and broken pairs, contradictions and
labels that annotators oppose; with the field's own additions: truncation, repeats, leaks, damaged text, length.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prudent.data.conflicts import Conflict, compare
from prudent.data.duplicates import exact_text, group_pairs, near_duplicates, prompt_text, side_similarity
from prudent.data.formats import SCORES
from prudent.data.lengths import answer_text, length_report, word_counts
from prudent.data.messages import MARK, number
from prudent.data.records import listed
from prudent.data.votes import merge_votes, read_votes
from prudent.errors import PrudentError

ACTIONS = ("flag", "drop", "apply", "keep")
MOJIBAKE = re.compile("[ÃÂ][\x80-\xbf]|â€[\x80-\xbf™œ“”˜]|ï¿½")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Finding:
    """Row at ``place`` (from 0) breaks ``rule``. suggestion: "drop" or "flip". evidence: what a person judges by."""

    index: int
    rule: str
    suggestion: str
    evidence: dict[str, Any]


@dataclass
class Rows:
    """What rules look at. rows: dicts with prompt, chosen, rejected (messages), row (line), perhaps votes. keys: hash
    of each prompt. others: lines of the prompt keys of other splits, by their name. ids: token ids of (prompts,
    answers) as training makes them, limit: how many it keeps; both None where no model is known. conflict: two sources
    of score to compare."""

    rows: Sequence[Mapping[str, Any]]
    keys: Sequence[str]
    others: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ids: Callable[[list[Any], list[Any]], list[list[int]]] | None = None
    limit: int | None = None
    near_threshold: float = 0.9
    identical_threshold: float = 0.95
    length_ratio: float = 2.0
    vote_share: float = 0.75
    conflict: Conflict | None = None


@dataclass(frozen=True)
class Rule:
    """A named rule. default: what is done unless a person says otherwise. what: one sentence for people."""

    name: str
    default: str
    what: str
    find: Callable[[Rows], Iterator[Finding]]


def _empty(data: Rows) -> Iterator[Finding]:
    for index, row in enumerate(data.rows):
        empty = [side for side in ("chosen", "rejected") if not answer_text(row[side]).strip()]
        if empty:
            yield Finding(index, "empty", "drop", {"empty_sides": empty})


def _identical(data: Rows) -> Iterator[Finding]:
    for index, row in enumerate(data.rows):
        if row["chosen"] == row["rejected"]:
            yield Finding(index, "identical", "drop", {"words": len(answer_text(row["chosen"]).split())})


def _near_identical(data: Rows) -> Iterator[Finding]:
    for index, row in enumerate(data.rows):
        if row["chosen"] != row["rejected"]:
            similarity = side_similarity(row)
            if similarity >= data.identical_threshold:
                yield Finding(index, "near-identical", "drop", {"similarity": round(similarity, 4)})


def identical_after_truncation(chosen: Sequence[int], rejected: Sequence[int], limit: int) -> bool:
    """Whether two rendered conversations are the same ids once each is cut on the right to ``limit``: such a pair has
    loss ln 2 and no gradient. Give whole ids, or ids that are already cut as training cuts them."""
    return list(chosen[:limit]) == list(rejected[:limit])


def _truncated(data: Rows) -> Iterator[Finding]:
    if data.ids is None or data.limit is None:
        raise PrudentError(
            'rule "truncated" needs the model that will train on the pairs; give --encoder, or turn it off'
        )
    for start in range(0, len(data.rows), 512):
        part = data.rows[start : start + 512]
        prompts = [row["prompt"] for row in part]
        sides = [data.ids(prompts, [row[side] for row in part]) for side in ("chosen", "rejected")]
        for index, (chosen, rejected) in enumerate(zip(*sides), start=start):
            same = data.rows[index]["chosen"] == data.rows[index]["rejected"]
            if not same and identical_after_truncation(chosen, rejected, data.limit):
                cut = len(chosen) >= data.limit
                reason = f"identical after truncation at {data.limit}" if cut else "same after the template"
                evidence = {"limit_tokens": data.limit, "reason": reason}
                yield Finding(index, "truncated", "drop", evidence)


def _repeats(data: Rows) -> Iterator[Finding]:
    """Exact repeats and contradictions: one pass, since repeats in a contested group are votes, not copies."""
    groups = group_pairs(data.rows, exact_text)
    lines = [row["row"] for row in data.rows]
    for index, (group, ahead) in enumerate(zip(groups.member, groups.forward)):
        forward, backward = groups.counts[group]
        if data.rows[index]["chosen"] == data.rows[index]["rejected"]:
            continue
        if forward and backward:
            mine, other = (forward, backward) if ahead else (backward, forward)
            if mine <= other:
                verdict = "undecided" if mine == other else "minority"
                evidence = {
                    "same_label": mine,
                    "opposite_label": other,
                    "verdict": verdict,
                    "agreement": max(mine, other) / (mine + other),
                }
                yield Finding(index, "contradiction", "drop", evidence)
        elif groups.first[group] != index:
            evidence = {"same_as_line": lines[groups.first[group]], "copies": forward + backward}
            yield Finding(index, "duplicate", "drop", evidence)


def _duplicate(data: Rows) -> Iterator[Finding]:
    return (finding for finding in _repeats(data) if finding.rule == "duplicate")


def _contradiction(data: Rows) -> Iterator[Finding]:
    return (finding for finding in _repeats(data) if finding.rule == "contradiction")


def _near_duplicate(data: Rows) -> Iterator[Finding]:
    exact = {f.index for f in _repeats(data)}
    for near in near_duplicates(data.rows, data.near_threshold):
        if near.row in exact:
            continue
        row, earlier = data.rows[near.row], data.rows[near.earlier]
        if all(row[side] == earlier[side] for side in ("prompt", "chosen", "rejected")) or (
            row["prompt"] == earlier["prompt"]
            and row["chosen"] == earlier["rejected"]
            and row["rejected"] == earlier["chosen"]
        ):
            continue
        evidence = {
            "like_line": earlier["row"],
            "similarity": round(near.similarity, 4),
            "opposite_label": near.opposite,
        }
        yield Finding(near.row, "near-duplicate", "drop", evidence)


def _leak(data: Rows) -> Iterator[Finding]:
    for index, key in enumerate(data.keys):
        found = [{"split": name, "line": lines[key]} for name, lines in data.others.items() if key in lines]
        if found:
            yield Finding(index, "leak", "drop", {"prompt_also_in": found})


def _broken_transcript(data: Rows) -> Iterator[Finding]:
    for index, row in enumerate(data.rows):
        faults = []
        for side in ("chosen", "rejected"):
            mark = MARK.search(answer_text(row[side]))
            if mark:
                faults.append(f'{side} {"runs on into" if mark.start() else "begins with"} "{mark.group(1)}:"')
        roles = [message["role"] for message in row["prompt"] if message["role"] != "system"]
        if roles and roles[-1] == "assistant":
            faults.append("the prompt ends with an assistant turn")
        if any(a == b and a != "tool" for a, b in itertools.pairwise(roles)):
            faults.append("two turns of one speaker in a row")
        if faults:
            yield Finding(index, "broken-transcript", "drop", {"faults": faults})


def _damaged(data: Rows) -> Iterator[Finding]:
    patterns = (("replacement character", re.compile("\ufffd")), ("mojibake", MOJIBAKE), ("control character", CONTROL))
    for index, row in enumerate(data.rows):
        faults = []
        for name in ("prompt", "chosen", "rejected"):
            text = prompt_text(row[name])
            if text.isascii() and text.isprintable():
                continue
            faults += [f"{kind} in {name}" for kind, pattern in patterns if pattern.search(text)]
        if faults:
            yield Finding(index, "damaged-text", "drop", {"faults": faults})


@lru_cache(maxsize=100_000)
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split(" ")[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH") else name


def main_script(text: str, letters: int = 400) -> str | None:
    """Unicode script of most of the text's first letters ("LATIN", "CYRILLIC", "CJK"); None without ten letters."""
    if text.isascii():
        return "LATIN" if sum(map(str.isalpha, text[:letters])) >= 10 else None
    counts = Counter(_script_of(letter) for letter in [c for c in text[: 4 * letters] if c.isalpha()][:letters])
    if sum(counts.values()) < 10:
        return None
    return counts.most_common(1)[0][0]


def _language(data: Rows) -> Iterator[Finding]:
    for index, row in enumerate(data.rows):
        scripts = {side: main_script(answer_text(row[side])) for side in ("chosen", "rejected")}
        if None not in scripts.values() and scripts["chosen"] != scripts["rejected"]:
            yield Finding(index, "language", "drop", {**scripts, "prompt": main_script(prompt_text(row["prompt"]))})


def _length(data: Rows) -> Iterator[Finding]:
    chosen = word_counts([row["chosen"] for row in data.rows])
    rejected = word_counts([row["rejected"] for row in data.rows])
    report = length_report(chosen, rejected)
    if not report["severe"]:
        return
    longer = report["longer_accuracy"] >= 0.5
    for index, (a, b) in enumerate(zip(chosen.tolist(), rejected.tolist())):
        long, short = max(a, b), min(a, b)
        if (a > b) == longer and a != b and long >= data.length_ratio * max(short, 1):
            evidence = {"chosen_words": a, "rejected_words": b, "ratio": round(long / max(short, 1), 2)}
            yield Finding(index, "length", "drop", evidence)


def _votes(data: Rows) -> Iterator[Finding]:
    if not any("votes" in row for row in data.rows):
        found = listed(data.rows[0] if data.rows else ())
        raise PrudentError(
            'rule "votes" needs a column "votes" with each annotator\'s vote (1: chosen, 2: rejected, 0: tie); '
            f"columns found: {found}"
        )
    for index, row in enumerate(data.rows):
        try:
            votes = read_votes(row.get("votes"))
        except ValueError as error:
            raise PrudentError(f"line {row['row']}, field 'votes': {error}") from error
        if not votes:
            continue
        verdict = merge_votes(votes)
        against = verdict.counts["second"] / len(votes)
        evidence = {"votes": votes, "for": verdict.counts["first"], "against": verdict.counts["second"]}
        if against >= data.vote_share:
            yield Finding(index, "votes", "flip", {**evidence, "verdict": "opposed", "needed": data.vote_share})
        elif verdict.outcome != "first":
            yield Finding(index, "votes", "drop", {**evidence, "verdict": verdict.outcome, "needed": data.vote_share})


def _scores(data: Rows) -> Iterator[Finding]:
    """The largest difference first, so that what is looked at first matters most."""
    better, worse = score_columns(data.rows[0] if data.rows else {})
    found = []
    for index, row in enumerate(data.rows):
        try:
            high, low = number(row.get(better)), number(row.get(worse))
        except (TypeError, ValueError):
            continue
        if high is not None and low is not None and high < low:
            found.append(Finding(index, "scores", "flip", {better: high, worse: low}))
    yield from sorted(found, key=lambda finding: finding.evidence[better] - finding.evidence[worse])


def score_columns(row: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the two sides' scores in a row. PrudentError when it has none."""
    for pair in SCORES:
        if all(name in row for name in pair):
            return pair
    known = "; ".join(", ".join(pair) for pair in SCORES)
    raise PrudentError(f'rule "scores" needs both sides\' scores ({known}); columns found: {listed(row)}')


def _conflict(data: Rows) -> Iterator[Finding]:
    """The largest conflict first; its rank is part of the evidence. Nothing where no sources are named."""
    if data.conflict is None:
        return
    found = compare(data.rows, data.conflict)
    for rank, index in enumerate(found.order, start=1):
        size = float(found.size[index])
        if size < data.conflict.least:
            return
        said = {name: float(value) for name, value in zip(found.names, found.values[:, index])}
        evidence = {**said, "standard_deviations_apart": round(size, 3), "rank": rank, "compared": len(found.order)}
        yield Finding(index, "conflict", "drop", evidence)


RULES = {
    rule.name: rule
    for rule in (
        Rule("empty", "drop", "An answer holds no text.", _empty),
        Rule("identical", "drop", "Both answers are the same text.", _identical),
        Rule("near-identical", "flag", "Both answers are nearly the same text.", _near_identical),
        Rule("truncated", "drop", "Both answers are the same after the model's template or truncation.", _truncated),
        Rule("duplicate", "drop", "An exact copy of an earlier pair.", _duplicate),
        Rule("near-duplicate", "flag", "Nearly a copy of an earlier pair.", _near_duplicate),
        Rule(
            "contradiction", "flag", "The same two answers are labelled the other way as often or more.", _contradiction
        ),
        Rule("leak", "drop", "The prompt is also in another split.", _leak),
        Rule("broken-transcript", "flag", "Speaker marks or turns are out of order.", _broken_transcript),
        Rule("damaged-text", "flag", "Characters were damaged on the way.", _damaged),
        Rule("language", "flag", "The answers are in different scripts.", _language),
        Rule("length", "flag", "Length gives the label away here, and this pair shows it.", _length),
        Rule("scores", "flag", "The rejected answer has the higher score.", _scores),
        Rule("conflict", "flag", "Two sources of score disagree; the largest conflict first.", _conflict),
        Rule("votes", "flag", "Annotators oppose the label, or do not decide.", _votes),
    )
}


def parse_actions(choices: Sequence[str]) -> dict[str, str]:
    """{rule: action} from "rule=action" texts over each rule's default; PrudentError for unknown rules and actions."""
    actions = {name: rule.default for name, rule in RULES.items()}
    for choice in choices:
        name, _, action = choice.partition("=")
        names = list(RULES) if name == "all" else [name]
        if names[0] not in RULES:
            raise PrudentError(f"unknown rule {name!r}; known: {', '.join(RULES)}, all")
        if action not in ACTIONS:
            raise PrudentError(f"rule {name!r}: unknown action {action!r}; known: {', '.join(ACTIONS)}")
        actions |= dict.fromkeys(names, action)
    return actions


def run_rules(data: Rows, actions: Mapping[str, str]) -> list[Finding]:
    """Findings of every rule whose action is not "keep", in the order of the rules, then of the rows."""
    unknown = sorted(set(actions) - set(RULES))
    if unknown:
        raise PrudentError(f"unknown rule {unknown[0]!r}; known: {', '.join(RULES)}")
    return [
        finding for name, rule in RULES.items() if actions.get(name, "keep") != "keep" for finding in rule.find(data)
    ]
