"""One seed in, independent streams below it: same seed, same machine, same bits.

Features that are partly read from the cache are the exception: see docs/features.md."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

Seed = int | np.random.SeedSequence


def sequence(seed: Seed) -> np.random.SeedSequence:
    """SeedSequence of an integer seed; a SeedSequence is rebuilt so that its streams don't depend on earlier spawns."""
    if isinstance(seed, np.random.SeedSequence):
        return np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key)
    return np.random.SeedSequence(int(seed))


def spawn(seed: Seed, count: int) -> list[np.random.SeedSequence]:
    """``count`` independent child seeds; the first n children are the same for every count >= n."""
    return sequence(seed).spawn(count)


def torch_generator(seed: Seed, device: str | torch.device = "cpu") -> torch.Generator:
    """Torch generator seeded from ``seed``."""
    state = sequence(seed).generate_state(2, np.uint32)
    return torch.Generator(device=device).manual_seed((int(state[0]) << 31) ^ int(state[1]))


@contextlib.contextmanager
def seeded(number: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Inside, torch's global generators, that of ``device`` too, start from ``number``; afterwards as before."""
    where = torch.device(device)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(number)
        yield


def numpy_generator(seed: Seed) -> np.random.Generator:
    """NumPy generator seeded from ``seed``."""
    return np.random.default_rng(sequence(seed))
