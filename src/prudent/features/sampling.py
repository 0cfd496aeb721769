"""Sample answers from a language model: many prompts, several answers each, in one batch that stays full.

A prompt is read once and its key-value cache expanded over its samples; finished rows leave the batch and the next
prompts follow. Every answer has random numbers of its own, drawn from (seed, prompt ids, sample number), so
batch size, order and the other prompts change nothing but the last bits of the logits: in float32 the answers are the
same for every batch size save where a random number falls within rounding of a boundary; in bfloat16 logits round
coarsely and answers may part.

Nothing is truncated: no top-k, no top-p; at temperature 1 the answers are draws from the model itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError
from prudent.features.attention_cache import cache_argument, is_roomy, new_cache, roomy_layers
from prudent.features.backbone import stack
from prudent.features.models import embedded_ids, padding_id, require_known, require_room
from prudent.features.rendering import Prompt, Renderer, has_template
from prudent.progress import meter
from prudent.seeding import Seed, sequence

BLOCK = 256  # tokens summed together before one is picked among them


@dataclass(frozen=True)
class Samples:
    """Sampled answers of P prompts, S each, padded to the longest, T.

    tokens: (P, S, T) int64, padded with the pad id. lengths: (P, S) tokens of each, the stop token included.
    logprobs: (P, S, T) float32, log-probability (nats) of each token under the distribution it was drawn from
    (temperature included); 0 at padding. stopped: (P, S), whether the answer ended by a stop token.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    logprobs: torch.Tensor
    stopped: torch.Tensor


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's end mark and those of the model's generation settings."""
    found = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    for settings in (getattr(model, "generation_config", None), model.config):
        named = getattr(settings, "eos_token_id", None)
        found |= set(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    return sorted(int(token) for token in found)


def pick(logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn by inverse distribution function, and their log-probabilities.

    logits: (rows, vocabulary) float32. uniform: (rows,) float64 in [0, 1). Two levels (blocks of the vocabulary, then
    tokens in the block), since a running sum over a whole vocabulary costs more than the rest of the draw.
    """
    rows, size = logits.shape
    top = logits.amax(-1, keepdim=True)
    weights = torch.nn.functional.pad((logits - top).exp_(), (0, -size % BLOCK)).view(rows, -1, BLOCK)
    blocks = weights.sum(-1, dtype=torch.float32).double()
    running = blocks.cumsum(-1)
    total = running[:, -1:]
    target = uniform.to(running.device).unsqueeze(-1) * total
    block = torch.searchsorted(running, target, right=True).clamp_(max=running.shape[1] - 1)
    target = target - (running - blocks).gather(1, block)
    inside = weights.gather(1, block.unsqueeze(-1).expand(-1, 1, BLOCK)).squeeze(1).double()
    within = inside.cumsum(-1)
    # Rounding may put the target past the block's end: its last token with any weight is meant then.
    last = (inside > 0).int().mul(torch.arange(1, BLOCK + 1, device=inside.device)).amax(-1, keepdim=True) - 1
    token = torch.minimum(torch.searchsorted(within, target, right=True), last.clamp(min=0))
    logprob = (inside.gather(1, token).log() - total.log()).squeeze(1).float()
    return (block * BLOCK + token).squeeze(1), logprob


def _streams(prompt_ids: Sequence[Sequence[int]], samples: int, length: int, seed: Seed) -> list[np.ndarray]:
    """For each prompt (samples, length) uniform numbers that depend on (seed, its ids, repeat, sample) alone."""
    root = sequence(seed).generate_state(4, np.uint32).tolist()
    repeats: Counter[bytes] = Counter()
    streams = []
    for ids in prompt_ids:
        digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
        words = np.frombuffer(digest[:16], dtype=np.uint32).tolist()
        keys = [[*root, *words, repeats[digest], sample] for sample in range(samples)]
        repeats[digest] += 1
        streams.append(np.stack([np.random.Generator(np.random.Philox(key)).random(length) for key in map(_key, keys)]))
    return streams


def _key(words: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(np.asarray(words, dtype=np.uint64).tobytes()).digest()[:16], "little")


