"""Last-layer Laplace: the posterior of the linear map on top of a trained representation, the layers below held fixed.

The representation is the hidden layer of a two-layer head (``mlp``); on it the last layer is a linear Bradley-Terry
head, so its posterior is the closed form of ``laplace``. Source: Daxberger et al., arXiv 2106.14806.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike
from prudent.rewards.laplace import LaplacePosterior
from prudent.rewards.mlp import MLPEnsemble
from prudent.seeding import Seed


@dataclass(frozen=True)
class LastLayerPosterior:
    """network: one trained two-layer head. posterior: of its last layer, fitted anew on the hidden units."""

    network: MLPEnsemble
    posterior: LaplacePosterior
    family = "last-layer"

    @property
    def members(self) -> int:
        return self.posterior.members

    @property
    def info(self) -> dict[str, Any]:
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
        weight: ArrayLike | None = None,
        soft_label: ArrayLike | None = None,
        margin: ArrayLike | None = None,
        groups: Sequence[Any] | ArrayLike | None = None,
        **network: Any,
    ) -> LastLayerPosterior:
        """As ``LaplacePosterior.fit``; network: options of ``MLPEnsemble.fit`` (width, epochs, dropout, ...).

        The hidden layer has seen the same pairs, so its fit is taken as certain: the variance leaves it out.
        """
        columns: dict[str, Any] = {
            "weight": weight, "soft_label": soft_label, "margin": margin, "groups": groups,
        }  # fmt: skip
        head = MLPEnsemble.fit(chosen, rejected, members=1, seed=seed, **columns, **network)
        states = (head.hidden(side)[0] for side in (chosen, rejected))
        posterior = LaplacePosterior.fit(*states, members=members, ridge=ridge, sandwich=sandwich, seed=seed, **columns)
        posterior.info["network"] = head.info
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
        return self.network.probes()

    def parameters(self) -> int:
        return self.network.parameters()

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        (own, network), (config, posterior) = self.network.state(), self.posterior.state()
        tensors = {f"network.{name}": tensor for name, tensor in network.items()}
        return {"network": own, "posterior": config}, {**tensors, **posterior}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LastLayerPosterior:
        own = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        network = MLPEnsemble.from_state(config["network"], own)
        return cls(network, LaplacePosterior.from_state(config["posterior"], tensors))
