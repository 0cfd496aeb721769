"""Encode files over many processes and GPUs, so that every later command finds their features in the cache.

    accelerate launch --multi_gpu --num_processes 8 -m prudent.features.launch --model MODEL --preferences pairs.jsonl
    torchrun --nproc-per-node 2 -m prudent.features.launch --model MODEL --preferences pairs.jsonl      # on CPUs

Every process reads the files, encodes the rows whose prompts fall to it, and adds them to the cache, which all must see
(set PRUDENT_CACHE to a shared folder). Features don't depend on the number of processes. Give the model, pooling,
length and dtype of the command that follows; started plainly it runs in one process.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from prudent.errors import PrudentError


def rows_of(preferences: list[str], pools: list[str], on_error: str) -> tuple[list[Any], list[Any]]:
    """Prompts and responses of preference files and pools, answers to one prompt together."""
    from prudent.data.pools import read_pool
    from prudent.data.preferences import read_preferences

    prompts: list[Any] = []
    responses: list[Any] = []
    for source in preferences:
        pairs = read_preferences(source, on_error=on_error)
        for pair in pairs:
            prompts += [pair["prompt"]] * 2
            responses += [pair["chosen"], pair["rejected"]]
    for source in pools:
        pool = read_pool(source)
        for prompt, answers in zip(pool.prompts, pool.responses):
            prompts += [prompt] * len(answers)
            responses += answers
    if not prompts:
        raise PrudentError("nothing to encode; give --preferences FILE or --pool FILE")
    return prompts, responses


def main(arguments: list[str] | None = None) -> int:
    from prudent.features.models import DEFAULT_MODEL
    from prudent.features.pooling import POOLINGS

    parser = argparse.ArgumentParser(
        prog="accelerate launch -m prudent.features.launch", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or smollm2 (default)")
    parser.add_argument("--preferences", nargs="+", default=[], help="files or hub ids of preference pairs")
    parser.add_argument("--pool", nargs="+", default=[], help="files of prompts with their responses")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise")
    parser.add_argument("--pooling", choices=POOLINGS, default="last")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--layer", type=int, default=None, help="use only so many blocks of the model")
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16; default: what the processor computes fast")
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)
    try:
        from prudent.features.encoder import Encoder

        prompts, responses = rows_of(options.preferences, options.pool, options.on_error)
        encoder = Encoder(
            options.model, pooling=options.pooling, max_length=options.max_length, layer=options.layer,
            dtype=options.dtype, device=options.device, distributed=True,
        )  # fmt: skip
        for _ in encoder.encode_chunks(prompts, responses):
            pass  # the cache is what is wanted
    except PrudentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{encoder.fingerprint[:32]} {asdict(encoder.stats)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
