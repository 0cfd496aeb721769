"""Seconds a step of RLOO: Prudent's engine and its TRL adapter against TRL's RLOOTrainer, same model and prompts.

    python benchmarks/align_step.py [--short] [--steps 3] [--rounds 2] [--precisions bfloat16]

SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 8 prompts x 4 completions of at most 40 tokens. The sides take
turns within one process, in each precision. The reward model is an ensemble of ten heads: the own engine reads it off
the policy's reference (in a row of its own, apart), TRL calls it as a function that encodes apart. Stock TRL is taken
at its defaults, with gradient checkpointing, and without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch

from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.features.rendering import Renderer
from prudent.policies.estimates import ReferenceStatistics
from prudent.policies.rl.engine import Trainer, TrainingPrompts, TrainOptions, UpdateOptions
from prudent.policies.rl.policy import LoraOptions, Policy
from prudent.policies.rl.scorers import HeadScorer
from prudent.rewards.heads import HeadEnsemble

ASKS = (
    "Describe a lighthouse at night.",
    "Give a recipe for onion soup.",
    "Explain why the sky is blue.",
    "Write to a neighbour about a noisy dog.",
    "Plan a day in a small harbour town.",
    "Praise a wooden chair.",
    "Tell a child how bread rises.",
    "Sell a bicycle bell in three sentences.",
)
TOKENS, COMPLETIONS, BETA = 40, 4, 0.05
OWN, STOCK, UNCHECKED = "own engine", "stock TRL", "stock TRL without gradient checkpointing"
ADAPTER = "TRL adapter without gradient checkpointing"


def ensemble(encoder: Encoder) -> HeadEnsemble:
    """Ten heads on features of no meaning: the time of a step doesn't depend on what they were fitted on."""
    features = torch.randn(2, 100, encoder.width, generator=torch.Generator().manual_seed(0))
    return HeadEnsemble.fit(features[0], features[1], members=10, ridge=1.0)


def own_trainer(dtype: torch.dtype, steps: int, layers: int | None = None, shared: bool = True) -> Trainer:
    """The own engine, ready to take its first step."""
    model, tokenizer = load_language_model("smollm2", dtype=dtype)
    encoder = Encoder((load_language_model("smollm2", dtype=dtype)[0], tokenizer), cache=False, progress=False)
    prompts = [[{"role": "user", "content": text}] for text in ASKS]
    policy = Policy(model, lora=LoraOptions(16, 32, layers))
    scorer = HeadScorer(ensemble(encoder), encoder, prompts, shared=shared)
    statistics_ = ReferenceStatistics(torch.zeros(10, len(ASKS), dtype=torch.float64), 1.0, 1e-2, torch.ones(11))
    options = TrainOptions(
        objective="bregman",
        update=UpdateOptions(beta=BETA, completions=COMPLETIONS),
        steps=steps,
        prompts=len(ASKS),
        max_new_tokens=TOKENS,
    )
    return Trainer(
        policy, tokenizer, TrainingPrompts(Renderer(tokenizer).prompts(prompts), ASKS), scorer, statistics_, options
    )


def own(dtype: torch.dtype, steps: int, layers: int | None, shared: bool) -> list[dict[str, float]]:
    """Seconds by part of each step of the own engine."""
    history = own_trainer(dtype, steps, layers, shared).train()
    return [{**h["seconds"], "tokens": h["length_tokens"]} for h in history]


class Scores:
    """The ensemble as a reward model that encodes texts apart from the policy, as a trainer's reward function does."""

    def __init__(self, dtype: torch.dtype) -> None:
        model, tokenizer = load_language_model("smollm2", dtype=dtype)
        self.encoder = Encoder((model, tokenizer), cache=False, progress=False)
        self.heads = ensemble(self.encoder)

    def score(self, prompts: Any, responses: Any) -> torch.Tensor:
        return self.heads.scores(self.encoder.encode(prompts, responses))


