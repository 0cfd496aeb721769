"""Encode files over many processes and GPUs, so that every later command finds their features in the cache.

    accelerate launch --multi_gpu --num_processes 8 -m prudent.features.launch --model MODEL --preferences pairs.jsonl
    torchrun --nproc-per-node 2 -m prudent.features.launch --model MODEL --preferences pairs.jsonl      # on CPUs

Every process reads the files, encodes the rows whose prompts fall to it, and adds them to the cache, which all must see
(set PRUDENT_CACHE to a shared folder). With --stream files and hub data sets are read piece by piece, so that memory
stays flat. Features don't depend on the number of processes. Give the model, pooling, length and dtype of the command
that follows; started plainly it runs in one process. A killed run goes on where it was: what is in the cache is not
encoded again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from prudent.errors import PrudentError

Rows = tuple[list[Any], list[Any]]


def rows_of(preferences: list[str], pools: list[str], stream: bool, **options: Any) -> Iterator[Rows]:
    """Prompts and responses of preference files and pools: a file at a time, or in pieces where they are streamed."""
    from prudent.data.pools import read_pool
    from prudent.data.preferences import read_preferences
    from prudent.data.streaming import stream_preferences

    for source in preferences:
        for pairs in stream_preferences(source, **options) if stream else [read_preferences(source, **options)]:
            prompts = list(pairs["prompt"])
            yield prompts * 2, [*pairs["chosen"], *pairs["rejected"]]
    for source in pools:
        prompts, responses, _ = read_pool(source).flat()
        yield prompts, list(responses)


def main(arguments: list[str] | None = None) -> int:
    """Encode this process's share of the rows into the cache; ends with status 2 on a PrudentError."""
    from prudent.data.formats import WITHOUT_PROMPT
    from prudent.features.models import DEFAULT_MODEL
    from prudent.features.pooling import POOLINGS

    parser = argparse.ArgumentParser(
        prog="accelerate launch -m prudent.features.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or smollm2 (default)")
    parser.add_argument("--preferences", nargs="+", default=[], help="files or hub ids of preference pairs")
    parser.add_argument("--pool", nargs="+", default=[], help="files of prompts with their responses")
    parser.add_argument("--split", default=None, help="split of a hub data set")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise")
    parser.add_argument("--without-prompt", choices=WITHOUT_PROMPT, default="refuse", help="pairs without a prompt")
    parser.add_argument("--stream", action="store_true", help="read preferences piece by piece; memory stays flat")
    parser.add_argument("--pooling", choices=POOLINGS, default="last")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--layer", type=int, default=None, help="use only so many blocks of the model")
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16; default: what the processor computes fast")
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)
    try:
        from prudent.features.encoder import Encoder

        if not (options.preferences or options.pool):
            raise PrudentError("nothing to encode; give --preferences FILE or --pool FILE")
        encoder = Encoder(
            options.model,
            pooling=options.pooling,
            max_length=options.max_length,
            layer=options.layer,
            dtype=options.dtype,
            device=options.device,
            distributed=True,
        )
        reading = {name: getattr(options, name) for name in ("split", "on_error", "without_prompt")}
        for prompts, responses in rows_of(options.preferences, options.pool, options.stream, **reading):
            encoder.encode_share(prompts, responses)
    except PrudentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{encoder.fingerprint[:32]} {asdict(encoder.stats)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
