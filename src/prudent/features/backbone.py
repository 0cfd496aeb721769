"""The part of a language model that makes token states, and how texts run through it with little waste.

Only the backbone runs, never the head over the vocabulary. Texts are sorted by length and batched by a token budget.
In a causal model padding stands on the right, where no token can see it, so no mask is needed and the fast kernel
runs; answers to one prompt share its key-value cache.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prudent.errors import PrudentError
from prudent.features.attention_cache import branch, cache_argument, is_roomy, new_cache, roomy_layers
from prudent.features.models import embedded_ids
from prudent.features.pooling import pool
from prudent.features.rendering import Rendered

# Tokens computed at once, and how many tokens' time it takes to start a batch (Python and kernel launches).
BUDGETS = {"cpu": (1024, 16), "cuda": (32768, 4096)}
KV_BYTES = 2**28  # of prompts' key-value caches held at once, and of the answers' copies; on a GPU a sixteenth of it


def backbone_of(model: Any, layer: int | None = None) -> Any:
    """``model`` without its head (adapters stay in); ``layer``: cut to its first so many blocks, final norm kept.

    A cut model shares its weights with the whole one. Raises PrudentError where the number of layers doesn't fit.
    """
    if hasattr(model, "get_base_model"):  # peft's own wrapper; an adapter that transformers loaded has none
        model = model.get_base_model()
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    body = getattr(model, getattr(model, "base_model_prefix", ""), model)
    total = body.config.num_hidden_layers
    if layer is None or layer == total:
        return body
    if not 1 <= layer <= total:
        raise PrudentError(f"layer is {layer}; this model has layers 1 to {total}")
    return cut(body, layer)


def blocks_at(body: Any) -> str | None:
    """Name of the list of a backbone's blocks among its modules; None where it shows none."""
    total = body.config.num_hidden_layers
    return next((n for n, m in body.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total), None)


def cut(body: Any, layer: int) -> Any:
    """``body`` with its first so many blocks alone, its final norm kept; the weights are shared."""
    path = blocks_at(body)
    if path is None:
        total = body.config.num_hidden_layers
        raise PrudentError(
            f"{type(body).__name__} shows no list of its {total} layers, so it can't be cut; leave layer out"
        )
    config = copy.deepcopy(body.config)
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layer]
    short = _shallow(body, config)
    owner, names = short, path.split(".")
    for name in names[:-1]:
        setattr(owner, name, _shallow(getattr(owner, name), config))
        owner = getattr(owner, name)
    setattr(owner, names[-1], getattr(owner, names[-1])[:layer])
    return short


