"""Make the embedded data again: ``python -m prudent.demo.build prompts`` (seconds), ``... responses`` (half an hour).

``responses`` samples 16 answers a prompt from the embedded language model at temperature 1 without truncation, in
blocks of prompts, so that it goes on where it was stopped. Every answer has random numbers of its own, which depend
on the seed, the prompt and its place among the 16 alone, so any share can be checked by itself: ``... check --blocks
2`` samples blocks anew and compares them with what is stored. The same machine gives the same texts; another
processor rounds differently, and after a few dozen tokens that picks other words.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prudent.demo import design
from prudent.demo.world import PROMPTS, RESPONSES, TASKS
from prudent.files import dumps, write_atomic

DATA = Path(__file__).parent / "data"
SEED = 20250
SAMPLES = 16
MAX_NEW_TOKENS = 64
BLOCK = 16  # prompts sampled and written together
DTYPE = "float32"  # the answers then hang on neither batch nor processor, but for a rare draw at a boundary


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, gzipped or not; none where there is no file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSONL, gzipped where the name says so, without a time stamp: the same rows give the same bytes."""
    data = "".join(dumps(row, indent=None) + "\n" for row in rows).encode("utf-8")
    write_atomic(path, gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)


def prompt_rows(seed: int = SEED) -> list[dict[str, Any]]:
    """Rows of the prompt file: the tasks with their constraints assigned by the design."""
    return [
        {
            "id": made.id,
            "topic": made.topic,
            "task": made.task,
            "prompt": made.prompt,
            "constraints": [
                {key: value for key, value in asdict(part).items() if value is not None} for part in made.constraints
            ],
        }
        for made in design.assign(read_rows(DATA / TASKS), seed)
    ]


def sample_block(model: Any, tokenizer: Any, rows: list[dict[str, Any]], block: int) -> list[dict[str, Any]]:
    """Responses to the prompts of one block: rows with ``id``, ``responses``, and for each response ``tokens`` (its end
    mark included), ``logprobs`` (sum over its tokens, nats) and ``ended`` (False: cut at the most tokens)."""
    from prudent.features.rendering import Renderer
    from prudent.features.sampling import decode, sample_ids, stop_tokens

    part = rows[block * BLOCK : (block + 1) * BLOCK]
    drawn = sample_ids(
        model,
        Renderer(tokenizer).prompts([[{"role": "user", "content": row["prompt"]}] for row in part]),
        samples=SAMPLES,
        max_new_tokens=MAX_NEW_TOKENS,
        stop=stop_tokens(model, tokenizer),
        pad=tokenizer.pad_token_id or 0,
        seed=SEED,
        progress=sys.stderr.isatty(),
    )
    return [
        {
            "id": row["id"],
            "responses": texts,
            "tokens": lengths.tolist(),
            "logprobs": [round(value, 2) for value in logprobs.double().sum(-1).tolist()],
            "ended": stopped.tolist(),
        }
        for row, texts, lengths, logprobs, stopped in zip(
            part, decode(tokenizer, drawn), drawn.lengths, drawn.logprobs, drawn.stopped, strict=True
        )
    ]


def sample_all(path: Path, seconds: float) -> bool:
    """Sample the blocks that ``path`` lacks until done or ``seconds`` have passed; True when nothing is missing."""
    from prudent.features.models import load_language_model

    rows = read_rows(DATA / PROMPTS)
    found = {row["id"]: row for row in read_rows(path)}
    missing = [b for b in range(-(-len(rows) // BLOCK)) if any(r["id"] not in found for r in rows[b * BLOCK :][:BLOCK])]
    if not missing:
        return True
    torch.set_num_threads(1)  # how many threads share a sum decides its last bits
    model, tokenizer = load_language_model("smollm2", dtype=DTYPE)
    start = time.monotonic()
    for done, block in enumerate(missing, 1):
        found.update({row["id"]: row for row in read_rows(path)})  # another process may have written since
        if all(row["id"] in found for row in rows[block * BLOCK :][:BLOCK]):
            continue
        found.update({row["id"]: row for row in sample_block(model, tokenizer, rows, block)})
        found.update({row["id"]: row for row in read_rows(path)})
        write_rows(path, [found[row["id"]] for row in rows if row["id"] in found])
        spent = time.monotonic() - start
        print(f"block {block}: {done} of {len(missing)}, {spent:.0f} s", file=sys.stderr, flush=True)
        if spent * (done + 1) / done > seconds:
            return done == len(missing)
    return True


def check(path: Path, blocks: int) -> int:
    """Sample ``blocks`` blocks, spread over the file, anew; the number of responses that differ from those stored."""
    from prudent.features.models import load_language_model

    rows, stored = read_rows(DATA / PROMPTS), {row["id"]: row["responses"] for row in read_rows(path)}
    torch.set_num_threads(1)  # how many threads share a sum decides its last bits
    model, tokenizer = load_language_model("smollm2", dtype=DTYPE)
    total, differing = -(-len(rows) // BLOCK), 0
    for block in sorted({i * total // blocks for i in range(blocks)}):
        for row in sample_block(model, tokenizer, rows, block):
            differing += sum(a != b for a, b in zip(row["responses"], stored[row["id"]], strict=True))
    return differing


def main(arguments: list[str] | None = None) -> int:
    """Make or check the embedded files, a step at a time; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prudent.demo.build", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("prompts", "responses", "check"))
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the files (default: the package's own)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop sampling after this long; run again")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of 16 prompts that check samples anew")
    given = parser.parse_args(arguments)
    if given.step == "prompts":
        write_rows(given.out / PROMPTS, prompt_rows())
    elif given.step == "responses":
        done = sample_all(given.out / RESPONSES, given.seconds)
        print("all responses sampled" if done else "not all sampled yet: run again", file=sys.stderr)
        return 0 if done else 3
    else:
        differing = check(given.out / RESPONSES, given.blocks)
        print(f"{differing} responses differ from the stored ones", file=sys.stderr)
        return 1 if differing else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
