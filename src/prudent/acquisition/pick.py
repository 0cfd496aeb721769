"""``prudent.acquire``: the pairs to label next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from prudent.acquisition.information import LabelModel
from prudent.acquisition.known import known_pairs
from prudent.acquisition.rules import RULES, Task, rule_of
from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.seeding import numpy_generator, spawn

DEFAULT_RULE = "random"  # docs/acquire.md: what each rule gained


class AcquireSettings(NamedTuple):
    """ridge of the head: a number or "cv". beta: KL weight of the tilted policy, for ``envelope`` and ``risk``. labels:
    how people err and tie. repeat: most labels of one pair, for ``bald``, ``d-optimal``, ``bal-pm``, ``envelope`` and
    ``risk``, which know what a second label still says."""

    ridge: float | str = "cv"
    beta: float = 0.1
    labels: LabelModel = LabelModel()
    repeat: int = 1


DEFAULTS = AcquireSettings()


def acquire(
    chosen: ArrayLike,
    rejected: ArrayLike,
    candidates: ArrayLike,
    k: int,
    *,
    rule: str = DEFAULT_RULE,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    settings: AcquireSettings = DEFAULTS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k candidate pairs to label next, best first: indices (k,) int64 and their scores (k,) float64.

    chosen, rejected (n, d): features of the labelled pairs. candidates: both sides (m, 2, d), or first minus second
    (m, d), in the features' own units; the rules on a prompt's responses (bal-pm, maxmin-lcb, drts, envelope, risk)
    need the sides. groups: the m candidates' prompts; None: each is of its own. rule: see ``acquisition.rules``, where
    each score's meaning is too; it is taken when the pair is picked, given those before. Raises PrudentError for
    shapes, values that aren't finite, fewer than 8 labelled pairs, and k beyond what there is to label.
    """
    found = rule_of(rule)
    count = len(candidates)  # type: ignore[arg-type]
    if not 0 <= settings.labels.noise < 0.5 or not 0 <= settings.labels.ties < 1:
        raise PrudentError(f"noise must lie in [0, 0.5) and ties in [0, 1), got {settings.labels}")
    if settings.repeat < 1 or not settings.beta > 0:
        raise PrudentError(f"repeat must be at least 1 and beta positive, got {settings.repeat} and {settings.beta}")
    if settings.repeat > 1 and not found.repeats:
        known_rules = ", ".join(name for name, row in RULES.items() if row.repeats)
        raise PrudentError(f"rule {rule!r} can't say what a second label is worth; repeat works with {known_rules}")
    if not 1 <= k <= count * settings.repeat:
        raise PrudentError(
            f"k is {k}, but {count} candidates with {settings.repeat} label{'s' * (settings.repeat > 1)} each allow 1 "
            f"to {count * settings.repeat}"
        )
    fit_seed, pick_seed = spawn(seed, 2)
    known = known_pairs(
        chosen, rejected, candidates, groups, ridge=settings.ridge, labels=settings.labels, seed=fit_seed
    )
    index, score = found.pick(known, Task(k, settings.beta, settings.repeat, numpy_generator(pick_seed)))
    return torch.from_numpy(np.ascontiguousarray(index)), torch.from_numpy(np.ascontiguousarray(score))
