"""``Encoder``: a frozen language model that turns (prompt, response) into a vector, once, and keeps it on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.errors import PrudentError, RowsError
from prudent.features.backbone import Runner, backbone_of
from prudent.features.cache import FORMAT, FeatureCache, row_key
from prudent.features.cpu import fast_attention
from prudent.features.large import StoredRows
from prudent.features.models import context_of, dtype_name, ensure_pad, load_language_model, padding_id, require_known
from prudent.features.pooling import POOLINGS
from prudent.features.rendering import Prompt, Rendered, Renderer, Response
from prudent.features.stats import EncodeStats
from prudent.files import cache_folder, hash_text
from prudent.progress import meter

if TYPE_CHECKING:
    from prudent.features.ray import RayEngine

FEW = 32  # texts that are encoded here sooner than an engine starts
CHUNK = 8192  # rows rendered and sorted together; bounds memory whatever the number of rows


class Encoder:
    """Frozen language model that gives one float32 vector a (prompt, response).

    model: name for ``load_language_model`` (hub id, folder, ``"smollm2"``) or a (model, tokenizer) pair, taken as is.
    pooling: ``"last"`` (state of the last token), ``"mean"`` (mean over the response's tokens, its end-of-turn mark
    included) or ``"last+mean"`` (both, twice the width). A text's prompt tokens are read by the model but never
    pooled: they are the same for every answer. max_length: tokens kept of a text, cut on the right and counted; a
    text whose whole response is cut off is pooled at its last kept token.
    layer: use only the model's first so many blocks (its final norm kept), which is also that much faster.
    cache: True keeps features under $PRUDENT_CACHE, a path keeps them there, None or False keeps nothing.
    engine: what fills the cache in other processes (``features.ray.RayEngine``), all of which must see its folder.
    batch_tokens: token positions computed at once.
    padding_side: ``"left"`` gives the same features, slower; for comparison.

    ``stats`` describes the latest ``encode``; ``fingerprint`` names everything the features depend on.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        pooling: str = "last",
        max_length: int = 1024,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        cache: bool | str | Path | None = True,
        layer: int | None = None,
        engine: RayEngine | None = None,
        batch_tokens: int | None = None,
        padding_side: str = "right",
        progress: bool = True,
    ) -> None:
        if pooling not in POOLINGS:
            raise PrudentError(f"pooling is {pooling!r}; use one of {', '.join(POOLINGS)}")
        if padding_side not in ("left", "right"):
            raise PrudentError(f"padding_side is {padding_side!r}; use left or right")
        if isinstance(model, tuple):
            if dtype is not None or device is not None:
                raise PrudentError("dtype and device are the loader's; a model given as an object is used as it is")
            self.name, (self.model, self.tokenizer) = "object", model
            ensure_pad(self.tokenizer)
        else:
            self.name = str(model)
            self.model, self.tokenizer = load_language_model(model, dtype=dtype, device=device)
        self.pooling, self.max_length, self.layer = pooling, max_length, layer
        self.engine, self.progress = engine, progress
        self.body = backbone_of(self.model, layer).eval()
        self.dtype: torch.dtype = self.body.dtype
        self.width = int(self.body.config.hidden_size) * (2 if pooling == "last+mean" else 1)
        self.renderer = Renderer(self.tokenizer, min(max_length, context_of(self.model) or max_length))
        pad = padding_id(self.body, self.tokenizer)
        self.runner = Runner(self.body, pooling, pad, batch_tokens, padding_side == "left")
        self.stats = EncodeStats()
        self._cache_option = cache
        self._filled = b"", np.empty((0, 2), np.int64)  # the texts that the engine encoded last, and their keys
        if engine is not None and (isinstance(model, tuple) or cache is None or cache is False):
            raise PrudentError(
                "an engine needs the model's name and the cache, through which its workers give features"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that the features depend on besides the text: the weights in use (adapters and cut
        layers included), the model's settings, template, tokenizer, pooling, length and dtype."""
        settings = self.body.config.to_dict()
        for passing in ("_name_or_path", "transformers_version", "architectures", "use_cache", "dtype", "torch_dtype"):
            settings.pop(passing, None)
        return hash_text(
            FORMAT,
            hash_weights(self.body),
            json.dumps(settings, sort_keys=True, default=str),
            str(getattr(self.tokenizer, "chat_template", None)),
            hash_tokenizer(self.tokenizer),
            self.pooling,
            str(self.max_length),
            dtype_name(self.dtype),
        )

    @cached_property
    def cache(self) -> FeatureCache | None:
        """Features on disk, or None when nothing is kept."""
        option = self._cache_option
        if option is None or option is False:
            return None
        root = cache_folder() / "features" if option is True else Path(option)
        return FeatureCache(root / self.fingerprint[:32], self.width)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> torch.Tensor:
        """(N, d) float32 features on the CPU of N conversations, in their order.

        prompts: strings or message lists; responses: strings or message lists; one response a prompt (repeat a
        prompt for each of its answers: its tokens are still computed once). Raises PrudentError for unequal numbers
        and RowsError for turns that the chat template refuses, all rows at once.
        """
        _same_number(prompts, responses)
        out = torch.empty(len(prompts), self.width)
        for rows, features in self.pieces(prompts, responses):
            out[torch.from_numpy(rows)] = features
        return out

    def pieces(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Like ``encode``, in pieces (row numbers, features) of at most 8,192 rows in an order that keeps the answers
        to a prompt together: for features that are used or written as they come, so that memory stays flat."""
        _same_number(prompts, responses)
        return ((rows, features) for rows, _, features in self._pieces(prompts, responses, together(prompts)))

    def encode_chunks(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Like ``encode``, in pieces (first row, features) of at most 8,192 rows, read as they are needed: memory
        stays flat. Only answers in one piece share their prompt's computation, so keep them together."""
        _same_number(prompts, responses)
        for rows, _, features in self._pieces(prompts, responses, np.arange(len(prompts))):
            yield int(rows[0]), features

    def stored(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> StoredRows:
        """Like ``encode``, as the features lie in the cache: rows are read when they are asked for, and nothing is
        copied. Raises PrudentError without a cache."""
        _same_number(prompts, responses)
        if self.cache is None:
            raise PrudentError("features can stay in the cache only where there is one; turn it on")
        return self.cache.rows(self.keys(prompts, responses))

    def keys(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """(N, 2) int64: the keys under which the cache then holds the features of N conversations."""
        if self.engine is not None and len(prompts) > FEW:
            texts = _hash_texts(prompts, responses)
            self.stats = EncodeStats(rows=len(prompts), cached=len(prompts))
            if self._filled[0] != texts:  # those that were just encoded are asked for again to be scored
                self.stats = EncodeStats(rows=len(prompts))
                self._filled = texts, self.engine.fill(self, prompts, responses)
            return self._filled[1]
        keys = np.empty((len(prompts), 2), np.int64)
        for rows, found, _ in self._pieces(prompts, responses, together(prompts)):
            keys[rows] = found
        return keys

    def sizes(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[np.ndarray, np.ndarray]:
        """What encoding N conversations takes: tokens (N, 2) of their prompts and responses, and which (N,) are on disk
        already. RowsError names all that can't be rendered."""
        _same_number(prompts, responses)
        tokens, held = np.zeros((len(prompts), 2), np.int64), np.zeros(len(prompts), bool)
        bad: dict[int, str] = {}
        for start in range(0, len(prompts), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(prompts)))
            try:
                texts = self._render(prompts, responses, rows)
            except RowsError as error:
                bad |= error.moved(rows.tolist()).rows
                continue
            tokens[rows] = [(len(text.prompt), len(text.response)) for text in texts]
            if self.cache is not None:
                held[rows] = self.cache.find(_keys(texts))[0]
        if bad:
            raise RowsError(bad)
        return tokens, held

    def speed(self) -> float:
        """Tokens read a second on this machine now: a trial of two times 1,024 tokens, of which the second counts."""
        size = self.body.get_input_embeddings().weight.shape[0]
        ids = [[(17 * number + step) % size for step in range(128)] for number in range(8)]
        texts = [Rendered(ids[number // 2], ids[number][:64]) for number in range(8)]
        with torch.inference_mode(), fast_attention(self.body):
            for _ in range(2):
                start = time.perf_counter()
                for _ in self.runner.run(texts):
                    pass
        return (4 * 128 + 8 * 64) / max(time.perf_counter() - start, 1e-9)

    def _pieces(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], order: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
        began = time.perf_counter()
        self.stats = EncodeStats(rows=len(order))
        if self.engine is not None and self.cache is not None and len(order) > FEW:
            keys = self.keys(prompts, responses)
            held = self.cache.rows(keys)
            for start in range(0, len(order), CHUNK):
                rows = order[start : start + CHUNK]
                yield rows, keys[rows], torch.from_numpy(np.asarray(held[rows]))
            return
        with meter("encoding", len(order), self.progress) as advance:
            for start in range(0, len(order), CHUNK):
                rows = order[start : start + CHUNK]
                try:
                    keys, features = self._chunk(self._render(prompts, responses, rows), advance)
                except RowsError as error:
                    raise self._all_failing(prompts, responses, order, start, error) from error
                self.stats.seconds = time.perf_counter() - began
                yield rows, keys, features

    def _all_failing(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], order: np.ndarray, start: int, first: RowsError
    ) -> RowsError:
        """What failed in the piece that begins at ``start``, and what can't be rendered in those after it."""
        bad = first.moved(order[start:].tolist()).rows
        for later in range(start + CHUNK, len(order), CHUNK):
            try:
                self._render(prompts, responses, order[later : later + CHUNK])
            except RowsError as error:
                bad |= error.moved(order[later:].tolist()).rows
        return RowsError(bad)

    def _render(self, prompts: Sequence[Prompt], responses: Sequence[Response], rows: np.ndarray) -> list[Rendered]:
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
            part = slice(int(rows[0]), int(rows[-1]) + 1)  # far quicker than one by one where rows are read from disk
            texts = self.renderer.conversations(prompts[part], responses[part])
        else:
            texts = self.renderer.conversations([prompts[row] for row in rows], [responses[row] for row in rows])
        empty = {index: "it has no tokens; leave it out" for index, text in enumerate(texts) if not text.ids}
        if empty:
            raise RowsError(empty)
        require_known(self.body, self.tokenizer, [text.ids for text in texts])
        return texts

    def _chunk(self, texts: list[Rendered], advance: Any) -> tuple[np.ndarray, torch.Tensor]:
        """Keys (n, 2) and features (n, width) of the texts."""
        stats, runner = self.stats, self.runner
        stats.truncated += sum(text.removed > 0 for text in texts)
        stats.answerless += sum(text.removed > 0 and not text.response for text in texts)
        keys = _keys(texts)
        features = torch.empty(len(texts), self.width)
        held = np.zeros(len(texts), bool)
        if self.cache is not None:
            held, found = self.cache.find(keys)
            features[torch.from_numpy(held)] = found
        stats.cached += int(held.sum())
        advance(int(held.sum()), 0, "")
        missing = np.flatnonzero(~held)
        if not len(missing):
            return keys, features
        if self.cache is not None:
            self.cache.require_writable()
        _, first, inverse = np.unique(keys[missing], axis=0, return_index=True, return_inverse=True)
        rows = missing[np.sort(first)]  # equal texts once, in the order given
        rank = np.argsort(np.argsort(first))[inverse.reshape(-1)]
        fresh = torch.empty(len(rows), self.width)
        weight = np.bincount(rank, minlength=len(rows))
        runner.computed = runner.padding = runner.shared = 0
        before = 0
        with torch.inference_mode(), fast_attention(self.body):
            for batch, values in runner.run([texts[row] for row in rows]):
                if not bool(torch.isfinite(values).all()):
                    self._not_finite(
                        texts, keys, {int(rows[batch[index]]) for index in torch.nonzero(~values.isfinite().all(-1))}
                    )
                fresh[batch] = values
                if self.cache is not None:
                    self.cache.add(keys[rows[batch]], values.clone())
                read = runner.computed - runner.padding + runner.shared
                advance(int(weight[batch].sum()), read - before, f"padding {runner.padding / runner.computed:.1%}")
                before = read
        if self.cache is not None:
            self.cache.flush()
        features[torch.from_numpy(missing)] = fresh[torch.from_numpy(rank)]
        stats.encoded += len(rows)
        stats.tokens += runner.computed
        stats.padding += runner.padding
        stats.shared += runner.shared
        return keys, features

    def _not_finite(self, texts: list[Rendered], keys: np.ndarray, bad: set[int]) -> None:
        said = f"its features are not finite in {dtype_name(self.dtype)}, use dtype float32; the text is "
        wanted = {keys[row].tobytes() for row in bad}
        raise RowsError(
            {
                row: said + repr(self.tokenizer.decode(texts[row].ids)[:200])
                for row, key in enumerate(keys)
                if key.tobytes() in wanted
            }
        )


def _keys(texts: Sequence[Rendered]) -> np.ndarray:
    """(n, 2) int64: the keys of texts in the cache."""
    return np.array([row_key(text.prompt, text.response) for text in texts], dtype=np.int64).reshape(-1, 2)


def _same_number(prompts: Sequence[Prompt], responses: Sequence[Response]) -> None:
    if len(prompts) != len(responses):
        raise PrudentError(f"{len(prompts)} prompts but {len(responses)} responses; give one response a prompt")


def _hash_texts(prompts: Sequence[Prompt], responses: Sequence[Response]) -> bytes:
    digest = hashlib.blake2b()
    for text in itertools.chain(prompts, responses):
        digest.update((text if isinstance(text, str) else repr(text)).encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def together(prompts: Sequence[Prompt]) -> np.ndarray:
    """Row numbers in which equal prompts stand together, each where its first one stood."""
    first: dict[int, int] = {}
    firsts = [first.setdefault(hash(p if isinstance(p, str) else repr(p)), row) for row, p in enumerate(prompts)]
    return np.argsort(np.array(firsts, dtype=np.int64), kind="stable")


def hash_weights(module: torch.nn.Module) -> str:
    """SHA-256 (hex) of the names, shapes, types and bits of a module's parameters and buffers, whatever its device."""

    def one(item: tuple[str, torch.Tensor]) -> str:
        name, tensor = item
        flat = tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8)
        digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor() as threads:
        return hash_text(*threads.map(one, sorted(module.state_dict().items())))


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 (hex) of a tokenizer's vocabulary and rules, without its passing padding and truncation settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_text(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    rules = json.loads(backend.to_str())
    return hash_text(json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True))
