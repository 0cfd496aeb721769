"""Best of n as a policy: from members' scores of a prompt's candidates to the one that is picked, by any rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.rewards.aggregation import RULES, aggregate
from prudent.rewards.uncertainty import as_scores, centre_members


@dataclass(frozen=True)
class Pick:
    """What is picked for one prompt. index: of the candidate. reward: by the rule, centred on the prompt. mean: of its
    raw scores over members. deviation: sample standard deviation (ddof=1) over members of its score centred on the
    prompt, None for one member. by_rule: what other rules pick. margin: reward minus the runner-up's, 0 for a tie (the
    first one is taken). best, best_by_rule: (N,) bool, every candidate that ties for the highest reward, by the rule
    and by the others; a pick's value is the mean over these, since which of them comes first is luck.
    """

    index: int
    reward: float
    mean: float
    deviation: float | None
    by_rule: dict[str, int]
    margin: float
    best: torch.Tensor
    best_by_rule: dict[str, torch.Tensor]


def usable_rules(members: int) -> list[str]:
    """Rules that need no number from the user and no more members than there are."""
    return [name for name in RULES if name not in ("member", "quantile") and RULES[name].members <= members]


def pick(
    scores: ArrayLike,
    rule: str = "mean",
    *,
    compare: Sequence[str] | None = None,
    options: Mapping[str, float] | None = None,
    together: bool = False,
) -> Pick:
    """Pick among one prompt's candidates. scores: (K, N), K members' scores of N candidates.

    Members are centred on the prompt first: their offsets mean nothing. together: they share one origin, as the
    quantiles of one reward do, and are centred as one. compare: rules whose picks are shown beside
    (default: all that need no number). Of candidates with equal reward the first is taken. Raises PrudentError for
    non-finite scores, naming candidate and member, and for a rule that needs more members.
    """
    raw = as_scores(scores)
    if raw.ndim != 2 or raw.shape[1] == 0:
        raise PrudentError(f"scores have shape {tuple(raw.shape)}, expected (members, candidates)")
    inner = centre_members(raw.double(), together=together)
    rewards = aggregate(inner, rule, **dict(options or {}))
    order = torch.sort(rewards, descending=True, stable=True)
    index = int(order.indices[0])
    by_rule = {name: aggregate(inner, name) for name in (usable_rules(len(raw)) if compare is None else compare)}
    best_by_rule = {name: values == values.max() for name, values in by_rule.items()}
    return Pick(
        index=index,
        reward=float(rewards[index]),
        mean=float(raw[:, index].double().mean()),
        deviation=float(inner[:, index].std(correction=1)) if len(raw) > 1 else None,
        by_rule={name: int(torch.nonzero(best)[0]) for name, best in best_by_rule.items()},
        margin=float(order.values[0] - order.values[1]) if len(rewards) > 1 else 0.0,
        best=rewards == rewards.max(),
        best_by_rule=best_by_rule,
    )


def picks(
    scores: ArrayLike,
    counts: Sequence[int],
    rule: str = "mean",
    *,
    options: Mapping[str, float] | None = None,
    together: bool = False,
) -> list[Pick]:
    """A pick a prompt, as ``pick`` does. scores: (K, N_total), prompt by prompt; counts: candidates of each prompt."""
    values = as_tensor(scores)
    if values.ndim != 2 or values.shape[1] != sum(counts):
        raise PrudentError(f"scores have shape {tuple(values.shape)} for {sum(counts)} candidates")
    found = []
    for prompt, part in enumerate(values.split(list(counts), dim=1)):
        try:
            found.append(pick(part, rule, options=options, together=together))
        except PrudentError as error:
            raise PrudentError(f"prompt {prompt}: {error}") from error
    return found
