"""At least 20 RL runs an objective against drawn reward models, on a policy small enough for a CPU.

    python benchmarks/align_series.py --runs 20 --out runs/series

SmolLM2 takes minutes a run on a CPU, so the policy here is that of ``small_policy.py``: four of its layers, fine-tuned
on its own responses. It is the reference of every run, its hidden states are the reward models' features, and gold is
exact for whatever it writes. With a GPU, give ``--policy smollm2`` to run the whole model. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from small_policy import build_policy

from prudent.commands.align.options import AlignOptions
from prudent.commands.align.run import align
from prudent.commands.common import say
from prudent.demo.world import SIDES

OBJECTIVES = ["vanilla", "proportional", "bregman", "lcb", "variance-only", "permuted"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=150, help="preferences that each reward model learns from")
    parser.add_argument("--slope", type=float, default=2.0, help="how sure they are")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--side", default="demand", choices=SIDES, help="which constraints the prompts hold")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--policy", default="", help="a model to use in place of the small one")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 29], help="layers of the small policy")
    parser.add_argument("--epochs", type=float, default=1.0, help="of its fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    policy = given.policy or str(given.out.parent / "small-policy")
    if not given.policy and not (Path(policy) / "made.json").is_file():
        say(json.dumps(build_policy(Path(policy), given.layers, given.epochs, given.seed)))
    settings = AlignOptions(
        out=given.out,
        demo=True,
        demo_side=given.side,
        demo_pairs=given.pairs,
        demo_slope=given.slope,
        policy=policy,
        objectives=tuple(given.objectives),
        runs=given.runs,
        steps=given.steps,
        beta=given.beta,
        train_prompts=48,
        eval_prompts=32,
        eval_samples=4,
        prompts_per_step=given.prompts_per_step,
        max_new_tokens=given.max_new_tokens,
        learning_rate=given.learning_rate,
        seed=given.seed,
        save_every=given.steps,
    )
    began = time.perf_counter()
    summary = align(settings, say=say)
    kept = {name: summary[name] for name in ("objectives", "paired", "reference_value", "truth")}
    print(json.dumps({**kept, "seconds": time.perf_counter() - began}, indent=2))


if __name__ == "__main__":
    main()
