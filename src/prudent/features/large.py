"""Features of more texts than memory holds: they go to a file as they are computed, and are read from there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

HELD_BYTES = 2**30  # up to here features are held in memory


def encode_held(encoder: Any, prompts: Sequence[Any], responses: Sequence[Any]) -> torch.Tensor | np.memmap:
    """``encoder.encode`` (N, d) float32; above HELD_BYTES as a memory map of a nameless file in $TMPDIR, which goes
    with the last reference to it."""
    shape = (len(prompts), encoder.width)
    if 4 * shape[0] * shape[1] <= HELD_BYTES:
        return encoder.encode(prompts, responses)
    with tempfile.TemporaryFile(prefix="prudent-") as file:
        held = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    for rows, features in encoder.pieces(prompts, responses):
        held[rows] = features.numpy()
    return held
