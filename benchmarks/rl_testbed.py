"""Many RL runs of a tiny policy in one batch: adapters of their own over one base, a reward model of their own each.

    python benchmarks/rl_testbed.py [--fluency]     # trains the base; says what a run costs and how fluent the base is

The policy is a transformer of two layers that has learnt the reviews of ``rl_text.py``. A run is RLOO with the KL in
the reward, as in ``prudent.policies.rl``: the shaping (``objectives.shape``) and the advantages are that package's own.
Every product of matrices is a batch of one product a run, so that a run's numbers don't hang on the runs beside it:
in float32 it is bit for bit what it is alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rl_text
import torch
from safetensors.torch import load_file, save_file

from prudent.policies.estimates import ReferenceStatistics
from prudent.policies.objectives import shape
from prudent.policies.rl.advantages import leave_one_out
from prudent.rewards.heads import HeadEnsemble
from prudent.seeding import Seed, numpy_generator, spawn, torch_generator

WIDTH, LAYERS, HEADS, RANK = 48, 2, 4, 4
LENGTH = rl_text.LENGTH
BASE_FILE = Path("runs/rl-testbed/base.safetensors")
Weights = dict[str, torch.Tensor]
SIZES = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
LINEARS = [f"{layer}.{name}" for layer in range(LAYERS) for name in SIZES]


def new_base(seed: Seed) -> Weights:
    """Random weights: embed (V, d), position (LENGTH, d), and each layer's matrices (in, out)."""
    generator = torch_generator(seed)
    sizes = {"embed": (len(rl_text.vocabulary()), WIDTH), "position": (LENGTH, WIDTH)}
    sizes |= {name: SIZES[name.split(".")[1]] for name in LINEARS}
    return {name: torch.randn(size, generator=generator) * size[0] ** -0.5 for name, size in sizes.items()}


def _normal(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def _times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (R, ..., d) by a matrix a run (R, d, e), as a batch of R products of the same shape whatever R is."""
    return torch.bmm(x.flatten(1, -2), weight).view(*x.shape[:-1], weight.shape[-1])


def states(
    base: Weights, merged: Weights, ids: torch.Tensor, cache: list | None = None, start: int = 0
) -> torch.Tensor:
    """Last hidden states (R, N, T, d) of ids (R, N, T) at positions ``start`` on.

    merged: each linear layer's weights, a run each (R, in, out). cache: a layer's keys and values (R, N, H, LENGTH,
    d/H) each, filled as the text grows; None reads whole texts from their start.
    """
    runs, rows, length = ids.shape
    x = base["embed"][ids] + base["position"][start : start + length]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        parts = _times(_normal(x), merged[f"{layer}.qkv"]).view(runs, rows, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(3, 0, 1, 4, 2, 5)
        if cache is not None:
            cache[layer][0][:, :, :, start : start + length] = key
            cache[layer][1][:, :, :, start : start + length] = value
            key, value = (part[:, :, :, : start + length] for part in cache[layer])
        weight = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        if cache is None:
            weight = weight.masked_fill(future, float("-inf"))
        mixed = (weight.softmax(-1) @ value).transpose(2, 3).reshape(runs, rows, length, WIDTH)
        x = x + _times(mixed, merged[f"{layer}.out"])
        x = x + _times(_times(_normal(x), merged[f"{layer}.up"]).relu(), merged[f"{layer}.down"])
    return _normal(x)


def _logits(base: Weights, hidden: torch.Tensor) -> torch.Tensor:
    return _times(hidden, 4 * base["embed"].T.expand(len(hidden), -1, -1))


def of_base(base: Weights, runs: int) -> Weights:
    """The base's linear layers as those of ``runs`` runs."""
    return {name: base[name].expand(runs, -1, -1) for name in LINEARS}


def train_base(seed: Seed = 0, steps: int = 1000, rows: int = 64) -> Weights:
    """The base, trained on fresh reviews at every step."""
    writer, weights = numpy_generator(spawn(seed, 2)[0]), new_base(spawn(seed, 2)[1])
    for tensor in weights.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), 4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    names = list(rl_text.PRODUCTS)
    for _ in range(steps):
        chosen = [names[i] for i in writer.integers(len(names), size=rows)]
        ids = torch.tensor([rl_text.encode(name, rl_text.write(name, writer)) for name in chosen])[None]
        logits = _logits(weights, states(weights, of_base(weights, 1), ids[..., :-1]))
        loss = torch.nn.functional.cross_entropy(logits[0].flatten(0, 1), ids[0, :, 1:].flatten(), reduction="none")
        kept = mask_of(ids).flatten()
        ((loss * kept).sum() / kept.sum()).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def load_base(path: Path = BASE_FILE) -> Weights:
    """The trained base, made where it is missing."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(train_base(), path)
    return load_file(path)


def mask_of(ids: torch.Tensor) -> torch.Tensor:
    """Which of the tokens after the prompt's mark count, (..., LENGTH) float32: up to the first end mark, with it."""
    ended = (ids[..., 1:] == 0).int()
    return (ended.cumsum(-1) - ended == 0).float()


