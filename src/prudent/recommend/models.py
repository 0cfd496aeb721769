"""Backbones that score every item for a user: matrix factorisation, LightGCN and MultiVAE, all with AUR's squared loss.

The loss of a batch of users is (alpha sum_positive w (f - 1)^2 + sum_missing f^2) / users, the missing pairs taken on a
random share of items drawn anew for each batch (AUR, arXiv 2209.11679, backbone stage). Sources of the models: Koren et
al. 2009 (MF); He et al. 2020, arXiv 2002.02126 (LightGCN); Liang et al. 2018, arXiv 1802.05814 (MultiVAE, here with the
squared loss).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.batches import History, chunks, history
from prudent.recommend.metrics import Scorer, evaluate
from prudent.recommend.splits import Data
from prudent.recommend.training import Curve, Progress, Schedule, train
from prudent.seeding import Seed, spawn, torch_generator


@dataclass(frozen=True)
class Backbone:
    """A scorer with what is needed to save it. kind says how ``tensors`` are turned into scores (see ``restore``)."""

    name: str
    kind: str
    scores: Scorer
    tensors: dict[str, torch.Tensor]
    curve: Curve | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tensors, by name: equal before and after the uncertainty stage."""
        return hash_tensors(self.tensors)


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class BackboneOptions:
    """width: of embeddings (MF, LightGCN). alpha: weight of positives. share: of items that missing pairs are drawn
    from. layers: of LightGCN. hidden, latent, dropout, kl: of MultiVAE (kl weighs its Kullback-Leibler term).
    factors, regularisation, confidence, iterations: of ALS.
    """

    width: int = 128
    alpha: float = 1.0
    share: float = 0.1
    layers: int = 3
    hidden: int = 1024
    latent: int = 512
    dropout: float = 0.5
    kl: float = 0.01
    factors: int = 128
    regularisation: float = 80.0
    confidence: float = 20.0
    iterations: int = 15

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PrudentError(f"sampling share is {self.share}; choose a share of items above 0 and at most 1")
        for name in ("width", "layers", "hidden", "latent", "factors", "iterations"):
            if getattr(self, name) < 1:
                raise PrudentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.alpha <= 0 or self.confidence <= 0 or self.regularisation < 0 or self.kl < 0:
            raise PrudentError("alpha and confidence must be above 0; regularisation and kl must not be negative")
        if not 0 <= self.dropout < 1:
            raise PrudentError(f"dropout is {self.dropout}; it must be in [0, 1)")


def draw_items(items: int, share: float, generator: np.random.Generator) -> torch.Tensor:
    """Indices of a random share of items (at least one), sorted; all of them at share 1."""
    if share >= 1:
        return torch.arange(items)
    count = max(1, int(items * share))
    return torch.from_numpy(np.sort(generator.choice(items, count, replace=False)))


