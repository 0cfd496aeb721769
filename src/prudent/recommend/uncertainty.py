"""How noisy is each label? The log-variance s of every user-item pair, learnt from the residuals of a frozen backbone.

AUR (Wang et al., arXiv 2209.11679), uncertainty stage: a missing pair whose residual is larger than the user's history
explains is probably a positive that no one saw, so unseen items are ranked by s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.batches import History, chunks, history, scoring_batch
from prudent.recommend.metrics import Scorer
from prudent.recommend.models import Backbone, draw_items, no_gradient, unit_bag, validator
from prudent.recommend.splits import Data
from prudent.recommend.training import Curve, Progress, Schedule, train
from prudent.seeding import Seed, spawn, torch_generator

FLOOR = 1e-3  # added to exp(s) in the loss, as in the released code
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda hidden: hidden,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


@dataclass(frozen=True)
class UncertaintyOptions:
    """alpha: weight of positives. beta, gamma: of s and s^2. share: of items that missing pairs are drawn from. width:
    of the hidden layer. activation: of the hidden layer. user_embedding: add one a user at the hidden layer.
    """

    alpha: float = 1.0
    beta: float = 1e-2
    gamma: float = 1e-2
    share: float = 1.0
    width: int = 1024
    activation: str = "linear"
    user_embedding: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PrudentError(f"sampling share is {self.share}; choose a share of items above 0 and at most 1")
        if self.alpha <= 0 or self.beta <= 0 or self.gamma < 0 or self.width < 1:
            raise PrudentError(
                f"alpha {self.alpha} and beta {self.beta} must be above 0, gamma {self.gamma} not negative, "
                "width at least 1"
            )
        if self.activation not in ACTIVATIONS:
            raise PrudentError(f"activation is {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}")


def aleatoric_loss(
    score: torch.Tensor,
    log_variance: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor | float = 1.0,
    *,
    beta: float = 1e-2,
    gamma: float = 1e-3,
    floor: float = FLOOR,
) -> torch.Tensor:
    """Sum over pairs of weight ((label - score)^2 / (exp(s) + floor) + beta s + gamma s^2), any one shape.

    A Gaussian negative log-likelihood with variance exp(s), its log term tempered by beta and a quadratic prior on s.
    The score is a constant here: its gradient is exactly zero. Source: arXiv 2209.11679, loss of the uncertainty stage.
    """
    residual = (label - score.detach()).square()
    terms = residual / (torch.exp(log_variance) + floor) + beta * log_variance + gamma * log_variance.square()
    return (terms * weight).sum()


def estimator_tensors(users: int, items: int, options: UncertaintyOptions, seed: Seed) -> dict[str, torch.Tensor]:
    """Weights of the estimator, normal with standard deviation 0.01: "inner" and "outer" (items, width), "user" (users,
    width).
    """
    generator = torch_generator(seed)
    shapes = {"inner": (items, options.width), "outer": (items, options.width)}
    if options.user_embedding:
        shapes["user"] = (users, options.width)
    return {name: torch.randn(shape, generator=generator).mul_(0.01).requires_grad_() for name, shape in shapes.items()}


def hidden_layer(
    tensors: dict[str, torch.Tensor], users: np.ndarray, entries: History, activation: str = "linear"
) -> torch.Tensor:
    """(batch, width) activation of W1 (x_u / ||x_u||), plus the user's embedding where there is one."""
    hidden = unit_bag(tensors["inner"], entries)
    if "user" in tensors:
        hidden = hidden + tensors["user"][torch.from_numpy(users)]
    return ACTIVATIONS[activation](hidden)


def log_variances(
    tensors: dict[str, torch.Tensor], train_matrix: sparse.csr_matrix, activation: str = "linear"
) -> Scorer:
    """Scorer of s_u = W2 W1 (x_u / ||x_u||), (batch, items), the history binary and without bias."""

    def scores(users: np.ndarray) -> torch.Tensor:
        return hidden_layer(tensors, users, history(train_matrix, users), activation) @ tensors["outer"].T

    return scores


def fit_uncertainty(
    data: Data,
    backbone: Backbone,
    options: UncertaintyOptions,
    schedule: Schedule,
    seed: Seed = 0,
    *,
    progress: Progress | None = None,
) -> Backbone:
    """Learn s on top of a frozen backbone; validated by the Recall@20 of ranking by s. Returns a scorer of kind
    "estimator".
    """
    weights_seed, order_seed = spawn(seed, 2)
    items = len(data.items)
    frozen = remembered(backbone, data.train.shape)
    tensors = estimator_tensors(len(data.users), items, options, weights_seed)

    def step(users: np.ndarray, generator: np.random.Generator) -> float:
        entries = history(data.train, users)
        with torch.no_grad():
            score = frozen(users)
        hidden = hidden_layer(tensors, users, entries, options.activation)
        columns, column, drawn = loss_columns(items, entries, options.share, generator)
        outer = tensors["outer"] if columns is None else tensors["outer"][columns]
        score = score if columns is None else score[:, columns]
        label = torch.zeros_like(score)
        label[entries.row, column] = 1
        weight = drawn.expand_as(score).clone() if drawn is not None else torch.ones_like(score)
        weight[entries.row, column] = options.alpha
        loss = aleatoric_loss(score, hidden @ outer.T, label, weight, beta=options.beta, gamma=options.gamma) / len(
            users
        )
        loss.backward()
        return loss.item()

    check = validator(data, lambda: log_variances(tensors, data.train, options.activation))
    users = np.arange(len(data.users))
    curve: Curve = train("uncertainty", list(tensors.values()), step, check, users, schedule, order_seed, progress)
    final = {name: tensor.detach() for name, tensor in tensors.items()}
    scorer = no_gradient(log_variances(final, data.train, options.activation))
    return Backbone("uncertainty", f"estimator-{options.activation}", scorer, final, curve)


def remembered(backbone: Backbone, shape: tuple[int, int], cells: int = 2**25) -> Scorer:
    """The backbone's scores, computed once and kept where that takes at most ``cells`` numbers (128 MiB), else every
    time.
    """
    users, items = shape
    if backbone.kind == "factors" or users * items > cells:
        return backbone.scores
    with torch.no_grad():
        table = torch.cat([backbone.scores(part) for part in chunks(np.arange(users), scoring_batch(items))])
    return lambda users: table[torch.from_numpy(users)]


def loss_columns(
    items: int, entries: History, share: float, generator: np.random.Generator
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Which items a batch's loss looks at: the drawn ones and the batch's positives.

    Returns (indices of those items, or None for all; each positive's index among them; 1 for drawn and 0 for the
    others).
    """
    if share >= 1:
        return None, entries.column, None
    drawn = torch.zeros(items)
    drawn[draw_items(items, share, generator)] = 1
    wanted = drawn.clone()
    wanted[entries.column] = 1
    columns = wanted.nonzero()[:, 0]
    return columns, torch.searchsorted(columns, entries.column), drawn[columns]
