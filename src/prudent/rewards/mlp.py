"""Heads beyond linear: K two-layer heads trained in one batched computation, and Monte-Carlo dropout of one such head.

A head scores r(x) = v' act(W x + b) on standardised features. All members' weights carry a leading member axis, so a
step of K heads is a few batched matrix products. Monte-Carlo dropout (Gal and Ghahramani, arXiv 1506.02142) trains one
head with dropout; its K members are K fixed thinned networks, the same for every response, so that score differences
between responses mean something within a member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.columns import BOUNDS, PairColumns, pair_columns
from prudent.rewards.draws import bootstrap_rows, paired_features, standardisation
from prudent.rewards.heads import probe_features
from prudent.rewards.training import (
    Parameters,
    Training,
    member_draws,
    member_orders,
    member_seeds,
    shared_seed,
    train_members,
)
from prudent.rewards.transformers.contrastive import KINDS, SIDES, contrastive_term, views
from prudent.rewards.transformers.meta import difference_objective
from prudent.seeding import Seed, numpy_generator, spawn

DIVERSITIES = ("init+shuffle", "init", "shuffle", "bootstrap")
PROTOTYPES = 16


def hidden(parameters: Parameters, features: torch.Tensor) -> torch.Tensor:
    """Representations (K, B, h) of features (K, B, d), or (B, d) shared by all members."""
    return torch.relu(features @ parameters["inner.weight"].transpose(1, 2) + parameters["inner.bias"][:, None])


def score(parameters: Parameters, state: torch.Tensor) -> torch.Tensor:
    """Scores (K, B) of representations (K, B, h)."""
    return (state @ parameters["outer.weight"][:, :, None])[..., 0]


@dataclass(frozen=True)
class NetworkOptions:
    """diversity: init+shuffle, init, shuffle or bootstrap (own rows, start and order). width: hidden units. dropout: of
    hidden units in training. contrastive: simcse or swav, on "feature" or "difference" (see ``contrastive``).
    meta_rate: of MetaRM (see ``meta``). PrudentError for a value that is not known or out of bounds."""

    diversity: str = "init+shuffle"
    width: int = 64
    dropout: float = 0.1
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    contrastive: str | None = None
    contrastive_on: str = "feature"
    contrastive_weight: float = 0.1
    meta_rate: float = 0.0

    def __post_init__(self) -> None:
        kind, on = self.contrastive, self.contrastive_on
        if self.diversity not in DIVERSITIES:
            raise PrudentError(f"unknown diversity {self.diversity!r}; known: {', '.join(DIVERSITIES)}")
        if not 0 <= self.dropout < 1:
            raise PrudentError(f"dropout must lie in [0, 1), got {self.dropout}")
        if kind is not None and (kind not in KINDS or on not in SIDES):
            raise PrudentError(f"contrastive is {kind!r} on {on!r}; known: {', '.join(KINDS)} on {', '.join(SIDES)}")
        if kind == "simcse" and self.dropout == 0:
            raise PrudentError("simcse compares two dropout passes; give dropout above 0")


@dataclass(frozen=True)
class MLPEnsemble:
    """K two-layer heads. tensors: inner.weight (K, h, d), inner.bias (K, h), outer.weight (K, h), and for Monte-Carlo
    dropout mask (K, h); offsets (K,) centre each member on the training responses; mean, scale (d,)."""

    tensors: dict[str, torch.Tensor]
    offsets: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)
    family = "mlp"

    @property
    def members(self) -> int:
        """How many members there are (K)."""
        return len(self.offsets)

    @classmethod
    def fit(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        members: int = 10,
        groups: Sequence[Any] | ArrayLike | None = None,
        seed: Seed | Sequence[Seed] = 0,
        meta_features: ArrayLike | None = None,
        **options: Any,
    ) -> MLPEnsemble:
        """Train K heads on features (n, d) of chosen and rejected answers with AdamW, all in one batched computation.

        meta_features (prompts, k, d): features of k responses per prompt sampled from the policy, for MetaRM. options:
        weight, soft_label, margin (n,), and those of ``NetworkOptions``. Others: as in ``HeadEnsemble.fit``.
        """
        data = _Data.of(chosen, rejected, *(options.pop(name, None) for name in BOUNDS))
        plan = NetworkOptions(**options)
        parameters, history = _train(
            data, member_seeds(seed, members), shared_seed(seed), plan, groups, _meta(meta_features, data)
        )
        tensors = {name: parameters[name].float() for name in ("inner.weight", "inner.bias", "outer.weight")}
        steps = -(-data.n // plan.batch_size)
        info = {"pairs": data.n, **asdict(plan), "train_loss": float(np.mean(history[-steps:]))}
        if plan.contrastive is None:
            info |= {"contrastive_on": None, "contrastive_weight": None}
        made = cls(tensors, torch.zeros(members), data.mean, data.scale, info)
        return made._centred(data)

    def _centred(self, data: _Data) -> Any:
        total = sum(self.scores(side * data.scale + data.mean).mean(1) for side in (data.chosen, data.rejected))
        return type(self)(self.tensors, self.offsets + total / 2, self.mean, self.scale, self.info)

    def scores(self, features: ArrayLike) -> torch.Tensor:
        """Scores (K, N) float32 of N responses from their features (N, d)."""
        values = torch.as_tensor(features).float()
        if values.ndim != 2 or values.shape[1] != len(self.mean):
            raise PrudentError(f"features have shape {tuple(values.shape)}, expected (responses, {len(self.mean)})")
        parts = []
        for part in values.split(4096):
            state = hidden(self.tensors, (part - self.mean) / self.scale)
            if "mask" in self.tensors:
                state = state * self.tensors["mask"][:, None]
            parts.append(score(self.tensors, state))
        return torch.cat(parts, 1) - self.offsets[:, None] if parts else torch.empty(self.members, 0)

    def hidden(self, features: ArrayLike) -> torch.Tensor:
        """Representations (K, N, h) of N responses, without dropout: what the last layer reads."""
        return hidden(self.tensors, (torch.as_tensor(features).float() - self.mean) / self.scale)

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features (n, d) by name."""
        return {"features": probe_features(self.mean, self.scale)}

    def parameters(self) -> int:
        """Trained numbers of all members; dropout's thinned networks share theirs."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name != "mask")

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        config = {
            "info": self.info,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "offsets": self.offsets.tolist(),
        }
        return config, self.tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> MLPEnsemble:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        offsets, mean, scale = (torch.tensor(config[name]).float() for name in ("offsets", "mean", "scale"))
        return cls(tensors, offsets, mean, scale, config["info"])


class DropoutEnsemble(MLPEnsemble):
    """Monte-Carlo dropout: one trained head (leading axis 1) and K fixed masks of its hidden units."""

    family = "dropout"

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        members: int = 10,
        dropout: float = 0.2,
        seed: Seed = 0,
        **options: Any,
    ) -> DropoutEnsemble:
        """As ``MLPEnsemble.fit`` for one head; ``members`` counts the thinned networks behind ``scores``."""
        if not 0 < dropout < 1:
            raise PrudentError(f"dropout must lie between 0 and 1 (both excluded) to give a variance, got {dropout}")
        head = MLPEnsemble.fit(chosen, rejected, members=1, dropout=dropout, seed=seed, **options)
        units = head.tensors["outer.weight"].shape[1]
        masks = [numpy_generator(one).random(units) >= dropout for one in member_seeds(shared_seed(seed), members)]
        mask = torch.from_numpy(np.stack(masks)).float() / (1 - dropout)
        made = cls({**head.tensors, "mask": mask}, torch.zeros(members), head.mean, head.scale, head.info)
        return made._centred(_Data.of(chosen, rejected))


@dataclass(frozen=True)
class _Data:
    """Standardised features (n, d) of both sides, in float32, and the pairs' columns."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    columns: PairColumns

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    @classmethod
    def of(cls, chosen: ArrayLike, rejected: ArrayLike, *columns: ArrayLike | None) -> _Data:
        """Standardised sides (n, d) of features and the pairs' columns; PrudentError for shapes that don't match."""
        better, worse = paired_features(chosen, rejected)
        mean, scale = standardisation(better, worse)
        first, second = ((torch.as_tensor(np.asarray(side)).float() - mean) / scale for side in (better, worse))
        return cls(first, second, mean, scale, pair_columns(len(first), *columns).scaled().to(torch.float32))


