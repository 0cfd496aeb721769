"""Prompts and completions packed into rows without padding, a prompt computed once for all its completions.

A pack is one row of tokens. A *group* is a prompt followed by *segments* (completions). A token sees its own group's
prompt and what precedes it in its own segment, nothing else: a pack gives what separate rows would, minus the padding
and minus the repeated prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Group:
    """A prompt's token ids and its segments' token ids; ``names`` say which completion each segment is.

    actions: how many of each segment's tokens, from its first, the policy chose; what follows (the template's closing
    marks) is only read by the reward model. None: all of them.
    """

    prompt: list[int]
    segments: list[list[int]]
    names: list[int]
    actions: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and all its segments."""
        return len(self.prompt) + sum(map(len, self.segments))


@dataclass(frozen=True)
class Pack:
    """One row: ids, positions (T,); mask (T, T), True where the row's token may see the column's.

    sources, targets: (M,) for every action, the position whose hidden state predicts it and the token itself.
    owners: (M,) which of the pack's segments it belongs to, in order. segment_of, group_of: (T,) each token's segment
    (-1 in a prompt) and group; group_of_segment: (S,). names: (S,) the completions' names.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    segment_of: torch.Tensor
    group_of: torch.Tensor
    group_of_segment: torch.Tensor
    names: list[int]

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return len(self.ids)


def fill(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Groups placed first-fit, longest first, into packs of at most ``budget`` tokens (a longer group stands alone)."""
    bins: list[tuple[int, list[Group]]] = []
    for group in sorted(groups, key=lambda g: -g.tokens):
        for index, (used, content) in enumerate(bins):
            if used + group.tokens <= budget:
                bins[index] = (used + group.tokens, [*content, group])
                break
        else:
            bins.append((group.tokens, [group]))
    return [content for _, content in bins]


def pack(groups: Sequence[Group]) -> Pack:
    """One row of ``groups``. Every prompt has at least one token; a segment without actions predicts nothing."""
    ids: list[int] = []
    positions: list[int] = []
    group_of: list[int] = []
    segment_of: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    group_of_segment: list[int] = []
    names: list[int] = []
    for number, group in enumerate(groups):
        start, length = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(length)
        group_of += [number] * length
        segment_of += [-1] * length
        actions = group.actions or [len(segment) for segment in group.segments]
        for name, segment, acts in zip(group.names, group.segments, actions, strict=True):
            first = len(ids)
            ids += segment
            positions += range(length, length + len(segment))
            group_of += [number] * len(segment)
            segment_of += [len(names)] * len(segment)
            sources += [start + length - 1, *range(first, first + acts - 1)][:acts]
            targets += segment[:acts]
            owners += [len(names)] * acts
            group_of_segment.append(number)
            names.append(name)
    g, s = torch.tensor(group_of), torch.tensor(segment_of)
    order = torch.arange(len(ids))
    visible = (g[:, None] == g[None, :]) & (order[:, None] >= order[None, :])
    visible &= (s[None, :] == -1) | (s[:, None] == s[None, :])
    return Pack(
        torch.tensor(ids),
        torch.tensor(positions),
        visible,
        torch.tensor(sources, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(owners, dtype=torch.long),
        s,
        g,
        torch.tensor(group_of_segment, dtype=torch.long),
        names,
    )


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, T, T) mask that attention adds to its logits: 0 where visible, the dtype's lowest number elsewhere."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)[None, None]
