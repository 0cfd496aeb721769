"""From findings to a cleaned set: one change a line, each with its evidence, each open to a person's decision.

A change names the pair (its number and line in the file, and a hash of its text), the rule, what was suggested and what
was done. Decisions are read back by pair, rule and hash: a decision about a pair whose text has changed is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prudent.data.preferences import row_hash
from prudent.data.repairs import Repairs
from prudent.data.rules import RULES, Finding
from prudent.errors import BadRow, DataError, PrudentError

if TYPE_CHECKING:
    from datasets import Dataset

DECISIONS_FORMAT = "prudent-decisions-1"
SUGGESTIONS = ("drop", "flip", "set")
STRENGTH_RULES = {
    "strength-flip": "The lowest share by strength: the other pairs speak for the opposite label.",
    "strength-drop": "A decile of strength that is left out.",
    "soft-label": "The probability that chosen is better, by the members, in place of a hard label.",
    "margin": "The strength as the margin that the loss asks for.",
    "weight": "Pairs of this decile of strength count less in the loss.",
    "opposed": "The reward models prefer the rejected answer by more than their standard deviation.",
}


@dataclass(frozen=True)
class Change:
    """One suggested change to one pair. pair: number from 1; line: in the file; done: what happens: "drop", "flip",
    "set" (columns) or "none" (flagged only, or rejected). decided: a person's yes or no, None without one."""

    pair: int
    line: int
    rule: str
    suggestion: str
    done: str
    hash: str
    evidence: dict[str, Any] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    decided: bool | None = None


def changes_of_findings(
    findings: Sequence[Finding], actions: Mapping[str, str], lines: Sequence[int], hashes: Sequence[str]
) -> list[Change]:
    """Changes of what rules found, done as each rule's action says: flag, drop, or apply (what is suggested)."""
    changes = []
    for finding in findings:
        action = actions[finding.rule]
        done = {"flag": "none", "drop": "drop", "apply": finding.suggestion}[action]
        index = finding.index
        changes.append(
            Change(index + 1, lines[index], finding.rule, finding.suggestion, done, hashes[index], finding.evidence)
        )
    return changes


def changes_of_repairs(
    repairs: Repairs,
    indices: Sequence[int],
    mean: np.ndarray,
    std: np.ndarray,
    decile: np.ndarray,
    lines: Sequence[int],
    hashes: Sequence[str],
) -> list[Change]:
    """Changes of a repair plan. places: number (from 0) of each judged pair in the file; arrays: over judged pairs."""
    changes = []
    for i, index in enumerate(indices):
        evidence = {"strength": float(mean[i]), "sigma": float(std[i]), "decile": int(decile[i])}

        def change(rule: str, what: str, values: dict[str, float], at: int = index, why: dict = evidence) -> Change:
            return Change(at + 1, lines[at], rule, what, what, hashes[at], why, values)

        if repairs.drop[i]:
            changes.append(change("strength-drop", "drop", {}))
        if repairs.flip[i]:
            changes.append(change("strength-flip", "flip", {}))
        for name in ("soft_label", "margin", "weight"):
            value = float(getattr(repairs, name)[i])
            if not np.isnan(value):
                changes.append(change(name.replace("_", "-"), "set", {name: value}))
    return changes


def read_decisions(path: str | Path) -> list[dict[str, Any]]:
    """Decisions that the review page saved. PrudentError when the file is another kind or an entry is incomplete."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrudentError(f"decisions {path} can't be read: {error}") from error
    if not isinstance(value, dict) or value.get("format") != DECISIONS_FORMAT or "decisions" not in value:
        raise PrudentError(f"{path} holds no decisions ({DECISIONS_FORMAT!r}); save them on the page review.html")
    known = {**RULES, **STRENGTH_RULES}
    for number, entry in enumerate(value["decisions"], start=1):
        wrong = [
            name
            for name, kind in (("pair", int), ("rule", str), ("hash", str), ("accept", bool))
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind)
        ]
        if wrong:
            raise PrudentError(f"{path}: decision {number} has no valid {', '.join(wrong)}")
        if entry["rule"] not in known:
            raise PrudentError(
                f"{path}: decision {number} names unknown rule {entry['rule']!r}; known: {', '.join(known)}"
            )
        if entry.get("suggestion") not in SUGGESTIONS:
            raise PrudentError(f"{path}: decision {number} has suggestion {entry.get('suggestion')!r}")
    return value["decisions"]


def decide(
    changes: Sequence[Change],
    decisions: Sequence[Mapping[str, Any]],
    lines: Sequence[int],
    hashes: Sequence[str],
    source: str = "decisions",
) -> list[Change]:
    """``changes`` as a person decided: accepted ones are done, rejected ones not; undecided ones stay as they were.

    An accepted drop or flip that was not suggested this time (other options) is done all the same. Raises DataError
    with every decision whose pair is not in the file any more or has another text.
    """
    stale = []
    for entry in decisions:
        number = entry["pair"]
        if not 1 <= number <= len(hashes):
            stale.append(BadRow(number, "pair", "unknown-pair", f"the file has {len(hashes)} pairs"))
        elif hashes[number - 1] != entry["hash"]:
            detail = f"pair {number} (line {lines[number - 1]}) has another text than when it was decided"
            stale.append(BadRow(lines[number - 1], entry["rule"], "changed-since", detail))
    if stale:
        raise DataError(source, stale, "Nothing was written. Clean the file as it is now and decide again.")
    verdicts = {(entry["pair"], entry["rule"]): entry for entry in decisions}
    decided = []
    for change in changes:
        key = (change.pair, change.rule)
        if key in verdicts:
            entry = verdicts.pop(key)
            done = change.suggestion if entry["accept"] else "none"
            change = replace(change, done=done, decided=entry["accept"])
        decided.append(change)
    for entry in verdicts.values():
        if entry["accept"] and entry["suggestion"] in ("drop", "flip"):
            index = entry["pair"] - 1
            done = entry["suggestion"]
            decided.append(
                Change(index + 1, lines[index], entry["rule"], done, done, hashes[index], {"by": source}, {}, True)
            )
    return decided


def swapped_name(name: str) -> str | None:
    """The other side's column of a column about one side ("chosen_model" -> "rejected_model"), or None."""
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if one in name and name not in ("chosen", "rejected"):
            return name.replace(one, other)
    return None