def theirs(dtype: torch.dtype, steps: int, *, adapter: bool = False, checkpointing: bool = False) -> dict[str, float]:
    """Seconds a step of TRL's RLOO whose reward model encodes apart: stock, or Prudent's subclass (``adapter``).

    checkpointing: TRL's default. Without it less is computed, and more memory touched.
    """
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from prudent.policies.reward_function import RewardFunction
    from prudent.policies.trl import VarianceAwareRLOOTrainer

    model, tokenizer = load_language_model("smollm2", dtype=dtype)
    scores = Scores(dtype)

    def reward(prompts: Any, completions: Any, **rest: Any) -> list[float]:
        return scores.score(prompts, completions).mean(0).tolist()

    prompts = [[{"role": "user", "content": text}] for text in ASKS]
    with tempfile.TemporaryDirectory() as folder:
        args = trl.RLOOConfig(
            output_dir=folder,
            beta=BETA,
            num_generations=COMPLETIONS,
            per_device_train_batch_size=len(ASKS) * COMPLETIONS,
            max_completion_length=TOKENS,
            max_steps=steps,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            top_k=0,
            logging_steps=1000,
            gradient_checkpointing=checkpointing,
        )
        options: dict[str, Any] = {
            "model": model,
            "args": args,
            "processing_class": tokenizer,
            "train_dataset": Dataset.from_list([{"prompt": p} for p in prompts * (steps + 1)]),
            "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        }
        if adapter:
            samples = [["It is late.", "The sea is calm."]] * len(prompts)
            function = RewardFunction(scores, "bregman", beta=BETA, reference=(prompts, samples))
            trainer = VarianceAwareRLOOTrainer(reward_function=function, **options)
        else:
            trainer = trl.RLOOTrainer(reward_funcs=[reward], **options)
        spent = timed(trainer, "_generate_and_score_completions")
        began = time.perf_counter()
        trainer.train()
        total = (time.perf_counter() - began) / steps
    rollouts = sum(spent) / steps
    return {"sampling, reference and reward": rollouts, "policy": total - rollouts}


def timed(owner: Any, method: str) -> list[float]:
    """Seconds of every call of ``owner.method`` from now on."""
    inner, spent = getattr(owner, method), []

    def outer(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)

    setattr(owner, method, outer)
    return spent


def median(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians by part over an own run's steps, the first (warm-up) left out."""
    kept = steps[1:] or steps
    return {name: statistics.median(s[name] for s in kept) for name in kept[0] if name != "tokens"}


def sides_of(dtype: torch.dtype, steps: int) -> dict[str, Callable[[], dict[str, float]]]:
    """What is timed: name -> a run that gives seconds by part of a step."""
    less = max(2, steps - 1)
    return {
        OWN: lambda: median(own(dtype, steps, None, True)),
        UNCHECKED: lambda: theirs(dtype, less),
        "own engine, rewards scored apart": lambda: median(own(dtype, steps, None, False)),
        "own engine, adapters on the top 10 layers": lambda: median(own(dtype, steps, 10, True)),
        ADAPTER: lambda: theirs(dtype, less, adapter=True),
        STOCK: lambda: theirs(dtype, less, checkpointing=True),
    }


def figures_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of every side to stock TRL at its defaults and without checkpointing, whichever of them is the faster."""
    note = f"{len(ASKS)} prompts x {COMPLETIONS} completions of at most {TOKENS} tokens"
    figures = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        seen: dict[str, list[float]] = {}
        for row in rows:
            if row["precision"] == precision:
                seen.setdefault(row["side"], []).append(row["seconds"])
        for base, against in ((STOCK, seen.keys() - {STOCK, ADAPTER}), (UNCHECKED, {OWN, ADAPTER})):
            figures += [
                results.ratio(
                    f"a step, {side}, over {base}, {precision}",
                    seen[side],
                    seen[base],
                    note=note,
                    **({"at_most": 0.3} if side == OWN else {}),
                )
                for side in seen
                if side in against
            ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one round of two steps in bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="of the own engine; TRL takes one less, none left out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=results.FOLDER / "align_step.json")
    given = parser.parse_args()
    if given.short:
        given.steps, given.rounds, given.precisions = 2, 1, ["bfloat16"]
    rows = []
    for name in given.precisions:
        for turn in range(given.rounds):
            for side, run in sides_of(getattr(torch, name), given.steps).items():
                parts = run()
                rows.append(
                    {"precision": name, "round": turn, "side": side, "seconds": sum(parts.values()), "parts": parts}
                )
                print(json.dumps(rows[-1]), flush=True)
    results.write(given.out, "A step of align", figures_of(rows), rows=rows)


if __name__ == "__main__":
    main()