class _Batch:
    """Rows being decoded together. Left-padded: row r uses columns ``first[r]`` to ``end`` of the cache."""

    def __init__(self, model: Any, pad: int, room: int) -> None:
        self.model, self.pad, self.room = model, pad, room
        self.device = model.device
        self.argument = cache_argument(model)
        # As a tensor: a slice would stay a view, for which the product with the output layer copies that once a row.
        self.last = torch.tensor([-1], device=self.device)
        self.cache = new_cache(model, room)
        self.movable = is_roomy(self.cache)
        self.rows = torch.empty(0, dtype=torch.long)  # number of the answer in each row
        self.first = torch.empty(0, dtype=torch.long)
        self.end = 0

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, cache: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) float32 of the last position; the cache is extended in place."""
        ids, mask, positions = (tensor.to(self.device) for tensor in (ids, mask, positions))
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=self.last,
            **{self.argument: cache},
        )
        return output.logits[:, -1].float()

    def admit(self, prompts: list[list[int]], rows: torch.Tensor, samples: int) -> torch.Tensor:
        """Read prompts once, expand them over their samples, append them. Returns the logits of the new rows."""
        ids, mask = stack(prompts, self.pad, left=True)
        cache = new_cache(self.model, 0)
        logits = self.forward(cache, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)).repeat_interleave(samples, 0)
        width = ids.shape[1]
        lengths = mask.sum(-1).repeat_interleave(samples)
        if not self.movable:
            cache.batch_repeat_interleave(samples)
            self.cache, self.end = cache, width
            self.rows, self.first = rows, width - lengths
            return logits
        owners = torch.arange(len(prompts), device=self.device).repeat_interleave(samples)
        if not len(self):
            self.cache, self.end = new_cache(self.model, self.room), width
            for layer, read in zip(roomy_layers(self.cache), roomy_layers(cache)):
                layer.expand(read, owners)
            self.rows, self.first = rows, width - lengths
            return logits
        for layer, read in zip(roomy_layers(self.cache), roomy_layers(cache)):
            layer.append(read, owners)
        end = roomy_layers(self.cache)[0].end
        self.first, self.end = torch.cat([self.first + end - self.end, end - lengths]), end
        self.rows = torch.cat([self.rows, rows])
        return logits

    def keep(self, going: torch.Tensor) -> torch.Tensor:
        """Drop the rows that are not ``going``. Returns which old row each remaining row was, in the new order."""
        order = going.nonzero().squeeze(1)
        if self.movable and len(order):
            count = len(order)
            holes, tail = (~going[:count]).nonzero().squeeze(1), order[order >= count]
            order = torch.arange(count)
            order[holes] = tail  # the last rows fill the holes, so that few are copied
            start = int(self.first[order].min())
            for layer in roomy_layers(self.cache):
                layer.keep(count, tail.to(self.device), holes.to(self.device), start)
        elif len(order):
            self.cache.batch_select_indices(order.to(self.device))
        self.rows, self.first = self.rows[order], self.first[order]
        return order

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after appending one token to every row."""
        if self.movable:
            moved = max([layer.make_room() for layer in roomy_layers(self.cache)])
            self.first, self.end = self.first - moved, self.end - moved
        start = int(self.first.min()) if self.movable else 0
        mask = (torch.arange(start, self.end + 1) >= self.first.unsqueeze(1)).long()
        positions = (self.end - self.first).unsqueeze(1)
        self.end += 1
        return self.forward(self.cache, tokens.unsqueeze(1), mask, positions)


def sample_ids(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    temperature: float = 1.0,
    seed: Seed,
    batch_size: int = 64,
    progress: bool = False,
) -> Samples:
    """Sample ``samples`` answers of at most ``max_new_tokens`` tokens to each prompt, given as ids.

    temperature: divides the logits; 0 takes the likeliest token. stop: ids that end an answer (kept as its last
    token). batch_size: rows decoded together (at least one prompt's samples).
    Raises PrudentError for an empty prompt or an option out of range.
    """
    _check(prompt_ids, samples, max_new_tokens, temperature, batch_size)
    count = len(prompt_ids) * samples
    drawn = Samples(
        torch.full((count, max_new_tokens), pad),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, max_new_tokens),
        torch.zeros(count, dtype=torch.bool),
    )
    if count:
        uniform = torch.from_numpy(np.concatenate(_streams(prompt_ids, samples, max_new_tokens, seed)))
        batch = _Batch(model, pad, max_new_tokens)
        with meter("sampling", count, progress) as advance, torch.inference_mode():
            _fill(batch, prompt_ids, drawn, uniform, stop, temperature, batch_size, advance)
    width = max(int(drawn.lengths.max()), 1) if count else 1
    shape = (len(prompt_ids), samples)
    return Samples(
        drawn.tokens[:, :width].view(*shape, width),
        drawn.lengths.view(shape),
        drawn.logprobs[:, :width].view(*shape, width),
        drawn.stopped.view(shape),
    )


