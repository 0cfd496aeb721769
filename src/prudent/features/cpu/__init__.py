"""What only a processor needs, switched on from here and nowhere else; elsewhere the libraries' own layers run."""

from __future__ import annotations

from typing import Any

from prudent.features.cpu.attention import fast_attention
from prudent.features.cpu.pack_attention import segment_by_segment


def lean_adapters(config: Any) -> None:
    """Make the plain linear layers of a peft ``LoraConfig`` adapt by ``LeanLinear``."""
    from torch import nn

    from prudent.features.cpu.lora import LeanLinear

    config._register_custom_module({nn.Linear: LeanLinear})


__all__ = ["fast_attention", "lean_adapters", "segment_by_segment"]
