"""Key-value caches that grow in place, are shared by a prompt's answers, and let rows come and go.

transformers' own dynamic cache is copied whole at every token; here keys and values are written into room kept ahead,
and a row that leaves is overwritten by the last one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens of room added when a buffer is full


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (rows, heads, tokens, width): rows 0 to ``count`` and columns ``start`` to ``end`` of
    larger buffers. Every buffer is finite throughout, so that masked columns can't spoil a sum with NaN."""

    def __init__(self, room: int = ROOM) -> None:
        super().__init__()
        self.room = room
        self.buffers: list[torch.Tensor] = []
        self.count = self.start = self.end = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, each (rows, heads, tokens, width); returns all that are held."""
        new = key_states.shape[2]
        if not self.buffers:
            self.count = key_states.shape[0]
            self.buffers = [_blank(states, self.count, new + self.room) for states in (key_states, value_states)]
        self.make_room(new)
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[: self.count, :, self.end : self.end + new] = states
        self.end += new
        return self.expose()

    def make_room(self, new: int = 1) -> int:
        """Make sure that ``new`` columns fit; returns by how many columns the used ones moved to the left."""
        if self.end + new <= self.buffers[0].shape[2]:
            return 0
        moved = self.start
        self.rebuild(self.buffers[0].shape[0], 0, new + self.room)
        return moved

    def hold(self, keys: torch.Tensor, values: torch.Tensor, count: int, end: int) -> None:
        """Take buffers of which the first ``count`` rows and ``end`` columns are filled."""
        self.buffers, self.count, self.start, self.end = [keys, values], count, 0, end
        self.expose()

    def expand(self, other: RoomyLayer, rows: torch.Tensor) -> None:
        """Hold copies of ``rows`` of another layer, with room behind."""
        length = other.end - other.start
        filled = []
        for states in other.expose():
            buffer = _blank(states, len(rows), length + self.room)
            buffer[:, :, :length] = states[rows]
            filled.append(buffer)
        self.hold(filled[0], filled[1], len(rows), length)

    def expose(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The part in use, as views: what attention and transformers' mask code read."""
        if not self.is_initialized:
            self.lazy_initialization(*self.buffers)
        self.keys, self.values = (buffer[: self.count, :, self.start : self.end] for buffer in self.buffers)
        return self.keys, self.values

    def rebuild(self, rows: int, before: int, after: int) -> None:
        """New buffers for ``rows`` rows: ``before`` blank columns, the used ones, room for ``after`` more."""
        length = self.end - self.start
        grown = []
        for buffer in self.buffers:
            larger = _blank(buffer, rows, before + length + after)
            larger[: self.count, :, before : before + length] = buffer[: self.count, :, self.start : self.end]
            grown.append(larger)
        self.buffers, self.start, self.end = grown, before, before + length
        self.expose()

    def append(self, other: RoomyLayer, rows: torch.Tensor) -> None:
        """Add rows ``rows`` of another layer, so that their last tokens stand in this layer's last column."""
        length, count = other.end - other.start, self.count + len(rows)
        if count > self.buffers[0].shape[0] or length > self.end:
            self.rebuild(max(count, self.buffers[0].shape[0]), max(0, length - (self.end - self.start)), self.room)
        self.start = min(self.start, self.end - length)
        for buffer, states in zip(self.buffers, other.expose()):
            buffer[self.count : count, :, self.end - length : self.end] = states[rows]
        self.count = count
        self.expose()

    def keep(self, count: int, sources: torch.Tensor, targets: torch.Tensor, start: int) -> None:
        """Copy rows ``sources`` over rows ``targets``, then use the first ``count`` rows and columns from ``start``."""
        if len(sources):
            for buffer in self.buffers:
                buffer[targets, :, start : self.end] = buffer[sources, :, start : self.end]
        self.count, self.start = count, start
        self.expose()


def _blank(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return like.new_zeros((rows, like.shape[1], columns, like.shape[3]))


def new_cache(model: Any, room: int = ROOM) -> DynamicCache:
    """Empty cache for ``model``: roomy where every layer attends to all tokens, else transformers' own."""
    cache = DynamicCache(config=model.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [RoomyLayer(room) for _ in cache.layers]
    return cache


def is_roomy(cache: DynamicCache) -> bool:
    """Whether rows of this cache can be moved and joined."""
    return bool(cache.layers) and all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def roomy_layers(cache: DynamicCache) -> list[RoomyLayer]:
    """The layers of a cache for which ``is_roomy`` holds."""
    return [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]


def branch(caches: list[DynamicCache], rows: Sequence[int], width: int, room: int) -> DynamicCache:
    """Cache for texts that go on from rows of ``caches`` (numbered through), each row cut or zero-filled to ``width``.

    The rows' own lengths differ: what lies between a row's end and ``width`` has to be hidden by the attention mask.
    """
    branched = DynamicCache()
    branched.layer_class_to_replicate = None
    wanted, start, picks = torch.tensor(rows), 0, []
    for cache in caches:
        held = roomy_layers(cache)[0].count
        here = ((wanted >= start) & (wanted < start + held)).nonzero().squeeze(1)
        picks.append((here, wanted[here] - start))
        start += held
    for number in range(len(caches[0].layers)):
        layer, filled = RoomyLayer(0), []
        for name in ("keys", "values"):
            buffer = _blank(getattr(caches[0].layers[number], name), len(rows), width + room)
            for (targets, sources), cache in zip(picks, caches):
                if len(targets):
                    states = getattr(cache.layers[number], name)[:, :, :width]
                    buffer[targets.to(buffer.device), :, : states.shape[2]] = states[sources.to(buffer.device)]
            filled.append(buffer)
        layer.hold(filled[0], filled[1], len(rows), width)
        branched.layers.append(layer)
    return branched


def cache_argument(model: Any) -> str:
    """Name under which ``model`` takes its cache (transformers renamed it)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters' wrappers hide the names
    names = inspect.signature(inner.forward).parameters
    return "cache" if "cache" in names else "past_key_values"
