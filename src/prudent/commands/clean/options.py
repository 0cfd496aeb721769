"""What a person can choose about one cleaning run, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prudent.data.formats import SCORES
from prudent.data.repairs import Plan, parse_deciles
from prudent.data.rules import RULES, parse_actions
from prudent.errors import PrudentError

NEEDS = {
    "truncated": ("a model whose tokenizer trains on the pairs", "--encoder"),
    "leak": ("another split to compare prompts with", "--against or --test"),
}


@dataclass(frozen=True)
class Settings:
    """See ``prudent clean --help``; the names are those of its options."""

    source: str
    rule: tuple[str, ...] = ()
    encoder: str | None = "smollm2"
    features: str | None = None
    pooling: str = "last+mean"
    max_length: int = 1024
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    rating: str | None = None
    ties: str = "drop"
    soft_votes: str = "half"
    min_share: float = 0.5
    max_pairs: int | None = None
    max_test_pairs: int | None = None
    against: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    holdout: float = 0.25
    seeds: int = 20
    members: int = 10
    folds: int = 5
    ridge: float | str = "cv"
    in_sample: bool = False
    flip: float = 0.0
    soften: str = ""
    soft_label: str = "strength"
    widen: str = ""
    weigh: str = ""
    weight: float = 0.5
    drop_deciles: str = ""
    second_label: str | None = None
    plant: tuple[float, ...] = ()
    decisions: str | None = None
    review: int = 100
    seed: int = 0

    @property
    def judged(self) -> bool:
        """Whether there are features to judge pairs by."""
        return self.encoder is not None or self.features is not None

    def plan(self) -> Plan:
        value = None
        if self.soft_label != "strength":
            try:
                value = float(self.soft_label)
            except ValueError:
                raise PrudentError(f'soft label {self.soft_label!r}: give "strength" or a probability') from None
        drop, soften, widen, weigh = map(parse_deciles, (self.drop_deciles, self.soften, self.widen, self.weigh))
        return Plan(self.flip, drop, soften, widen, value, weigh, self.weight)

    def actions(self, columns: list[str] | None = None) -> dict[str, str]:
        """Action of every rule. A rule that lacks what it needs is off by default, and an error when asked for."""
        actions = parse_actions(self.rule)
        asked = {choice.partition("=")[0] for choice in self.rule if not choice.endswith("=keep")}
        lacking = dict(NEEDS)
        if self.encoder is not None:
            lacking.pop("truncated")
        if self.against or self.test:
            lacking.pop("leak")
        if columns is not None and "votes" not in columns:
            lacking["votes"] = ("each annotator's vote", 'a column "votes"')
        if columns is not None and not any(set(pair) <= set(columns) for pair in SCORES):
            lacking["scores"] = ("both sides' scores", "columns such as score_chosen and score_rejected")
        for name, (what, remedy) in lacking.items():
            if name in asked:
                raise PrudentError(f"rule {name!r} needs {what}; give {remedy}, or {name}=keep")
            actions[name] = "keep"
        return actions

    def check(self) -> Settings:
        """PrudentError for choices that no file can satisfy."""
        plan = self.plan()
        self.actions()
        if not self.judged:
            needs = {
                "--flip, --soften, --widen, --weigh or --drop-deciles": plan.changes_anything,
                "--plant": bool(self.plant),
                "--second-label": self.second_label is not None,
            }
            for option, given in needs.items():
                if given:
                    raise PrudentError(f"{option} works on the strength of pairs, which needs --encoder or --features")
        if self.features is not None and (self.max_pairs is not None or self.max_test_pairs is not None):
            raise PrudentError(
                "--features holds one row for every pair of the files, so --max-pairs and --max-test-pairs can't go "
                "with it; leave them out"
            )
        if not 0 <= self.holdout < 1:
            raise PrudentError(f"holdout is {self.holdout}; it is a share of the prompts, 0 (no proof) to below 1")
        for share in self.plant:
            if not 0 < share < 0.5:
                raise PrudentError(f"plant {share}: a share of labels to turn round, above 0 and below 0.5")
        return self


def rule_table() -> list[dict[str, Any]]:
    """Names, defaults and meanings of the rules, for help and reports."""
    return [{"rule": rule.name, "default": rule.default, "what": rule.what} for rule in RULES.values()]