def _meta(features: ArrayLike | None, data: _Data) -> torch.Tensor | None:
    if features is None:
        return None
    values = torch.as_tensor(features).float()
    if values.ndim != 3 or values.shape[2] != len(data.mean) or values.shape[1] < 2:
        raise PrudentError(
            f"meta_features have shape {tuple(values.shape)}, expected (prompts, 2 or more responses, {len(data.mean)})"
        )
    return (values - data.mean) / data.scale


def _masks(seeds: Sequence[np.random.SeedSequence], rate: float, units: int) -> Callable[[int], torch.Tensor | float]:
    """mask(rows) -> (K, rows, h), each member's from its own stream, so that joint training equals training alone."""
    if rate == 0:
        return lambda rows: 1.0
    generators = [numpy_generator(spawn(seed, 3)[2]) for seed in seeds]

    def mask(rows: int) -> torch.Tensor:
        drawn = np.stack([generator.random((rows, units), dtype=np.float32) for generator in generators])
        return torch.from_numpy((drawn >= rate).astype(np.float32)) / (1 - rate)

    return mask


def _train(
    data: _Data,
    seeds: list[np.random.SeedSequence],
    common: np.random.SeedSequence,
    plan: NetworkOptions,
    groups: Any,
    meta: torch.Tensor | None,
) -> tuple[Parameters, list[float]]:
    shared = [common] * len(seeds)
    starts = shared if plan.diversity == "shuffle" else seeds
    rows = bootstrap_rows(data.n, seeds, groups) if plan.diversity == "bootstrap" else None
    orders = member_orders(shared if plan.diversity == "init" else seeds, data.n, plan.epochs, rows)
    size, width = len(data.mean), plan.width
    parts = [spawn(seed, 3) for seed in starts]
    parameters = {
        "inner.weight": member_draws([part[0] for part in parts], (width, size), size**-0.5).float(),
        "inner.bias": torch.zeros(len(seeds), width),
        "outer.weight": member_draws([part[1] for part in parts], (width,), 0.5 * width**-0.5).float(),
    }
    if plan.contrastive == "swav":
        parameters["prototypes"] = member_draws([part[2] for part in parts], (PROTOTYPES, width), 1.0).float()
    mask = _masks(seeds, plan.dropout, width)

    def loss(values: Parameters, batch: torch.Tensor, step: int) -> torch.Tensor:
        picked = data.columns.at(batch)
        clean = [hidden(values, side[batch]) for side in (data.chosen, data.rejected)]
        good, bad = (state * mask(batch.shape[1]) for state in clean)
        losses = picked.losses(score(values, good) - score(values, bad))
        total = (losses if picked.weight is None else losses * picked.weight).mean(1)
        if plan.contrastive is not None:
            again, worse = (state * mask(batch.shape[1]) for state in clean)
            first, second = views(good, bad, plan.contrastive_on), views(again, worse, plan.contrastive_on)
            term = contrastive_term(plan.contrastive, first, second, values.get("prototypes"))
            total = total + plan.contrastive_weight * term
        return total

    def objective(values: Parameters, step: int) -> torch.Tensor:
        assert meta is not None
        scores = score(values, hidden(values, meta.flatten(0, 1)))
        return difference_objective(scores.unflatten(1, meta.shape[:2]))

    history = train_members(
        parameters,
        loss,
        orders,
        Training(plan.epochs, plan.batch_size, plan.learning_rate, plan.weight_decay),
        meta=objective if meta is not None else None,
        meta_rate=plan.meta_rate,
    )
    return {name: tensor.detach() for name, tensor in parameters.items()}, history
