"""One training loop for every stage: Adam over users, validated by Recall@20, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.progress import track
from prudent.seeding import Seed, numpy_generator

Progress = Callable[[str, int, float, float], None]  # stage, epoch, loss, Recall@20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage trains.

    Validation every ``every`` epochs; the stage ends after more than ``patience`` validations without gain, or at
    ``epochs``. warmup: steps before patience is counted. Small embeddings leave the saddle at zero slowly, and
    Recall@20 stands still meanwhile; that takes a number of steps, however many epochs a data set makes of them.
    weight_decay: L2, added to the gradient.
    """

    learning_rate: float = 1e-3
    batch: int = 64
    epochs: int = 200
    every: int = 2
    patience: int = 10
    weight_decay: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch", "epochs", "every"):
            if getattr(self, name) <= 0:
                raise PrudentError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("patience", "weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise PrudentError(f"{name} is {getattr(self, name)}; it must not be negative")


@dataclass
class Curve:
    """What a stage went through: one row a validation, and which of them was kept."""

    stage: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


def train(
    stage: str,
    parameters: Sequence[torch.Tensor],
    step: Callable[[np.ndarray, np.random.Generator], float],
    validate: Callable[[], float],
    users: np.ndarray,
    schedule: Schedule,
    seed: Seed,
    progress: Progress | None = None,
) -> Curve:
    """Train ``parameters`` in place and leave them at the epoch with the best validation.

    step(users, generator) adds gradients for a batch and returns its loss; validate() returns the figure to be raised
    (NaN when there is no validation pair: then the last epoch is kept). Raises PrudentError when the loss is no longer
    finite.
    """
    optimiser = torch.optim.Adam(
        list(parameters), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    generator = numpy_generator(seed)
    curve = Curve(stage)
    best, kept, waited, steps = -math.inf, [tensor.detach().clone() for tensor in parameters], 0, 0
    started = time.perf_counter()
    for epoch in track(range(1, schedule.epochs + 1), stage):
        losses = []
        order = generator.permutation(users)
        for start in range(0, len(order), schedule.batch):
            optimiser.zero_grad(set_to_none=True)
            losses.append(step(order[start : start + schedule.batch], generator))
            optimiser.step()
        steps += len(losses)
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise PrudentError(
                f"{stage}: the loss is {loss} in epoch {epoch}; lower the learning rate ({schedule.learning_rate:g})"
            )
        if epoch % schedule.every and epoch != schedule.epochs:
            continue
        figure = validate()
        curve.rows.append({"epoch": epoch, "loss": loss, "recall@20": figure})
        if progress is not None:
            progress(stage, epoch, loss, figure)
        if math.isnan(figure) or figure > best:
            best, waited, curve.best_epoch = figure if not math.isnan(figure) else best, 0, epoch
            for copy, tensor in zip(kept, parameters):
                copy.copy_(tensor.detach())
        elif steps > schedule.warmup:
            waited += 1
            if waited > schedule.patience:
                curve.stopped_early = True
                break
    with torch.no_grad():
        for copy, tensor in zip(kept, parameters):
            tensor.copy_(copy)
    curve.seconds = time.perf_counter() - started
    return curve