def _fill(
    batch: _Batch,
    prompt_ids: Sequence[Sequence[int]],
    drawn: Samples,
    uniform: torch.Tensor,
    stop: Sequence[int],
    temperature: float,
    batch_size: int,
    advance: Callable[[int, int, str], None],
) -> None:
    """Decode every answer into ``drawn`` (one row an answer), admitting prompts as rows become free."""
    samples = len(drawn.lengths) // len(prompt_ids)
    limit, stops = drawn.tokens.shape[1], torch.tensor(list(stop), dtype=torch.long)
    # Longest first: prompts of like length are read together, and the last to start are short.
    waiting = deque(sorted(range(len(prompt_ids)), key=lambda row: -len(prompt_ids[row])))
    logits = torch.empty(0, device=batch.device)
    while waiting or len(batch):
        free = batch_size - len(batch)
        if waiting and (not len(batch) or (batch.movable and free >= max(samples, batch_size // 4))):
            taken = [waiting.popleft() for _ in range(min(len(waiting), max(1, free // samples)))]
            rows = torch.cat([torch.arange(p * samples, (p + 1) * samples) for p in taken])
            fresh = batch.admit([list(prompt_ids[p]) for p in taken], rows, samples)
            logits = torch.cat([logits, fresh]) if len(logits) else fresh
        rows = batch.rows
        at = drawn.lengths[rows]
        if temperature == 0:
            logprob, chosen = logits.log_softmax(-1).max(-1)
        else:
            chosen, logprob = pick(logits if temperature == 1 else logits / temperature, uniform[rows, at])
        chosen = chosen.cpu()
        drawn.tokens[rows, at], drawn.logprobs[rows, at] = chosen, logprob.cpu()
        drawn.lengths[rows] += 1
        drawn.stopped[rows] = torch.isin(chosen, stops)
        going = ~drawn.stopped[rows] & (at + 1 < limit)
        advance(int((~going).sum()), len(rows), f"{len(rows)} rows")
        if not going.all():
            chosen = chosen[batch.keep(going)]
        logits = batch.step(chosen) if len(batch) else logits[:0]


def _check(prompts: Sequence[Sequence[int]], samples: int, length: int, temperature: float, batch: int) -> None:
    for name, value in (("samples", samples), ("max_new_tokens", length), ("batch_size", batch)):
        if value < 1:
            raise PrudentError(f"{name} is {value}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise PrudentError(f"temperature is {temperature}; it must be 0 (likeliest token) or a positive number")
    for row, ids in enumerate(prompts):
        if len(ids) == 0:
            raise PrudentError(f"prompt {row} has no tokens; give at least one turn with text")


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: Seed,
    batch_size: int = 128,
    progress: bool = True,
) -> list[list[str]]:
    """Texts of ``samples`` answers to each prompt (a string or messages): a list of ``samples`` strings a prompt.

    Prompts are rendered as training and scoring render them. RowsError names all that the model's context has no room
    for before anything is sampled. Same seed, prompts and batch size: the same texts.
    """
    ids = Renderer(tokenizer).prompts(prompts)
    require_room(model, [len(row) for row in ids], max_new_tokens)
    require_known(embedded_ids(model), tokenizer, ids)
    drawn = sample_ids(
        model,
        ids,
        samples=samples,
        max_new_tokens=max_new_tokens,
        stop=stop_tokens(model, tokenizer),
        pad=padding_id(model, tokenizer),
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return decode(tokenizer, drawn)


def decode(tokenizer: Any, drawn: Samples) -> list[list[str]]:
    """Texts of sampled answers, without their end marks."""
    texts = []
    for rows, lengths in zip(drawn.tokens, drawn.lengths):
        kept = [row[:length].tolist() for row, length in zip(rows, lengths.tolist())]
        texts.append([_tidy(text, tokenizer) for text in tokenizer.batch_decode(kept, skip_special_tokens=True)])
    return texts


def _tidy(text: str, tokenizer: Any) -> str:
    """Without a template the answer follows ``Assistant:`` after a space, and ends where the next turn is opened."""
    return text if has_template(tokenizer) else text.split("\n\nUser:")[0].removeprefix(" ")
