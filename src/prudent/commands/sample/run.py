"""What ``prudent sample`` does: read prompts, sample the policy, write a pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prudent.commands.common import say
from prudent.commands.sample.options import SampleOptions


def run(options: SampleOptions) -> dict[str, Any]:
    """Write the pool; counts and seconds. Raises PrudentError for prompts that can't be read or have no room."""
    from prudent.data.failing import counted, use_rows
    from prudent.data.pools import Pool, pool_text, read_prompts
    from prudent.features.models import load_language_model
    from prudent.features.sampling import sample
    from prudent.files import dumps, write_output

    first: dict[str, Any] = {}
    for path in options.prompts:
        for prompt, origin in zip(*read_prompts(path, options.columns)):
            first.setdefault(dumps(prompt, indent=None), (prompt, origin._replace(file=Path(path).name)))
    prompts, origins = map(list, zip(*first.values()))
    say(f"sampling {options.samples} responses to each of {len(prompts)} prompts from {options.policy}")
    started = time.perf_counter()
    policy, tokenizer = load_language_model(options.policy, dtype=options.dtype)
    how = {name: getattr(options, name) for name in ("samples", "max_new_tokens", "temperature", "seed")}

    def drawn(rows: list[int]) -> list[list[str]]:
        return sample(policy, tokenizer, [prompts[row] for row in rows], **how)

    texts, kept, bad = use_rows(drawn, origins, ", ".join(options.prompts), options.on_error)
    pool = Pool([prompts[row] for row in kept], texts, None, [str(row) for row in kept])
    write_output(options.output, pool_text(pool))
    return {
        "output": str(options.output),
        "policy": options.policy,
        "prompts": len(pool),
        "samples": options.samples,
        "empty_responses": sum(not text.strip() for row in texts for text in row),
        "seconds": time.perf_counter() - started,
        **counted(bad),
    }


def show(result: dict[str, Any], options: SampleOptions) -> None:
    """Say what was written."""
    if result["left_out"]:
        say("\n".join([f"{result['left_out']} prompts left out:", *result["left_out_rows"]]))
    say(f"wrote {result['output']}: {result['prompts']} prompts, {result['samples']} responses each")
