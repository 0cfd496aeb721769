"""Stochastic training of K small members at once: every parameter has a leading member axis, no loop over members.

Members share the computation and nothing else: each has its own initial values, its own order of rows and its own
optimiser state, and losses are summed. So K members trained together equal K trained alone (tested to 1e-6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.progress import meter
from prudent.rewards.transformers.meta import ascended
from prudent.seeding import Seed, numpy_generator, sequence, spawn

Parameters = dict[str, torch.Tensor]
Loss = Callable[[Parameters, torch.Tensor, int], torch.Tensor]


def member_seeds(seed: Seed | Sequence[Seed], members: int) -> list[np.random.SeedSequence]:
    """One seed a member: children of one seed (child k is the same for every K > k), or the given ones."""
    if isinstance(seed, Sequence):
        if len(seed) != members:
            raise PrudentError(f"{len(seed)} seeds for {members} members; give one seed, or one a member")
        return [sequence(one) for one in seed]
    return spawn(seed, members)


def shared_seed(seed: Seed | Sequence[Seed]) -> np.random.SeedSequence:
    """Seed of what members share (folds, a common order): apart from every member's own stream."""
    first = sequence(seed[0] if isinstance(seed, Sequence) else seed)
    return np.random.SeedSequence(first.entropy, spawn_key=(*first.spawn_key, 2**32 - 1))


def member_orders(
    seeds: Sequence[np.random.SeedSequence], rows: int, epochs: int, rows_of: torch.Tensor | None = None
) -> torch.Tensor:
    """(K, epochs, rows): each member's own orders of its rows, which are 0..rows-1 or ``rows_of`` (K, rows)."""
    orders = torch.empty(len(seeds), epochs, rows, dtype=torch.long)
    for member, seed in enumerate(seeds):
        generator = numpy_generator(spawn(seed, 2)[1])
        for epoch in range(epochs):
            order = torch.from_numpy(generator.permutation(rows))
            orders[member, epoch] = order if rows_of is None else rows_of[member, order]
    return orders


def member_draws(seeds: Sequence[np.random.SeedSequence], shape: Sequence[int], scale: float) -> torch.Tensor:
    """(K, *shape) float64 normal initial values with standard deviation ``scale``, each member's from its own seed."""
    draws = [numpy_generator(spawn(seed, 1)[0]).standard_normal(tuple(shape)) * scale for seed in seeds]
    return torch.from_numpy(np.stack(draws))


def _nothing() -> torch.Tensor:
    return torch.zeros(())


@dataclass(frozen=True)
class Training:
    """How members are trained. warmup: share of the steps over which the rate grows to full; cosine: it then falls to
    0 along half a cosine."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.0
    cosine: bool = False

    def share(self, step: int, steps: int) -> float:
        """Share of the learning rate at a step (from 0) of so many."""
        rise = min(1.0, (step + 1) / (self.warmup * steps)) if self.warmup > 0 else 1.0
        return rise * (0.5 * (1 + math.cos(math.pi * step / steps)) if self.cosine else 1.0)


def train_members(
    parameters: Parameters,
    loss: Loss,
    orders: torch.Tensor,
    plan: Training,
    *,
    meta: Callable[[Parameters, int], torch.Tensor] | None = None,
    meta_rate: float = 0.0,
) -> list[float]:
    """Adam on all members at once, in place. Returns the mean loss over members of every step.

    parameters: leaf tensors (K, ...). loss(parameters, rows (K, B), step) -> (K,), the loss of each member's batch.
    orders: (K, epochs, rows), see ``member_orders``; they say how many epochs. meta(parameters, step) -> (K,): MetaRM's
    difference objective, raised at rate ``meta_rate`` before each gradient is taken (see ``meta``); 0 is ordinary
    training.
    A loss that is not finite raises PrudentError before the optimiser's step, naming the members and rows.
    """
    leaves = [tensor.requires_grad_() for tensor in parameters.values()]
    optimiser = torch.optim.AdamW(leaves, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    _, epochs, rows = orders.shape
    steps = epochs * -(-rows // plan.batch_size)
    history: list[float] = []
    batches = [(epoch, start) for epoch in range(epochs) for start in range(0, rows, plan.batch_size)]
    with meter("training heads", steps, counts=False) as advance:
        for epoch, start in batches:
            step = len(history)
            optimiser.param_groups[0]["lr"] = plan.learning_rate * plan.share(step, steps)
            batch = orders[:, epoch, start : start + plan.batch_size]
            optimiser.zero_grad(set_to_none=True)
            with ascended(leaves, partial(meta, parameters, step) if meta else _nothing, meta_rate if meta else 0.0):
                each = loss(parameters, batch, step)
                if not bool(torch.isfinite(each).all()):
                    member = int(torch.nonzero(~torch.isfinite(each))[0])
                    raise PrudentError(
                        f"the loss of member {member} is {float(each[member].detach())} at step {step} (rows "
                        f"{batch[member].tolist()[:10]}); stopped before the step: lower the learning rate or fix the "
                        "rows"
                    )
                each.sum().backward()
            optimiser.step()
            history.append(float(each.detach().mean()))
            advance()
    for tensor in leaves:
        tensor.requires_grad_(False)
    return history
