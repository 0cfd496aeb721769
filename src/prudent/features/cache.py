"""Features on disk: memory-mapped, shared by processes and machines, valid whenever a process dies.

A folder a fingerprint, holding shards (``features.shards``) that are only ever added: each is written under another
name, flushed, renamed. A row's key is a 128-bit hash of its text's ids. The index is rebuilt from the shards, so there
is nothing to fall out of step with them. A row that two processes computed at once is there twice and read once; many
small shards are merged into one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.features.large import StoredRows, gather
from prudent.features.shards import SUFFIXES, Shard, open_shard, write_shard
from prudent.files import made_cache

FORMAT = "1"  # of features: changes whenever the same text would get another vector
MERGE_FROM = 32  # small shards in a folder before they are merged
MERGE_BYTES = 16 * 2**20  # larger shards stay as they are: rewriting them would cost more than it saves
FLUSH_ROWS, FLUSH_SECONDS = 16384, 15.0
STALE_SECONDS = 3600.0


def row_key(prompt: Sequence[int], response: Sequence[int]) -> tuple[int, int]:
    """128-bit hash, as two signed 64-bit integers, of a text's ids and of where its response begins."""
    ids = np.asarray([len(prompt), *prompt, *response], dtype=np.int32)
    return halves(hashlib.sha256(ids.tobytes()).digest())


def halves(digest: bytes) -> tuple[int, int]:
    """The first 128 bits of a hash as two signed 64-bit integers."""
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:16], "little", signed=True)


class FeatureCache:
    """Features of one fingerprint in one folder.

    ``held`` tells which keys are held, ``find`` reads them too; ``add`` buffers rows and writes a shard now and then;
    ``flush`` writes what is buffered. Only complete shards are ever visible.
    """

    def __init__(self, folder: str | Path, width: int) -> None:
        self.folder, self.width = Path(folder), width
        made_cache(self.folder)
        self._shards: dict[str, Shard] = {}
        self._index = Index()
        self._pending: list[tuple[np.ndarray, torch.Tensor]] = []
        self._flushed = time.monotonic()

    def __len__(self) -> int:
        self.refresh()
        return self._index.distinct()

    def refresh(self) -> None:
        """Take in the shards that were added, by whichever process, since the last look."""
        for _ in range(3):  # a shard may be merged away between listing and opening
            names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIXES)}
            if names == set(self._shards):
                return
            if gone := set(self._shards) - names:
                for name in gone:
                    del self._shards[name]
                self._index = Index()
                for name in sorted(self._shards):
                    self._index.add(self._shards[name])
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(names - set(self._shards)):
                    self._shards[name] = open_shard(self.folder / name, self.width)
                    self._index.add(self._shards[name])

    def held(self, keys: np.ndarray) -> np.ndarray:
        """Mask (n,) of the keys (n, 2) that are held; no features are read."""
        self.refresh()
        return self._index.locate(keys)[0]

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """(mask (n,) of the keys that are held, their features (held, width) float32). keys: (n, 2) int64."""
        self.refresh()
        held, shard, row = self._index.locate(keys)
        return held, torch.from_numpy(gather(self._index.features, shard[held], row[held], self.width))

    def rows(self, keys: np.ndarray) -> StoredRows:
        """Features (n, width) of keys (n, 2) that are all held, read from the shards when they are asked for."""
        self.refresh()
        held, shard, row = self._index.locate(keys)
        if not held.all():
            raise PrudentError(
                f"{int((~held).sum())} of {len(keys)} features aren't in the cache {self.folder}; every process must "
                "see the same one (PRUDENT_CACHE)"
            )
        return StoredRows(self._index.features, shard, row, self.width)

    @property
    def writable(self) -> bool:
        """Whether rows can be added."""
        return os.access(self.folder, os.W_OK | os.X_OK)

    def require_writable(self) -> None:
        """PrudentError where no row can be added, before any is computed."""
        if not self.writable:
            raise PrudentError(
                f"the feature cache {self.folder} is not writable; set PRUDENT_CACHE to a folder that can be written"
            )

    def add(self, keys: np.ndarray, features: torch.Tensor) -> None:
        """Rows to keep; on disk at the latest when ``flush`` is called."""
        self._pending.append((keys, features))
        rows = sum(len(k) for k, _ in self._pending)
        if rows >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write buffered rows as one shard: under a temporary name, flushed to disk, renamed."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        keys = np.concatenate([keys for keys, _ in self._pending])
        features = torch.cat([features for _, features in self._pending])
        self._write(keys, features)
        self._pending = []
        self._merge()

    def _write(self, keys: np.ndarray, features: torch.Tensor) -> None:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        temporary = self.folder / f"{name}.part"
        try:
            write_shard(temporary, keys, features)
            os.rename(temporary, self.folder / f"{name}.parquet")
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PrudentError(
                f"the feature cache {self.folder} can't be written ({error}); free some room there, or set "
                "PRUDENT_CACHE to another folder"
            ) from error

    def _merge(self) -> None:
        """Merge many small shards into one, in one process at a time; readers keep what they have mapped."""
        small = [name for name, about in _listed(self.folder, SUFFIXES) if about.st_size < MERGE_BYTES]
        if len(small) < MERGE_FROM:
            return
        with _try_lock(self.folder / "merge.lock") as ours:
            if not ours:
                return
            self.refresh()
            names = [name for name in small if name in self._shards]
            keys = np.concatenate([self._shards[name].keys for name in names])
            first = np.sort(np.unique(keys, axis=0, return_index=True)[1])  # rows that were computed together stay so
            features = np.concatenate([self._shards[name].features for name in names])
            self._write(keys[first], torch.from_numpy(features[first]))
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            for name, about in _listed(self.folder, (".part",)):  # what a killed writer left
                if time.time() - about.st_mtime > STALE_SECONDS:
                    (self.folder / name).unlink(missing_ok=True)


