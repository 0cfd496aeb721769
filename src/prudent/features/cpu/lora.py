"""A LoRA layer that keeps to the network's own precision and saves no more than its gradient needs.

peft's own layer casts its whole input to the adapters' float32 and back in every layer; here the two small matrices
are cast instead, and one backward pass serves layer and adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional


class LeanLinear(Linear):
    """peft's LoRA layer over ``nn.Linear`` with one plain adapter (no dropout, no variant), computed by ``_Adapted``;
    saved, merged and switched off as peft does it."""

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Product of x (..., in) with the frozen weight plus that of the adapter: (..., out)."""
        base, name = self.get_base_layer(), self.active_adapters[0]
        if self.disable_adapters or self.merged or type(base) is not nn.Linear:  # a quantised layer is a subclass
            return super().forward(x, *arguments, **options)
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return _Adapted.apply(x, base.weight, base.bias, down, up, self.scaling[name])


class _Adapted(torch.autograd.Function):
    """x W' + b + scale x A' B' for a frozen W: (..., in) -> (..., out), in x's own dtype; A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x weight' + bias + scale x down' up', for x (..., d_in); in x's precision."""
        rows = x.reshape(-1, x.shape[-1])
        a, b = down.to(x.dtype), (scale * up).to(x.dtype)
        low = rows @ a.t()
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.shape, ctx.scale = x.shape, scale
        return functional.linear(rows, weight, bias).addmm_(low, b.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of x and of the adapter; weight and bias are frozen."""
        rows, low, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, len(weight))
        inner = gradient @ b
        outer = (gradient @ weight).addmm_(inner, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        down, up = inner.t() @ rows, gradient.t() @ low
        return outer, None, None, down.float(), up.float() * ctx.scale, None