@torch.no_grad()
def sample(base: Weights, merged: Weights, prompts: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Texts (R, N, 1 + LENGTH) of prompts (R, N) by inverse distribution function of ``uniform`` (R, N, LENGTH)."""
    runs, rows = prompts.shape
    ids = torch.zeros(runs, rows, 1 + LENGTH, dtype=torch.long)
    ids[..., 0] = prompts
    shape_of = (runs, rows, HEADS, LENGTH, WIDTH // HEADS)
    cache = [(torch.empty(shape_of), torch.empty(shape_of)) for _ in range(LAYERS)]
    going = torch.ones(runs, rows, dtype=torch.bool)
    for at in range(LENGTH):
        hidden = states(base, merged, ids[..., at : at + 1], cache, at)
        chance = _logits(base, hidden)[:, :, 0].softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(chance, uniform[..., at : at + 1] * chance[..., -1:])[..., 0]
        ids[..., at + 1] = torch.where(going, drawn, 0)
        going &= ids[..., at + 1] != 0
        if not bool(going.any()):
            break
    return ids


def log_probabilities(base: Weights, merged: Weights, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability (R, N) of each text, and the hidden states behind its tokens (R, N, LENGTH, d)."""
    hidden = states(base, merged, ids[..., :-1])
    logs = _logits(base, hidden).log_softmax(-1).gather(-1, ids[..., 1:, None])[..., 0]
    return (logs * mask_of(ids)).sum(-1), hidden


def features_of(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Features (R, N, d) of texts: the reference's states, mean over the words (each is read where the next begins)."""
    read = torch.nn.functional.pad(mask_of(ids)[..., 1:], (1, 0))  # the state at index t has read the words up to t
    return (hidden * read[..., None]).sum(2) / read.sum(-1, keepdim=True).clamp(min=1)


def gold_of(ids: torch.Tensor) -> torch.Tensor:
    """Gold of texts (..., 1 + LENGTH): (...) float64."""
    flat = ids[..., 1:].reshape(-1, LENGTH)
    return torch.tensor([rl_text.gold(tuple(row)) for row in flat.tolist()], dtype=torch.float64).view(ids.shape[:-1])


@torch.no_grad()
def pool_of(base: Weights, samples: int, seed: Seed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``samples`` of the reference for every prompt: ids (P, C, 1 + LENGTH), features (P, C, d), gold (P, C)."""
    prompts = torch.arange(1, 1 + len(rl_text.PRODUCTS))[:, None].expand(-1, samples)
    merged = of_base(base, len(prompts))
    uniform = torch.rand(*prompts.shape, LENGTH, generator=torch_generator(seed))
    ids = sample(base, merged, prompts, uniform)
    return ids, features_of(log_probabilities(base, merged, ids)[1], ids), gold_of(ids)


@dataclass(frozen=True)
class Run:
    """One run of the batch: its objective, beta, reward model and that one's statistics on the reference, and the seed
    of its adapters, prompts and samples (the same for the arms that it is compared with)."""

    objective: str
    beta: float
    heads: HeadEnsemble
    statistics: ReferenceStatistics
    member: int | None
    seed: Seed


@dataclass(frozen=True)
class Settings:
    """steps of ``prompts`` prompts with ``completions`` each; AdamW's rate after ``warmup`` steps."""

    steps: int = 16
    prompts: int = 4
    completions: int = 4
    rate: float = 1e-2
    warmup: int = 3

    @property
    def rows(self) -> int:
        return self.prompts * self.completions


def merge(base: Weights, adapters: Weights) -> Weights:
    """The linear layers (R, in, out) of runs with these adapters."""
    return {n: base[n] + 2 * torch.bmm(adapters[f"{n}.a"], adapters[f"{n}.b"]) for n in LINEARS}


def new_adapters(seeds: Sequence[Seed]) -> Weights:
    """Adapters that change nothing yet: ``a`` (R, in, rank) random by run, ``b`` (R, rank, out) zero."""
    found: Weights = {}
    generators = [torch_generator(seed) for seed in seeds]
    for name in LINEARS:
        size, out = SIZES[name.split(".")[1]]
        found[f"{name}.a"] = torch.stack([torch.randn(size, RANK, generator=g) for g in generators]) * size**-0.5
        found[f"{name}.b"] = torch.zeros(len(seeds), RANK, out)
    return found


class Batch:
    """Runs in training together. ``step`` trains them all; ``judge`` says what they are worth."""

    def __init__(self, base: Weights, runs: Sequence[Run], settings: Settings) -> None:
        self.base, self.runs, self.settings = base, list(runs), settings
        self.seeds = [spawn(run.seed, 4) for run in self.runs]
        self.adapters = new_adapters([seeds[0] for seeds in self.seeds])
        for tensor in self.adapters.values():
            tensor.requires_grad_(True)
        self.moments = {n: (torch.zeros_like(t), torch.zeros_like(t)) for n, t in self.adapters.items()}
        self.done = 0

    def _draws(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts (R, N) and uniforms (R, N, LENGTH) of this step, from each run's own seed."""
        prompts, uniform = [], []
        for _, order, numbers, _ in self.seeds:
            chosen = numpy_generator(spawn(order, self.done + 1)[-1]).permutation(len(rl_text.PRODUCTS))
            prompts.append(torch.from_numpy(1 + chosen[: self.settings.prompts]))
            generator = torch_generator(spawn(numbers, self.done + 1)[-1])
            uniform.append(torch.rand(self.settings.rows, LENGTH, generator=generator))
        return torch.stack(prompts).repeat_interleave(self.settings.completions, 1), torch.stack(uniform)

    def step(self) -> dict[str, torch.Tensor]:
        """Train every run by one step. Returns what was measured, (R,) each, and the texts ``ids``, their ``features``
        and their members' ``scores`` (R, K, N)."""
        prompts, uniform = self._draws()
        merged = merge(self.base, self.adapters)
        ids = sample(self.base, {n: w.detach() for n, w in merged.items()}, prompts, uniform)
        with torch.no_grad():
            reference, hidden = log_probabilities(self.base, of_base(self.base, len(self.runs)), ids)
            features = features_of(hidden, ids)
        current, _ = log_probabilities(self.base, merged, ids)
        ratio = (current.detach() - reference).double()
        found, advantages, scores = [], [], []
        for number, run in enumerate(self.runs):
            members = run.heads.scores(features[number])
            shaped = shape(
                run.objective,
                members,
                prompts[number] - 1,
                run.statistics,
                run.beta,
                member=run.member,
                seed=spawn(self.seeds[number][3], self.done + 1)[-1],
            )
            reward = shaped.reward - run.beta * shaped.kl_weight * ratio[number]
            advantages.append(leave_one_out(reward, self.settings.completions).advantages)
            scores.append(members)
            found.append((shaped.mean.mean(), shaped.variance.mean()))
        loss = -(torch.stack(advantages).float() * current).sum() / self.settings.rows
        loss.backward()
        self._update()
        measured = torch.stack([torch.stack(row) for row in found])
        return {
            "reward": measured[:, 0],
            "variance": measured[:, 1],
            "kl": ratio.mean(1),
            "length": mask_of(ids).sum(-1).mean(1),
            "ids": ids,
            "features": features,
            "scores": torch.stack(scores),
            "prompts": prompts - 1,
            "log_ratio": ratio,
        }

    @torch.no_grad()
    def _update(self) -> None:
        """AdamW without decay, each run's gradient clipped to norm 1 by itself."""
        self.done += 1
        squares = torch.zeros(len(self.runs))
        for tensor in self.adapters.values():  # one after the other: a sum over an axis adds in an order of its own
            squares += tensor.grad.flatten(1).square().sum(1)  # type: ignore[union-attr]
        scale = (1 / squares.sqrt().clamp(min=1e-12)).clamp(max=1)[:, None, None]
        rate = self.settings.rate * min(1.0, self.done / self.settings.warmup)
        for name, tensor in self.adapters.items():
            first, second = self.moments[name]
            gradient = tensor.grad * scale  # type: ignore[operator]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = (first / (1 - 0.9**self.done)) / ((second / (1 - 0.999**self.done)).sqrt() + 1e-8)
            tensor.sub_(step, alpha=rate)
            tensor.grad = None

    @torch.no_grad()
    def labels(self, samples: int) -> torch.Tensor:
        """Gold (R, P * samples) of fresh samples of every prompt by the policy as it stands, one prompt after another
        so that the first few labels are of many prompts."""
        prompts = torch.arange(1, 1 + len(rl_text.PRODUCTS)).repeat(samples).expand(len(self.runs), -1)
        seeds = [spawn(seeds[3], self.done + 3)[-1] for seeds in self.seeds]
        uniform = torch.stack([torch.rand(prompts.shape[1], LENGTH, generator=torch_generator(seed)) for seed in seeds])
        return gold_of(sample(self.base, merge(self.base, self.adapters), prompts, uniform))

    @torch.no_grad()
    def judge(self, samples: int, closely: int = 2, features: bool = False) -> dict[str, torch.Tensor]:
        """``samples`` fresh ones of every prompt: mean gold (R, P), its mean's standard error (R,), length (R,); from
        ``closely`` of them KL (R,); if asked for, their mean features (R, d). Run by run, so that memory doesn't grow
        with the batch."""
        count = len(rl_text.PRODUCTS)
        prompts = torch.arange(1, 1 + count).repeat_interleave(samples)[None]
        base, found = of_base(self.base, 1), []
        for number, seeds in enumerate(self.seeds):
            merged = merge(self.base, {name: t[number : number + 1] for name, t in self.adapters.items()})
            generator = torch_generator(spawn(seeds[3], 1)[0])
            uniform = torch.rand(1, prompts.shape[1], LENGTH, generator=generator)
            ids = sample(self.base, merged, prompts, uniform)
            near = ids.view(1, count, samples, -1)[:, :, :closely].flatten(1, 2)
            current, _ = log_probabilities(self.base, merged, near)
            reference, _ = log_probabilities(self.base, base, near)
            kl = (current - reference).double().mean()
            length = mask_of(ids).sum(-1).mean()
            gold = gold_of(ids).view(count, samples)
            error = (gold.var(1).sum() / samples).sqrt() / count
            row = {"gold": gold.mean(1), "error": error, "kl": kl, "length": length}
            if features:
                row["features"] = features_of(states(self.base, base, ids[..., :-1]), ids)[0].double().mean(0)
            found.append(row)
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def perplexities(base: Weights, prompts: int = 8, samples: int = 6) -> dict[str, float]:
    """Median perplexity under SmolLM2 of the base's samples and of SmolLM2's own, given the same request."""
    from prudent.features.models import load_language_model
    from prudent.features.rendering import Renderer
    from prudent.features.sampling import decode, sample_ids, stop_tokens

    model, tokenizer = load_language_model("smollm2", dtype="bfloat16")
    names = list(rl_text.PRODUCTS)[:: len(rl_text.PRODUCTS) // prompts]
    asked = [
        [{"role": "user", "content": f"Write a short customer review of a {name}, in two sentences."}] for name in names
    ]
    renderer = Renderer(tokenizer)
    drawn = sample_ids(
        model,
        renderer.prompts(asked),
        samples=samples,
        max_new_tokens=40,
        stop=stop_tokens(model, tokenizer),
        pad=tokenizer.pad_token_id or 0,
        seed=0,
    )
    ids = pool_of(base, samples, 7)[0]
    rows = {name: number for number, name in enumerate(rl_text.PRODUCTS)}
    texts = {
        "the base's samples": [[rl_text.decode(text) for text in ids[rows[name], :, 1:].tolist()] for name in names],
        "SmolLM2's own": decode(tokenizer, drawn),
    }
    found = {}
    for whose, answers in texts.items():
        values = []
        for prompt, some in zip(asked, answers):
            for row in renderer.conversations([prompt] * len(some), some):
                with torch.no_grad():
                    logs = model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
                start = len(row.prompt)
                wanted = torch.tensor(list(row.ids)[start:])[:, None]
                values.append(float((-logs[start - 1 : -1].gather(1, wanted).mean()).exp()))
        found[whose] = float(np.median(values))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fluency", action="store_true", help="perplexity under SmolLM2, beside its own samples'")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    base = load_base()
    print(f"base: {time.process_time() - started:.0f} s of processor")
    if given.fluency:
        found = perplexities(base)
        ours, own = found.values()
        print(", ".join(f"{name}: median perplexity {value:.1f}" for name, value in found.items()))
        print(f"ratio {ours / own:.2f} (aim: at most 1.5)")


if __name__ == "__main__":
    main()
