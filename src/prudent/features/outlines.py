"""Outlines of rendered texts: enough to find their features in a cache. They stand on disk beside the features, so that
a text whose features are there is not rendered again, and its tokenizer not even loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.features.cache import FeatureCache, halves, row_key
from prudent.features.rendering import Prompt, Rendered, Response, identity
from prudent.files import hash_text

FOLDER, WIDTH = "texts", 7  # of a cache's folder; float32 of a row, whose bits are a key's two int64 and three int32


class Outlines(NamedTuple):
    """Of n texts, int64: keys (n, 2) of their features, tokens (n,) of the prompt and of the response, and how many the
    length limit cut off (n,)."""

    keys: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    removed: np.ndarray


def outlines_of(texts: Sequence[Rendered]) -> Outlines:
    """Outlines of rendered texts."""
    keys = np.array([row_key(text.prompt, text.response) for text in texts], np.int64).reshape(-1, 2)
    sizes = [(len(text.prompt), len(text.response), text.removed) for text in texts]
    return Outlines(keys, *np.array(sizes, np.int64).reshape(-1, 3).T)


def text_keys(prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
    """(n, 2) int64: 128-bit hashes of conversations as they are given."""
    pairs = zip(prompts, responses, strict=True)
    hashes = [bytes.fromhex(hash_text(*identity(prompt), *identity(response))) for prompt, response in pairs]
    return np.array([halves(digest) for digest in hashes], np.int64).reshape(-1, 2)


def find_outlines(kept: FeatureCache, texts: np.ndarray) -> Outlines | None:
    """Outlines of the texts of these keys, or None where not all are held."""
    held, rows = kept.find(texts)
    if not held.all():
        return None
    bits = rows.numpy().view(np.int32)
    keys = np.ascontiguousarray(bits[:, :4]).view(np.int64)
    return Outlines(keys, *bits[:, 4:].astype(np.int64).T)


def keep_outlines(kept: FeatureCache, texts: np.ndarray, outlines: Outlines) -> None:
    """Write the outlines of texts that are not held yet."""
    new = np.flatnonzero(~kept.held(texts))
    if not len(new):
        return
    sizes = np.stack(outlines[1:], 1)[new].astype(np.int32)
    bits = np.concatenate([np.ascontiguousarray(outlines.keys[new]).view(np.int32), sizes], 1)
    kept.add(texts[new], torch.from_numpy(bits.view(np.float32)))
    with contextlib.suppress(PrudentError):  # a full disk costs this copy, not the run
        kept.flush()