def squared_loss(
    left: torch.Tensor,
    right: torch.Tensor,
    entries: History,
    drawn: torch.Tensor,
    alpha: float = 1.0,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over pairs of the squared loss of scores left @ right.T + bias, with left (batch, d) and right (items, d).

    entries: the batch's positives. drawn: indices of the items whose missing pairs count. weight: (items,) of
    positives. bias: (items,). Scores are formed for the drawn items and the batch's positives where the latter are
    dense enough, and else for the positives alone: see ``sparse_loss``.
    """
    inside = torch.zeros(len(right), dtype=right.dtype)
    inside[drawn] = 1
    wanted = inside.clone()
    wanted[entries.column] = 1
    columns = wanted.nonzero()[:, 0]
    # Reading rows of ``right`` for each positive and adding to them costs about 100 times a product of a whole matrix.
    if len(left) * len(columns) > 100 * len(entries.column):
        return sparse_loss(left, right, entries, drawn, inside, alpha, weight, bias)
    scores = left @ right[columns].T
    if bias is not None:
        scores = scores + bias[columns]
    index = torch.searchsorted(columns, entries.column)
    label = torch.zeros_like(scores)
    label[entries.row, index] = 1
    factor = inside[columns].expand_as(scores).clone()
    factor[entries.row, index] = alpha if weight is None else alpha * weight[entries.column]
    return ((scores - label).square() * factor).sum()


def sparse_loss(
    left: torch.Tensor,
    right: torch.Tensor,
    entries: History,
    drawn: torch.Tensor,
    inside: torch.Tensor,
    alpha: float,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """``squared_loss`` without scores of the missing pairs where d is small. inside: (items,) 1 for drawn items.

    The missing pairs' sum is the sum over all pairs of drawn items less that over the positives among them; the former
    is the inner product of two Gram matrices, (d, d), when that is cheaper.
    """
    positive = (left.index_select(0, entries.row) * right.index_select(0, entries.column)).sum(-1)
    if bias is not None:
        positive = positive + bias[entries.column]
    sampled = right[drawn]
    if bias is None and len(left) * len(drawn) > left.shape[1] * (len(left) + len(drawn)):
        everything = ((left.T @ left) * (sampled.T @ sampled)).sum()
    else:
        scores = left @ sampled.T
        everything = (scores if bias is None else scores + bias[drawn]).square().sum()
    missing = everything - (inside[entries.column] * positive.square()).sum()
    residual = (positive - 1).square()
    if weight is not None:
        residual = residual * weight[entries.column]
    return alpha * residual.sum() + missing


def factor_scores(user: torch.Tensor, item: torch.Tensor) -> Scorer:
    """Scorer user @ item.T of (users, d) and (items, d) factors."""
    return lambda users: user[torch.from_numpy(users)] @ item.T


def validator(data: Data, scores: Callable[[], Scorer]) -> Callable[[], float]:
    """Recall@20 on the validation side of whatever ``scores`` gives at the time."""
    nobody = np.zeros(len(data.items), dtype=bool)

    def validate() -> float:
        with torch.no_grad():
            return evaluate(scores(), data.valid, data.seen, nobody, ks=(20,), views=("overall",)).mean(
                "recall@20 overall"
            )

    return validate


def fit_mf(
    data: Data,
    options: BackboneOptions,
    schedule: Schedule,
    seed: Seed = 0,
    *,
    weight: np.ndarray | None = None,
    name: str = "mf",
    progress: Progress | None = None,
) -> Backbone:
    """Matrix factorisation: f_ui = p_u . q_i with ``options.width`` dimensions. weight: (items,) of positives (for
    IPW).
    """
    user, item = embeddings(data, options.width, seed)
    weights = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)

    def step(users: np.ndarray, generator: np.random.Generator) -> float:
        entries = history(data.train, users)
        drawn = draw_items(len(data.items), options.share, generator)
        rows = user[torch.from_numpy(users)]
        loss = squared_loss(rows, item, entries, drawn, options.alpha, weights) / len(users)
        loss.backward()
        return loss.item()

    check = validator(data, lambda: factor_scores(user, item))
    curve = train(name, [user, item], step, check, np.arange(len(data.users)), schedule, spawn(seed, 2)[1], progress)
    user, item = user.detach(), item.detach()
    return Backbone(name, "factors", factor_scores(user, item), {"user": user, "item": item}, curve)


def embeddings(data: Data, width: int, seed: Seed, scale: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """User and item embeddings, normal with standard deviation ``scale``."""
    generator = torch_generator(spawn(seed, 2)[0])
    user = (torch.randn(len(data.users), width, generator=generator) * scale).requires_grad_()
    item = (torch.randn(len(data.items), width, generator=generator) * scale).requires_grad_()
    return user, item


def adjacency(matrix: sparse.csr_matrix) -> torch.Tensor:
    """(users + items) square torch CSR of D^-1/2 A D^-1/2, A the bipartite graph of ``matrix``."""
    degree_user = np.diff(matrix.indptr)
    degree_item = np.bincount(matrix.indices, minlength=matrix.shape[1])
    scale_user, scale_item = (1 / np.sqrt(np.maximum(degree, 1)) for degree in (degree_user, degree_item))
    scaled = sparse.diags_array(scale_user) @ matrix @ sparse.diags_array(scale_item)
    graph = sparse.block_array([[None, scaled], [scaled.T, None]], format="csr", dtype=np.float32)
    starts, columns, entries = (torch.from_numpy(part) for part in (graph.indptr, graph.indices, graph.data))
    with warnings.catch_warnings():  # torch calls its CSR support a beta; the product with a dense matrix is all we use
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, entries, graph.shape, check_invariants=True)


def propagate(graph: torch.Tensor, layer: torch.Tensor, layers: int) -> torch.Tensor:
    """Mean of layers 0..L of (nodes, d) embeddings, each the graph times the one before (LightGCN, eq. 3-4, equal
    weights).
    """
    total = layer.clone()
    for _ in range(layers):
        layer = graph @ layer
        total += layer
    return total / (layers + 1)


def fit_lightgcn(
    data: Data, options: BackboneOptions, schedule: Schedule, seed: Seed = 0, *, progress: Progress | None = None
) -> Backbone:
    """LightGCN: dot products of embeddings averaged over ``options.layers`` propagations.

    Propagation is a symmetric linear map, so the gradient of the embeddings is the propagated gradient of what came out
    of it: one pass each way a batch, however the batch is cut to keep memory low.
    """
    graph = adjacency(data.train)
    base = torch.cat([tensor.detach() for tensor in embeddings(data, options.width, seed)]).requires_grad_()
    count = len(data.users)

    def factors() -> torch.Tensor:
        with torch.no_grad():
            return propagate(graph, base, options.layers)

    def step(users: np.ndarray, generator: np.random.Generator) -> float:
        leaf = factors().requires_grad_()
        drawn = draw_items(len(data.items), options.share, generator)
        total = 0.0
        for part in chunks(users, 1024):
            entries = history(data.train, part)
            rows = leaf[torch.from_numpy(part)]
            loss = squared_loss(rows, leaf[count:], entries, drawn, options.alpha) / len(users)
            loss.backward()
            total += loss.item()
        assert leaf.grad is not None
        base.grad = propagate(graph, leaf.grad, options.layers)
        return total

    def scorer() -> Scorer:
        final = factors()
        return factor_scores(final[:count], final[count:])

    check = validator(data, scorer)
    curve = train("lightgcn", [base], step, check, np.arange(count), schedule, spawn(seed, 2)[1], progress)
    final = factors()
    user, item = final[:count].clone(), final[count:].clone()
    return Backbone("lightgcn", "factors", factor_scores(user, item), {"user": user, "item": item}, curve)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """A trainable tensor with entries uniform in [-bound, bound]."""
    return ((torch.rand(shape, generator=generator) * 2 - 1) * bound).requires_grad_()


def vae_tensors(items: int, options: BackboneOptions, seed: Seed) -> dict[str, torch.Tensor]:
    """Weights of MultiVAE items-hidden-latent-hidden-items, Glorot uniform, zero biases."""
    generator = torch_generator(seed)
    hidden, latent = options.hidden, options.latent
    shapes = {
        "encoder": (items, hidden),
        "latent": (2 * latent, hidden),
        "decoder": (hidden, latent),
        "output": (items, hidden),
    }
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = uniform(shape, math.sqrt(6 / sum(shape)), generator)
    for name, size in (("encoder", hidden), ("latent", 2 * latent), ("decoder", hidden), ("output", items)):
        tensors[f"{name}_bias"] = torch.zeros(size, requires_grad=True)
    return tensors


def unit_bag(weight: torch.Tensor, entries: History, keep: torch.Tensor | None = None) -> torch.Tensor:
    """(batch, d) x_u / ||x_u|| times ``weight`` (items, d) for binary histories; a user without history gives zeros.

    keep: (entries,) multipliers (dropout on the history, applied after the norm is taken).
    """
    scale = entries.sizes.clamp(min=1).to(weight.dtype).rsqrt()[entries.row]
    if keep is not None:
        scale = scale * keep
    return torch.nn.functional.embedding_bag(
        entries.column, weight, entries.starts, mode="sum", per_sample_weights=scale
    )


def vae_latent(tensors: dict[str, torch.Tensor], entries: History, keep: torch.Tensor | None = None) -> torch.Tensor:
    """(batch, 2 latent): mean and log-variance of the latent code."""
    inner = torch.tanh(unit_bag(tensors["encoder"], entries, keep) + tensors["encoder_bias"])
    return torch.nn.functional.linear(inner, tensors["latent"], tensors["latent_bias"])


def vae_decode(tensors: dict[str, torch.Tensor], code: torch.Tensor) -> torch.Tensor:
    """(batch, hidden) last hidden layer of the decoder."""
    return torch.tanh(torch.nn.functional.linear(code, tensors["decoder"], tensors["decoder_bias"]))


def vae_scores(tensors: dict[str, torch.Tensor], train_matrix: sparse.csr_matrix) -> Scorer:
    """Scorer of MultiVAE: decoded mean of the latent code, no dropout."""

    def scores(users: np.ndarray) -> torch.Tensor:
        code = vae_latent(tensors, history(train_matrix, users)).chunk(2, dim=1)[0]
        return torch.nn.functional.linear(vae_decode(tensors, code), tensors["output"], tensors["output_bias"])

    return scores


def fit_vae(
    data: Data, options: BackboneOptions, schedule: Schedule, seed: Seed = 0, *, progress: Progress | None = None
) -> Backbone:
    """MultiVAE (decoder latent-hidden-items) under the squared loss, dropout on the history and a weighted KL term."""
    weights_seed, order_seed = spawn(seed, 2)
    tensors = vae_tensors(len(data.items), options, weights_seed)

    def step(users: np.ndarray, generator: np.random.Generator) -> float:
        entries = history(data.train, users)
        kept = generator.random(len(entries.row)) >= options.dropout
        keep = torch.from_numpy(kept.astype(np.float32) / (1 - options.dropout))
        mean, log_variance = vae_latent(tensors, entries, keep).chunk(2, dim=1)
        noise = torch.from_numpy(generator.standard_normal(tuple(mean.shape), dtype=np.float32))
        inner = vae_decode(tensors, mean + noise * torch.exp(log_variance / 2))
        drawn = draw_items(len(data.items), options.share, generator)
        output, bias = tensors["output"], tensors["output_bias"]
        loss = squared_loss(inner, output, entries, drawn, options.alpha, bias=bias)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        loss = (loss + options.kl * divergence) / len(users)
        loss.backward()
        return loss.item()

    check = validator(data, lambda: vae_scores(tensors, data.train))
    users = np.arange(len(data.users))
    curve = train("vae", list(tensors.values()), step, check, users, schedule, order_seed, progress)
    final = {name: tensor.detach() for name, tensor in tensors.items()}
    return Backbone("vae", "vae", no_gradient(vae_scores(final, data.train)), final, curve)


def no_gradient(scorer: Scorer) -> Scorer:
    """``scorer`` without gradients, whatever it is made of."""

    def scores(users: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return scorer(users)

    return scores
