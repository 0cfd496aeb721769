"""From a text's token states to one vector, by attention mask alone: never by a pad id, on either padding side."""

from __future__ import annotations

import torch

from prudent.errors import PrudentError

POOLINGS = ("last", "mean", "last+mean")


def last_position(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) index of the last attended token of each row of ``mask`` (rows, tokens); the padding side is no matter.

    Raises PrudentError naming the first row whose mask is all zero: it has no token to read.
    """
    attended = mask != 0
    empty = ~attended.any(-1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise PrudentError(f"row {row} has an attention mask of zeros only, so no token to read; leave it out")
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (attended * positions).argmax(-1)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str = "last") -> torch.Tensor:
    """(rows, width) float32 from token states (rows, tokens, width) and a mask (rows, tokens) of tokens to read.

    pooling: ``last`` the last token's state, ``mean`` the mean over tokens, ``last+mean`` both side by side (twice the
    width). Raises PrudentError for another name and for a row without tokens.
    """
    if pooling not in POOLINGS:
        raise PrudentError(f"pooling is {pooling!r}; use one of {', '.join(POOLINGS)}")
    index = last_position(mask)
    parts = []
    if "last" in pooling:
        parts.append(states[torch.arange(len(states), device=states.device), index].float())
    if "mean" in pooling:
        weight = (mask != 0).float()
        weight = weight / weight.sum(-1, keepdim=True)
        clean = states.float().masked_fill((mask == 0).unsqueeze(-1), 0.0)  # what stands at padding never counts
        parts.append(torch.einsum("rtw,rt->rw", clean, weight))
    return torch.cat(parts, -1)
