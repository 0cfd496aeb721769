"""``Encoder``: a frozen language model that turns (prompt, response) into a vector, once, and keeps it on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.errors import PrudentError, RowsError
from prudent.features.cache import FORMAT, FeatureCache
from prudent.features.known import Known, known, known_of
from prudent.features.large import StoredRows, rows_of, together
from prudent.features.models import (
    as_dtype,
    best_device,
    dtype_name,
    ensure_pad,
    load_model,
    load_tokenizer,
    padding_id,
    require_known,
)
from prudent.features.outlines import FOLDER, WIDTH, Outlines, find_outlines, keep_outlines, outlines_of, text_keys
from prudent.features.pooling import POOLINGS
from prudent.features.rendering import Renderer, require_length, require_pairs, template_of
from prudent.features.stats import EncodeStats
from prudent.files import cache_folder, hash_text
from prudent.progress import meter

if TYPE_CHECKING:
    from prudent.features.backbone import Runner
    from prudent.features.ray import RayEngine
    from prudent.features.rendering import Prompt, Rendered, Response

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

    ``stats`` describes the latest ``encode``; ``fingerprint`` names everything the features depend on. A model given by
    name is loaded when it first computes: where all features are in the cache, it never is.
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
        require_length(max_length)
        if engine is not None and (isinstance(model, tuple) or cache is None or cache is False):
            raise PrudentError(
                "an engine needs the model's name and the cache, through which its workers give features"
            )
        self.pooling, self.max_length, self.layer = pooling, max_length, layer
        self.engine, self.progress = engine, progress
        self._batching = batch_tokens, padding_side == "left"
        if isinstance(model, tuple):
            if dtype is not None or device is not None:
                raise PrudentError("dtype and device are the loader's; a model given as an object is used as it is")
            self.name, (self.model, self.tokenizer) = "object", model
            self._device: torch.device | None = None
            self._dtype: torch.dtype | None = None
            ensure_pad(self.tokenizer)
        else:
            self.name = str(model)
            self._device = torch.device(device) if device is not None else best_device()
            self._dtype = as_dtype(dtype, self._device)
        self.known = self._known()
        self.dtype: torch.dtype = getattr(torch, self.known.dtype)
        self.width = self.known.width * (2 if pooling == "last+mean" else 1)
        self.stats = EncodeStats()
        self._cache_option = cache
        self._filled = b"", np.empty((0, 2), np.int64)  # the texts that the engine encoded last, and their keys

    @cached_property
    def model(self) -> Any:
        """The language model, loaded on first use."""
        where = self._device if self.layer is None else "cpu"  # until it is cut: a card may not hold all of it
        return load_model(self.name, dtype=self._dtype, device=where)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded on first use."""
        return load_tokenizer(self.name)

    @cached_property
    def body(self) -> Any:
        """The part of the model that computes states: without its head, cut to ``layer`` blocks."""
        from prudent.features.backbone import backbone_of

        found = backbone_of(self.model, self.layer).eval()
        return found if self._device is None else found.to(self._device)

    @cached_property
    def runner(self) -> Runner:
        """What runs texts through ``body``."""
        from prudent.features.backbone import Runner

        return Runner(self.body, self.pooling, padding_id(self.body, self.tokenizer), *self._batching)

    @cached_property
    def renderer(self) -> Renderer:
        """The rendering of texts: the tokenizer's, cut to ``limit``."""
        return Renderer(self.tokenizer, self.limit)

    @property
    def limit(self) -> int:
        """Tokens kept of a text: ``max_length``, or what the model reads at most."""
        return min(self.max_length, self.known.context or self.max_length)

    def _known(self) -> Known:
        """What features depend on besides the text; from disk where the model's files are known."""

        def read() -> Known:
            return known_of(self.model, self.body, self.tokenizer)

        return read() if self._dtype is None else known(self.name, self._dtype, self.layer, read)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that the features depend on besides the text: the weights in use (adapters and cut
        layers included), the model's settings, template, tokenizer, pooling, length and dtype."""
        found = self.known
        about = found.weights, found.settings, found.template, found.tokenizer
        return hash_text(FORMAT, *about, self.pooling, str(self.max_length), found.dtype)

    @cached_property
    def cache(self) -> FeatureCache | None:
        """Features on disk, or None when nothing is kept."""
        option = self._cache_option
        if option is None or option is False:
            return None
        root = cache_folder() / "features" if option is True else Path(option)
        return FeatureCache(root / self.fingerprint[:32], self.width)

    @cached_property
    def _texts(self) -> FeatureCache | None:
        """Outlines of the texts whose features are in the cache; none in one that can only be read and has none."""
        if self.cache is None or not (self.cache.writable or (self.cache.folder / FOLDER).is_dir()):
            return None
        return FeatureCache(self.cache.folder / FOLDER, WIDTH)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> torch.Tensor:
        """(N, d) float32 features on the CPU of N conversations, in their order.

        prompts: strings or message lists; responses: strings or message lists; one response a prompt (repeat a
        prompt for each of its answers: its tokens are still computed once). Raises PrudentError for unequal numbers
        and RowsError for turns that the chat template refuses, all rows at once.
        """
        require_pairs(prompts, responses)
        out = torch.empty(len(prompts), self.width)
        for rows, features in self.pieces(prompts, responses):
            out[torch.from_numpy(rows)] = features
        return out

    def pieces(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Like ``encode``, in pieces (row numbers, features) of at most 8,192 rows in an order that keeps the answers
        to a prompt together: for features that are used or written as they come, so that memory stays flat."""
        require_pairs(prompts, responses)
        return ((rows, features) for rows, _, features in self._pieces(prompts, responses, together(prompts)))

    @torch.inference_mode()
    def as_computed(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Like ``pieces``, each batch as soon as it is computed, nothing looked up or kept on disk: for clients that
        wait. What was computed of prompts stays in memory a while, for further answers to them."""
        from prudent.features.cpu import fast_attention

        require_pairs(prompts, responses)
        texts = self._render(prompts, responses)
        with fast_attention(self.body):
            for rows, values in self.runner.run(texts, keep=True):
                self._require_finite(texts, np.array(rows), values)
                yield np.array(rows), values

    def encode_chunks(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Like ``encode``, in pieces (first row, features) of at most 8,192 rows, read as they are needed: memory
        stays flat. Only answers in one piece share their prompt's computation, so keep them together."""
        require_pairs(prompts, responses)
        for rows, _, features in self._pieces(prompts, responses, np.arange(len(prompts))):
            yield int(rows[0]), features

    def stored(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> StoredRows:
        """Like ``encode``, as the features lie in the cache: rows are read when they are asked for, and nothing is
        copied. Raises PrudentError without a cache."""
        require_pairs(prompts, responses)
        if self.cache is None:
            raise PrudentError("features can stay in the cache only where there is one; turn it on")
        return self.cache.rows(self.keys(prompts, responses))

    def keys(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """(N, 2) int64: the keys under which the cache then holds the features of N conversations."""
        if self.engine is not None and len(prompts) > FEW:
            texts = text_keys(prompts, responses).tobytes()
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
        require_pairs(prompts, responses)
        tokens, held = np.zeros((len(prompts), 2), np.int64), np.zeros(len(prompts), bool)
        bad: dict[int, str] = {}
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            try:
                found = self.outlines(prompts[part], responses[part])
            except RowsError as error:
                bad |= error.moved(range(start, len(prompts))).rows
                continue
            tokens[part] = np.stack([found.prompt, found.response], 1)
            if self.cache is not None:
                held[part] = self.cache.held(found.keys)
        if bad:
            raise RowsError(bad)
        return tokens, held

    def outlines(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Outlines:
        """Outlines of N conversations: those on disk where all are there, else of the texts as they are rendered."""
        found = self._outlines_on_disk(prompts, responses)
        return outlines_of(self._render(prompts, responses)) if found is None else found

    def _outlines_on_disk(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Outlines | None:
        # A tokenizer that is loaded may have been changed, and rendering is cheap beside loading one.
        if self._texts is None or "tokenizer" in self.__dict__:
            return None
        return find_outlines(self._texts, text_keys(prompts, responses))

    def speed(self) -> float:
        """Tokens read a second on this machine now: a trial of two times 1,024 tokens, of which the second counts."""
        return self.runner.speed()

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
                part = rows_of(prompts, rows), rows_of(responses, rows)
                try:
                    keys, features = self._on_disk(*part, advance) or self._chunk(*part, advance)
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
                rows = order[later : later + CHUNK]
                self._render(rows_of(prompts, rows), rows_of(responses, rows))
            except RowsError as error:
                bad |= error.moved(order[later:].tolist()).rows
        return RowsError(bad)

    def _render(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Rendered]:
        texts = self.renderer.conversations(prompts, responses)
        empty = {index: "it has no tokens; leave it out" for index, text in enumerate(texts) if not text.ids}
        if empty:
            raise RowsError(empty)
        require_known(self.known.embedded, self.tokenizer, [text.ids for text in texts])
        return texts

    def _on_disk(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], advance: Any
    ) -> tuple[np.ndarray, torch.Tensor] | None:
        """Keys and features of texts that are all on disk, which aren't rendered for it; None where one is missing."""
        outlines = self._outlines_on_disk(prompts, responses)
        if outlines is None or self.cache is None:
            return None
        held, features = self.cache.find(outlines.keys)
        if not held.all():
            return None
        self._count(outlines, len(held), advance)
        return outlines.keys, features

    def _count(self, outlines: Outlines, held: int, advance: Any) -> None:
        cut = outlines.removed > 0
        self.stats.truncated += int(cut.sum())
        self.stats.answerless += int((cut & (outlines.response == 0)).sum())
        self.stats.cached += held
        advance(held, 0, "")

    def _chunk(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], advance: Any
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Keys (n, 2) and features (n, width) of texts; features that are not on disk are computed and kept."""
        texts = self._render(prompts, responses)
        outlines = outlines_of(texts)
        keys = outlines.keys
        features = torch.empty(len(texts), self.width)
        held = np.zeros(len(texts), bool)
        if self.cache is not None:
            held, found = self.cache.find(keys)
            features[torch.from_numpy(held)] = found
        self._count(outlines, int(held.sum()), advance)
        missing = np.flatnonzero(~held)
        if len(missing):
            if self.cache is not None:
                self.cache.require_writable()
            features[torch.from_numpy(missing)] = self._compute(texts, keys, missing, advance)
        if self._texts is not None and self._texts.writable and template_of(self.tokenizer) == self.known.template:
            keep_outlines(self._texts, text_keys(prompts, responses), outlines)
        return keys, features

    def _compute(self, texts: list[Rendered], keys: np.ndarray, missing: np.ndarray, advance: Any) -> torch.Tensor:
        """Features (missing, width) of those of the texts, which then are in the cache."""
        from prudent.features.cpu import fast_attention  # heavy, and needed by what isn't cached alone

        _, first, inverse = np.unique(keys[missing], axis=0, return_index=True, return_inverse=True)
        rows = missing[np.sort(first)]  # equal texts once, in the order given
        rank = np.argsort(np.argsort(first))[inverse.reshape(-1)]
        fresh = torch.empty(len(rows), self.width)
        weight = np.bincount(rank, minlength=len(rows))
        runner = self.runner
        runner.computed = runner.padding = runner.shared = 0
        before = 0
        with torch.inference_mode(), fast_attention(self.body):
            for batch, values in runner.run([texts[row] for row in rows]):
                self._require_finite(texts, rows[batch], values)
                fresh[batch] = values
                if self.cache is not None:
                    self.cache.add(keys[rows[batch]], values.clone())
                read = runner.computed - runner.padding + runner.shared
                advance(int(weight[batch].sum()), read - before, f"padding {runner.padding / runner.computed:.1%}")
                before = read
        if self.cache is not None:
            self.cache.flush()
        self.stats.encoded += len(rows)
        self.stats.tokens += runner.computed
        self.stats.padding += runner.padding
        self.stats.shared += runner.shared
        return fresh[torch.from_numpy(rank)]

    def _require_finite(self, texts: list[Rendered], rows: np.ndarray, values: torch.Tensor) -> None:
        bad = rows[(~values.isfinite().all(-1)).numpy()].tolist()
        if bad:
            said = f"its features are not finite in {dtype_name(self.dtype)}, use dtype float32; the text is "
            keys = outlines_of(texts).keys
            wanted = {keys[row].tobytes() for row in bad}
            shown = {row: repr(self.tokenizer.decode(text.ids)[:200]) for row, text in enumerate(texts)}
            raise RowsError({row: said + shown[row] for row, key in enumerate(keys) if key.tobytes() in wanted})
