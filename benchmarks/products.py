"""Does oneDNN multiply float32 faster than what torch takes by default? At the shapes of a step of align.

python benchmarks/products.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import results
import torch

from prudent.features.cpu.products import product

# Tokens, width in, width out: a pack's pass, decoding, the output layer.
SHAPES = {"a pass of 800 tokens": (800, 576, 1536), "decoding 32 rows": (32, 576, 1536), "logits": (128, 576, 49152)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "products.json")
    given = parser.parse_args()
    figures = []
    for name, (rows, width, out) in SHAPES.items():
        x, weight, gradient = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out)
        for what, left, right in ((name, x, weight), (f"{name}, backwards", gradient, weight.t())):
            times = results.interleaved(
                {"torch": lambda a=left, b=right: torch.mm(a, b.t()), "oneDNN": lambda a=left, b=right: product(a, b)},
                given.repeats + 1,
                time.process_time,
            )
            figures.append(
                results.ratio(f"torch over oneDNN, float32, {what}", times["torch"][1:], times["oneDNN"][1:])
            )
    results.write(given.out, "Products in float32", figures)


if __name__ == "__main__":
    main()