def _listed(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Name and state of the folder's files; those that another process merges or renames meanwhile are left out."""
    for entry in os.scandir(folder):
        if entry.name.endswith(suffixes):
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat()


class Run(NamedTuple):
    """Distinct keys (n, 2), sorted, and where each one's row is: shard (n,), row in it (n,)."""

    keys: np.ndarray
    shard: np.ndarray
    row: np.ndarray


class Index:
    """Where each key's row is: a few sorted runs, each at least twice as long as the next, so that taking in a shard
    doesn't sort the others again."""

    def __init__(self) -> None:
        self.features: list[np.ndarray] = []
        self.runs: list[Run] = []

    def add(self, shard: Shard) -> None:
        """Take in one more shard."""
        rows, number = len(shard.keys), len(self.features)
        self.features.append(shard.features)
        self.runs.append(_sorted(Run(shard.keys, np.full(rows, number, np.int32), np.arange(rows))))
        while len(self.runs) > 1 and len(self.runs[-2].keys) < 2 * len(self.runs[-1].keys):
            self._join()

    def _join(self) -> None:
        last, before = self.runs.pop(), self.runs.pop()
        self.runs.append(_sorted(Run(*map(np.concatenate, zip(before, last)))))

    def distinct(self) -> int:
        """Number of keys, each counted once."""
        while len(self.runs) > 1:
            self._join()
        return len(self.runs[0].keys) if self.runs else 0

    def locate(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mask (n,) of the keys that are held, shard (n,), row in it (n,)); the latter two are 0 where it isn't."""
        held, shard, row = np.zeros(len(keys), bool), np.zeros(len(keys), np.int32), np.zeros(len(keys), np.int64)
        for run in self.runs:
            wanted = np.flatnonzero(~held)
            if not len(wanted):
                break
            index = np.searchsorted(run.keys[:, 0], keys[wanted, 0]).clip(max=len(run.keys) - 1)
            # Two keys with one first half and different second halves would take 2**32 texts; it is computed again.
            same = (run.keys[index] == keys[wanted]).all(-1)
            wanted, index = wanted[same], index[same]
            held[wanted], shard[wanted], row[wanted] = True, run.shard[index], run.row[index]
        return held, shard, row


def _sorted(run: Run) -> Run:
    order = np.lexsort((run.keys[:, 1], run.keys[:, 0]))
    keys = run.keys[order]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(-1)
    return Run(keys[fresh], *(part[order][fresh] for part in run[1:]))


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Whether the lock was free; the system releases it when the process ends, however it ends."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
