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

from prudent.features.cpu.attention import attend, attending_by

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
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    mixed = []
    for part in map(slice, starts, ends):
        q, k, v = (states[:, :, part] for states in (query, key, value))
        mixed.append(attend(q, k, v, attention_mask[:, :, part, part], scale))
    return torch.cat(mixed, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, pack_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def group_by_group(body: Any, ends: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward pass of ``body`` over a pack whose groups end at ``ends``."""
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(body.forward).parameters.values())
    with attending_by(NAME, body, passes_on) as attending:
        yield {"group_ends": ends} if attending else {}
