"""Laplace posterior of a linear Bradley-Terry head: variance and covariance for any response, without an ensemble.

The head w minimises sum_i c_i L(w' x_i) + lam/2 ||w||^2 with lam = ridge * sum_i c_i (the ridge objective of
``convex``, times the number of pairs). As a log posterior with prior N(0, I / lam) its curvature at the minimum gives

    A = sum_i c_i sg(z_i) (1 - sg(z_i)) x_i x_i' + lam I         posterior covariance   C = A^-1
    B = sum_i c_i^2 (sg(z_i) - s_i)^2 x_i x_i'                    sandwich covariance    C = A^-1 B A^-1

C = A^-1 trusts the Bradley-Terry model and counts the prior; the sandwich (Huber 1967, White 1982) takes the noise from
the residuals, which is what a bootstrap ensemble measures too, and leaves the prior's own variance out. The covariance
of the scores of responses with standardised features f_a, f_b is f_a' C f_b: scores are linear in w, so nothing else
is approximated.
Sources: MacKay 1992; Daxberger et al., arXiv 2106.14806 (last-layer Laplace).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.columns import PairColumns, PairLabels, pair_columns
from prudent.rewards.convex import fit_heads
from prudent.rewards.draws import paired_features, ridge_of, standard_difference, standardisation
from prudent.rewards.heads import probe_features
from prudent.rewards.stored import CHUNK_ROWS, Saved
from prudent.rewards.training import member_seeds, shared_seed
from prudent.rewards.uncertainty import centre
from prudent.seeding import Seed, numpy_generator


@dataclass(frozen=True)
class LaplacePosterior(Saved):
    """Posterior N(weight, root root') of one head on standardised features.

    weight (d,), root (d, r), mean, scale (d,): float64. draws (K, d): weights drawn from the posterior, the members
    behind ``scores``. info: ridge, pairs, which covariance.
    """

    weight: torch.Tensor
    root: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    draws: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)
    family = "laplace"

    @property
    def members(self) -> int:
        """How many draws of the posterior serve as members (K)."""
        return len(self.draws)

    @classmethod
    def fit(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        ridge: float | str = "cv",
        sandwich: bool = False,
        members: int = 10,
        groups: Sequence[Any] | ArrayLike | None = None,
        seed: Seed = 0,
        **labels: Unpack[PairLabels],
    ) -> LaplacePosterior:
        """Posterior from features (n, d) of chosen and rejected answers.

        ridge: as in ``HeadEnsemble.fit``. sandwich: covariance A^-1 B A^-1 in place of A^-1. members: how many weights
        are drawn for ``scores``; variances don't use them. weight: (n,), scaled to mean 1, so that they shift attention
        between pairs and don't claim more of them. soft_label, margin, groups: see ``HeadEnsemble.fit``.
        """
        better, worse = paired_features(chosen, rejected)
        n = int(better.shape[0])
        columns = pair_columns(n, **labels).scaled()
        mean, scale = standardisation(better, worse)
        difference = standard_difference(better, worse, scale)
        ridge, _ = ridge_of(ridge, difference, columns, groups, shared_seed(seed))
        counts = None if columns.weight is None else columns.weight[None]
        head = fit_heads(difference, counts, ridge=ridge, soft_label=columns.soft_label, margin=columns.margin).weights[
            0
        ]
        root = posterior_root(difference, head, ridge, columns, sandwich)
        noise = [numpy_generator(one).standard_normal(root.shape[1]) for one in member_seeds(seed, members)]
        draws = head + torch.from_numpy(np.stack(noise)) @ root.T
        info = {"pairs": n, "ridge": ridge, "covariance": "sandwich" if sandwich else "posterior"}
        return cls(head, root, mean.double(), scale.double(), draws, info)

    def _standardised(self, features: ArrayLike) -> torch.Tensor:
        values = features if isinstance(features, torch.Tensor) else torch.as_tensor(np.asarray(features))
        if values.ndim != 2 or values.shape[1] != len(self.mean):
            raise PrudentError(f"features have shape {tuple(values.shape)}, expected (responses, {len(self.mean)})")
        return (values.double() - self.mean) / self.scale

    def expected(self, features: ArrayLike) -> torch.Tensor:
        """Posterior mean of the scores of N responses: (N, d) -> (N,) float64."""
        return self._standardised(features) @ self.weight

    def factor(
        self, features: ArrayLike, groups: Sequence[Any] | None = None, weights: ArrayLike | None = None
    ) -> torch.Tensor:
        """F (N, r) float64 with F F' = the scores' covariance: products and solves in O(N r) without the N x N matrix.

        groups (N,), weights (N,): centre scores per prompt first (see ``uncertainty.centre``); None leaves them as they
        are, with the origin at the mean of the training responses.
        """
        factor = self._standardised(features) @ self.root
        return factor if groups is None else centre(factor.T, groups, weights).T

    def variance(
        self, features: ArrayLike, groups: Sequence[Any] | None = None, weights: ArrayLike | None = None
    ) -> torch.Tensor:
        """Variance of the scores of N responses: (N,) float64. groups, weights: as in ``factor``."""
        return self.factor(features, groups, weights).square().sum(1)

    def covariance(
        self, features: ArrayLike, groups: Sequence[Any] | None = None, weights: ArrayLike | None = None
    ) -> torch.Tensor:
        """Covariance of the scores of a pool: (N, N) float64, the theory's Sigma. groups, weights: see ``factor``.

        Its rank is at most the feature width (and lower when centred), so it is singular for larger pools.
        """
        factor = self.factor(features, groups, weights)
        return factor @ factor.T

    def margin_variance(self, chosen: ArrayLike, rejected: ArrayLike) -> torch.Tensor:
        """Variance of score differences of n pairs: two (n, d) -> (n,) float64."""
        return (self.factor(chosen) - self.factor(rejected)).square().sum(1)

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of K weights drawn from the posterior, so that it can stand in for an ensemble."""
        return (self.draws @ self._standardised(features).T).float()

    def parameters(self) -> int:
        """Trained numbers: the head's; the covariance and the draws follow from them."""
        return len(self.weight)

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features (n, d) by name."""
        return {"features": probe_features(self.mean.float(), self.scale.float())}

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        config = {"info": self.info, "mean": self.mean.tolist(), "scale": self.scale.tolist()}
        return config, {"head.weight": self.weight, "posterior.root": self.root, "draws.weight": self.draws}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LaplacePosterior:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        mean, scale = (torch.tensor(config[name], dtype=torch.float64) for name in ("mean", "scale"))
        weight, root, draws = (tensors[name] for name in ("head.weight", "posterior.root", "draws.weight"))
        return cls(weight, root, mean, scale, draws, config["info"])


def posterior_root(
    difference: Any, weight: torch.Tensor, ridge: float, columns: PairColumns, sandwich: bool = False
) -> torch.Tensor:
    """Root R (d, d) with R R' the covariance of a head's weights, from the feature differences (n, d) it was fitted on.

    difference: anything with shape and row slices, read in chunks. Posterior: R = chol(A)^-T. Sandwich: R = A^-1 B^1/2.
    """
    n, width = (int(size) for size in difference.shape)
    precision = torch.zeros(width, width, dtype=torch.float64)
    noise = torch.zeros_like(precision)
    total = 0.0
    for start in range(0, n, CHUNK_ROWS):
        rows = torch.as_tensor(difference[start : start + CHUNK_ROWS]).double()
        part = columns.at(torch.arange(start, start + len(rows)))
        logit = rows @ weight if part.margin is None else rows @ weight - part.margin
        chance = torch.sigmoid(logit)
        count = torch.ones(len(rows), dtype=torch.float64) if part.weight is None else part.weight
        precision += rows.T @ ((count * chance * (1 - chance))[:, None] * rows)
        total += float(count.sum())
        if sandwich:
            residual = count * (chance - (1.0 if part.soft_label is None else part.soft_label))
            noise += rows.T @ ((residual * residual)[:, None] * rows)
    precision.diagonal().add_(ridge * total)
    lower = torch.linalg.cholesky(precision)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(width, dtype=torch.float64), upper=False)  # chol(A)^-1
    if not sandwich:
        return inverse.T.contiguous()
    values, vectors = torch.linalg.eigh(noise)
    return inverse.T @ (inverse @ (vectors * values.clamp_min(0).sqrt()))
