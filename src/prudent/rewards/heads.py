"""K linear Bradley-Terry heads on frozen features: the cheap end of reward models that know their spread.

Features are standardised (mean and scale over all training responses, kept in the artefact), heads are fitted on
differences of standardised features, and each head is centred on the training responses, so that members share an
origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.rewards.columns import NO_COLUMNS, PairColumns, pair_columns
from prudent.rewards.convex import HeadFit, fit_heads
from prudent.rewards.coordinates import HELD_IN_MEMORY
from prudent.rewards.stored import CHUNK_ROWS, as_source, part_of
from prudent.rewards.training import member_draws, member_orders, member_seeds, shared_seed, train_members
from prudent.seeding import Seed, numpy_generator, spawn

__all__ = ["DIVERSITIES", "HeadEnsemble", "HeadFit", "bootstrap_counts", "choose_ridge", "draw_counts", "fit_heads"]

DIVERSITIES = ("bootstrap", "shuffle", "init", "init+shuffle")
RIDGES = tuple(float(value) for value in 10.0 ** np.arange(-3, 2.01, 0.5))
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
    spread = (square / count - mean**2).clamp_min(0).sqrt()
    constant = spread <= 1e-7 * (mean + shift).abs().clamp_min(1e-30)
    return (mean + shift).float(), torch.where(constant, 1.0, spread).float()


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


def _unit_members(groups: Sequence[Any] | ArrayLike | None, n: int) -> tuple[torch.Tensor, int]:
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
    index, units = _unit_members(groups, n)
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


def draw_counts(
    n: int, draws: int, members: int, seed: Seed, groups: Sequence[Any] | ArrayLike | None = None
) -> torch.Tensor:
    """Row weights of many independent reward models: (draws, members, n) float32.

    A draw resamples the pairs (or whole prompts); its members resample that draw. So the draw is the data a person
    might have collected, and the members are what they would have bootstrapped from it. Pass
    ``counts.flatten(0, 1)`` to ``fit_heads`` and unflatten its weights.
    """
    index, units = _unit_members(groups, n)
    counts = torch.empty(draws, members, n)
    for draw, child in enumerate(spawn(seed, draws)):
        own, *rest = spawn(child, members + 1)
        base = bootstrap_counts(units, [own])[0]
        counts[draw] = bootstrap_counts(units, rest, base=base)[:, index]
    return counts


def choose_ridge(
    difference: Any,
    *,
    columns: PairColumns = NO_COLUMNS,
    groups: Sequence[Any] | ArrayLike | None = None,
    seed: Seed = 0,
    folds: int = 5,
    grid: Sequence[float] = RIDGES,
) -> tuple[float, dict[str, Any]]:
    """Ridge with the lowest cross-validated mean loss, and the whole table. Folds x grid are fitted as one batch.

    groups: (n,) prompt of each pair; a prompt's pairs fall into one fold. Above CV_ROWS pairs a random part of that
    size is used and the choice scaled by part/n: on the mean loss, a fixed prior weighs 1/n.
    """
    n = int(difference.shape[0])
    generator = numpy_generator(seed)
    part = torch.arange(n) if n <= CV_ROWS else torch.from_numpy(np.sort(generator.choice(n, CV_ROWS, replace=False)))
    index, _ = _unit_members(groups, n)
    _, unit = torch.unique(index[part], return_inverse=True)
    units = int(unit.max()) + 1
    if units < 2:
        raise PrudentError(
            f"cross-validation of the ridge needs at least 2 {'prompts' if groups is not None else 'pairs'}, found "
            f"{units}; give ridge as a number"
        )
    folds = min(folds, units)
    fold = torch.from_numpy(generator.permutation(units) % folds)[unit]
    rows = difference[part] if n > CV_ROWS or not isinstance(difference, torch.Tensor) else difference
    chosen = columns.at(part)
    base = torch.ones(len(part)) if chosen.weight is None else chosen.weight.float()
    train = torch.stack([(fold != k) * base for k in range(folds)])
    if bool((train.sum(1) == 0).any()):
        raise PrudentError("a fold leaves no pair with a positive weight to train on; give ridge as a number")
    fit = fit_heads(
        rows,
        train.repeat(len(grid), 1),
        ridge=torch.tensor(grid, dtype=torch.float64).repeat_interleave(folds),
        soft_label=chosen.soft_label,
        margin=chosen.margin,
        tolerance=1e-4,
    )
    score = (rows.double() @ fit.weights.T).T  # (grid * folds, pairs)
    losses = chosen.losses(score)
    held = torch.stack([(fold == k) * base for k in range(folds)]).double().repeat(len(grid), 1)
    mean = (losses * held).reshape(len(grid), -1).sum(1) / base.double().sum()
    best, table = lowest_loss(grid, mean)
    return best * len(part) / n, {**table, "folds": folds, "pairs": len(part)}


def lowest_loss(grid: Sequence[float], mean: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """The value of a grid whose mean held-out loss is lowest, and the whole table."""
    best = int(mean.argmin())
    on_edge = best in (0, len(grid) - 1)
    return float(grid[best]), {"grid": list(grid), "held_out_loss": mean.tolist(), "on_edge": on_edge}


@dataclass(frozen=True)
class HeadEnsemble:
    """K linear heads. weights (K, d) on standardised features; offsets (K,) make the mean score on the training
    responses 0 for each member; mean, scale (d,) standardise; all float32. info: how it was fitted."""

    weights: torch.Tensor
    offsets: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)
    family = "heads"

    @property
    def members(self) -> int:
        return len(self.weights)

    @classmethod
    def fit(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        members: int = 10,
        diversity: str = "bootstrap",
        ridge: float | str = "cv",
        weight: ArrayLike | None = None,
        soft_label: ArrayLike | None = None,
        margin: ArrayLike | None = None,
        groups: Sequence[Any] | ArrayLike | None = None,
        seed: Seed | Sequence[Seed] = 0,
        epochs: int = 1,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        tolerance: float = 1e-8,
    ) -> HeadEnsemble:
        """Fit K heads on features of the chosen and the rejected answers, (n, d) each (a memory map is read in chunks).

        diversity: what makes members differ. "bootstrap": each is the exact minimiser on its own resample of the pairs
        (of whole prompts where ``groups`` (n,) is given). "shuffle", "init", "init+shuffle": stochastic training for
        ``epochs`` with ``batch_size`` and Adam at ``learning_rate``, members differing in the order of pairs, in the
        initial weights, or in both, as the ten reward models of arXiv 2410.23726 do; they differ only because training
        stops before the minimum, which is one and the same for all of them.
        ridge: half of it times ||w||^2 is added to the mean loss; "cv" picks it by cross-validation (``choose_ridge``).
        weight, soft_label, margin: (n,), see ``losses``. seed: one, or one a member. tolerance: gradient norm
        (bootstrap). Raises PrudentError for shapes, values that are not finite and unknown diversity.
        """
        if diversity not in DIVERSITIES:
            raise PrudentError(f"unknown diversity {diversity!r}; known: {', '.join(DIVERSITIES)}")
        if members < 1:
            raise PrudentError(f"members must be at least 1, got {members}")
        better, worse = paired_features(chosen, rejected)
        n = int(better.shape[0])
        columns = pair_columns(n, weight, soft_label, margin)
        mean, scale = standardisation(better, worse)
        difference: Any = PairDifference(better, worse, scale)
        if n * len(scale) <= HELD_IN_MEMORY:
            difference = difference[slice(0, n)]
        table = None
        if ridge == "cv":
            ridge, table = choose_ridge(difference, columns=columns, groups=groups, seed=shared_seed(seed))
        elif isinstance(ridge, str):
            raise PrudentError(f'ridge must be "cv" or a positive number, got {ridge!r}')
        info: dict[str, Any] = {"pairs": n, "diversity": diversity, "ridge": float(ridge), "ridge_table": table}
        seeds = member_seeds(seed, members)
        if diversity == "bootstrap":
            counts = bootstrap_counts(n, seeds, groups)
            if columns.weight is not None:
                counts = counts * columns.weight.float()
            fit = fit_heads(
                difference,
                counts,
                ridge=ridge,
                soft_label=columns.soft_label,
                margin=columns.margin,
                tolerance=tolerance,
            )
            weights = fit.weights
            info |= {"gradient_norm": float(fit.gradient_norm.max()), "train_loss": fit.loss.tolist()}
        else:
            weights, losses = _train_linear(
                difference[slice(0, n)],
                seeds,
                shared_seed(seed),
                diversity,
                float(ridge),
                columns,
                epochs,
                batch_size,
                learning_rate,
            )
            info |= {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "train_loss": losses}
        return cls(weights.float(), torch.zeros(members), mean, scale, info)

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of N responses from their features (N, d)."""
        values = as_source(features, "response")
        if values.shape[1] != len(self.mean):
            raise PrudentError(f"features have width {values.shape[1]}, these heads were fitted on {len(self.mean)}")
        scores = torch.empty(self.members, values.shape[0])
        for start in range(0, values.shape[0], CHUNK_ROWS):
            part = part_of(values, slice(start, start + CHUNK_ROWS))
            scores[:, start : start + len(part)] = self.weights @ ((part - self.mean) / self.scale).T
        return scores - self.offsets[:, None]

    def centred_on(self, features: ArrayLike) -> HeadEnsemble:
        """The same heads with each member's mean score on these reference responses (N, d) set to 0."""
        offsets = self.offsets + self.scores(features).mean(1)
        info = {**self.info, "centred_on": f"{len(features)} given responses"}  # type: ignore[arg-type]
        return HeadEnsemble(self.weights, offsets, self.mean, self.scale, info)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Config (statistics as plain numbers) and tensors for the artefact."""
        config = {
            "info": self.info,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "offsets": self.offsets.tolist(),
        }
        return config, {"heads.weight": self.weights}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> HeadEnsemble:
        offsets, mean, scale = (torch.tensor(config[name]).float() for name in ("offsets", "mean", "scale"))
        return cls(tensors["heads.weight"], offsets, mean, scale, config["info"])

    def probes(self) -> dict[str, torch.Tensor]:
        """Eight feature vectors whose scores are written beside the weights and checked at load."""
        return {"features": probe_features(self.mean, self.scale)}

    def save(self, folder: str | Path) -> None:
        """Write the artefact folder: safetensors, JSON and golden scores (see ``artefact``)."""
        from prudent.rewards.artefact import save

        save(folder, self)

    @classmethod
    def load(cls, folder: str | Path) -> HeadEnsemble:
        """Read what ``save`` wrote; its golden scores are computed again and compared."""
        from prudent.rewards.artefact import load

        return load(folder, expected=cls)


def probe_features(mean: torch.Tensor, scale: torch.Tensor, count: int = 8) -> torch.Tensor:
    """``count`` feature vectors (count, d) spread like the training responses, the same for equal statistics."""
    noise = np.random.default_rng(0).standard_normal((count, len(mean)))
    return mean + scale * torch.from_numpy(noise).float()


def _train_linear(
    difference: torch.Tensor,
    seeds: list[np.random.SeedSequence],
    common: np.random.SeedSequence,
    diversity: str,
    ridge: float,
    columns: PairColumns,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[torch.Tensor, list[float]]:
    """(K, d) weights after ``epochs`` of Adam on the ridge loss, and the mean loss of the last epoch."""
    rows = difference.double()
    n, width = rows.shape
    same = [common] * len(seeds)
    start = member_draws(seeds if "init" in diversity else same, (width,), 0.02)  # transformers' scale for score heads
    orders = member_orders(seeds if "shuffle" in diversity else same, n, epochs)
    columns = columns.scaled()

    def loss(parameters: dict[str, torch.Tensor], batch: torch.Tensor, step: int) -> torch.Tensor:
        head, picked = parameters["weight"], columns.at(batch)
        losses = picked.losses(torch.einsum("kbd,kd->kb", rows[batch], head))
        if picked.weight is not None:
            losses = losses * picked.weight
        return losses.mean(1) + 0.5 * ridge * (head * head).sum(1)

    parameters = {"weight": start}
    history = train_members(parameters, loss, orders, batch_size=batch_size, learning_rate=learning_rate)
    return parameters["weight"].detach(), history[-max(1, len(history) // epochs) :]