def _shallow(module: nn.Module, config: Any) -> Any:
    """Copy of a module that shares parameters and children but has a child table, and a config, of its own."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if hasattr(twin, "config"):
        twin.config = config
    return twin


@torch.inference_mode()
def is_causal(body: Any, token: int) -> bool:
    """Whether a token's state is free of what follows: tried, on one token with and without others behind it.

    The others differ from it: with rotary positions, a mean over equal tokens would be the token itself.
    """
    size = body.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[(token + step) % size for step in (1, 7, 12)]], device=body.device)
    alone, followed = (body(input_ids=part).last_hidden_state[0, 0].float() for part in (ids[:, :1], ids))
    return bool(torch.allclose(alone, followed, rtol=1e-2, atol=1e-3 * float(alone.abs().max())))


def batches(
    lengths: Sequence[int], budget: int, spare: int, extra: Sequence[int] | None = None, held: int = 0
) -> Iterator[list[int]]:
    """Rows of like length, longest first: rows x longest within ``budget`` tokens (one row at least), and a new batch
    as soon as padding would exceed ``spare`` tokens, what starting a batch costs.

    extra: further tokens of memory a row needs (its prompt's cache); with them a batch may have ``held`` tokens.
    """
    batch: list[int] = []
    wide = deep = waste = 0
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        more = max(deep, extra[row]) if extra else 0
        waste += wide - lengths[row] if batch else 0
        rows = len(batch) + 1
        if batch and (rows * wide > budget or waste > spare or (extra and rows * (wide + more) > held)):
            yield batch
            batch, waste, more = [], 0, extra[row] if extra else 0
        if not batch:
            wide = lengths[row]
        batch.append(row)
        deep = more
    if batch:
        yield batch


def stack(sequences: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both (rows, longest), of sequences padded on the right or the left."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if left else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, start : start + len(sequence)] = 1
    return ids, mask


@torch.inference_mode()
def token_bytes(model: Any, token: int) -> int:
    """Bytes of one token's keys and values in a model whose cache can grow in place; 1 where it can't."""
    cache = new_cache(model, 0)
    model(input_ids=torch.tensor([[token]], device=model.device), use_cache=True, **{cache_argument(model): cache})
    return max(1, sum(buffer.nbytes for layer in roomy_layers(cache) for buffer in layer.buffers))


class Runner:
    """Runs rendered texts through a backbone and pools them over their response tokens.

    Counts what it computes: ``computed`` token positions, ``padding`` of them padding, ``shared`` prompt tokens that
    were not computed again. left: pad on the left (same states; slower, since it needs a mask).
    """

    def __init__(self, body: Any, pooling: str, pad: int, budget: int | None = None, left: bool = False) -> None:
        self.body, self.pooling, self.pad, self.left = body, pooling, pad, left
        self.budget, self.spare = BUDGETS.get(body.device.type, BUDGETS["cuda"])
        self.budget = budget or self.budget
        self.causal = is_causal(body, pad)
        self.argument = cache_argument(body)
        self.shares = self.causal and not left and is_roomy(new_cache(body))
        self.held = self._held() if self.shares else 0
        self.kept: dict[tuple[int, ...], tuple[Any, int]] = {}  # prompt: its cache and row there, oldest first
        self.computed = self.padding = self.shared = 0

    def _held(self) -> int:
        """Tokens whose keys and values fit what is set aside for them."""
        room = KV_BYTES
        if self.body.device.type == "cuda":
            room = torch.cuda.get_device_properties(self.body.device).total_memory // 16
        return max(room // token_bytes(self.body, self.pad), self.budget)

    def run(self, texts: Sequence[Rendered], keep: bool = False) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Pairs of (rows, their features (rows, width) float32 on the CPU), in an order that suits the lengths.

        keep: texts come a few at a time, so that prompts' caches are kept for further answers to them.
        """
        kept = self.kept if keep else {}
        plain = list(range(len(texts)))
        groups: dict[tuple[int, ...], list[int]] = {}
        if self.shares:
            for row, text in enumerate(texts):
                if text.response:
                    groups.setdefault(tuple(text.prompt), []).append(row)
            # A prompt with one answer has nothing to share and goes with the others.
            groups = {p: rows for p, rows in groups.items() if p and (len(rows) > 1 or p in kept)}
            together = {row for rows in groups.values() for row in rows}
            plain = [row for row in plain if row not in together]
        for batch in batches([len(texts[row].ids) for row in plain], self.budget, self.spare):
            rows = [plain[number] for number in batch]
            yield from self._safely(self._plain, [texts[row] for row in rows], rows)
        prompts = list(groups)
        for block in batches([len(prompt) for prompt in prompts], self.held, self.held):
            yield from self._block(texts, [prompts[number] for number in block], groups, kept)

    def speed(self) -> float:
        """Tokens read a second on this machine now: a trial of two times 1,024 tokens, of which the second counts."""
        from prudent.features.cpu import fast_attention

        ids = [[(17 * number + step) % embedded_ids(self.body) for step in range(128)] for number in range(8)]
        texts = [Rendered(ids[number // 2], ids[number][:64]) for number in range(8)]
        with torch.inference_mode(), fast_attention(self.body):
            for _ in range(2):
                start = time.perf_counter()
                for _ in self.run(texts):
                    pass
        return (4 * 128 + 8 * 64) / max(time.perf_counter() - start, 1e-9)

    def _safely(self, compute: Any, texts: list[Rendered], rows: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Compute a batch, in halves where it doesn't fit the device's memory."""
        try:
            yield rows, compute(texts).cpu()
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(rows) // 2
            yield from self._safely(compute, texts[:half], rows[:half])
            yield from self._safely(compute, texts[half:], rows[half:])

    def _count(self, mask: torch.Tensor) -> None:
        self.computed += mask.numel()
        self.padding += mask.numel() - int(mask.sum())

    def _plain(self, texts: list[Rendered]) -> torch.Tensor:
        ids, mask = stack([text.ids for text in texts], self.pad, self.left)
        self._count(mask)
        read = mask.clone()
        for row, text in enumerate(texts):  # a text whose response was cut off whole is read at its last token
            start = int(mask[row].argmax())
            read[row, start : start + min(len(text.prompt), len(text.ids) - 1)] = 0
        ids, mask, read = (tensor.to(self.body.device) for tensor in (ids, mask, read))
        options: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if self.left or not self.causal:
            options["attention_mask"] = mask
        if self.left and self.causal:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._pooled(self.body(input_ids=ids, **options).last_hidden_state, read)

    def _block(
        self,
        texts: Sequence[Rendered],
        prompts: list[tuple[int, ...]],
        groups: dict[tuple[int, ...], list[int]],
        kept: dict[tuple[int, ...], tuple[Any, int]],
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Answers to a block of prompts: the prompts once, then the answers behind their prompts' caches."""
        places = {prompt: kept.pop(prompt) for prompt in prompts if prompt in kept}
        fresh = [prompt for prompt in prompts if prompt not in places]
        self.shared += sum(map(len, places))
        for batch in batches([len(prompt) for prompt in fresh], self.budget, self.spare):
            ids, mask = stack([fresh[number] for number in batch], self.pad)
            self._count(mask)
            cache = new_cache(self.body, 0)
            self.body(input_ids=ids.to(self.body.device), use_cache=True, **{self.argument: cache})
            places |= {fresh[number]: (cache, order) for order, number in enumerate(batch)}
        if kept is self.kept:
            self._keep(places)
        caches = _distinct(places)
        starts = np.cumsum([0] + [_first_layer(cache).count for cache in caches])
        start_of = {id(cache): int(start) for cache, start in zip(caches, starts)}
        order_of = {prompt: start_of[id(cache)] + row for prompt, (cache, row) in places.items()}
        rows = [row for prompt in prompts for row in groups[prompt]]
        self.shared += sum(len(prompt) * (len(groups[prompt]) - 1) for prompt in prompts)
        sizes = [len(texts[row].response) for row in rows]
        for batch in batches(sizes, self.budget, self.spare, [len(texts[row].prompt) for row in rows], self.held):
            chosen = [rows[number] for number in batch]

            def compute(part: list[Rendered]) -> torch.Tensor:
                return self._behind(part, caches, [order_of[tuple(text.prompt)] for text in part])

            yield from self._safely(compute, [texts[row] for row in chosen], chosen)

    def _keep(self, places: dict[tuple[int, ...], tuple[Any, int]]) -> None:
        """Keep prompts' caches, and let the oldest go beyond half of what is set aside for caches."""
        self.kept |= places
        while sum(layer.count * layer.end for layer in map(_first_layer, _distinct(self.kept))) > self.held // 2:
            del self.kept[next(iter(self.kept))]

    def _behind(self, texts: list[Rendered], caches: list[Any], indices: list[int]) -> torch.Tensor:
        ids, read = stack([text.response for text in texts], self.pad)
        self._count(read)
        sizes = torch.tensor([len(text.prompt) for text in texts])
        width = int(sizes.max())
        device = self.body.device
        cache = branch(caches, indices, width, ids.shape[1])
        visible = (torch.arange(width) < sizes.unsqueeze(1)).long()
        output = self.body(
            input_ids=ids.to(device),
            attention_mask=torch.cat([visible, torch.ones_like(read)], 1).to(device),  # a token attends to its left
            position_ids=(sizes.unsqueeze(1) + torch.arange(ids.shape[1])).to(device),
            use_cache=True,
            **{self.argument: cache},
        )
        return self._pooled(output.last_hidden_state, read.to(device))

    def _pooled(self, states: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """(rows, width), or (rows, depths x width) from the states of several depths side by side (``depths``)."""
        parts = states.split(self.body.config.hidden_size, -1)
        return torch.cat([pool(part, read, self.pooling) for part in parts], -1)


def _distinct(places: dict[tuple[int, ...], tuple[Any, int]]) -> list[Any]:
    """The caches that prompts lie in, each once."""
    return list({id(cache): cache for cache, _ in places.values()}.values())


def _first_layer(cache: Any) -> Any:
    return roomy_layers(cache)[0]
