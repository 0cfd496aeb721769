"""Laplace posterior of *all* weights of a two-layer head, by the generalised Gauss-Newton matrix.

Linearised at its trained weights t, a head's score is r(x) + J(x) (w - t), and the posterior of w - t is that of a
Bradley-Terry model with features J(x) and the prior N(0, I / lam). There are far more weights than pairs, so everything
is done among the pairs, with the kernel k(x, y) = J(x) J(y)' in closed form, K that of the n pairs' differences and
H = diag(c_i sg(z_i) (1 - sg(z_i))):

    variance of J(x) w  =  k(x, x) / lam  -  k(x) H^1/2 B^-1 H^1/2 k(x)' / lam^2,    B = I + H^1/2 K H^1/2 / lam

Draws of the weights are by Matheron's rule (a draw of the prior, corrected by what the pairs say of it).
Sources: MacKay 1992; Immer et al., arXiv 2008.08216 (the linearised posterior); Rasmussen and Williams 2006, 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.columns import BOUNDS, PairColumns, pair_columns
from prudent.rewards.draws import lowest_loss, paired_features
from prudent.rewards.last_layer import held_out_heads, held_out_loss
from prudent.rewards.mlp import MLPEnsemble
from prudent.rewards.stored import named_under, part_of, part_under
from prudent.rewards.training import member_seeds
from prudent.rewards.uncertainty import centre
from prudent.seeding import Seed, numpy_generator

MOST_PAIRS = 5000  # matrices among the pairs: 200 MB each, and a cube of operations
PRIORS = tuple(float(value) for value in np.logspace(-3, 3, 13))  # prior variances of a pair's margin that are tried


@dataclass(frozen=True)
class Local:
    """What the gradient of a head's score by its weights needs, of N responses: standardised features x (N, d), hidden
    units (N, h), and slope (N, h), the outer weights where their units are on."""

    x: torch.Tensor
    hidden: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def of(cls, network: MLPEnsemble, features: ArrayLike) -> Local:
        """The first member's network at features (n, d)."""
        inner, bias, outer = (network.tensors[name][0] for name in ("inner.weight", "inner.bias", "outer.weight"))
        x = (torch.as_tensor(features).float() - network.mean) / network.scale
        state = x @ inner.T + bias
        return cls(x, state.relu(), (state > 0) * outer)

    def kernel(self, other: Local) -> torch.Tensor:
        """J(x) J(y)' (N, M) float64."""
        return (self.hidden @ other.hidden.T + (self.slope @ other.slope.T) * (self.x @ other.x.T + 1)).double()

    def diagonal(self, other: Local) -> torch.Tensor:
        """Diagonal (N,) float64 of the kernel with as many other responses."""
        last = (self.hidden * other.hidden).sum(1)
        return (last + (self.slope * other.slope).sum(1) * ((self.x * other.x).sum(1) + 1)).double()

    def times(self, weights: torch.Tensor) -> torch.Tensor:
        """J(x) w (K, N) for weights (K, P): those of the outer map, the inner one and its bias, one after another."""
        units, width = self.hidden.shape[1], self.x.shape[1]
        outer, inner, bias = weights.split([units, units * width, units], 1)
        moved = torch.einsum("nd,khd->knh", self.x, inner.unflatten(1, (units, width))) + bias[:, None]
        return outer @ self.hidden.T + torch.einsum("nh,knh->kn", self.slope, moved)

    def back(self, alpha: torch.Tensor) -> torch.Tensor:
        """J' alpha (K, P) for alpha (K, N)."""
        pull = alpha[:, :, None] * self.slope  # (K, N, h)
        inner = torch.einsum("knh,nd->khd", pull, self.x)
        return torch.cat([alpha @ self.hidden, inner.flatten(1), pull.sum(1)], 1)


