"""What the options of ``prudent clean`` ask of rules and labels."""

from __future__ import annotations

from prudent.commands.clean.options import CleanOptions
from prudent.data.formats import SCORES
from prudent.data.repairs import Plan, parse_deciles
from prudent.data.rules import parse_actions
from prudent.errors import PrudentError

NEEDS = {
    "truncated": ("a model whose tokenizer trains on the pairs", "--encoder"),
    "conflict": ("two sources of score", "--conflict ONE,OTHER"),
    "leak": ("another split to compare prompts with", "--against or --test"),
}


def repair_plan(options: CleanOptions) -> Plan:
    """What is done to labels by their strength; PrudentError for deciles and labels that mean nothing."""
    value = None
    if options.soft_label != "strength":
        try:
            value = float(options.soft_label)
        except ValueError:
            raise PrudentError(f'--soft-label {options.soft_label!r}: give "strength" or a probability') from None
    drop, soften, widen, weigh = map(
        parse_deciles, (options.drop_deciles, options.soften, options.widen, options.weigh)
    )
    return Plan(options.flip, drop, soften, widen, value, weigh, options.weight)


def rule_actions(options: CleanOptions, columns: list[str] | None = None) -> dict[str, str]:
    """Action of every rule. A rule that lacks what it needs is off by default, and an error when asked for."""
    actions = parse_actions(options.rule)
    asked = {choice.partition("=")[0] for choice in options.rule if not choice.endswith("=keep")}
    lacking = dict(NEEDS)
    if options.model is not None:
        lacking.pop("truncated")
    if options.conflict is not None:
        lacking.pop("conflict")
        actions["conflict"] = actions["conflict"].replace("keep", "flag")  # asked for, whatever "all" says
    if options.against or options.test:
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
