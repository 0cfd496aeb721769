"""Key-value caches that grow in place, are expanded over a prompt's answers, and drop finished rows.

transformers' own dynamic cache is copied whole at every token; here keys and values are written into room kept ahead.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens of room added when a buffer is full


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, tokens, width), as views of buffers with room ahead."""

    def __init__(self, room: int = ROOM) -> None:
        super().__init__()
        self.room = room
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        old = self.keys.shape[-2]
        new = old + key_states.shape[-2]
        if self.buffers is None or new > self.buffers[0].shape[-2] or self.buffers[0].shape[0] != key_states.shape[0]:
            self._grow(new + self.room, key_states.shape[0])
        assert self.buffers is not None
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, old:new] = states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.buffers)
        return self.keys, self.values

    def _grow(self, capacity: int, rows: int) -> None:
        """New buffers that hold what there is; one row's states are expanded where several rows follow."""
        grown = []
        for states in (self.keys, self.values):
            buffer = states.new_empty((rows, states.shape[1], capacity, states.shape[3]))
            buffer[:, :, : states.shape[2]] = states
            grown.append(buffer)
        self.buffers = (grown[0], grown[1])

    def take(self, rows: torch.Tensor | None, skip: int = 0, before: int = 0, room: int | None = None) -> None:
        """Keep the given rows (None: all), without the first ``skip`` tokens, behind ``before`` tokens of zeros."""
        grown = []
        for states in (self.keys, self.values):
            kept = states[:, :, skip:] if rows is None else states[rows, :, skip:]
            length = before + kept.shape[2]
            capacity = length + (self.room if room is None else room)
            buffer = states.new_empty((kept.shape[0], kept.shape[1], capacity, kept.shape[3]))
            buffer[:, :, :before] = 0
            buffer[:, :, before:length] = kept
            grown.append(buffer)
        self.buffers = (grown[0], grown[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def join(self, other: RoomyLayer) -> None:
        """Append another layer's rows; both hold the same number of tokens."""
        assert self.buffers is not None and other.buffers is not None
        length = self.keys.shape[2]
        capacity = min(self.buffers[0].shape[2], other.buffers[0].shape[2])
        joined = [torch.cat([a[:, :, :capacity], b[:, :, :capacity]]) for a, b in zip(self.buffers, other.buffers)]
        self.buffers = (joined[0], joined[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def new_cache(model: Any, room: int = ROOM) -> DynamicCache:
    """Empty cache for ``model``: roomy where every layer attends to all tokens, else transformers' own."""
    cache = DynamicCache(config=model.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [RoomyLayer(room) for _ in cache.layers]
    return cache


def is_roomy(cache: DynamicCache) -> bool:
    """Whether rows of this cache can be moved and joined."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def cache_argument(model: Any) -> str:
    """Name under which ``model`` takes its cache (transformers renamed it)."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"