@dataclass(frozen=True)
class NetworkPosterior:
    """network: the trained head. chosen, rejected (n, d): features of the pairs it was trained on; curvature (n,): the
    root of H's diagonal; precision: lam. draws (K, P): weights less the trained ones, the members behind ``scores``."""

    network: MLPEnsemble
    chosen: torch.Tensor
    rejected: torch.Tensor
    curvature: torch.Tensor
    precision: float
    draws: torch.Tensor
    info: dict[str, Any]
    family = "network-laplace"

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
        members: int = 10,
        prior: float | str = "cv",
        seed: Seed = 0,
        groups: Sequence[Any] | ArrayLike | None = None,
        **options: Any,
    ) -> NetworkPosterior:
        """Train a head on features (n, d) of chosen and rejected answers and take the posterior of all its weights.

        prior: variance of a training pair's margin before any pair was seen, a mean over pairs; "cv" takes that with
        the lowest loss on held-out prompts, by heads that never saw them. options: those of ``MLPEnsemble.fit`` too.
        Others: as in ``LaplacePosterior.fit``. Raises PrudentError above 5,000 pairs (use "last-layer").
        """
        better, worse = (part_of(side, slice(None)) for side in paired_features(chosen, rejected))
        n = len(better)
        if n > MOST_PAIRS:
            raise PrudentError(
                f"{n} pairs: this posterior needs matrices of pairs by pairs, for at most {MOST_PAIRS}; give fewer, or "
                'use family "last-layer"'
            )
        columns = pair_columns(n, *(options.pop(name, None) for name in BOUNDS)).scaled()
        info: dict[str, Any] = {"pairs": n}
        if prior == "cv":
            prior, info["prior_table"] = choose_prior(better, worse, columns, groups, seed, options)
        elif isinstance(prior, str) or prior <= 0:
            raise PrudentError(f'prior must be "cv" or a positive number, got {prior!r}')
        given = columns._asdict()
        head = MLPEnsemble.fit(better, worse, members=1, seed=seed, groups=groups, **given, **options)
        pairs = Pairs.of(head, better, worse, columns)
        info |= {"prior": float(prior), "precision": pairs.precision(float(prior)), "network": head.info}
        made = cls(head, better, worse, pairs.curvature, info["precision"], torch.zeros(0, 0), info)
        draws = made._draw([numpy_generator(one) for one in member_seeds(seed, members)])
        return cls(head, better, worse, pairs.curvature, info["precision"], draws, info)

    @cached_property
    def pairs(self) -> Pairs:
        """The training pairs, linearised at the network."""
        return Pairs(Local.of(self.network, self.chosen), Local.of(self.network, self.rejected), self.curvature)

    @cached_property
    def root(self) -> torch.Tensor:
        """Cholesky root (n, n) float64 of B."""
        half = self.curvature
        inner = half[:, None] * self.pairs.kernel() * half / self.precision
        inner.diagonal().add_(1.0)
        return torch.linalg.cholesky(inner)

    def _draw(self, generators: list[np.random.Generator]) -> torch.Tensor:
        units, width = self.pairs.chosen.hidden.shape[1], self.chosen.shape[1]
        size = units * (width + 2)
        noise = [
            (generator.standard_normal(size), generator.standard_normal(len(self.chosen))) for generator in generators
        ]
        first = torch.from_numpy(np.stack([one for one, _ in noise])).float() / self.precision**0.5
        error = torch.from_numpy(np.stack([other for _, other in noise]))
        seen = (self.pairs.chosen.times(first) - self.pairs.rejected.times(first)).double() * self.curvature + error
        alpha = (torch.cholesky_solve(seen.T, self.root).T * self.curvature / self.precision).float()
        return first - (self.pairs.chosen.back(alpha) - self.pairs.rejected.back(alpha))

    def factor(self, features: ArrayLike) -> tuple[Local, torch.Tensor]:
        """Responses, and (N, n) float64 rows whose products are what the pairs take off the prior covariance."""
        local = Local.of(self.network, features)
        cross = self.pairs.cross(local) * self.curvature / self.precision
        return local, torch.linalg.solve_triangular(self.root, cross.T, upper=False).T

    def covariance(self, features: ArrayLike, groups: Sequence[Any] | None = None) -> torch.Tensor:
        """Covariance (N, N) float64 of the scores of a pool; groups: centred per prompt first."""
        local, known = self.factor(features)
        found = local.kernel(local) / self.precision - known @ known.T
        return found if groups is None else centre(centre(found, groups).T, groups)

    def variance(self, features: ArrayLike, groups: Sequence[Any] | None = None) -> torch.Tensor:
        """Variance (N,) float64 of the scores of N responses; groups: centred per prompt first."""
        if groups is not None:
            return self.covariance(features, groups).diagonal()
        local, known = self.factor(features)
        return local.diagonal(local) / self.precision - known.square().sum(1)

    def margin_variance(self, chosen: ArrayLike, rejected: ArrayLike) -> torch.Tensor:
        """Variance of score differences of n pairs: two (n, d) -> (n,) float64."""
        (good, a), (bad, b) = self.factor(chosen), self.factor(rejected)
        prior = good.diagonal(good) + bad.diagonal(bad) - 2 * good.diagonal(bad)
        return prior / self.precision - (a - b).square().sum(1)

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of K linearised heads drawn from the posterior."""
        parts = [Local.of(self.network, part).times(self.draws) for part in torch.as_tensor(features).split(1024)]
        return self.network.scores(features) + torch.cat(parts, 1)

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features (n, d) by name."""
        return self.network.probes()

    def parameters(self) -> int:
        """Number of trained numbers of the network."""
        return self.network.parameters()

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        own, network = self.network.state()
        pairs = {"chosen": self.chosen, "rejected": self.rejected, "curvature": self.curvature}
        tensors = {**named_under("network.", network), **named_under("pairs.", pairs), "draws": self.draws}
        return {"network": own, "precision": self.precision, "info": self.info}, tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NetworkPosterior:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        network = MLPEnsemble.from_state(config["network"], part_under("network.", tensors))
        pairs = part_under("pairs.", tensors)
        return cls(network, **pairs, precision=config["precision"], draws=tensors["draws"], info=config["info"])


