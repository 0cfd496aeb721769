"""Log-probabilities of tokens under an output layer, without holding all logits at once.

A pack's logits (tokens x vocabulary) are the largest tensor of a step, and on a CPU touching fresh memory of that size
costs more than computing it: a few rows at a time go through buffers that are used again. Under a frozen output layer
the gradient of each token's log-probability in its hidden state is known up to a factor before the backward pass, so
the forward pass leaves that behind, (tokens, width) instead of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Logits computed at once: on a CPU what its caches hold, on a GPU what fills it.
AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 26}


def log_probabilities(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """log softmax of ``head(hidden)`` at ``targets``: (M, d), (M,) -> (M,) in float32, at temperature 1."""
    if isinstance(head, nn.Linear) and not any(p.requires_grad for p in head.parameters()):
        return _UnderFrozenLayer.apply(hidden, targets, head.weight, head.bias)
    logits = head(hidden).float()
    return logits.gather(1, targets[:, None]).squeeze(1) - torch.logsumexp(logits, dim=1)


class _UnderFrozenLayer(torch.autograd.Function):
    """d log p(target) / d hidden = W[target] - softmax(logits) W, computed while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-probabilities (n,) float32 of targets (n,) under hidden states (n, d); logits are never held whole."""
        wanted = ctx.needs_input_grad[0]
        size = max(1, min(len(hidden), AT_ONCE.get(hidden.device.type, AT_ONCE["cuda"]) // len(weight)))
        buffer = hidden.new_empty(size, len(weight), dtype=torch.float32)
        chosen = buffer.new_empty(len(hidden))
        slope = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), size):
            part, at = hidden[start : start + size], targets[start : start + size, None]
            logits, logs = functional.linear(part, weight, bias), buffer[: len(part)]
            torch.log_softmax(logits, -1, dtype=torch.float32, out=logs)
            found = logs.gather(1, at)
            chosen[start : start + size] = found.squeeze(1)
            if slope is not None:
                # p - 1 at the target, by expm1: as a difference it would vanish where the policy is sure.
                torch.exp(logs, out=logits).scatter_(1, at, torch.expm1(found).to(logits.dtype))
                slope[start : start + size] = logits @ weight
        ctx.save_for_backward(*([] if slope is None else [slope]))
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradient of the hidden states alone: the layer is frozen."""
        (slope,) = ctx.saved_tensors
        return -(slope * gradients[0][:, None].to(slope.dtype)), None, None, None
