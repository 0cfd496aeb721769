"""Preference strength: how much M reward models agree with each label (Secrets of RLHF II, arXiv 2401.06080).

For pair i and member m the margin is d_mi = r_m(chosen) - r_m(rejected). The strength is its mean mu_i over members,
with the sample standard deviation sigma_i (ddof 1). Low strength marks labels that the other pairs speak against.

**Cross-fitted** by default: prompts are cut into folds, and a pair is judged only by members that saw no pair of its
prompt. In-sample members have fitted the label that they judge, noise included; that variant is offered, and labelled,
because the paper trains and judges on the same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.rewards.accuracy import credit
from prudent.rewards.columns import PairLabels, pair_columns
from prudent.rewards.draws import PairDifference, bootstrap_counts, fit_resamples, paired_features, standardisation
from prudent.seeding import Seed, numpy_generator, spawn

MODES = ("cross-fitted", "in-sample")
TOLERANCE = 1e-6  # gradient norm of a fold's heads: far below what resampling changes


@dataclass(frozen=True)
class Strength:
    """margins (M, n) float32: each member's margin of each pair. mode: "cross-fitted" or "in-sample". fold (n,): which
    members judged a pair (all 0 in-sample). ridge and info: how the members were fitted."""

    margins: torch.Tensor
    mode: str
    fold: torch.Tensor
    ridge: float
    info: dict[str, Any]

    @property
    def mean(self) -> torch.Tensor:
        """mu (n,) float64."""
        return self.margins.double().mean(0)

    @property
    def std(self) -> torch.Tensor:
        """sigma (n,) float64, ddof 1."""
        return self.margins.double().std(0, correction=1)

    @property
    def probability(self) -> torch.Tensor:
        """Probability (n,) float64 that chosen is better: mean over members of sg(d_mi)."""
        return torch.sigmoid(self.margins.double()).mean(0)


def prompt_folds(groups: Sequence[Any] | ArrayLike, folds: int, seed: Seed) -> torch.Tensor:
    """Fold (n,) of each pair; pairs of one prompt share a fold, folds hold about equally many prompts."""
    values = groups.tolist() if hasattr(groups, "tolist") else list(groups)  # type: ignore[arg-type]
    known: dict[Any, int] = {}
    index = np.array([known.setdefault(value, len(known)) for value in values])
    if len(known) < folds:
        raise PrudentError(
            f"{folds} folds need at least {folds} different prompts, found {len(known)}; give fewer folds"
        )
    return torch.from_numpy(numpy_generator(seed).permutation(len(known))[index] % folds)


def strength(
    chosen: ArrayLike, rejected: ArrayLike, groups: Sequence[Any] | ArrayLike | None = None, **options: Any
) -> Strength:
    """Margins of M bootstrap heads for every pair. chosen, rejected: features (n, d) (memory maps are read in chunks).

    They are standardised over all responses; the rest is ``strength_of_differences``, whose options these are.
    """
    return strength_of_differences(standard_differences(chosen, rejected)[0], groups, **options)


def standard_differences(chosen: ArrayLike, rejected: ArrayLike, *others: ArrayLike) -> tuple[Any, ...]:
    """Differences chosen - rejected of features (n, d), over the standard deviation of each feature among all n pairs'
    responses; ``others`` (further chosen, rejected pairs, such as a test split) on the same scale."""
    better, worse = paired_features(chosen, rejected)
    _, scale = standardisation(better, worse)
    found: list[Any] = []
    for one, other in zip((better, *others[::2]), (worse, *others[1::2])):
        difference: Any = PairDifference(*paired_features(one, other), scale)
        found.append(difference[slice(0, len(one))] if len(one) * len(scale) <= 60_000_000 else difference)
    return tuple(found)


def strength_of_differences(
    difference: Any,
    groups: Sequence[Any] | ArrayLike | None = None,
    *,
    members: int = 10,
    folds: int = 5,
    ridge: float | str = "cv",
    in_sample: bool = False,
    seed: Seed = 0,
    **labels: Unpack[PairLabels],
) -> Strength:
    """Margins of M bootstrap heads for every pair. difference: (n, d), see ``standard_differences``.

    groups: (n,) prompt of each pair; None takes every pair as a prompt of its own. folds: parts of the cross-fit; all
    folds x members heads are fitted as one batch. ridge: "cv" chooses it once by cross-validation over all pairs (a
    single number; no member sees its own fold). labels: (n,) as in ``HeadEnsemble.fit``.
    Raises PrudentError for shapes, too few prompts, fewer than two members.
    """
    if members < 2:
        raise PrudentError(f"members is {members}; a standard deviation over members needs at least 2")
    n = int(difference.shape[0])
    units = list(range(n)) if groups is None else groups
    fold_seed, ridge_seed, *member_seeds = spawn(seed, 2 + members)
    columns = pair_columns(n, **labels)
    fold = torch.zeros(n, dtype=torch.long) if in_sample else prompt_folds(units, folds, fold_seed)
    parts = 1 if in_sample else folds
    counts = torch.cat([_fold_counts(units, fold, None if in_sample else k, member_seeds) for k in range(parts)])
    fit = fit_resamples(
        difference, counts, ridge=ridge, columns=columns, groups=units, seed=ridge_seed, tolerance=TOLERANCE
    )
    margins = torch.empty(members, n)
    weights = fit.weights.float().reshape(parts, members, -1)
    for k in range(parts):
        for rows in torch.nonzero(fold == k).reshape(-1).split(16_384):
            margins[:, rows] = weights[k] @ difference[rows].T
    info = {
        "members": members,
        "folds": parts,
        "pairs": n,
        "prompts": len(set(_plain(units))),
        "gradient_norm": float(fit.solution.gradient_norm.max()),
        "ridge_table": fit.ridge_table,
    }
    return Strength(margins, MODES[1] if in_sample else MODES[0], fold, fit.ridge, info)


def _plain(values: Sequence[Any] | ArrayLike) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)  # type: ignore[arg-type]


def _fold_counts(
    units: Sequence[Any] | ArrayLike, fold: torch.Tensor, held: int | None, seeds: list[np.random.SeedSequence]
) -> torch.Tensor:
    """Bootstrap counts (M, n) of the prompts outside the held fold; zero on the held fold."""
    rows = torch.arange(len(fold)) if held is None else torch.nonzero(fold != held).reshape(-1)
    listed = _plain(units)
    counts = torch.zeros(len(seeds), len(fold))
    counts[:, rows] = bootstrap_counts(len(rows), seeds, [listed[row] for row in rows.tolist()])
    return counts


def decile_groups(mean: ArrayLike, groups: int = 10) -> torch.Tensor:
    """Group (n,) of each pair, 1 = weakest: equal parts of the order by mean strength. Pairs of equal strength stay
    together, in the group of their mean rank: which of them came first is luck."""
    values = as_tensor(mean, torch.float64)
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    twice = 2 * counts.cumsum(0) - counts - 1  # the mean rank (from 0) of each value, doubled
    return twice[place] * groups // (2 * max(len(values), 1)) + 1


def decile_table(
    mean: ArrayLike, std: ArrayLike, second: ArrayLike | None = None, groups: int = 10
) -> list[dict[str, float | int | None]]:
    """One row a decile (1 = weakest): pairs, mean strength, its range, mean sigma and, with a second label, agreement.

    second: (n,) probability that chosen is better by another judge (0 or 1 for a hard label; NaN where there is none).
    agreement: share of pairs with a second label above 1/2, exactly 1/2 counted half; second_mean: its mean.
    """
    mu, sigma = as_tensor(mean, torch.float64), as_tensor(std, torch.float64)
    other = None if second is None else as_tensor(second, torch.float64)
    group = decile_groups(mu, groups)
    table: list[dict[str, float | int | None]] = []
    for number in range(1, groups + 1):
        rows = group == number
        if not bool(rows.any()):
            continue
        row: dict[str, float | int | None] = {
            "decile": number,
            "pairs": int(rows.sum()),
            "mean": float(mu[rows].mean()),
            "low": float(mu[rows].min()),
            "high": float(mu[rows].max()),
            "sigma": float(sigma[rows].mean()),
        }
        if other is not None:
            known = other[rows][~torch.isnan(other[rows])]
            row["labelled"] = len(known)
            row["agreement"] = float(credit(known - 0.5).mean()) if len(known) else None
            row["second_mean"] = float(known.mean()) if len(known) else None
        table.append(row)
    return table


def shares(mean: ArrayLike, std: ArrayLike) -> dict[str, float]:
    """Shares of pairs with mean margin mu and standard deviation sigma over members, (n,) each.

    below_zero: mu < 0, the members prefer the rejected answer. near_zero: |mu| <= sigma, they are undecided. opposed:
    mu < -sigma, they prefer the rejected answer by more than their standard deviation."""
    mu, sigma = as_tensor(mean, torch.float64), as_tensor(std, torch.float64)
    return {
        "below_zero": float((mu < 0).double().mean()),
        "near_zero": float((mu.abs() <= sigma).double().mean()),
        "opposed": float((mu < -sigma).double().mean()),
    }
