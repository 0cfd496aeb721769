"""Features on disk: memory-mapped, shared by processes, valid whenever a process dies.

A folder a fingerprint, holding shards that are only ever added: each is written under another name, flushed, renamed. A
shard is a safetensors file with ``keys`` (rows, 2) int64, a 128-bit hash of each text's ids, and ``features``
(rows, width) float32. The index is rebuilt from the shards, so there is nothing to fall out of step with them. A row
that two processes computed at once is there twice and read once; many small shards are merged into one.
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

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prudent.errors import PrudentError

FORMAT = "1"  # of features: changes whenever the same text would get another vector
MERGE_FROM = 32  # small shards in a folder before they are merged
MERGE_BYTES = 16 * 2**20  # larger shards stay as they are: rewriting them would cost more than it saves
FLUSH_ROWS, FLUSH_SECONDS = 16384, 15.0
STALE_SECONDS = 3600.0


def row_key(prompt: Sequence[int], response: Sequence[int]) -> tuple[int, int]:
    """128-bit hash, as two signed 64-bit integers, of a text's ids and of where its response begins."""
    ids = np.asarray([len(prompt), *prompt, *response], dtype=np.int32)
    digest = hashlib.sha256(ids.tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:16], "little", signed=True)


class FeatureCache:
    """Features of one fingerprint in one folder.

    ``find`` tells which keys are held and reads them; ``add`` buffers rows and writes a shard now and then; ``flush``
    writes what is buffered. Only complete shards are ever visible.
    """

    def __init__(self, folder: str | Path, width: int) -> None:
        self.folder, self.width = Path(folder), width
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PrudentError(
                f"the feature cache {self.folder} can't be made ({error.strerror}); set PRUDENT_CACHE to a folder "
                "that can be written, or turn the cache off"
            ) from error
        self._shards: dict[str, torch.Tensor] = {}  # name -> memory-mapped features
        self._keys: dict[str, np.ndarray] = {}
        self._index = _Index([], [])
        self._pending: list[tuple[np.ndarray, torch.Tensor]] = []
        self._flushed = time.monotonic()

    def __len__(self) -> int:
        self.refresh()
        return self._index.distinct

    def refresh(self) -> None:
        """Take in the shards that were added, by whichever process, since the last look."""
        for _ in range(3):  # a shard may be merged away between listing and opening
            names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
            if names == set(self._shards):
                return
            for name in set(self._shards) - names:
                del self._shards[name], self._keys[name]
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(names - set(self._shards)):
                    self._open(name)
            order = sorted(self._shards)
            self._index = _Index([self._keys[name] for name in order], [self._shards[name] for name in order])

    def _open(self, name: str) -> None:
        path = self.folder / name
        try:
            with safe_open(path, framework="pt") as file:
                keys, features = file.get_tensor("keys").numpy(), file.get_tensor("features")
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError) as error:
            raise PrudentError(
                f"cache file {path} is damaged ({error}); remove it, and its rows are computed again"
            ) from error
        if features.ndim != 2 or features.shape[1] != self.width or len(keys) != len(features):
            raise PrudentError(
                f"cache file {path} holds features of shape {tuple(features.shape)}, expected width {self.width}; "
                "remove it, and its rows are computed again"
            )
        self._keys[name], self._shards[name] = keys, features

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """(mask (n,) of the keys that are held, their features (held, width) float32). keys: (n, 2) int64."""
        self.refresh()
        return self._index.read(keys, self.width)

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
            save_file(
                {"keys": torch.from_numpy(np.ascontiguousarray(keys)), "features": features.contiguous()}, temporary
            )
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.rename(temporary, self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise PrudentError(
                f"the feature cache {self.folder} can't be written ({error}); free some room there, or turn the "
                "cache off"
            ) from error

    def _merge(self) -> None:
        """Merge many small shards into one, in one process at a time; readers keep what they have mapped."""
        small = [
            entry.name
            for entry in os.scandir(self.folder)
            if entry.name.endswith(".safetensors") and entry.stat().st_size < MERGE_BYTES
        ]
        if len(small) < MERGE_FROM:
            return
        with _try_lock(self.folder / "merge.lock") as ours:
            if not ours:
                return
            self.refresh()
            names = [name for name in small if name in self._shards]
            keys = np.concatenate([self._keys[name] for name in names])
            _, first = np.unique(keys, axis=0, return_index=True)
            features = torch.cat([self._shards[name] for name in names])
            self._write(keys[first], features[torch.from_numpy(first)])
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            for entry in os.scandir(self.folder):  # what a killed writer left
                if entry.name.endswith(".part") and time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)


class _Index:
    """Where each key's row is: the keys of all shards, sorted by their first half."""

    def __init__(self, keys: list[np.ndarray], features: list[torch.Tensor]) -> None:
        self.features = features
        whole = np.concatenate(keys) if keys else np.empty((0, 2), np.int64)
        shard = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
        row = np.concatenate([np.arange(len(k)) for k in keys]) if keys else np.empty(0, np.int64)
        order = np.lexsort((whole[:, 1], whole[:, 0]))
        whole, shard, row = whole[order], shard[order], row[order]
        fresh = np.ones(len(whole), bool)
        fresh[1:] = (whole[1:] != whole[:-1]).any(-1)
        self.keys, self.shard, self.row = whole[fresh], shard[fresh], row[fresh]
        self.distinct = len(self.keys)

    def read(self, keys: np.ndarray, width: int) -> tuple[np.ndarray, torch.Tensor]:
        if not self.distinct or not len(keys):
            return np.zeros(len(keys), bool), torch.empty(0, width)
        index = np.searchsorted(self.keys[:, 0], keys[:, 0]).clip(max=self.distinct - 1)
        # Two keys with one first half and different second halves would take 2**32 texts; such a row is computed again.
        held = (self.keys[index] == keys).all(-1)
        index = index[held]
        found = torch.empty(len(index), width)
        for number in np.unique(self.shard[index]):
            here = np.flatnonzero(self.shard[index] == number)
            found[torch.from_numpy(here)] = self.features[number][torch.from_numpy(self.row[index[here]])]
        return held, found


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
