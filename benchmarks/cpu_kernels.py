"""What does each processor kernel of prudent.features.cpu save? A step of align and a pass of the encoder without it.

    python benchmarks/cpu_kernels.py [--rounds 3] [--prompts 8] [--precisions bfloat16 float32]

The figures are processor seconds without the kernel over those with it: below 1.1 it doesn't earn its keep. Sides take
turns on one trainer, which samples the same completions to the same prompts in every turn. A processor without
AVX-512 is had through the environment, since every library chooses its instructions when it loads:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
        python benchmarks/cpu_kernels.py --precisions float32 --out benchmarks/results/cpu_kernels_avx2.json
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import align_step
import results
import torch
from align_step import ASKS, COMPLETIONS, own_trainer
from peft.tuners.lora.layer import Linear

from prudent.features.cpu import attention, lora, pack_attention
from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.policies.rl import policy

ANSWER = "The lamp turns all night, and the keeper writes down every ship that passes the rocks. " * 4


def nearest(values: torch.Tensor, dtype: torch.dtype, noise: torch.Tensor) -> torch.Tensor:
    """What the libraries do: round to the nearest, whereby small updates vanish."""
    return values.to(dtype)


STEP: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "LoRA layer": lambda: mock.patch.object(lora.LeanLinear, "forward", Linear.forward),
    "attention in packs": lambda: mock.patch.object(pack_attention, "LONGEST", 0),
}
BFLOAT16_STEP = {"stochastic rounding": lambda: mock.patch.object(policy, "round_stochastically", nearest)}
BFLOAT16_ENCODING = {"short attention": lambda: mock.patch.object(attention, "LONGEST", 0)}


def turns(task: Callable[[], Any], kernels: dict[str, Any], rounds: int, name: str) -> list[dict[str, Any]]:
    """Figures of ``task`` without each kernel over with all of them; a first, uncounted turn warms up."""

    def without(kernel: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[], None]:
        def run() -> None:
            with kernel():
                task()

        return run

    sides = {"all": task, **{kernel: without(off) for kernel, off in kernels.items()}}
    times = results.interleaved(sides, rounds + 1, time.process_time)
    found = [
        results.ratio(f"{name} without {kernel} over with it", times[kernel][1:], times["all"][1:])
        for kernel in kernels
    ]
    for one in found:
        print(f"{one['name']}: {one['median']:.3g} ({one['low']:.3g} to {one['high']:.3g})", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8, help="of a step, with four completions each")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=results.FOLDER / "cpu_kernels.json")
    given = parser.parse_args()
    align_step.ASKS = ASKS[: given.prompts]
    figures = []
    for precision in given.precisions:
        dtype, fast = getattr(torch, precision), precision == "bfloat16"
        trainer = own_trainer(dtype, 1)
        kernels = {**STEP, **(BFLOAT16_STEP if fast else {})}
        figures += turns(lambda t=trainer: t._step(0), kernels, given.rounds, f"a step of align in {precision}")
        if fast:  # that kernel takes bfloat16 only
            encoder = Encoder(load_language_model("smollm2", dtype=dtype), cache=False, progress=False)
            texts = [[{"role": "user", "content": ask}] for ask in ASKS for _ in range(COMPLETIONS)]
            figures += turns(
                lambda e=encoder, t=texts: e.encode(t, [f"{i}. {ANSWER}" for i in range(len(t))]),
                BFLOAT16_ENCODING,
                given.rounds,
                "encoding 32 texts in bfloat16",
            )
    results.write(given.out, f"Processor kernels, {torch.backends.cpu.get_cpu_capability()}", figures)


if __name__ == "__main__":
    main()
