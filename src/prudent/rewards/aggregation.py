"""Rules that turn K members' scores into one reward per response: (K, N) -> (N,).

Standard deviations and variances are those of a sample (ddof = 1); ``describe`` gives a rule's formula for reports.
Members' scores should share an origin (see ``uncertainty.centre``) before a rule that compares members, as min does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.uncertainty import as_scores


class Rule(NamedTuple):
    """A rule: function of (K, ...) scores and its options, formula for reports, options with their defaults, and the
    least number of members for which it is defined."""

    function: Callable[..., torch.Tensor]
    formula: str
    options: dict[str, float]  # with their defaults
    members: int = 1  # the least number for which the rule is defined


def _mean(scores: torch.Tensor) -> torch.Tensor:
    return scores.mean(0)


def _member(scores: torch.Tensor, index: int) -> torch.Tensor:
    if not -len(scores) <= index < len(scores) or index != int(index):
        raise PrudentError(f"member {index} of {len(scores)}: give an index from 0 to {len(scores) - 1}")
    return scores[int(index)]


def _min(scores: torch.Tensor) -> torch.Tensor:
    return scores.amin(0)


def _lcb(scores: torch.Tensor, coefficient: float) -> torch.Tensor:
    return scores.mean(0) - coefficient * scores.std(0, correction=1)


def _uwo(scores: torch.Tensor, coefficient: float) -> torch.Tensor:
    return scores.mean(0) - coefficient * scores.var(0, correction=1)


def _quantile(scores: torch.Tensor, level: float) -> torch.Tensor:
    if not 0 <= level <= 1:
        raise PrudentError(f"quantile level must lie in [0, 1], got {level}")
    ordered = scores.sort(0).values  # torch.quantile refuses more than 16 million numbers
    position = level * (len(scores) - 1)
    low = int(position)
    high = min(low + 1, len(scores) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _median(scores: torch.Tensor) -> torch.Tensor:
    return _quantile(scores, 0.5)


def _cvar(scores: torch.Tensor, level: float) -> torch.Tensor:
    if not 0 < level <= 1:
        raise PrudentError(f"cvar level must lie in (0, 1], got {level}")
    ordered = scores.sort(0).values
    count = len(scores)
    reach = level * count - torch.arange(count, dtype=scores.dtype)
    share = reach.clamp(0, 1).reshape(-1, *[1] * (scores.ndim - 1))
    return (ordered * share).sum(0) / (level * count)


def _entropic(scores: torch.Tensor, coefficient: float) -> torch.Tensor:
    if coefficient == 0:
        return scores.mean(0)
    return -(torch.logsumexp(-coefficient * scores, 0) - math.log(len(scores))) / coefficient


RULES: dict[str, Rule] = {
    "mean": Rule(_mean, "mean over members", {}),
    "member": Rule(_member, "score of one member (index from 0)", {"index": 0}),
    "min": Rule(_min, "lowest member (worst-case optimisation)", {}),
    "lcb": Rule(_lcb, "mean - coefficient * sample standard deviation (ddof=1)", {"coefficient": 1.0}, 2),
    "uwo": Rule(_uwo, "mean - coefficient * sample variance (ddof=1)", {"coefficient": 1.0}, 2),
    "median": Rule(_median, "median over members (mean of the middle two when K is even)", {}),
    "quantile": Rule(
        _quantile, "quantile over members, linear interpolation between order statistics", {"level": 0.25}
    ),
    "cvar": Rule(_cvar, "mean of the lowest level * K members, the last one in part", {"level": 0.3}),
    "entropic": Rule(_entropic, "-1/c ln mean exp(-c r); c > 0 is cautious, c -> 0 is the mean", {"coefficient": 1.0}),
}


def _chosen_options(rule: str, options: dict[str, Any]) -> dict[str, Any]:
    if rule not in RULES:
        raise PrudentError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    unknown = sorted(set(options) - set(RULES[rule].options))
    if unknown:
        known = ", ".join(RULES[rule].options) or "none"
        raise PrudentError(f"rule {rule!r} has no option {', '.join(unknown)}; its options: {known}")
    chosen = {**RULES[rule].options, **options}
    for name, value in chosen.items():
        if not math.isfinite(value):
            raise PrudentError(f"option {name} of rule {rule!r} is {value}; give a finite number")
    return chosen


def aggregate(scores: ArrayLike, rule: str = "mean", **options: float) -> torch.Tensor:
    """One reward per response from K members: (K, ...) -> (...).

    rule: mean | member (index) | min | lcb (coefficient) | uwo (coefficient) | median | quantile (level) |
    cvar (level) | entropic (coefficient). Formulas and defaults: ``describe(rule)``.
    Raises PrudentError for an unknown rule or option, for a rule that needs more members than there are (lcb and uwo
    need two: the variance of one is undefined), and for scores that are not finite, naming item and member.
    Sources: mean and LCB, arXiv 2401.16635; min (WCO) and UWO, Coste et al., arXiv 2310.02743.
    """
    chosen = _chosen_options(rule, options)
    found = RULES[rule]
    return found.function(as_scores(scores, found.members), **chosen)


def describe(rule: str, **options: float) -> str:
    """Formula of a rule with its options and their values, as reports print it beside numbers."""
    chosen = _chosen_options(rule, options)
    values = ", ".join(f"{name}={value:g}" for name, value in chosen.items())
    return f"{rule}: {RULES[rule].formula}" + (f" [{values}]" if values else "")
