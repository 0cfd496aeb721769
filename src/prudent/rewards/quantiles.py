"""Quantile reward models: the distribution of each rated attribute, mixed by a gate that reads the prompt.

Heads on frozen features give Q quantiles of every attribute at tau_i = i / (Q + 1), by pinball loss on rated responses;
a missing rating is masked (no loss, no gradient). A gating network on the prompt's state gives weights g_k(x); it is
trained by Bradley-Terry on preference pairs with the heads frozen. Reward quantiles are mixed level by level,
q_i = sum_k g_k q_{k,i} (comonotone: attributes are taken to be good and bad together, not a mixture distribution).

The Q levels are the members of ``scores``: their mean is the expected reward, their deviation the reward's own, and
``aggregate(scores, "cvar", level)`` is its lower tail. Source: arXiv 2409.10164 and its released inference code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.rewards.aggregation import aggregate
from prudent.rewards.columns import PairLabels, pair_columns
from prudent.rewards.draws import standardisation
from prudent.rewards.heads import probe_features
from prudent.rewards.stored import part_under
from prudent.rewards.training import Parameters, Training, member_orders, shared_seed, train_members
from prudent.seeding import Seed, numpy_generator, seeded, spawn, torch_generator

LEVELS = 19
TEMPERATURE = 10.0
EPOCHS, MOST_EPOCHS = 30, 960  # of the first and of the longest training that converged_epochs tries
GATE = Training(epochs=5, batch_size=64, learning_rate=1e-3, weight_decay=1e-2)
GAIN = 1e-3  # fall of the held-out loss, relative to it, that twice the epochs must bring
FEWEST = 50  # responses that can be parted into a training and a held-out part
UTILITIES = ("expected", "steeper", "exponential", "cvar")


def levels(count: int = LEVELS) -> torch.Tensor:
    """Quantile levels (Q,): i / (Q + 1) for i = 1..Q; 19 of them are .05, .10, ..., .95."""
    return torch.linspace(0, 1, count + 2)[1:-1]


def pinball(error: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """max(tau u, (tau - 1) u) of errors u = target - quantile (..., Q) at levels tau (Q,)."""
    return torch.maximum(tau * error, (tau - 1) * error)


def masked_pinball(quantiles: torch.Tensor, target: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Mean pinball loss over levels and present ratings. quantiles (..., B, A, Q); target (..., B, A), NaN = missing.

    A missing rating adds neither loss nor gradient; a batch without any rating gives 0.
    """
    present = ~torch.isnan(target)
    filled = torch.where(present, target, torch.zeros_like(target))
    each = pinball(filled[..., None] - quantiles, tau).mean(-1) * present
    return each.sum((-1, -2)) / present.sum((-1, -2)).clamp_min(1)


def crossings(quantiles: torch.Tensor) -> float:
    """Share of neighbouring levels that are out of order; quantiles (Q, ...)."""
    return float((quantiles.diff(dim=0) < 0).float().mean()) if len(quantiles) > 1 else 0.0


def utility(quantiles: ArrayLike, kind: str = "steeper", *, aversion: float = 1.0, level: float = 0.25) -> torch.Tensor:
    """Risk-averse reward (N,) of reward quantiles (Q, N): the mean of u(q_i) over levels, each standing for mass 1/Q.

    expected: u(z) = z. steeper: u(z) = z for z >= 0, (1 + aversion) z below. exponential: z for z >= 0,
    (1 - exp(-aversion z)) / aversion below, so that losses count ever more. cvar: the mean of the lowest ``level`` of
    the mass, the last level in part. The origin matters: centre rewards first (0 is an ordinary answer).

    Nothing is known beyond the outermost levels, so cvar is too mild: of a standard normal's 19 levels the lowest
    quarter has mean -1.118, the distribution's own is -1.271 (12 %); of 99 levels -1.231 (3 %).
    """
    if kind not in UTILITIES:
        raise PrudentError(f"unknown utility {kind!r}; known: {', '.join(UTILITIES)}")
    values = torch.as_tensor(quantiles)
    if kind == "cvar":
        return aggregate(values, "cvar", level=level)
    if not aversion >= 0:
        raise PrudentError(f"aversion must not be negative, got {aversion}")
    if kind == "expected" or aversion == 0:
        return values.mean(0)
    low = (1 + aversion) * values if kind == "steeper" else (1 - torch.exp(-aversion * values)) / aversion
    return torch.where(values >= 0, values, low).mean(0)


