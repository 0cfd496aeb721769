"""Seconds a step of RLOO: Prudent's engine against TRL's RLOOTrainer, same model, adapters, prompts and lengths.

    python benchmarks/align_step.py [--short] [--steps 3]

SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 8 prompts x 4 completions of at most 40 tokens. The engines take
turns within one process, in each precision; medians over steps, the first of each (warm-up) left out. The reward model
is an ensemble of ten heads on the policy's own reference; stock TRL scores with a callable that encodes apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import torch

from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.features.rendering import Renderer
from prudent.policies.policy import LoraOptions, Policy
from prudent.policies.rlhf import Trainer, TrainOptions, UpdateOptions
from prudent.policies.scorers import HeadScorer
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.objectives import ReferenceStatistics

ASKS = (
    "Describe a lighthouse at night.", "Give a recipe for onion soup.", "Explain why the sky is blue.",
    "Write to a neighbour about a noisy dog.", "Plan a day in a small harbour town.", "Praise a wooden chair.",
    "Tell a child how bread rises.", "Sell a bicycle bell in three sentences.",
)  # fmt: skip
TOKENS, COMPLETIONS = 40, 4


def ensemble(encoder: Encoder) -> HeadEnsemble:
    """Ten heads on features of no meaning: the time of a step doesn't depend on what they were fitted on."""
    features = torch.randn(2, 100, encoder.width, generator=torch.Generator().manual_seed(0))
    return HeadEnsemble.fit(features[0], features[1], members=10, ridge=1.0)


def own(dtype: torch.dtype, steps: int, layers: int | None, shared: bool) -> list[dict[str, float]]:
    """Seconds by part of each step of the own engine."""
    model, tokenizer = load_language_model("smollm2", dtype=dtype)
    encoder = Encoder((load_language_model("smollm2", dtype=dtype)[0], tokenizer), cache=False, progress=False)
    prompts = [[{"role": "user", "content": text}] for text in ASKS]
    policy = Policy(model, lora=LoraOptions(16, 32, layers))
    scorer = HeadScorer(ensemble(encoder), encoder, prompts, shared=shared)
    statistics_ = ReferenceStatistics(torch.zeros(10, len(ASKS), dtype=torch.float64), 1.0, 1e-2, 1.0)
    options = TrainOptions(
        objective="bregman", update=UpdateOptions(beta=0.05, completions=COMPLETIONS), steps=steps,
        prompts=len(ASKS), max_new_tokens=TOKENS,
    )  # fmt: skip
    trainer = Trainer(
        policy, tokenizer, Renderer(tokenizer).prompts(prompts), scorer, statistics_, options, describe=ASKS
    )
    return [{**h["seconds"], "tokens": h["length_tokens"]} for h in trainer.train()]


def stock(dtype: torch.dtype, steps: int) -> list[dict[str, float]]:
    """Seconds of each step of stock TRL RLOO with a callable reward that encodes apart."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    model, tokenizer = load_language_model("smollm2", dtype=dtype)
    encoder = Encoder((load_language_model("smollm2", dtype=dtype)[0], tokenizer), cache=False, progress=False)
    heads = ensemble(encoder)

    def reward(prompts: Any, completions: Any, **rest: Any) -> list[float]:
        return heads.scores(encoder.encode(prompts, completions)).mean(0).tolist()

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = trl.RLOOConfig(
            output_dir=folder, beta=0.05, num_generations=COMPLETIONS,
            per_device_train_batch_size=len(ASKS) * COMPLETIONS, max_completion_length=TOKENS, max_steps=steps,
            use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, top_k=0, logging_steps=1000,
            gradient_checkpointing=False,
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ASKS] * (steps + 1))
        trainer = trl.RLOOTrainer(
            model=model, reward_funcs=[reward], args=args, train_dataset=data, processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock],
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - began
    # TRL prepares rollouts before the step begins, so the whole loop divided by its steps is the honest figure.
    return [{"step": total / steps, "after rollouts": s} for s in clock.seconds]


def median(steps: list[dict[str, float]]) -> dict[str, float]:
    kept = steps[1:] or steps
    return {name: statistics.median(s[name] for s in kept) for name in kept[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="two steps in bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=results.FOLDER / "align_step.json")
    given = parser.parse_args()
    if given.short:
        given.steps, given.precisions = 2, ["bfloat16"]
    rows = []
    for name in given.precisions:
        dtype = getattr(torch, name)
        mine = median(own(dtype, given.steps, None, True))
        theirs = median(stock(dtype, max(2, given.steps - 1)))
        apart = median(own(dtype, given.steps, None, False))
        top = median(own(dtype, given.steps, 10, True))
        seconds = {k: v for k, v in mine.items() if k != "tokens"}
        row = {
            "precision": name,
            "own_s": sum(seconds.values()),
            "own_parts_s": seconds,
            "own_scored_apart_s": sum(v for k, v in apart.items() if k != "tokens"),
            "own_top_10_layers_s": sum(v for k, v in top.items() if k != "tokens"),
            "trl_s": theirs["step"],
            "ratio": sum(seconds.values()) / theirs["step"],
        }
        rows.append(row)
        print(json.dumps(row, indent=2), flush=True)
    note = f"{len(ASKS)} prompts x {COMPLETIONS} completions of at most {TOKENS} tokens; median over steps"
    figures = [
        results.figure(f"{what}, over TRL's RLOO, {row['precision']}", row[key] / row["trl_s"], note=note,
                       **({"at_most": 0.3} if key == "own_s" else {}))
        for row in rows
        for what, key in (("a step of the own engine", "own_s"), ("its rewards scored apart", "own_scored_apart_s"),
                          ("adapters on the top 10 layers", "own_top_10_layers_s"))
    ]  # fmt: skip
    results.write(given.out, "A step of align", figures, rows=rows)


if __name__ == "__main__":
    main()
