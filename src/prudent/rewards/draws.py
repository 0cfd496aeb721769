"""Reward models drawn from preference pairs: standardise, choose the ridge, resample, fit, score.

A draw resamples the pairs, whole prompts at a time: the data that might have been collected. Its reward model is the
head fitted on all that it drew; the heads fitted on resamples of it say how sure that reward model is. Were one of
them taken for the reward, the data would be resampled twice and the rewards vary about twice as much as they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.rewards.columns import NO_COLUMNS, PairColumns
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.rewards.convex import HeadFit, fit_heads
from prudent.rewards.coordinates import HELD_IN_MEMORY
from prudent.rewards.stored import CHUNK_ROWS, as_source, part_of
from prudent.seeding import Seed, numpy_generator, spawn

DRAW_TOLERANCE = 1e-5  # gradient norm of drawn heads: scores are then exact to three digits, far below the noise
RIDGES = tuple(float(value) for value in 10.0 ** np.arange(-3, 2.01, 0.5))
FOLDS = 5
CV_ROWS = 20_000  # cross-validation sees at most so many pairs; the chosen ridge is then scaled by 1/n


def standardisation(*sources: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (population, constant features get 1) of features over all rows; (d,) float32."""
    width = int(sources[0].shape[1])
    total, square = torch.zeros(2, width, dtype=torch.float64)
    shift = part_of(sources[0], slice(0, 1))[0].double()  # keeps the squares small
    count = 0
    for name, source in zip(("chosen", "rejected"), sources):
        for start in range(0, source.shape[0], CHUNK_ROWS):
            part = part_of(source, slice(start, start + CHUNK_ROWS)).double()
            whole = part.sum(0)
            if not bool(torch.isfinite(whole).all()):
                require_finite(part, f"{name} features from row {start}", ("row", "feature"))
            total += whole - len(part) * shift
            square += part.sub_(shift).square_().sum(0)
            count += len(part)
    mean = total / count
    deviation = (square / count - mean**2).clamp_min(0).sqrt()
    constant = deviation <= 1e-7 * (mean + shift).abs().clamp_min(1e-30)
    return (mean + shift).float(), torch.where(constant, 1.0, deviation).float()


def paired_features(chosen: Any, rejected: Any) -> tuple[Any, Any]:
    """Both sides' features (n, d) of equal shape, memory maps left on disk, or PrudentError."""
    better, worse = as_source(chosen, "chosen"), as_source(rejected, "rejected")
    if tuple(better.shape) != tuple(worse.shape):
        raise PrudentError(
            f"chosen features have shape {tuple(better.shape)}, rejected {tuple(worse.shape)}; they must be equal"
        )
    return better, worse


class PairDifference:
    """(chosen - rejected) / scale, computed for the rows asked for: neither side needs to fit in memory."""

    def __init__(self, chosen: Any, rejected: Any, scale: torch.Tensor) -> None:
        self.chosen, self.rejected, self.scale = chosen, rejected, scale
        self.shape = tuple(int(size) for size in chosen.shape)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        return (part_of(self.chosen, rows) - part_of(self.rejected, rows)) / self.scale


def unit_members(groups: Sequence[Any] | ArrayLike | None, n: int) -> tuple[torch.Tensor, int]:
    """Unit number of each pair (its prompt's, or its own) and the number of units."""
    if groups is None:
        return torch.arange(n), n
    values = groups.tolist() if hasattr(groups, "tolist") else list(groups)  # type: ignore[arg-type]
    if len(values) != n:
        raise PrudentError(f"{len(values)} groups for {n} pairs; give one a pair")
    names: dict = {}
    index = torch.tensor([names.setdefault(value, len(names)) for value in values], dtype=torch.long)
    return index, len(names)


