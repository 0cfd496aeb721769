"""Novelty as one more source of variance: random network distillation on frozen features.

A small network is trained to copy a fixed random one on the training responses; where it fails, the response is unlike
them. Members of an ensemble that saw the same data can agree far from it, and then novelty says what they don't.
Source: Burda et al., arXiv 1810.12894; as a variance for RLHF, arXiv 2604.04648.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.draws import paired_features, standardisation
from prudent.rewards.heads import HeadEnsemble, probe_features
from prudent.rewards.training import (
    Parameters,
    Training,
    member_draws,
    member_orders,
    member_seeds,
    shared_seed,
    train_members,
)
from prudent.rewards.uncertainty import moments
from prudent.seeding import Seed, spawn

WIDTH = 128
OUTPUTS = 64


def _network(parameters: Parameters, side: str, features: torch.Tensor) -> torch.Tensor:
    """Output (1, B, m) of the target or the copy for features (1, B, d)."""
    state = torch.relu(features @ parameters[f"{side}.inner"].transpose(1, 2))
    return state @ parameters[f"{side}.outer"].transpose(1, 2)


@dataclass(frozen=True)
class Novelty:
    """tensors: target and copy. mean, scale (d,) standardise. unit: mean squared error on responses kept aside, so that
    1 is the novelty of a response like the training ones."""

    tensors: dict[str, torch.Tensor]
    mean: torch.Tensor
    scale: torch.Tensor
    unit: float

    @classmethod
    def fit(cls, features: ArrayLike, *, epochs: int = 20, seed: Seed = 0) -> Novelty:
        """From features (n, d) of training responses; a fifth of them is kept aside for the unit."""
        values = torch.as_tensor(features).float()
        if values.ndim != 2 or len(values) < 10:
            raise PrudentError(f"features have shape {tuple(values.shape)}; novelty needs at least 10 responses")
        mean, scale = standardisation(values)
        rows = ((values - mean) / scale)[None]
        (one,) = member_seeds(seed, 1)
        target, copy, order = spawn(one, 3)
        size = rows.shape[2]
        parameters: Parameters = {}
        for side, source in (("target", target), ("copy", copy)):
            inner, outer = spawn(source, 2)
            parameters[f"{side}.inner"] = member_draws([inner], (WIDTH, size), size**-0.5).float()
            parameters[f"{side}.outer"] = member_draws([outer], (OUTPUTS, WIDTH), WIDTH**-0.5).float()
        fixed = {name: tensor for name, tensor in parameters.items() if name.startswith("target")}
        trained = {name: tensor for name, tensor in parameters.items() if name.startswith("copy")}
        n = rows.shape[1]
        shuffled = member_orders([order], n, 1)[0, 0]
        kept, train = shuffled[: n // 5], shuffled[n // 5 :]
        wanted = _network(fixed, "target", rows)

        def loss(values: Parameters, batch: torch.Tensor, step: int) -> torch.Tensor:
            indices = train[batch[0]]
            return (_network(values, "copy", rows[:, indices]) - wanted[:, indices]).square().mean((1, 2))

        train_members(trained, loss, member_orders([order], len(train), epochs), Training(epochs, batch_size=64))
        made = cls({**fixed, **{name: t.detach() for name, t in trained.items()}}, mean, scale, 1.0)
        unit = float(made.of(values[kept]).mean())
        return cls(made.tensors, mean, scale, unit)

    def of(self, features: ArrayLike) -> torch.Tensor:
        """Novelty (N,) float32 of N responses from features (N, d): 1 on average for those like the training ones."""
        rows = ((torch.as_tensor(features).float() - self.mean) / self.scale)[None]
        gap = _network(self.tensors, "copy", rows) - _network(self.tensors, "target", rows)
        return gap.square().mean(2)[0] / self.unit


@dataclass(frozen=True)
class NoveltyEnsemble:
    """Linear heads whose variance is widened by novelty: Var = Var_heads + share * v0 * novelty, with v0 the heads'
    mean variance on the training responses. Members keep their mean and the sign of their deviations."""

    heads: HeadEnsemble
    novelty: Novelty
    share: float
    unit: float
    info: dict[str, Any] = field(default_factory=dict)
    family = "novelty"

    @property
    def members(self) -> int:
        """How many members there are (K)."""
        return self.heads.members

    @classmethod
    def fit(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        members: int = 10,
        seed: Seed | Sequence[Seed] = 0,
        novelty_share: float = 1.0,
        **options: Any,
    ) -> NoveltyEnsemble:
        """As ``HeadEnsemble.fit``, with its options. novelty_share: what novelty adds where a response is ordinary."""
        if members < 2:
            raise PrudentError("novelty widens the standard deviation of an ensemble; give at least 2 members")
        if not novelty_share >= 0:
            raise PrudentError(f"novelty_share must not be negative, got {novelty_share}")
        heads = HeadEnsemble.fit(chosen, rejected, members=members, seed=seed, **options)
        better, worse = paired_features(chosen, rejected)
        responses = torch.cat([torch.as_tensor(better).float(), torch.as_tensor(worse).float()])
        novelty = Novelty.fit(responses, seed=shared_seed(seed))
        unit = float(moments(heads.scores(responses))[1].mean())
        return cls(heads, novelty, novelty_share, unit, {**heads.info, "novelty_share": novelty_share})

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of N responses from their features (N, d)."""
        scores = self.heads.scores(features)
        mean, variance = moments(scores)
        added = self.share * self.unit * self.novelty.of(features)
        stretch = ((variance + added) / variance.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
        return mean + (scores - mean) * stretch

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features (n, d) by name."""
        return {"features": probe_features(self.heads.mean, self.heads.scale)}

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        config, tensors = self.heads.state()
        own = {"novelty_unit": self.novelty.unit, "share": self.share, "unit": self.unit, "info": self.info}
        return {"heads": config, **own}, {**tensors, **self.novelty.tensors}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NoveltyEnsemble:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        heads = HeadEnsemble.from_state(config["heads"], tensors)
        own = {name: tensor for name, tensor in tensors.items() if name != "heads.weight"}
        novelty = Novelty(own, heads.mean, heads.scale, config["novelty_unit"])
        return cls(heads, novelty, config["share"], config["unit"], config["info"])
