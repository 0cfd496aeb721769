"""Products with frozen weights on a CPU in float32, by oneDNN.

torch hands float32 products to MKL, which on processors that are not Intel's takes two to three times as long as oneDNN
does for the same numbers (measured in benchmarks/products.py); bfloat16 goes to oneDNN anyway.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W' + b: (..., in), (out, in), (out,) -> (..., out). Not for autograd: nothing is kept for a backward pass."""
    if AVAILABLE and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


class FrozenLinear(nn.Linear):
    """``nn.Linear`` by ``product`` wherever no gradient goes through it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Product of x (..., in) with the frozen weight: (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return super().forward(x)
        return product(x, self.weight, self.bias)


def quicken(model: nn.Module) -> None:
    """Make every plain linear layer of ``model`` whose weights are frozen a ``FrozenLinear``, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            module.__class__ = FrozenLinear
