"""The study's question in small with SmolLM2 itself: does the direction hold for a language model?

    python benchmarks/rl_smollm2.py --draws 0 8 --minutes 9       # goes on where it stopped
    python benchmarks/rl_smollm2.py --table --out benchmarks/results/rl_smollm2.json

RLOO by the package's own engine, adapters on the top layers, one request a product of the testbed, gold the same
friendliness. A cell is one run and one JSON file of ``--cells``. About half a minute of processor a run.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import results
import rl_text
import torch
from rl_study import Draw, Regime, World, draw, promise, shift, statistics_of
from rl_tables import adjusted, arm_row, begin, markdown, options
from rl_testbed import Settings
from safetensors.torch import load_file, save_file

from prudent.demo.tone import tone
from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.features.sampling import sample
from prudent.files import dumps, write_atomic
from prudent.policies.rl.engine import Trainer, TrainingPrompts, TrainOptions, UpdateOptions
from prudent.policies.rl.policy import LoraOptions, Policy
from prudent.policies.rl.rollouts import roll_out
from prudent.policies.rl.scorers import HeadScorer
from prudent.seeding import spawn

ASKS = [f"Write a customer review of a {name}, in one short sentence." for name in list(rl_text.PRODUCTS)[:24]]
PROMPTS = [[{"role": "user", "content": text}] for text in ASKS]
TOKENS, POOL, JUDGE, LAST = 24, 24, 6, 4  # of a text; samples a prompt of the reference and of a run; steps of its KL
ARMS = ("vanilla", "lcb", "proportional")
REGIME = Regime(100, 2.0, None, Settings(steps=15, rate=1e-3), 0.1)
LAYERS, RANK = 6, 8
BRANCH = 5


@cache
def encoder() -> Encoder:
    return Encoder("smollm2", pooling="mean", dtype="bfloat16", progress=False)


def gold_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([tone(text) for text in texts], dtype=torch.float64)


def features_of(texts: list[str]) -> torch.Tensor:
    """Features (P, S, d) of texts, one prompt's after the other's."""
    count = len(texts) // len(PROMPTS)
    flat = encoder().encode([prompt for prompt in PROMPTS for _ in range(count)], texts)
    return flat.float().view(len(PROMPTS), count, -1)


def reference_world(folder: Path) -> World:
    """The reference's samples, made once: half of each prompt's for pairs, half for statistics and promises."""
    path = folder / "reference.safetensors"
    if not path.is_file():
        drawn = sample(encoder().model, encoder().tokenizer, PROMPTS, samples=POOL, max_new_tokens=TOKENS, seed=0)
        texts = [text for some in drawn for text in some]
        save_file({"features": features_of(texts), "gold": gold_of(texts).view(len(PROMPTS), POOL)}, path)
    found, half = load_file(path), POOL // 2
    features, gold = found["features"], found["gold"]
    pairs: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {None: (features[:, :half], gold[:, :half])}
    return World({}, pairs, features[:, half:], gold[:, half:], gold.mean(1), features.double().mean(1))


def train(one: Draw, arm: str) -> tuple[Policy, list[Any]]:
    """One run, and its history."""
    policy_seed, train_seed = spawn(one.seed, 2)
    model, tokenizer = load_language_model("smollm2", dtype="bfloat16")
    policy = Policy(model, lora=LoraOptions(RANK, 2 * RANK, LAYERS), seed=policy_seed)
    options = TrainOptions(
        objective=arm,
        update=UpdateOptions(beta=REGIME.beta, completions=REGIME.settings.completions),
        steps=REGIME.settings.steps,
        prompts=REGIME.settings.prompts,
        max_new_tokens=TOKENS,
        learning_rate=REGIME.settings.rate,
        warmup=REGIME.settings.warmup,
        member=0,
        seed=train_seed,
    )
    prompts = TrainingPrompts(encoder().renderer.prompts(PROMPTS), ASKS)
    scorer = HeadScorer(one.heads, encoder(), PROMPTS, shared=True)
    return policy, Trainer(policy, tokenizer, prompts, scorer, statistics_of(one), options).train()


def run(one: Draw, number: int, arm: str) -> dict[str, Any]:
    """One run's row, as rl_study's cells have them."""
    started = time.process_time()
    policy, history = train(one, arm)
    rollouts = roll_out(
        policy.sampler(),
        encoder().tokenizer,
        encoder().renderer.prompts(PROMPTS),
        range(len(PROMPTS)),
        completions=JUDGE,
        max_new_tokens=TOKENS,
        seed=spawn(one.seed, 3)[2],
    )
    gold = gold_of(rollouts.texts).view(len(PROMPTS), JUDGE)
    moves = shift(one, features_of(rollouts.texts).double().mean((0, 1))[None])
    return {
        "draw": number,
        "arm": arm,
        "beta": REGIME.beta,
        "gain": float((gold.mean(1) - one.known.reference).mean()),
        "judging": float((gold.var(1).sum() / JUDGE).sqrt()) / len(PROMPTS),
        "kl": float(np.mean([step["kl"] for step in history[-LAST:]])),
        "length": float(np.mean([len(ids) for ids in rollouts.completions])),
        "accuracy": one.accuracy,
        "samples": rollouts.texts[:: 4 * JUDGE],
        **promise(one, {arm: REGIME.beta}, moves)[0],
        "seconds": time.process_time() - started,
    }


def main() -> None:
    parser = options(__doc__, "runs/rl-smollm2")
    parser.add_argument("--draws", type=int, nargs=2, default=(0, 8), help="from, to")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given, time_left = begin(parser)
    rows = []
    known = None if given.table else reference_world(given.cells)
    for number in range(*given.draws):
        paths = {arm: given.cells / f"{number:03d}-{arm}.json" for arm in ARMS}
        one = draw(REGIME, BRANCH, number, known) if known and not all(p.is_file() for p in paths.values()) else None
        for arm, path in paths.items():
            if one is not None and not path.is_file() and time_left():
                row = run(one, number, arm)
                write_atomic(path, dumps(row))
                print(
                    f"{number}, {arm}: gain {row['gain']:.3f}, KL {row['kl']:.2f}, {row['seconds']:.0f} s", flush=True
                )
        if all(path.is_file() for path in paths.values()):
            rows += [json.loads(path.read_text(encoding="utf-8")) for path in paths.values()]
    if len({row["draw"] for row in rows}) < 4:
        print("no table of fewer than 4 draws")
        return
    table = adjusted([{"regime": "SmolLM2", **arm_row(rows, arm)} for arm in ARMS])
    print(markdown(table))
    if given.page:
        results.fill(given.page, "smollm2", markdown(table))
    figures = [
        results.figure("a run with SmolLM2", [row["seconds"] for row in rows], unit="s of processor"),
        results.figure("pairwise accuracy of the head", [row["accuracy"] for row in rows], unit=""),
    ]
    question = "Does the direction of the training study hold for SmolLM2?"
    results.write(given.out, question, figures, rows=table, runs=rows)


if __name__ == "__main__":
    main()
