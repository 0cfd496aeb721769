"""Attention within a pack on a CPU: prompts apart, every segment to its prompt and itself, by plain matrix products.

The stock kernel takes a pack's whole square mask, three quarters of which and more hide one group or segment from
another, and in bfloat16 its backward pass is several times slower than two matrix products and a softmax over short
rows. Here nothing hidden is computed but padding: all prompts are one batch, all segments with their prompts another.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prudent.features.cpu.attention import attend, attending_by

NAME = "prudent_pack_cpu"
LONGEST = 1024  # tokens of a segment and its prompt; the scores of longer ones are better never held
PLAIN = {"dropout", "is_causal", "position_ids", "use_cache", "pack_layout"}


class PackLayout(NamedTuple):
    """Where a pack's tokens stand in two padded batches: G prompts of at most P tokens, S segments of at most L.

    prompts (G, P), segments (S, L), visible (S, P + L): each one's tokens, and each segment's prompt's and own; 0 where
    padded. hidden (S, 1, L, P + L): True where a segment's token must not look. back (T,): where each token of the pack
    stands among all prompts' and then all segments' tokens.
    """

    prompts: torch.Tensor
    segments: torch.Tensor
    visible: torch.Tensor
    hidden: torch.Tensor
    back: torch.Tensor


def pack_layout(segment_of: torch.Tensor, group_of: torch.Tensor, group_of_segment: torch.Tensor) -> PackLayout:
    """Layout of a pack, from each token's segment (T,), -1 in a prompt, and group (T,), and segments' groups (S,)."""
    inside = segment_of >= 0
    prompts, lengths, at_prompt = _padded(group_of, ~inside, int(group_of.max()) + 1)
    segments, _, at_segment = _padded(segment_of, inside, len(group_of_segment))
    (width, own), segment = (prompts.shape[1], segments.shape[1]), torch.arange(segments.shape[1])
    behind = torch.arange(width) >= lengths[group_of_segment][:, None]
    hidden = torch.cat(
        [behind[:, None].expand(-1, own, -1), (segment[None, :] > segment[:, None]).expand(len(segments), -1, -1)], 2
    )
    visible = torch.cat([prompts[group_of_segment], segments], 1)
    back = torch.where(inside, prompts.numel() + at_segment, at_prompt)
    return PackLayout(prompts, segments, visible, hidden[:, None], back)


def _padded(owner: torch.Tensor, ours: torch.Tensor, owners: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (owners, longest) of each owner in order, 0 where padded, how many each has, and where every token stands
    in the flattened table (T,); ``ours`` (T,) says which tokens count. An owner's tokens are consecutive."""
    tokens = ours.nonzero().squeeze(1)
    rows = owner[tokens]
    lengths = torch.bincount(rows, minlength=owners)
    column = torch.arange(len(tokens)) - (lengths.cumsum(0) - lengths)[rows]
    table = torch.zeros(owners, max(1, int(lengths.max())), dtype=torch.long)
    table[rows, column] = tokens
    at = torch.zeros(len(owner), dtype=torch.long)
    at[tokens] = rows * table.shape[1] + column
    return table, lengths, at


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

    pack_layout: the pack's ``PackLayout``, passed through the model's own keyword arguments.
    """
    layout: PackLayout | None = options.get("pack_layout")
    special = any(v is not None for name, v in options.items() if name not in PLAIN) or options.get("dropout")
    if special or layout is None or layout.visible.shape[1] > LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, heads, width)
    lowest, width = torch.finfo(q.dtype).min, layout.prompts.shape[1]
    future = torch.full((width, width), lowest, dtype=q.dtype).triu(1)
    asked, read, taken = (_rows(states, layout.prompts) for states in (q, k, v))
    prompts = attend(asked, read, taken, future, scale)
    hidden = torch.zeros(layout.hidden.shape, dtype=q.dtype).masked_fill_(layout.hidden, lowest)
    asked, read, taken = _rows(q, layout.segments), _rows(k, layout.visible), _rows(v, layout.visible)
    segments = attend(asked, read, taken, hidden, scale)
    mixed = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (prompts, segments)])
    return mixed.index_select(0, layout.back)[None], None


def _rows(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(rows, heads, columns, width) of the tokens (rows, columns) among states (T, heads, width)."""
    return states.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).transpose(1, 2)


AttentionInterface.register(NAME, pack_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def segment_by_segment(body: Any, row: Any) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward pass of ``body`` over a ``Pack``."""
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(body.forward).parameters.values())
    with attending_by(NAME, body, passes_on) as attending:
        yield ({"pack_layout": pack_layout(row.segment_of, row.group_of, row.group_of_segment)} if attending else {})
