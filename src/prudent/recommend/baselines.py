"""What a recommender has to beat: popularity, item neighbours, alternating least squares, inverse propensities."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.batches import history
from prudent.recommend.metrics import Scorer
from prudent.recommend.models import Backbone, BackboneOptions, factor_scores, fit_mf
from prudent.recommend.splits import Data
from prudent.recommend.training import Progress, Schedule
from prudent.seeding import Seed, numpy_generator


def popularity_scores(counts: torch.Tensor) -> Scorer:
    """Every user gets the items' popularity."""
    return lambda users: counts.expand(len(users), -1)


def fit_popularity(data: Data) -> Backbone:
    """Number of training positives of each item, the same for every user."""
    counts = torch.from_numpy(data.popularity.astype(np.float32))
    return Backbone("popularity", "popularity", popularity_scores(counts), {"counts": counts})


def csr_tensors(matrix: sparse.csr_matrix) -> dict[str, torch.Tensor]:
    """A sparse matrix as tensors for a safetensors file."""
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
    return {name: torch.from_numpy(part) for name, part in zip(("indptr", "indices", "values"), parts)}


def csr_matrix(tensors: dict[str, torch.Tensor], columns: int) -> sparse.csr_matrix:
    """Inverse of ``csr_tensors``."""
    indptr, indices, values = (tensors[name].numpy() for name in ("indptr", "indices", "values"))
    return sparse.csr_matrix((values, indices, indptr), shape=(len(indptr) - 1, columns))


def knn_scores(similarity: sparse.csr_matrix, train: sparse.csr_matrix) -> Scorer:
    """Sum of an item's similarities to the items of the user's history."""
    return lambda users: torch.from_numpy((train[users] @ similarity).toarray())


def fit_knn(data: Data, neighbours: int = 100, shrink: float = 10.0) -> Backbone:
    """Item-kNN: cosine of item columns, damped by ``shrink`` in its denominator, the ``neighbours`` highest of each
    item kept.

    Built by blocks of items, so that memory is a block times the catalogue.
    """
    if neighbours < 1 or shrink < 0:
        raise PrudentError(f"neighbours {neighbours} must be at least 1 and shrink {shrink} not negative")
    columns = data.train.T.tocsr()
    norm = np.sqrt(np.maximum(data.popularity, 1)).astype(np.float32)
    count = len(data.items)
    kept = min(neighbours, count - 1)
    blocks = []
    for start in range(0, count, 512):
        stop = min(start + 512, count)
        together = (columns[start:stop] @ data.train).toarray()
        cosine = torch.from_numpy(together / (norm[start:stop, None] * norm[None, :] + shrink))
        cosine[torch.arange(stop - start), torch.arange(start, stop)] = 0
        values, positions = torch.topk(cosine, kept, dim=1)
        rows = np.repeat(np.arange(stop - start), kept)
        entries = (values.numpy().ravel(), (rows, positions.numpy().ravel()))
        blocks.append(sparse.csr_matrix(entries, shape=(stop - start, count)))
    # Row j of the blocks holds the neighbours of j; a user's history must reach the items that count it as a neighbour.
    similarity = sparse.vstack(blocks).tocsr().T.tocsr()
    similarity.eliminate_zeros()
    return Backbone("item-kNN", "knn", knn_scores(similarity, data.train), csr_tensors(similarity))


def fit_als(data: Data, options: BackboneOptions, seed: Seed = 0) -> Backbone:
    """Alternating least squares of the package ``implicit`` (Hu, Koren, Volinsky 2008): factors of preference 1 against
    0.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise PrudentError("the ALS backbone needs the package implicit: pip install 'prudent[recommend]'") from error
    from threadpoolctl import threadpool_limits

    state = int(numpy_generator(seed).integers(2**31 - 1))
    with warnings.catch_warnings(), threadpool_limits(1, "blas"), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore", RuntimeWarning)  # about BLAS threads, which are limited above
        model = AlternatingLeastSquares(
            factors=options.factors,
            regularization=options.regularisation,
            alpha=options.confidence,
            iterations=options.iterations,
            num_threads=torch.get_num_threads(),
            random_state=state,
        )
        model.fit(data.train.astype(np.float32), show_progress=False)
    user, item = (torch.from_numpy(np.array(part)) for part in (model.user_factors, model.item_factors))
    return Backbone("als", "factors", factor_scores(user, item), {"user": user, "item": item})


def propensity_weights(popularity: np.ndarray, power: float = 0.5, floor: float = 0.1) -> np.ndarray:
    """(items,) weights of positives: 1 / max(floor, (popularity / highest popularity)^power), their mean over positives
    1.

    Propensity by popularity as in Saito et al. 2020 (Rel-MF, arXiv 1909.03601), power 1/2; the floor bounds the
    variance.
    """
    if not 0 < floor <= 1 or power < 0:
        raise PrudentError(f"propensity floor {floor} must be in (0, 1] and power {power} not negative")
    weight = 1 / np.maximum((popularity / popularity.max()) ** power, floor)
    return weight * popularity.sum() / (weight @ popularity)


def fit_ipw(
    data: Data, options: BackboneOptions, schedule: Schedule, seed: Seed = 0, progress: Progress | None = None
) -> Backbone:
    """Matrix factorisation whose positives are weighted by inverse propensity, so that the tail counts for more."""
    weight = propensity_weights(data.popularity)
    return replace(fit_mf(data, options, schedule, seed, weight=weight, progress=progress, name="ipw"), name="ipw")


def sparse_scores(matrix: sparse.csr_matrix) -> Scorer:
    """Scorer that reads the rows of a sparse matrix of scores; pairs that it doesn't hold score 0."""

    def scores(users: np.ndarray) -> torch.Tensor:
        entries = history(matrix, users)
        dense = torch.zeros(len(users), matrix.shape[1])
        first, last = matrix.indptr[users], matrix.indptr[users + 1]
        values = [matrix.data[begin:end] for begin, end in zip(first, last)]
        dense[entries.row, entries.column] = torch.from_numpy(np.concatenate(values).astype(np.float32))
        return dense

    return scores
