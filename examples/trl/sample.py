"""Samples of the reference policy by vLLM, as a pool (``prudent.data.pools``)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vllm import LLM, SamplingParams

from prudent.data.pools import Pool, write_pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with a prompt a row")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--cards", type=int, default=1, help="tensor-parallel size")
    given = parser.parse_args()
    rows = map(json.loads, given.prompts.read_text(encoding="utf-8").splitlines())
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    # Drawn from the policy itself: temperature 1, nothing cut off the distribution.
    how = SamplingParams(n=given.samples, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=given.max_tokens)
    found = LLM(given.policy, tensor_parallel_size=given.cards).chat(prompts, how)
    texts = [[output.text for output in one.outputs] for one in found]
    write_pool(given.out, Pool(prompts, texts, None, [str(row) for row in range(len(prompts))]))


if __name__ == "__main__":
    main()