def flip_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair with its label turned round: sides, columns about one side and annotators' votes change places.

    soft_label and margin keep their values: they are about the answer that is called chosen, now the other one.
    """
    flipped = dict(row)
    flipped["chosen"], flipped["rejected"] = row["rejected"], row["chosen"]
    for name in row:
        other = swapped_name(name)
        if other is not None and other in row:
            flipped[name] = row[other]
    if isinstance(row.get("votes"), list):
        flipped["votes"] = [{1: 2, 2: 1}.get(vote, vote) for vote in row["votes"]]
    return flipped


@dataclass(frozen=True)
class Cleaned:
    """rows: the cleaned pairs in order. log: one entry a change. places: number (from 0) of each kept pair in the file;
    flipped: whether it was flipped. columns: which of soft_label, margin, weight were set."""

    rows: list[dict[str, Any]]
    log: list[dict[str, Any]]
    indices: list[int]
    flipped: list[bool]
    columns: list[str]


def apply_changes(dataset: Dataset, changes: Sequence[Change]) -> Cleaned:
    """Do the changes: a drop wins over a flip; two rules that flip one pair flip it once; columns are set last.

    The rows get ``flipped``; where any row gets a soft label, a margin or a weight, every row has the column (neutral:
    1, 0 and 1, or the file's own value), since TRL's RewardTrainer reads a margin from all rows or none.
    """
    by_pair: dict[int, list[Change]] = {}
    for change in changes:
        by_pair.setdefault(change.pair, []).append(change)
    columns = sorted({name for change in changes if change.done == "set" for name in change.values})
    neutral = {"soft_label": 1.0, "margin": 0.0, "weight": 1.0}
    rows, log, indices, flipped = [], [], [], []
    for index, row in enumerate(dataset):
        mine = by_pair.get(index + 1, [])
        drop = any(change.done == "drop" for change in mine)
        flip = any(change.done == "flip" for change in mine) and not drop
        log += [_entry(change, row, drop) for change in mine]
        if drop:
            continue
        kept = flip_row(row) if flip else dict(row)
        kept["flipped"] = flip
        for name in columns:
            if kept.get(name) is None:
                kept[name] = neutral[name]
        for change in mine:
            if change.done == "set":
                kept |= change.values
        rows.append(kept)
        indices.append(index)
        flipped.append(flip)
    return Cleaned(rows, log, indices, flipped, columns)


def _entry(change: Change, row: Mapping[str, Any], dropped: bool) -> dict[str, Any]:
    """Provenance line of one change: what was there, what is there now, and why."""
    before: Any = None
    after: Any = None
    done = "drop" if dropped and change.done == "flip" else change.done
    if change.done == "drop":
        before = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    elif done == "flip":
        before = {name: row[name] for name in ("chosen", "rejected")}
        after = {"chosen": row["rejected"], "rejected": row["chosen"]}
    elif done == "set":
        before = {name: row.get(name) for name in change.values}
        after = None if dropped else dict(change.values)
    return {
        "pair": change.pair,
        "row": change.line,
        "rule": change.rule,
        "suggestion": change.suggestion,
        "action": done,
        "before": before,
        "after": after,
        "evidence": change.evidence,
        "decided": change.decided,
        "hash": change.hash,
    }


def count_changes(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Per rule: how many pairs it found, and how many of these are dropped, flipped, set, or left as they were."""
    rules = list(dict.fromkeys(change.rule for change in changes))
    table = []
    for rule in rules:
        done = Counter(change.done for change in changes if change.rule == rule)
        table.append(
            {
                "rule": rule,
                "found": sum(done.values()),
                "dropped": done["drop"],
                "flipped": done["flip"],
                "set": done["set"],
                "flagged": done["none"],
            }
        )
    return table


def hashes_of(dataset: Dataset) -> list[str]:
    """Hash of each pair's text, by which decisions recognise it."""
    return [row_hash(row) for row in dataset.select_columns(["prompt", "chosen", "rejected"])]
