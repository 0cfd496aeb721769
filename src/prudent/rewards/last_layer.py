"""Last-layer Laplace: the posterior of the linear map on top of a trained representation, the layers below held fixed.

The representation is the hidden layer of a two-layer head (``mlp``); on it the last layer is a linear Bradley-Terry
head, so its posterior is the closed form of ``laplace``. Its ridge is chosen by heads that never saw the pairs they are
judged on: a hidden layer that has seen a label gives it away, and cross-validation above it then asks for hardly any
ridge, hence for margins far too large. Source: Daxberger et al., arXiv 2106.14806.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.columns import BOUNDS, PairColumns, pair_columns
from prudent.rewards.convex import fit_heads
from prudent.rewards.draws import FOLDS, RIDGES, lowest_loss, paired_features
from prudent.rewards.laplace import LaplacePosterior
from prudent.rewards.mlp import MLPEnsemble
from prudent.rewards.stored import named_under, part_of, part_under
from prudent.rewards.strength import prompt_folds, standard_differences
from prudent.rewards.training import shared_seed
from prudent.seeding import Seed


@dataclass(frozen=True)
class LastLayerPosterior:
    """network: one trained two-layer head. posterior: of its last layer, fitted anew on the hidden units."""

    network: MLPEnsemble
    posterior: LaplacePosterior
    family = "last-layer"

    @property
    def members(self) -> int:
        """How many draws of the posterior serve as members (K)."""
        return self.posterior.members

    @property
    def info(self) -> dict[str, Any]:
        """How it was fitted, in plain types."""
        return self.posterior.info

    @classmethod
    def fit(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        members: int = 10,
        ridge: float | str = "cv",
        sandwich: bool = False,
        seed: Seed = 0,
        groups: Sequence[Any] | ArrayLike | None = None,
        **options: Any,
    ) -> LastLayerPosterior:
        """As ``LaplacePosterior.fit``; options: those of ``MLPEnsemble.fit`` too (width, epochs, dropout, ...).

        The hidden layer is held fixed, so the variance leaves its own uncertainty out (see ``network_posterior``).
        """
        better, worse = (part_of(side, slice(None)) for side in paired_features(chosen, rejected))
        columns = pair_columns(len(better), *(options.pop(name, None) for name in BOUNDS))
        table = None
        if ridge == "cv":
            ridge, table = choose_ridge(better, worse, columns, groups, seed, options)
        given: dict[str, Any] = {**columns._asdict(), "groups": groups, "seed": seed}
        head = MLPEnsemble.fit(better, worse, members=1, **given, **options)
        states = (head.hidden(side)[0] for side in (better, worse))
        posterior = LaplacePosterior.fit(*states, members=members, ridge=ridge, sandwich=sandwich, **given)
        posterior.info.update(network=head.info, ridge_table=table)
        return cls(head, posterior)

    def variance(self, features: ArrayLike, groups: Sequence[Any] | None = None) -> torch.Tensor:
        """Variance (N,) float64 of the scores of N responses; groups: centred per prompt first."""
        return self.posterior.variance(self.network.hidden(features)[0], groups)

    def covariance(self, features: ArrayLike, groups: Sequence[Any] | None = None) -> torch.Tensor:
        """Covariance (N, N) float64 of the scores of a pool."""
        return self.posterior.covariance(self.network.hidden(features)[0], groups)

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of K last layers drawn from the posterior."""
        return self.posterior.scores(self.network.hidden(features)[0])

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features (n, d) by name."""
        return self.network.probes()

    def parameters(self) -> int:
        """Number of trained numbers of the network."""
        return self.network.parameters()

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        (own, network), (config, posterior) = self.network.state(), self.posterior.state()
        return {"network": own, "posterior": config}, {**named_under("network.", network), **posterior}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LastLayerPosterior:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        network = MLPEnsemble.from_state(config["network"], part_under("network.", tensors))
        return cls(network, LaplacePosterior.from_state(config["posterior"], tensors))


def held_out_heads(
    better: torch.Tensor,
    worse: torch.Tensor,
    columns: PairColumns,
    groups: Sequence[Any] | ArrayLike | None,
    seed: Seed,
    network: dict[str, Any],
) -> Iterator[tuple[MLPEnsemble, torch.Tensor, torch.Tensor]]:
    """Five heads, each trained on the pairs of four fifths of the prompts: head, rows it saw, rows it didn't."""
    units = list(range(len(better))) if groups is None else list(groups)  # type: ignore[arg-type]
    parts = min(FOLDS, len(set(units)))
    if parts < 2:
        raise PrudentError("cross-validation needs at least 2 prompts; give the ridge or prior as a number")
    fold = prompt_folds(units, parts, shared_seed(seed))
    for number in range(parts):
        train, held = torch.nonzero(fold != number)[:, 0], torch.nonzero(fold == number)[:, 0]
        given = columns.at(train)._asdict()
        yield MLPEnsemble.fit(better[train], worse[train], members=1, seed=seed, **given, **network), train, held


def held_out_loss(columns: PairColumns, margin: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of the weighted Bradley-Terry loss of margins (..., n)."""
    losses = columns.losses(margin)
    return (losses if columns.weight is None else losses * columns.weight).sum(-1)


def choose_ridge(
    better: torch.Tensor,
    worse: torch.Tensor,
    columns: PairColumns,
    groups: Sequence[Any] | ArrayLike | None,
    seed: Seed,
    network: dict[str, Any],
) -> tuple[float, dict[str, Any]]:
    """Ridge of the last layer with the lowest loss on pairs that its hidden layer never saw, and the whole table."""
    losses = torch.zeros(len(RIDGES), dtype=torch.float64)
    for head, train, held in held_out_heads(better, worse, columns, groups, seed, network):
        states = [head.hidden(side[rows])[0] for rows in (train, held) for side in (better, worse)]
        seen, unseen = standard_differences(*states)
        part = columns.at(train)
        fit = fit_heads(
            seen,
            torch.ones(len(RIDGES), len(train)) * (1.0 if part.weight is None else part.weight),
            tolerance=1e-4,
            ridge=torch.tensor(RIDGES, dtype=torch.float64),
            soft_label=part.soft_label,
            margin=part.margin,
        )
        losses += held_out_loss(columns.at(held), fit.weights @ unseen.double().T)
    return lowest_loss(RIDGES, losses / len(better))
