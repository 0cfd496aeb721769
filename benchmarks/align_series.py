"""At least 20 RL runs an objective against drawn reward models, on a policy small enough for a CPU.

    python benchmarks/align_series.py --runs 20 --out runs/series

SmolLM2 takes minutes a run on a CPU, so the policy here is a small transformer made in place: a byte-pair vocabulary
and four layers trained on the embedded world's own responses (what SmolLM2 wrote to our prompts). It is the reference
of every run, its hidden states are the reward models' features, and gold is exact for whatever it writes. With a GPU,
give ``--policy smollm2`` to run the whole model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prudent.align.command import align
from prudent.align.settings import Settings, check
from prudent.cli.common import say
from prudent.demo.world import SIDES, load_world
from prudent.features.rendering import Renderer
from prudent.seeding import numpy_generator, torch_generator

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OBJECTIVES = ["vanilla", "proportional", "bregman", "exact", "lcb", "variance-only", "permuted"]
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]


def build_tokenizer(texts: list[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-pair encoding trained on the world's texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[1:4], model_max_length=1024,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_policy(folder: Path, epochs: int, width: int, layers: int, seed: int) -> dict[str, float]:
    """Train the small policy on the embedded responses (a tenth of the prompts held out for the loss) and save it."""
    world = load_world()
    prompts, responses = world.flat()
    tokenizer = build_tokenizer([p[-1]["content"] for p in world.prompts] + responses)
    rendered = Renderer(tokenizer).conversations(prompts, responses)
    held = set(numpy_generator(seed).permutation(len(world))[: len(world) // 10].tolist())
    owner = [i for i, texts in enumerate(world.responses) for _ in texts]
    parts = {
        "train": [r for r, o in zip(rendered, owner) if o not in held],
        "held": [r for r, o in zip(rendered, owner) if o in held],
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=width // 32, num_key_value_heads=width // 64, max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(parts["train"]) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    generator = torch_generator(seed)
    done = 0
    began = time.perf_counter()
    while done < steps:
        for batch in torch.randperm(len(parts["train"]), generator=generator).split(32):
            if len(batch) < 32 or done == steps:
                break
            loss = loss_of(model, tokenizer, [parts["train"][i] for i in batch.tolist()])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            done += 1
            if done % 100 == 0:
                say(f"policy: step {done}/{steps}, loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s")
    with torch.no_grad():
        held_loss = sum(loss_of(model, tokenizer, parts["held"][i : i + 32]).item() for i in range(0, 320, 32)) / 10
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters()), "held_out_loss_nats_a_token": held_loss}


def loss_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list) -> torch.Tensor:
    """Mean negative log-likelihood of the responses' tokens."""
    width = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, len(row.prompt) : len(row.ids)] = torch.tensor(row.response)
    return model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--side", default="demand", choices=SIDES, help="which constraints the prompts hold")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--policy", default="", help="a model to use in place of the small one")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    made: dict[str, float] = {}
    policy = given.policy or str(given.out.parent / f"{given.out.name}-policy")
    if not given.policy and not (Path(policy) / "made.json").is_file():
        made = build_policy(Path(policy), given.epochs, given.width, given.layers, given.seed)
        (Path(policy) / "made.json").write_text(json.dumps(made))
        say(json.dumps(made))
    settings = check(
        Settings(
            demo=True,
            demo_side=given.side,
            policy=policy,
            objectives=tuple(given.objectives),
            runs=given.runs,
            steps=given.steps,
            beta=given.beta,
            train_prompts=48,
            eval_prompts=32,
            prompts_per_step=16,
            max_new_tokens=64,
            learning_rate=1e-3,
            dtype="float32",
            seed=given.seed,
            save_every=given.steps,
        )
    )
    began = time.perf_counter()
    summary = align(settings, given.out, say=say)
    kept = {name: summary[name] for name in ("objectives", "paired", "reference_value", "truth")}
    print(json.dumps({**kept, "policy": made, "seconds": time.perf_counter() - began}, indent=2))


if __name__ == "__main__":
    main()