def bootstrap_counts(
    n: int,
    seeds: Sequence[np.random.SeedSequence],
    groups: Sequence[Any] | ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> torch.Tensor:
    """How often each pair occurs in each member's bootstrap resample: (K, n) float32.

    groups: (n,) prompt of each pair; whole prompts are then resampled, since their pairs are not independent.
    base: (units,) counts of the sample that is resampled (a draw's own counts); None is one of each.
    """
    index, units = unit_members(groups, n)
    pool = np.arange(units) if base is None else np.repeat(np.arange(units), as_tensor(base).long().numpy())
    counts = torch.empty(len(seeds), units)
    for member, seed in enumerate(seeds):
        picked = pool[numpy_generator(spawn(seed, 1)[0]).integers(0, len(pool), len(pool))]
        counts[member] = torch.from_numpy(np.bincount(picked, minlength=units)).float()
    return counts[:, index]


def bootstrap_rows(
    n: int, seeds: Sequence[np.random.SeedSequence], groups: Sequence[Any] | ArrayLike | None = None
) -> torch.Tensor:
    """Row numbers (K, n) of each member's bootstrap resample, for stochastic training (resampled prompts may be of
    unequal size, so the rows are cut or repeated to n)."""
    counts = bootstrap_counts(n, seeds, groups).long()
    rows = [torch.repeat_interleave(torch.arange(n), count) for count in counts]
    return torch.stack([row.repeat(-(-n // len(row)))[:n] for row in rows])


def halves(groups: Sequence[Any], seed: Seed) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers of two halves that share no prompt, as even in pairs as whole prompts allow."""
    rows: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    if len(rows) < 4:
        raise PrudentError(f"two halves of the pairs need pairs of at least 4 prompts, found {len(rows)}")
    names = list(rows)
    order = numpy_generator(seed).permutation(len(names))
    sides: tuple[list[int], list[int]] = ([], [])
    for position in sorted(order, key=lambda i: -len(rows[names[i]])):
        smaller = sides[0] if len(sides[0]) <= len(sides[1]) else sides[1]
        smaller.extend(rows[names[position]])
    return torch.tensor(sorted(sides[0])), torch.tensor(sorted(sides[1]))


def draw_counts(
    n: int, draws: int, members: int, seed: Seed, groups: Sequence[Any] | ArrayLike | None = None
) -> torch.Tensor:
    """Row weights of independent draws of the pairs and of resamples of each: (draws, 1 + members, n) float32.

    [:, 0] is the draw itself: how often each of the n pairs occurs when pairs (or whole prompts) are resampled.
    [:, 1:] are its members' resamples of that draw.
    """
    index, units = unit_members(groups, n)
    counts = torch.empty(draws, 1 + members, n)
    for draw, child in enumerate(spawn(seed, draws)):
        own, *rest = spawn(child, members + 1)
        base = bootstrap_counts(units, [own])
        counts[draw, :1] = base[:, index]
        counts[draw, 1:] = bootstrap_counts(units, rest, base=base[0])[:, index]
    return counts


class HeldOut(NamedTuple):
    """Folds x RIDGES of heads on the rows (n,) that cross-validation sees: score (grid, folds, n) of every pair, held
    (folds, n): whether a fold's heads saw none of its prompt's pairs; weight (n,); columns of the rows."""

    rows: torch.Tensor
    score: torch.Tensor
    held: torch.Tensor
    weight: torch.Tensor
    columns: PairColumns

    @property
    def mean_loss(self) -> torch.Tensor:
        """(grid,) held-out loss over all pairs."""
        losses = self.columns.losses(self.score.flatten(0, 1))
        held = (self.held * self.weight).double().repeat(len(self.score), 1)
        return (losses * held).reshape(len(self.score), -1).sum(1) / self.weight.double().sum()

    def logits(self, index: int) -> torch.Tensor:
        """(n,) float64: each pair's score, by the heads of this value of the grid that it was held out from."""
        return (self.score[index] * self.held).sum(0)


def held_out(
    difference: Any,
    *,
    columns: PairColumns = NO_COLUMNS,
    groups: Sequence[Any] | ArrayLike | None = None,
    seed: Seed = 0,
) -> HeldOut:
    """Every pair scored by heads of each of RIDGES that saw none of its prompt's pairs; all are fitted as one batch.

    groups: (n,) prompt of each pair; a prompt's pairs fall into one fold. Above CV_ROWS pairs a random part of that
    size is used.
    """
    n = int(difference.shape[0])
    generator = numpy_generator(seed)
    part = torch.arange(n) if n <= CV_ROWS else torch.from_numpy(np.sort(generator.choice(n, CV_ROWS, replace=False)))
    index, _ = unit_members(groups, n)
    _, unit = torch.unique(index[part], return_inverse=True)
    units = int(unit.max()) + 1
    if units < 2:
        raise PrudentError(
            f"cross-validation of the ridge needs at least 2 {'prompts' if groups is not None else 'pairs'}, found "
            f"{units}; give ridge as a number"
        )
    folds = min(FOLDS, units)
    fold = torch.from_numpy(generator.permutation(units) % folds)[unit]
    rows = difference[part] if n > CV_ROWS or not isinstance(difference, torch.Tensor) else difference
    chosen = columns.at(part)
    base = torch.ones(len(part)) if chosen.weight is None else chosen.weight.float()
    held = torch.stack([fold == k for k in range(folds)])
    train = ~held * base
    if bool((train.sum(1) == 0).any()):
        raise PrudentError("a fold leaves no pair with a positive weight to train on; give ridge as a number")
    fit = fit_heads(
        rows,
        train.repeat(len(RIDGES), 1),
        ridge=torch.tensor(RIDGES, dtype=torch.float64).repeat_interleave(folds),
        soft_label=chosen.soft_label,
        margin=chosen.margin,
        tolerance=1e-4,
    )
    score = (rows.double() @ fit.weights.T).T.unflatten(0, (len(RIDGES), folds))
    return HeldOut(part, score, held, base, chosen)


def choose_ridge(
    difference: Any,
    *,
    columns: PairColumns = NO_COLUMNS,
    groups: Sequence[Any] | ArrayLike | None = None,
    seed: Seed = 0,
) -> tuple[float, dict[str, Any]]:
    """Ridge with the lowest held-out loss (``held_out``), and the whole table. Where a part of the pairs is used, the
    choice is scaled by part/n: on the mean loss, a fixed prior weighs 1/n."""
    found = held_out(difference, columns=columns, groups=groups, seed=seed)
    best, table = lowest_loss(RIDGES, found.mean_loss)
    pairs = len(found.rows)
    return best * pairs / int(difference.shape[0]), {**table, "folds": len(found.held), "pairs": pairs}


def lowest_loss(grid: Sequence[float], mean: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """The value of a grid whose mean held-out loss is lowest, and the whole table."""
    best = int(mean.argmin())
    on_edge = best in (0, len(grid) - 1)
    return float(grid[best]), {"grid": list(grid), "held_out_loss": mean.tolist(), "on_edge": on_edge}


def ridge_of(
    ridge: float | str, difference: Any, columns: PairColumns, groups: Sequence[Any] | ArrayLike | None, seed: Seed
) -> tuple[float, dict[str, Any] | None]:
    """The ridge as given, or for "cv" that of ``choose_ridge`` and its table. PrudentError for another word."""
    if ridge == "cv":
        return choose_ridge(difference, columns=columns, groups=groups, seed=seed)
    if isinstance(ridge, str):
        raise PrudentError(f'ridge must be "cv" or a positive number, got {ridge!r}')
    return float(ridge), None


@dataclass(frozen=True)
class Fit:
    """weights (K, d) of heads on standardised features, the ridge used and its cross-validation (None: given), and
    what the solver says."""

    weights: torch.Tensor
    ridge: float
    ridge_table: dict[str, Any] | None
    solution: HeadFit


def fit_resamples(
    difference: Any,
    counts: torch.Tensor | None,
    *,
    ridge: float | str = "cv",
    columns: PairColumns = NO_COLUMNS,
    groups: Sequence[Any] | ArrayLike | None = None,
    seed: Seed = 0,
    tolerance: float = DRAW_TOLERANCE,
) -> Fit:
    """One head a row of ``counts`` (K, n), the times that it has each pair (None: one head, each pair once).

    difference: (n, d) standardised features, chosen minus rejected. ridge: a number, or "cv" for one value
    cross-validated on the n pairs (of which ``groups``' prompts stay whole) and shared by all heads; seed: of its
    folds. Raises PrudentError for another word.
    """
    strength, table = ridge_of(ridge, difference, columns, groups, seed)
    if columns.weight is not None:
        counts = columns.weight.float()[None] if counts is None else counts * columns.weight.float()
    found = fit_heads(
        difference, counts, ridge=strength, soft_label=columns.soft_label, margin=columns.margin, tolerance=tolerance
    )
    return Fit(found.weights, strength, table, found)


def standard_difference(chosen: Any, rejected: Any, scale: torch.Tensor) -> Any:
    """(chosen - rejected) / scale (n, d): a tensor where it fits in memory, else computed row by row as asked for."""
    difference = PairDifference(chosen, rejected, scale)
    n = difference.shape[0]
    return difference[slice(0, n)] if n * len(scale) <= HELD_IN_MEMORY else difference


@dataclass(frozen=True)
class DrawnHeads:
    """weights (draws, 1 + members, d) float32 on standardised features: [:, 0] each draw's reward model, fitted on all
    that it drew, [:, 1:] its members. mean, scale (d,) standardise; ridge used and its table."""

    weights: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    ridge: float
    ridge_table: dict[str, Any] | None

    def scores(self, candidates: CandidateFeatures) -> torch.Tensor:
        """Scores (draws, 1 + members, P, C) float64 of the candidates."""
        standard = (candidates.features.flatten(0, 1).float() - self.mean) / self.scale
        scores = self.weights.flatten(0, 1) @ standard.T
        return scores.reshape(*self.weights.shape[:2], *candidates.reference.shape).double()


def draw_heads(pairs: PairFeatures, draws: int, members: int, *, ridge: float | str = "cv", seed: Seed) -> DrawnHeads:
    """Independent draws of the reward model, each with ``members`` resamples of its own; fitted as one problem."""
    ridge_seed, count_seed = spawn(seed, 2)
    mean, scale = standardisation(pairs.chosen, pairs.rejected)
    found = fit_resamples(
        standard_difference(pairs.chosen, pairs.rejected, scale),
        draw_counts(len(pairs), draws, members, count_seed, pairs.groups).flatten(0, 1),
        ridge=ridge,
        columns=pairs.columns,
        groups=pairs.groups,
        seed=ridge_seed,
    )
    weights = found.weights.float().unflatten(0, (draws, 1 + members))
    return DrawnHeads(weights, mean, scale, found.ridge, found.ridge_table)