class Gate(torch.nn.Module):
    """Weights (N, A) from prompt states (N, d): three hidden layers (no bias, ReLU, batch norm), softmax at
    ``TEMPERATURE``, times a learned scale, to which each row sums."""

    def __init__(self, width: int, attributes: int, hidden: int = 1024, layers: int = 3) -> None:
        super().__init__()
        parts: list[torch.nn.Module] = []
        for size in [width] + [hidden] * (layers - 1):
            parts += [torch.nn.Linear(size, hidden, bias=False), torch.nn.ReLU(), torch.nn.BatchNorm1d(hidden)]
        self.body = torch.nn.Sequential(*parts, torch.nn.Linear(hidden, attributes))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        """Weights of the attributes (n, attributes) from prompts' features (n, d): a softmax times the learnt scale."""
        return torch.softmax(self.body(prompts) / TEMPERATURE, -1) * self.scale


@dataclass(frozen=True)
class QuantileModel:
    """tensors: weight (A, Q, d), bias (A, Q) of the heads, gate.* of the gate (absent: equal weights). attributes:
    names. statistics: mean, scale (d,) of features; prompt_mean, prompt_scale of prompts; centre, spread (A,) of
    ratings."""

    tensors: dict[str, torch.Tensor]
    statistics: dict[str, torch.Tensor]
    attributes: list[str]
    monotone: bool = True
    info: dict[str, Any] = field(default_factory=dict)
    family = "quantile"
    needs_prompts = True

    @property
    def members(self) -> int:
        """How many levels the quantiles have (K); they serve as members."""
        return self.tensors["weight"].shape[1]

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        ratings: ArrayLike,
        *,
        attributes: Sequence[str] | None = None,
        count: int = LEVELS,
        monotone: bool = True,
        epochs: int | None = None,
        seed: Seed = 0,
        **training: Any,
    ) -> QuantileModel:
        """Quantile heads from features (n, d) of rated responses and ratings (n, A), NaN where one is missing.

        monotone: levels are put in order (rearrangement, Chernozhukov et al. 2010), in training too, so that none can
        cross. epochs: None trains until held-out responses gain no more (``converged_epochs``), then on all of them.
        training: of ``Training``; batch_size 256, learning_rate 3e-3 and weight_decay 1e-2 where not given.
        The gate comes later (``with_gate``); until then attributes weigh equally.
        """
        values, target = torch.as_tensor(features).float(), torch.as_tensor(ratings).float()
        target = target[:, None] if target.ndim == 1 else target
        if values.ndim != 2 or target.ndim != 2 or len(values) != len(target):
            raise PrudentError(f"features {tuple(values.shape)} and ratings {tuple(target.shape)} don't match")
        names = list(attributes) if attributes is not None else [f"attribute {k}" for k in range(target.shape[1])]
        counts = (~torch.isnan(target)).sum(0)
        if len(names) != target.shape[1] or int(counts.min()) < 2:
            raise PrudentError(
                f"{len(names)} names for ratings of {dict(zip(names, counts.tolist()))} responses; every attribute "
                "needs a name and at least two ratings"
            )
        mean, scale = standardisation(values)
        centre = target.nanmean(0)
        deviation = ((target - centre).square().nanmean(0)).sqrt().clamp_min(1e-6)
        wanted = (target - centre) / deviation
        tau = levels(count)
        rows = (values - mean) / scale
        usual = {"batch_size": 256, "learning_rate": 3e-3, "weight_decay": 1e-2}
        plan = Training(0, cosine=True, **{**usual, **training})  # epochs follow below
        train = partial(_train, tau=tau, monotone=monotone, seed=seed, plan=plan)
        table = None
        if epochs is None:
            epochs, table = converged_epochs(rows, wanted, tau, monotone, train, seed)
        tensors, history = train(rows, wanted, epochs)
        statistics = {"mean": mean, "scale": scale, "centre": centre, "spread": deviation}
        info = {"ratings": counts.tolist(), "epochs": epochs, "levels": count, "train_loss": history[-1]}
        info["held_out_loss"] = table
        return cls(tensors, statistics, names, monotone, info)

    def with_gate(
        self,
        prompts: ArrayLike,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        hidden: int = 1024,
        plan: Training = GATE,
        seed: Seed = 0,
        **labels: Unpack[PairLabels],
    ) -> QuantileModel:
        """The same heads, frozen, with a gate trained by Bradley-Terry on the expected score of n pairs.

        prompts (n, d): states of the prompts. chosen, rejected (n, d): features of the answers, with their ``labels``.
        """
        states = torch.as_tensor(prompts).float()
        first, second = (self.attribute_quantiles(side).mean(0) for side in (chosen, rejected))  # (n, A)
        if not len(states) == len(first) == len(second) or len(states) < 2:
            raise PrudentError(f"{len(states)} prompts for {len(first)} and {len(second)} answers; at least two pairs")
        columns = pair_columns(len(first), **labels).scaled().to(torch.float32)
        mean, scale = standardisation(states)
        rows = (states - mean) / scale
        start, order = spawn(shared_seed(seed), 2)
        with seeded(torch_generator(start).initial_seed() % 2**32):
            gate = Gate(rows.shape[1], len(self.attributes), hidden)
        optimiser = torch.optim.AdamW(gate.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        difference = first - second
        for permutation in member_orders([order], len(rows), plan.epochs)[0]:
            for batch in permutation.split(plan.batch_size):
                if len(batch) < 2:
                    continue  # batch norm has no variance to divide by
                picked = columns.at(batch)
                losses = picked.losses((gate(rows[batch]) * difference[batch]).sum(1))
                loss = (losses if picked.weight is None else losses * picked.weight).mean()
                if not bool(torch.isfinite(loss)):
                    raise PrudentError(f"the gate's loss is {float(loss.detach())}; stopped: lower the learning rate")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        kept = {f"gate.{name}": t.detach().float() for name, t in gate.state_dict().items() if "tracked" not in name}
        statistics = {**self.statistics, "prompt_mean": mean, "prompt_scale": scale}
        info = {**self.info, "gate_pairs": len(rows), "gate_hidden": hidden}
        heads = {name: self.tensors[name] for name in ("weight", "bias")}
        return QuantileModel({**heads, **kept}, statistics, self.attributes, self.monotone, info)

    @torch.no_grad()
    def attribute_quantiles(self, features: ArrayLike) -> torch.Tensor:
        """Quantiles (Q, N, A) of every attribute in its own units, for N responses' features (N, d)."""
        held = self.statistics
        values = torch.as_tensor(features).float()
        if values.ndim != 2 or values.shape[1] != len(held["mean"]):
            raise PrudentError(f"features have shape {tuple(values.shape)}, expected (responses, {len(held['mean'])})")
        rows = (values - held["mean"]) / held["scale"]
        found = _levels(self.tensors["weight"], self.tensors["bias"], rows, self.monotone)
        return (found * held["spread"][:, None] + held["centre"][:, None]).movedim(-1, 0)

    @torch.no_grad()
    def gates(self, prompts: ArrayLike) -> torch.Tensor:
        """Weights (N, A) of the attributes from prompt states (N, d); 1/A each without a gate."""
        states = torch.as_tensor(prompts).float()
        count = len(self.attributes)
        own = part_under("gate.", self.tensors)
        if not own:
            return torch.full((len(states), count), 1 / count)
        gate = Gate(states.shape[1], count, own["body.0.weight"].shape[0])
        gate.load_state_dict(own, strict=False)
        return gate.eval()((states - self.statistics["prompt_mean"]) / self.statistics["prompt_scale"])

    def scores(self, features: ArrayLike, prompts: ArrayLike) -> torch.Tensor:
        """Reward quantiles (Q, N) float32 of N responses from their features and their prompts' states, (N, d) each."""
        return (self.attribute_quantiles(features) * self.gates(prompts)).sum(-1)

    def summary(self, features: ArrayLike, prompts: ArrayLike, level: float = 0.25) -> dict[str, torch.Tensor]:
        """mean, standard_deviation (levels weigh 1/Q each) and cvar at ``level`` of the reward: (N,) each."""
        found = self.scores(features, prompts)
        return {
            "mean": found.mean(0),
            "standard_deviation": found.std(0, correction=0),
            "cvar": utility(found, "cvar", level=level),
        }

    def probes(self) -> dict[str, torch.Tensor]:
        """Standard inputs that an artefact is checked with after loading: features and prompts' features (n, d)."""
        held = self.statistics
        prompt = (held.get("prompt_mean", held["mean"]), held.get("prompt_scale", held["scale"]))
        return {"features": probe_features(held["mean"], held["scale"]), "prompts": probe_features(*prompt)}

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(config in plain types, tensors by name): all that ``from_state`` needs to build this again."""
        config = {
            "statistics": {name: tensor.tolist() for name, tensor in self.statistics.items()},
            "attributes": self.attributes,
            "monotone": self.monotone,
            "info": self.info,
        }
        return config, self.tensors

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> QuantileModel:
        """The scorer of what ``state`` gave. Raises KeyError where a part is missing."""
        statistics = {name: torch.tensor(values).float() for name, values in config["statistics"].items()}
        return cls(tensors, statistics, config["attributes"], config["monotone"], config["info"])


def _levels(weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor, monotone: bool) -> torch.Tensor:
    """Quantiles (N, A, Q) of rows (N, d): a linear map, and where monotone its levels put in order."""
    raw = torch.einsum("nd,aqd->naq", rows, weight) + bias
    return raw.sort(-1).values if monotone else raw


def _train(
    rows: torch.Tensor,
    wanted: torch.Tensor,
    epochs: int,
    *,
    tau: torch.Tensor,
    monotone: bool,
    seed: Seed,
    plan: Training,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Heads (weight (A, Q, d), bias (A, Q)) by pinball loss on rows (n, d) and ratings (n, A); losses of steps."""
    parameters = _start(wanted, tau, rows.shape[1])

    def loss(held: Parameters, batch: torch.Tensor, step: int) -> torch.Tensor:
        found = _levels(held["weight"][0], held["bias"][0], rows[batch[0]], monotone)
        return masked_pinball(found, wanted[batch[0]], tau)[None]

    orders = member_orders([shared_seed(seed)], len(rows), epochs)
    history = train_members(parameters, loss, orders, plan)
    return {name: tensor[0].detach() for name, tensor in parameters.items()}, history


def converged_epochs(
    rows: torch.Tensor,
    wanted: torch.Tensor,
    tau: torch.Tensor,
    monotone: bool,
    train: Callable[[torch.Tensor, torch.Tensor, int], tuple[dict[str, torch.Tensor], list[float]]],
    seed: Seed,
) -> tuple[int, dict[str, float] | None]:
    """Number of epochs at which the pinball loss of held-out responses stops falling, and that loss by epochs.

    A fifth of the responses is held out; training starts anew with twice the epochs (``EPOCHS``, at most
    ``MOST_EPOCHS``) while the loss falls by more than ``GAIN`` of itself. The features' part starts at 0 and a narrow
    interval needs many small steps, so too few epochs give intervals that are too wide where the deviation is small.
    Fewer than ``FEWEST`` responses can't be parted: ``EPOCHS``, None.
    """
    order = torch.from_numpy(numpy_generator(spawn(shared_seed(seed), 1)[0]).permutation(len(rows)))
    held, kept = order[: len(rows) // 5], order[len(rows) // 5 :]
    if len(rows) < FEWEST or bool(((~torch.isnan(wanted[kept])).sum(0) < 2).any()):
        return EPOCHS, None
    table: dict[str, float] = {}
    best, epochs = EPOCHS, EPOCHS
    while epochs <= MOST_EPOCHS:
        tensors, _ = train(rows[kept], wanted[kept], epochs)
        found = _levels(tensors["weight"], tensors["bias"], rows[held], monotone)
        table[str(epochs)] = float(masked_pinball(found, wanted[held], tau))
        if epochs > EPOCHS and not table[str(epochs)] < table[str(best)] * (1 - GAIN):
            break
        best, epochs = epochs, 2 * epochs
    return best, table


def _start(wanted: torch.Tensor, tau: torch.Tensor, width: int) -> Parameters:
    """Weights 0 and, as biases, the ratings' own quantiles, so that training has only the features' part to find."""
    found = [np.quantile(column[~torch.isnan(column)].numpy(), tau.numpy()) for column in wanted.T]
    bias = torch.from_numpy(np.stack(found)).float()
    return {"weight": torch.zeros(1, *bias.shape, width), "bias": bias[None].clone()}
