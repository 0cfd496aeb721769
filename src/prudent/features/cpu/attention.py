"""Attention for texts that are read on the CPU, by plain matrix products in which a group's query heads share its keys.

In bfloat16, for short texts, it is about twice as fast as the stock kernel, which works through small tiles and leaves
the processor's bfloat16 units idle. Scores are rounded to bfloat16, as transformers' plain ("eager") attention does.

In float32 it makes a text's features independent of its batch. The stock kernel sums over keys in sixteen lanes, so
that a sum's last digit hangs on how many hidden keys stand before and behind a text's own; 30 layers make 2e-5 of a
score of that. Summed in float64 and rounded once, hidden keys change nothing.

Whatever this doesn't cover goes to the stock kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prudent_short_cpu"
LONGEST = 640  # keys; from here on the stock kernel wins in bfloat16
QUERIES = 64  # tokens whose scores are held at once in float32
PLAIN = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "cache", "past_key_values"}


@lru_cache(maxsize=64)
def _hidden_future(start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((end - start, end), float("-inf")).triu(1 + start).to(dtype)


def short_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: (rows, heads, tokens, width) in, (rows, tokens, heads, width) out."""
    length, width, keys = query.shape[2], query.shape[3], key.shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    special = any(value is not None for name, value in options.items() if name not in PLAIN)
    exact = query.dtype == torch.float32
    unfit = keys > LONGEST and not exact
    if length == 1 or unfit or special or (attention_mask is None and causal and length != keys):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, -1e9)
    scale, hidden = width**-0.5 if scaling is None else scaling, attention_mask is None and causal
    if exact:
        parts = []
        for start in range(0, length, QUERIES):
            stop = min(start + QUERIES, length)
            end = stop if hidden else keys  # keys that are the future of the whole part are left out
            mask = _hidden_future(start, end, query.dtype) if hidden else attention_mask
            mask = mask if mask is None or hidden else mask[..., start:stop, :]
            states = query[:, :, start:stop], key[:, :, :end], value[:, :, :end]
            parts.append(attend(*states, mask, scale, torch.float64))
        mixed = torch.cat(parts, 2)
    else:
        mask = _hidden_future(0, length, query.dtype) if hidden else attention_mask
        mixed = attend(query, key, value, mask, scale)
    return mixed.transpose(1, 2).contiguous(), None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    sums: torch.dtype | None = None,
) -> torch.Tensor:
    """(rows, heads, T, width), (rows, groups, keys, width) twice -> (rows, heads, T, width), by two matrix products in
    which the heads of a group share its keys. mask: added to the scores; (T, keys) or (rows, 1, T, keys). sums:
    precision of the sums over keys, by default that of the states."""
    rows, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    folded = query.reshape(rows * groups, -1, width)
    scores = torch.bmm(folded, key.reshape(rows * groups, keys, width).transpose(1, 2)).mul_(scale)
    if mask is not None:
        scores.view(rows, groups, -1, length, keys).add_(mask.unsqueeze(-3))
    values = value.reshape(rows * groups, keys, -1)
    if sums is None:
        mixed = torch.bmm(torch.softmax(scores, -1), values)
    else:
        weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_().to(sums)
        mixed = torch.bmm(weights, values.to(sums)).div_(weights.sum(-1, keepdim=True)).to(query.dtype)
    return mixed.view(rows, heads, length, -1)


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def attending_by(name: str, body: Any, suits: bool = True) -> Iterator[bool]:
    """Inside, ``body`` attends by the registered function ``name`` where it is a model on the CPU that would use SDPA
    and ``suits``; gives whether it does."""
    configs = {id(m.config): m.config for m in body.modules() if hasattr(m, "config")}.values()
    suits = suits and body.device.type == "cpu"
    chosen = [c for c in configs if suits and getattr(c, "_attn_implementation", None) == "sdpa"]
    for config in chosen:
        config._attn_implementation = name
    try:
        yield bool(chosen)
    finally:
        for config in chosen:
            config._attn_implementation = "sdpa"


def fast_attention(body: Any) -> contextlib.AbstractContextManager[bool]:
    """Inside, ``body`` attends by ``short_attention`` where it is a bfloat16 or float32 model on the CPU that would use
    SDPA."""
    return attending_by(NAME, body, body.dtype in (torch.bfloat16, torch.float32))