@dataclass(frozen=True)
class Pairs:
    """Both sides of n pairs, and the root (n,) float64 of their curvature."""

    chosen: Local
    rejected: Local
    curvature: torch.Tensor

    @classmethod
    def of(cls, network: MLPEnsemble, better: torch.Tensor, worse: torch.Tensor, columns: PairColumns) -> Pairs:
        """Pairs of features (n, d), linearised at the network, with the square root of each loss's second derivative
        (n,)."""
        logit = (network.scores(better) - network.scores(worse))[0].double()
        chance = torch.sigmoid(logit if columns.margin is None else logit - columns.margin)
        count = 1.0 if columns.weight is None else columns.weight
        curvature = (count * chance * (1 - chance)).sqrt()
        return cls(Local.of(network, better), Local.of(network, worse), curvature)

    def cross(self, local: Local) -> torch.Tensor:
        """Kernel (N, n) between responses and the pairs' differences."""
        return local.kernel(self.chosen) - local.kernel(self.rejected)

    def kernel(self) -> torch.Tensor:
        """Kernel (n, n) of the pairs' differences."""
        return self.cross(self.chosen) - self.cross(self.rejected)

    def diagonal(self) -> torch.Tensor:
        """Diagonal (n,) of that kernel."""
        one, other = self.chosen, self.rejected
        return one.diagonal(one) + other.diagonal(other) - 2 * one.diagonal(other)

    def precision(self, prior: float) -> float:
        """The prior's lam that gives a pair's margin the variance ``prior``, a mean over pairs."""
        return float(self.diagonal().mean()) / prior


def choose_prior(
    better: torch.Tensor,
    worse: torch.Tensor,
    columns: PairColumns,
    groups: Sequence[Any] | ArrayLike | None,
    seed: Seed,
    network: dict[str, Any],
) -> tuple[float, dict[str, Any]]:
    """Prior variance of a margin with the lowest loss on pairs that the head never saw, and the whole table.

    The mean probability is sg(m / sqrt(1 + pi v / 8)) (MacKay 1992). One eigendecomposition serves every prior.
    """
    losses = torch.zeros(len(PRIORS), dtype=torch.float64)
    for head, train, held in held_out_heads(better, worse, columns, groups, seed, network):
        pairs = Pairs.of(head, better[train], worse[train], columns.at(train).scaled())
        test = Pairs.of(head, better[held], worse[held], columns.at(held))
        cross = (pairs.cross(test.chosen) - pairs.cross(test.rejected)) * pairs.curvature
        values, vectors = torch.linalg.eigh(pairs.curvature[:, None] * pairs.kernel() * pairs.curvature)
        known, prior = (cross @ vectors).square(), test.diagonal()
        margin = (head.scores(better[held]) - head.scores(worse[held]))[0].double()
        for index, wanted in enumerate(PRIORS):
            precision = pairs.precision(wanted)
            variance = (prior - (known / (precision + values.clamp_min(0))).sum(1)) / precision
            moderated = margin / (1 + torch.pi / 8 * variance.clamp_min(0)).sqrt()
            losses[index] += held_out_loss(columns.at(held), moderated)
    return lowest_loss(PRIORS, losses / len(better))
