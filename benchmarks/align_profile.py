"""Where does a step of align go? Processor seconds by part, beside its arithmetic at the speed of a large product.

    python benchmarks/align_profile.py [--prompts 8] [--rounds 1] [--precision float32] [--kinds]

The first step warms up and counts the multiplications and additions of every part; the others are timed. Beside each
part's processor seconds stand the threads' seconds without work (clock times threads, less the processor's: asleep, or
kept from the processor by others) and the fresh pages touched. --kinds: one more step under torch's profiler, whose
operations are sorted into products, attention and the rest. A processor without AVX-512 is had as cpu_kernels.py says.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import align_step
import results
import torch
from align_step import ASKS, own_trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from prudent.features import sampling
from prudent.policies.rl.engine import Trainer
from prudent.policies.rl.policy import Policy

PARTS: dict[str, tuple[Any, str]] = {
    "sampling: adapters merged": (Policy, "sampler"),
    "sampling: prompts read": (sampling._Batch, "admit"),
    "sampling: decoding": (sampling._Batch, "step"),
    "sampling: tokens drawn": (sampling, "pick"),
    "reference and reward": (Policy, "reference_pass"),
    "policy: forward": (Policy, "policy_pass"),
    "policy: backward": (torch.Tensor, "backward"),
    "policy: optimiser": (Trainer, "_apply"),
}
ATTENTION = ("bmm", "softmax", "attention")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


def spent() -> list[float]:
    """Clock, processor seconds and fresh pages of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return [time.perf_counter(), used.ru_utime + used.ru_stime, float(used.ru_minflt)]


def by_part(step: Callable[[], Any], meter: Callable[[], list[float]]) -> dict[str, list[float]]:
    """What ``meter`` counts during each part of a step, and in all of it."""
    sums: dict[str, list[float]] = {}

    def around(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*arguments: Any, **options: Any) -> Any:
            before = meter()
            try:
                return inner(*arguments, **options)
            finally:
                used = [after - earlier for after, earlier in zip(meter(), before)]
                sums[part] = [a + b for a, b in zip(sums.get(part, [0.0] * len(used)), used)]

        return outer

    with contextlib.ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, name, around(part, getattr(owner, name))))
        around("whole step", step)()
    return sums


def product_speed(dtype: torch.dtype) -> float:
    """Operations a second of processor of a product as large as a pack's through the network's widest layers."""
    rows, weights = torch.randn(1024, 576, dtype=dtype), torch.randn(20, 1536, 576, dtype=dtype)
    seen = []
    for _ in range(5):
        began = time.process_time()
        for weight in weights:
            torch.nn.functional.linear(rows, weight)
        seen.append(2 * len(weights) * 1024 * 576 * 1536 / (time.process_time() - began))
    return max(seen)


def kinds_of(step: Callable[[], Any]) -> dict[str, float]:
    """Shares of a step's time in products, attention and all other operations."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    sums = {"products": 0.0, "attention": 0.0, "other operations": 0.0}
    for entry in recorded.key_averages():
        attention = any(word in entry.key for word in ATTENTION)
        kind = "products" if entry.key in PRODUCTS else "attention" if attention else "other operations"
        sums[kind] += entry.self_cpu_time_total
    return {kind: time_ / sum(sums.values()) for kind, time_ in sums.items()}


def figures_of(
    operations: dict[str, list[float]], rounds: list[dict[str, list[float]]], speed: float
) -> list[dict[str, Any]]:
    """Processor seconds of each part, and of the whole step over its arithmetic."""
    figures = []
    for part, (counted,) in operations.items():
        seconds = [sums[part][1] for sums in rounds]
        idle = statistics.median(sums[part][0] * torch.get_num_threads() - sums[part][1] for sums in rounds)
        pages = statistics.median(sums[part][2] for sums in rounds)
        note = f"arithmetic {counted / speed:.2f} s, {idle:.2f} s idle, {pages:,.0f} fresh pages"
        figures.append(results.figure(f"{part}, processor seconds", seconds, unit="s", note=note))
    whole = operations["whole step"][0] / speed
    over = [sums["whole step"][1] / whole for sums in rounds]
    return [*figures, results.figure("a step over its arithmetic", over, at_most=1.5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="of a step, with four completions each")
    parser.add_argument("--rounds", type=int, default=1, help="steps that are timed")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "align_profile.json")
    given = parser.parse_args()
    align_step.ASKS = ASKS[: given.prompts]
    dtype = getattr(torch, given.precision)
    trainer = own_trainer(dtype, 1)

    def step() -> None:
        trainer._step(0)

    with FlopCounterMode(display=False) as counter:
        operations = by_part(step, lambda: [float(counter.get_total_flops())])
    speed = product_speed(dtype)
    rounds = [by_part(step, spent) for _ in range(given.rounds)]
    figures = figures_of(operations, rounds, speed)
    figures.append(results.figure("a large product", speed / 1e9, unit="GFLOP/s of a thread"))
    if given.kinds:
        shares = kinds_of(step)
        figures += [results.figure(f"share of {kind}", share, unit="of the step") for kind, share in shares.items()]
    question = f"Where a step of align goes, {given.precision}, {torch.backends.cpu.get_cpu_capability()}"
    results.write(given.out, question, figures)


if __name__ == "__main__":
    main()
