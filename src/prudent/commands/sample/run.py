"""What ``prudent sample`` does: read prompts, sample the policy, write a pool."""

from __future__ import annotations

import time
from typing import Any

from prudent.commands.common import say
from prudent.commands.sample.options import SampleOptions


def run(options: SampleOptions) -> dict[str, Any]:
    """Write the pool; counts and seconds. Raises PrudentError for prompts that can't be read or have no room."""
    from prudent.data.pools import Pool, read_prompts, write_pool
    from prudent.features.models import load_language_model
    from prudent.features.sampling import sample
    from prudent.runs import dumps

    found = [prompt for path in options.prompts for prompt in read_prompts(path, options.columns)]
    prompts = list({dumps(prompt, indent=None): prompt for prompt in found}.values())
    say(f"sampling {options.samples} responses to each of {len(prompts)} prompts from {options.policy}")
    started = time.perf_counter()
    policy, tokenizer = load_language_model(options.policy, dtype=options.dtype)
    texts = sample(
        policy,
        tokenizer,
        prompts,
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    write_pool(options.output, Pool(prompts, texts, None, [str(number) for number in range(len(prompts))]))
    return {
        "output": str(options.output),
        "policy": options.policy,
        "prompts": len(prompts),
        "samples": options.samples,
        "empty_responses": sum(not text.strip() for row in texts for text in row),
        "seconds": time.perf_counter() - started,
    }


def show(result: dict[str, Any], options: SampleOptions) -> None:
    """Say what was written."""
    say(f"wrote {result['output']}: {result['prompts']} prompts, {result['samples']} responses each")
