"""A policy small enough for many RL runs on a CPU: a few layers of the embedded model and the part of its vocabulary
that the embedded world uses, fine-tuned on the embedded model's own samples.

    python benchmarks/small_policy.py --out runs/small-policy [--layers 0 1 2 29] [--epochs 1]

It is fluent only in places. What matters for a series of runs is that it is one fixed reference for all of them,
answers the embedded prompts, and that gold is exact for whatever it writes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from prudent.commands.common import say
from prudent.demo.world import load_world
from prudent.features.models import load_language_model
from prudent.features.rendering import Rendered, Renderer
from prudent.seeding import torch_generator

ROWS, RATE = 16, 1e-3


def kept_tokens(state: dict[str, Any], used: set[int]) -> tuple[dict[str, int], list[Any]]:
    """The used tokens, the bytes, and whatever merges lead to them: (vocabulary with its old ids, merges)."""
    vocabulary: dict[str, int] = state["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    pairs = [(merge if isinstance(merge, list) else merge.split(" ")) for merge in state["model"]["merges"]]
    made_of = {a + b: (a, b) for a, b in reversed(pairs)}
    kept = {name for name in vocabulary if len(name) == 1} | {token["content"] for token in state["added_tokens"]}
    todo = [names[number] for number in used if number in names]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept.add(name)
            todo += made_of.get(name, ())
    return {name: vocabulary[name] for name in vocabulary if name in kept}, [
        merge for merge, (a, b) in zip(state["model"]["merges"], pairs, strict=True) if {a, b, a + b} <= kept
    ]


def shrink(model: Any, tokenizer: Any, layers: list[int], used: set[int]) -> tuple[Any, Any]:
    """The model with only these layers and tokens, in float32, and its tokenizer."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = kept_tokens(state, used)
    old = torch.tensor(sorted(set(vocabulary.values()) | {token["id"] for token in state["added_tokens"]}))
    new = {number: place for place, number in enumerate(old.tolist())}
    state["model"] |= {"vocab": {name: new[number] for name, number in vocabulary.items()}, "merges": merges}
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    small = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
    )
    model = model.float()
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in layers)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    embedding = model.get_input_embeddings().weight.data[old].clone()
    model.resize_token_embeddings(len(old), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(embedding)
    model.tie_weights()
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(layers)]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(small, name)
        setattr(model.config, name, number)
        setattr(model.generation_config, name, number)
    return model, small


def loss_of(model: Any, rows: list[Rendered]) -> torch.Tensor:
    """Mean negative log-likelihood of the responses' tokens, in nats. Rows are padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        labels[place, len(row.prompt) : len(row.ids)] = torch.tensor(row.response)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        return torch.nn.functional.cross_entropy(model.lm_head(states[wanted >= 0]).float(), wanted[wanted >= 0])


def build_policy(folder: Path, layers: list[int], epochs: float, seed: int) -> dict[str, float]:
    """Make the policy, save it with its tokenizer, and say how well it does on a tenth of the prompts held out."""
    world = load_world()
    prompts, responses = world.flat()
    model, tokenizer = load_language_model("smollm2", dtype=torch.float32)
    found = Counter(token for row in Renderer(tokenizer).conversations(prompts, responses) for token in row.ids)
    used = {token for token, times in found.items() if times > 2}  # rarer ones are spelled out of smaller pieces
    model, tokenizer = shrink(model, tokenizer, layers, used)
    rows = Renderer(tokenizer).conversations(prompts, responses)
    generator = torch_generator(seed)
    order = torch.randperm(len(world), generator=generator)
    held = set(order[: len(world) // 10].tolist())
    owner = [place for place, texts in enumerate(world.responses) for _ in texts]
    train = [i for i, place in enumerate(owner) if place not in held]
    apart = sorted((i for i, place in enumerate(owner) if place in held), key=lambda i: len(rows[i].ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = int(epochs * len(train) / ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    blocks: list[torch.Tensor] = []
    for step in range(steps):
        if not blocks:  # rows of like length together, the batches in random order
            lengths = torch.tensor([len(rows[i].ids) for i in train]) + torch.rand(len(train), generator=generator) * 16
            parts = list(torch.tensor(train)[lengths.argsort()].split(ROWS))
            blocks = [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
        loss = loss_of(model, [rows[i] for i in blocks.pop().tolist()])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            say(f"small policy: step {step}/{steps}, loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s")
    with torch.no_grad():
        losses = [loss_of(model, [rows[i] for i in apart[k : k + ROWS]]).item() for k in range(0, len(apart), ROWS)]
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "held_out_loss_nats_a_token": sum(losses) / len(losses),
        "seconds": time.perf_counter() - began,
    }
    (folder / "made.json").write_text(json.dumps(made))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 29])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print(json.dumps(build_policy(given.out, given.layers, given.epochs, given.seed)))
