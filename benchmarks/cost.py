"""What a million pairs cost by the encoder's size: arithmetic, every assumption an option.

    python benchmarks/cost.py [--tokens 650] [--peak 989] [--share 0.4] [--price 3] [--rendered 2700]

A forward pass takes 2 x parameters FLOP a token. Nothing is measured here; it prints a table for docs/scaling.md.
"""

from __future__ import annotations

import argparse

PAIRS = 1_000_000
SIZES = {"0.135B": (0.135e9, 576), "1.7B": (1.7e9, 2048), "8B": (8e9, 4096), "70B": (70e9, 8192)}  # parameters, width


def amount(value: float) -> str:
    """Two digits, or the whole number."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=650, help="of a pair: the prompt once, and both answers")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a card: dense bfloat16, H100")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached")
    parser.add_argument("--price", type=float, default=3, help="of an hour of a card")
    parser.add_argument("--rendered", type=float, default=2700, help="texts a second and core that are tokenised")
    parser.add_argument("--disk", type=float, default=5, help="GB a second that a node reads")
    parser.add_argument("--passes", type=int, default=35, help="over the features that ten heads take")
    given = parser.parse_args()
    print(
        "| encoder | H100-hours | at the price | core-hours of tokenising | features, GB | reading them for ten heads |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (parameters, width) in SIZES.items():
        hours = 2 * parameters * given.tokens * PAIRS / (given.share * given.peak * 1e12) / 3600
        gigabytes = 2 * PAIRS * width * 4 / 1e9
        minutes = given.passes * gigabytes / given.disk / 60
        rendered = 2 * PAIRS / given.rendered / 3600
        print(
            f"| {name}, width {width:,} | {amount(hours)} | {amount(given.price * hours)} | {amount(rendered)} | "
            f"{amount(gigabytes)} | {amount(minutes)} min |"
        )


if __name__ == "__main__":
    main()
