"""The page on which a person accepts or rejects suggested changes and saves decisions for ``--decisions`` to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prudent.data.cleaning import DECISIONS_FORMAT, STRENGTH_RULES, Change
from prudent.data.rules import RULES
from prudent.reporting.report import cell, embed, form, turns

LABELS = {"sigma": "standard deviation"}  # evidence under another name than in changes.jsonl
ACTS = {"drop": "Drop this pair", "flip": "Swap chosen and rejected"}


def pick_changes(changes: Sequence[Change], limit: int) -> tuple[list[Change], dict[str, int]]:
    """The changes that a person should look at: drops and flips, at most ``limit`` a rule, the weakest pairs first; and
    how many of each rule are not shown."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        if change.suggestion in ACTS:
            groups.setdefault(change.rule, []).append(change)
    shown: list[Change] = []
    hidden = {}
    for rule, found in groups.items():
        found = sorted(found, key=lambda change: change.evidence.get("strength", 0.0))
        shown += found[:limit]
        if len(found) > limit:
            hidden[rule] = len(found) - limit
    return shown, hidden


def review_page(rows: Sequence[Mapping[str, Any]], changes: Sequence[Change], source: str, limit: int) -> str:
    """HTML of the review page: offline, every text escaped. rows: the file's pairs before cleaning."""
    shown, hidden = pick_changes(changes, limit)
    items = []
    for number, change in enumerate(shown):
        row = rows[change.pair - 1]
        items.append(
            {
                "number": number,
                "line": change.line,
                "rule": change.rule,
                "act": ACTS[change.suggestion],
                "selected": change.done != "none",
                "evidence": {
                    LABELS.get(key, key.replace("_", " ")): show(value) for key, value in change.evidence.items()
                },
                **{name: turns(row[name]) for name in ("prompt", "chosen", "rejected")},
            }
        )
    names = {**{name: rule.what for name, rule in RULES.items()}, **STRENGTH_RULES}
    rules = [
        {"name": rule, "what": names[rule], "shown": sum(c.rule == rule for c in shown), "hidden": hidden.get(rule, 0)}
        for rule in dict.fromkeys(change.rule for change in shown)
    ]
    saved = {
        "format": DECISIONS_FORMAT,
        "source": source,
        "decisions": [
            {"pair": c.pair, "line": c.line, "rule": c.rule, "suggestion": c.suggestion, "hash": c.hash} for c in shown
        ],
    }
    folder = Path(__file__).parent / "templates"
    return form(
        folder / "review.html.j2",
        style=folder / "review.css",
        script=folder / "review.js",
        source=source,
        items=items,
        rules=rules,
        data=embed(saved),
    )


def show(value: Any) -> str:
    """Evidence as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(show(item) for item in value)
    return cell(value)
