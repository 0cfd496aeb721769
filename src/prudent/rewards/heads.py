"""K linear Bradley-Terry heads on frozen features: the cheap end of reward models that know their variance.

Features are standardised (mean and scale over all training responses, kept in the artefact), heads are fitted on
differences of standardised features, and each head is centred on the training responses, so that members share an
origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.columns import BOUNDS, PairColumns, pair_columns
from prudent.rewards.draws import (
    DrawnHeads,
    bootstrap_counts,
    fit_resamples,
    paired_features,
    ridge_of,
    standard_difference,
    standardisation,
)
from prudent.rewards.stored import CHUNK_ROWS, Saved, as_source, part_of
from prudent.rewards.training import Training, member_draws, member_orders, member_seeds, shared_seed, train_members
from prudent.seeding import Seed

DIVERSITIES = ("bootstrap", "shuffle", "init", "init+shuffle")


@dataclass(frozen=True)
class HeadEnsemble(Saved):
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
        """How many members there are (K)."""
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
        groups: Sequence[Any] | ArrayLike | None = None,
        seed: Seed | Sequence[Seed] = 0,
        **options: Any,
    ) -> HeadEnsemble:
        """Fit K heads on features of the chosen and the rejected answers, (n, d) each (a memory map is read in chunks).

        diversity: what makes members differ. "bootstrap": each is the exact minimiser on its own resample of the pairs
        (of whole prompts where ``groups`` (n,) is given). "shuffle", "init", "init+shuffle": stochastic training for
        ``epochs`` with ``batch_size`` and Adam at ``learning_rate``, members differing in the order of pairs, in the
        initial weights, or in both, as the ten reward models of arXiv 2410.23726 do; they differ only because training
        stops before the minimum, which is one and the same for all of them.
        ridge: half of it times ||w||^2 is added to the mean loss; "cv" picks it by cross-validation (``choose_ridge``).
        seed: one, or one a member. options: weight, soft_label, margin (n,), see ``losses``, and those of ``Training``.
        Raises PrudentError for shapes, values that are not finite and unknown diversity.
        """
        if diversity not in DIVERSITIES:
            raise PrudentError(f"unknown diversity {diversity!r}; known: {', '.join(DIVERSITIES)}")
        if members < 1:
            raise PrudentError(f"members must be at least 1, got {members}")
        better, worse = paired_features(chosen, rejected)
        n = int(better.shape[0])
        columns = pair_columns(n, *(options.pop(name, None) for name in BOUNDS))
        plan = Training(**options)
        mean, scale = standardisation(better, worse)
        difference = standard_difference(better, worse, scale)
        ridge, table = ridge_of(ridge, difference, columns, groups, shared_seed(seed))
        info: dict[str, Any] = {"pairs": n, "diversity": diversity, "ridge": float(ridge), "ridge_table": table}
        seeds = member_seeds(seed, members)
        if diversity == "bootstrap":
            counts = bootstrap_counts(n, seeds, groups)
            fit = fit_resamples(difference, counts, ridge=ridge, columns=columns, tolerance=1e-8).solution
            weights = fit.weights
            info |= {"gradient_norm": float(fit.gradient_norm.max()), "train_loss": fit.loss.tolist()}
        else:
            rows = difference[slice(0, n)]
            weights, losses = _train_linear(rows, seeds, shared_seed(seed), diversity, float(ridge), columns, plan)
            steps = {name: getattr(plan, name) for name in ("epochs", "batch_size", "learning_rate")}
            info |= {**steps, "train_loss": losses}
        return cls(weights.float(), torch.zeros(members), mean, scale, info)

    @classmethod
    def of_draws(cls, drawn: DrawnHeads) -> list[HeadEnsemble]:
        """An ensemble a draw: its first member is the draw's reward model, the others are fitted on resamples of it."""
        info = {"ridge": drawn.ridge, "diversity": "a draw's own fit, then resamples of the draw"}
        return [cls(w, torch.zeros(len(w)), drawn.mean, drawn.scale, info) for w in drawn.weights]

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
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        offsets, mean, scale = (torch.tensor(config[name]).float() for name in ("offsets", "mean", "scale"))
        return cls(tensors["heads.weight"], offsets, mean, scale, config["info"])

    def probes(self) -> dict[str, torch.Tensor]:
        """Eight feature vectors whose scores are written beside the weights and checked at load."""
        return {"features": probe_features(self.mean, self.scale)}


def probe_features(mean: torch.Tensor, scale: torch.Tensor, count: int = 8) -> torch.Tensor:
    """``count`` feature vectors (count, d) distributed like the training responses, the same for equal statistics."""
    noise = np.random.default_rng(0).standard_normal((count, len(mean)))
    return mean + scale * torch.from_numpy(noise).float()


def _train_linear(
    difference: torch.Tensor,
    seeds: list[np.random.SeedSequence],
    common: np.random.SeedSequence,
    diversity: str,
    ridge: float,
    columns: PairColumns,
    plan: Training,
) -> tuple[torch.Tensor, list[float]]:
    """(K, d) weights after the plan's epochs of Adam on the ridge loss, and the mean loss of the last epoch."""
    rows = difference.double()
    n, width = rows.shape
    same = [common] * len(seeds)
    start = member_draws(seeds if "init" in diversity else same, (width,), 0.02)  # transformers' scale for score heads
    orders = member_orders(seeds if "shuffle" in diversity else same, n, plan.epochs)
    columns = columns.scaled()

    def loss(parameters: dict[str, torch.Tensor], batch: torch.Tensor, step: int) -> torch.Tensor:
        head, picked = parameters["weight"], columns.at(batch)
        losses = picked.losses(torch.einsum("kbd,kd->kb", rows[batch], head))
        if picked.weight is not None:
            losses = losses * picked.weight
        return losses.mean(1) + 0.5 * ridge * (head * head).sum(1)

    parameters = {"weight": start}
    history = train_members(parameters, loss, orders, plan)
    return parameters["weight"].detach(), history[-max(1, len(history) // plan.epochs) :]
