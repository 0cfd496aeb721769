"""Features of several depths of one model from one pass: each block's states go through the final norm, as in a model
that is cut there (``backbone.cut``)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.features.encoder import Encoder
from prudent.features.outlines import outlines_of
from prudent.features.rendering import Prompt, Response
from prudent.features.stats import EncodeStats

PARTS = 8  # depths between which a choice is made; the quality is flat between neighbours


def depths_of(blocks: int) -> list[int]:
    """The depths, in blocks, between which a choice is made: eighths of the model, all of it last."""
    return sorted({-(-blocks * part // PARTS) for part in range(1, PARTS + 1)})


def shallow(blocks: int) -> int:
    """A depth that is good enough for a first look: three eighths of the model."""
    return -(-blocks * 3 // PARTS)


def blocks_of(encoder: Encoder) -> int:
    """Blocks that each token runs through."""
    return int(encoder.body.config.num_hidden_layers)


def encoder_at(encoder: Encoder, layer: int | None) -> Encoder:
    """The encoder with its model's first so many blocks (None: all of them); the model is in memory once."""
    found = copy.copy(encoder)
    for name in ("body", "runner", "fingerprint", "cache", "_texts"):
        found.__dict__.pop(name, None)
    found._filled, found.stats, found.layer = (b"", np.empty((0, 2), np.int64)), EncodeStats(), layer
    found.known = found._known()
    return found


def keep_features(
    encoder: Encoder, prompts: Sequence[Prompt], responses: Sequence[Response], features: torch.Tensor
) -> None:
    """Put features (N, d) of N conversations, which were read with others, into the encoder's cache, if it has one."""
    if encoder.cache is not None:
        encoder.cache.add(outlines_of(encoder._render(prompts, responses)).keys, features)
        encoder.cache.flush()


def encode_depths(
    encoder: Encoder, prompts: Sequence[Prompt], responses: Sequence[Response], depths: Sequence[int]
) -> torch.Tensor:
    """(depths, N, d) float32 features of N conversations in one pass: for each depth what ``encoder_at(depth)`` gives.

    The cache is neither read nor written. PrudentError for a model whose states behind a block can't be read so.
    """
    norm = final_norm(encoder.body, encoder.runner.pad)
    if norm is None:
        raise PrudentError(f"{type(encoder.body).__name__} can't be read at several depths at once; give --layer N")
    reader = copy.copy(encoder)
    reader.__dict__ |= {"cache": None, "_texts": None}
    reader.engine, reader.width = None, encoder.width * len(depths)
    with side_by_side(encoder.body, norm, depths):
        found = reader.encode(prompts, responses)
    encoder.stats = reader.stats
    return found.reshape(len(prompts), len(depths), -1).transpose(0, 1).contiguous()


@torch.inference_mode()
def final_norm(body: Any, token: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The module that turns the last block's states into the model's, found by watching one pass; the identity where
    they are the same. None where it isn't one module, or the model shows no list of its blocks."""
    from prudent.features.backbone import blocks_at  # heavy, and not needed where all is on disk

    path = blocks_at(body)
    if path is None:
        return None
    last = body.get_submodule(path)[-1]
    calls: list[tuple[nn.Module, Any, Any]] = []
    watched = [module for module in body.modules() if module is not body]
    hooks = [module.register_forward_hook(lambda *call: calls.append(call)) for module in watched]
    try:
        end = body(input_ids=torch.tensor([[token]], device=body.device)).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    states = next(_first(output) for module, _, output in calls if module is last)
    if _same(states, end):
        return nn.Identity()
    after = (module for module, given, output in calls if given and _same(given[0], states) and _same(output, end))
    return next(after, None)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.data_ptr() == other.data_ptr()


@contextlib.contextmanager
def side_by_side(body: Any, norm: Callable[[torch.Tensor], torch.Tensor], depths: Sequence[int]) -> Iterator[None]:
    """Inside, the states that ``body`` ends with are those of every depth, one behind the other: (rows, tokens,
    depths x width)."""
    from prudent.features.backbone import blocks_at

    blocks = body.get_submodule(blocks_at(body))
    states: dict[int, torch.Tensor] = {}

    def keep(depth: int) -> Callable[..., None]:
        return lambda module, given, output: states.update({depth: _first(output)})

    def join(module: nn.Module, given: Any, output: Any) -> Any:
        output.last_hidden_state = torch.cat([norm(states[depth]) for depth in depths], -1)
        states.clear()
        return output

    hooks = [blocks[depth - 1].register_forward_hook(keep(depth)) for depth in depths]
    hooks.append(body.register_forward_hook(join))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
