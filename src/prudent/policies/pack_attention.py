"""Attention within a pack on a CPU: each group apart, by plain matrix products.

The stock kernel takes a pack's whole square mask, most of which hides one group from another, and in bfloat16 its
backward pass is several times slower than two matrix products and a softmax over the short rows of a pack.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prudent_pack_cpu"
LONGEST = 1024  # tokens of a group; the scores of longer ones are better never held
PLAIN = {"dropout", "is_causal", "position_ids", "use_cache", "group_ends"}


def pack_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    group_ends: where each group of the pack ends, passed through the model's own keyword arguments.
    """
    ends: Sequence[int] = options.get("group_ends") or ()
    starts = [0, *ends[:-1]] if ends else []
    special = any(v is not None for name, v in options.items() if name not in PLAIN) or options.get("dropout")
    if attention_mask is None or special or not starts or max(e - s for s, e in zip(starts, ends)) > LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    heads, width = query.shape[1], query.shape[3]
    query = query[0] * (width**-0.5 if scaling is None else scaling)
    mixed = [
        _attend(query[:, start:end], key[0, :, start:end], value[0, :, start:end],
                attention_mask[0, 0, start:end, start:end])
        for start, end in zip(starts, ends)
    ]  # fmt: skip
    return torch.cat(mixed, 1).view(1, heads, -1, value.shape[3]).transpose(1, 2).contiguous(), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(heads, T, width), (groups, T, width) twice, (T, T) to add -> (heads, T, width); heads share keys by groups."""
    heads, length, width = query.shape
    groups = len(key)
    scores = torch.bmm(query.reshape(groups, -1, width), key.transpose(1, 2))
    scores = scores.view(groups, -1, length, length) + mask
    weights = torch.softmax(scores, -1).view(groups, -1, length)
    return torch.bmm(weights, value).view(heads, length, -1)


AttentionInterface.register(NAME, pack_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def group_by_group(body: Any, ends: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward pass of ``body`` over a pack whose groups end at ``ends``."""
    config = body.config
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(body.forward).parameters.values())
    if not passes_on or body.device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield {}
        return
    config._attn_implementation = NAME
    try:
        yield {"group_ends": ends}
    finally:
        config._attn_implementation = "sdpa"
