"""The bootstrap on arrays: exact resampled sums for a million values and a thousand rounds in seconds, memory bounded.

A round of Efron's bootstrap of n values is n draws with replacement, and a mean needs only the *sum* of the draws. Two
exact ways to that sum are used, and both give the very distribution of the plain bootstrap:

- few distinct values (correctness in {0, 1/2, 1}, say): the number of times that each distinct value is drawn is
  multinomial with the values' shares, so the counts are drawn at once and never the n items;
- many distinct values: the number of draws that fall into each block of 65,536 values is multinomial with the blocks'
  shares, and given that number the draws within a block are independent and uniform. A block stays in the processor's
  cache, and an index into a full block is sixteen random bits.

A clustered round draws whole clusters, and its mean is the sum of the drawn clusters' sums over the sum of their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from prudent.seeding import Seed, numpy_generator, spawn

BLOCK = 65_536  # values per block: indices are 16 bits wide and the block's float64 values fill 512 KiB
CHUNK = 4_000_000  # draws held at once for small tables: 32 MB of indices
DISTINCT = 4_096  # at most this many distinct rows are drawn by their multinomial counts


def fast_generator(seed: Seed) -> np.random.Generator:
    """Generator for bulk draws (SFC64: about twice as fast as the default for whole words)."""
    state = int(numpy_generator(seed).integers(0, 2**63))
    return np.random.Generator(np.random.SFC64(state))


def distinct_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Distinct rows of ``table`` and their counts, or None when there are more than DISTINCT of them."""
    probe = table[:: max(1, len(table) // 20_000)]  # cheap refusal before the whole table is sorted
    if len(np.unique(probe, axis=0)) > DISTINCT:
        return None
    if table.shape[1] == 1:
        rows, counts = np.unique(table[:, 0], return_counts=True)
        rows = rows[:, None]
    else:
        rows, counts = np.unique(table, axis=0, return_counts=True)
    return (rows, counts) if len(rows) <= DISTINCT else None


def resampled_sums(table: np.ndarray, rounds: int, seed: Seed) -> np.ndarray:
    """Column sums of ``rounds`` bootstrap resamples of the rows of ``table`` (n, c): (rounds, c) float64.

    Columns share their draws, so a difference or a ratio of two columns' sums is a paired one. Memory: the table, and
    at most about 64 MB beside it, whatever n and the rounds.
    """
    table = np.ascontiguousarray(table, dtype=np.float64)
    n = len(table)
    few = distinct_rows(table) if n > 2 else None
    generator = fast_generator(spawn(seed, 1)[0])
    if few is not None and len(few[0]) < n:
        return counted_sums(few[0], few[1] / n, n, rounds, generator)
    if n <= BLOCK:
        sums = np.empty((rounds, table.shape[1]))
        step = max(1, CHUNK // n)
        for start in range(0, rounds, step):
            index = generator.integers(0, n, size=(min(step, rounds - start), n))
            for column in range(table.shape[1]):
                sums[start : start + step, column] = table[:, column].take(index).sum(axis=1)
        return sums
    return blocked_sums(table, [n], rounds, seed)[:, 0]


def counted_sums(
    rows: np.ndarray, shares: np.ndarray, n: int, rounds: int, generator: np.random.Generator
) -> np.ndarray:
    """Sums by the multinomial counts of distinct rows."""
    sums = np.empty((rounds, rows.shape[1]))
    step = max(1, CHUNK // len(rows))
    for start in range(0, rounds, step):
        counts = generator.multinomial(n, shares, size=min(step, rounds - start))
        sums[start : start + step] = counts.astype(np.float64) @ rows
    return sums


def blocked_sums(table: np.ndarray, strata: Sequence[int], rounds: int, seed: Seed) -> np.ndarray:
    """Sums within consecutive strata of rows (their sizes given): (rounds, strata, columns).

    How many draws fall into each block of each stratum first (multinomial), then which rows within the block. Each
    block has a generator of its own, so the result is the same on any number of threads.
    """
    first = np.concatenate([[0], np.cumsum(strata)]).tolist()
    blocks = [
        (start, min(BLOCK, stop - start), stratum)
        for stratum, (begin, stop) in enumerate(pairwise(first))
        for start in range(begin, stop, BLOCK)
    ]
    *seeds, allotment = spawn(seed, len(blocks) + 1)
    per_block = fast_generator(allotment).multinomial(
        len(table), [size / len(table) for _, size, _ in blocks], size=rounds
    )
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        parts = pool.map(
            lambda b: one_block(table[blocks[b][0] : blocks[b][0] + blocks[b][1]], per_block[:, b], seeds[b]),
            range(len(blocks)),
        )
        sums = np.zeros((rounds, len(strata), table.shape[1]))
        for (_, _, stratum), part in zip(blocks, parts):
            sums[:, stratum] += part
    return sums


def one_block(rows: np.ndarray, counts: np.ndarray, seed: Seed) -> np.ndarray:
    """Sums of ``counts[r]`` uniform draws of ``rows`` for each round r: (rounds, columns)."""
    generator = fast_generator(seed)
    columns = [np.ascontiguousarray(column) for column in rows.T]
    buffer = np.empty(int(counts.max()))
    sums = np.empty((len(counts), len(columns)))
    for number, count in enumerate(counts.tolist()):
        if len(rows) == BLOCK:
            words = generator.integers(0, 2**64, size=count // 4 + 1, dtype=np.uint64)
            index = words.view(np.uint16)[:count].astype(np.intp)
        else:
            index = generator.integers(0, len(rows), size=count)
        for column, values in enumerate(columns):
            sums[number, column] = values.take(index, out=buffer[:count], mode="clip").sum()
    return sums


def cluster_totals(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the columns of ``values`` (n, c) within each cluster, and the clusters' sizes."""
    _, code = np.unique(clusters, return_inverse=True)
    code = code.reshape(-1)
    sizes = np.bincount(code).astype(np.float64)
    sums = np.stack([np.bincount(code, weights=column) for column in values.T], axis=1)
    return sums, sizes


def resampled_means(values: np.ndarray, rounds: int, seed: Seed, clusters: np.ndarray | None = None) -> np.ndarray:
    """Column means of bootstrap resamples of ``values`` (n, c): (rounds, c); whole clusters are drawn where given."""
    if clusters is None:
        return resampled_sums(values, rounds, seed) / len(values)
    sums, sizes = cluster_totals(values, clusters)
    drawn = resampled_sums(np.concatenate([sums, sizes[:, None]], axis=1), rounds, seed)
    return drawn[:, :-1] / drawn[:, -1:]
