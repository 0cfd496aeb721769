"""Sampling and encoding in pieces: a few of them give a rough answer, all of them the whole one.

A piece holds the same texts on every machine and under every budget and is computed once: sampled responses are kept,
and features stand in the encoder's cache, from which each answer reads them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prudent.commands.common import clocked
from prudent.commands.depth import AUTO
from prudent.commands.preflight.candidates import Sampler
from prudent.commands.preflight.inputs import Inputs, Source, check_pairs, check_pool, check_prompts, held_out_prompts
from prudent.commands.preflight.options import PreflightOptions
from prudent.data.pools import Pool
from prudent.data.preferences import pair_groups
from prudent.errors import RowsError
from prudent.evaluation.risk_estimate import LEAST_PAIRS, LEAST_PROMPTS
from prudent.features.depths import blocks_of, encoder_at, shallow
from prudent.features.encoder import Encoder
from prudent.progress import silent
from prudent.rewards.depth import Depth, choose_depth
from prudent.runs import Run, give_back_memory
from prudent.seeding import numpy_generator

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.rewards.model import RewardModel

CANDIDATES, TRAIN, TEST = "candidates", "train", "test"
SHARES = {CANDIDATES: 2.0, TRAIN: 2.0, TEST: 1.0}  # of the time, while all three have something left to do
TEXTS, TOKENS = 64, 8192  # of a piece at most; one prompt's or one pair's at least
SAMPLED = 64 * 48  # tokens that a piece samples at most
KEYS = 3 * 2**27  # bytes of keys and values that a piece holds at most, each row padded to the longest prompt
SAMPLING_COST = 4  # a sampled token takes about as long as so many that are only read
TRIAL_STEPS = 5  # tokens sampled to learn the speed
LEAST_HELD = 8  # held-out pairs in the first answer
JUDGED_PAIRS = 200  # held-out pairs that a judge is tested on: enough for an interval of +-7 points


class Piece(NamedTuple):
    """rows: numbers of prompts, or (source, row) of pairs. sampled: tokens to sample, at most. read: tokens to read.
    left: those of them that are not on disk. texts: sampled and encoded ones."""

    rows: list[Any]
    sampled: int
    read: int
    left: int
    texts: int

    @property
    def cost(self) -> float:
        """What orders pieces, in tokens read."""
        return SAMPLING_COST * self.sampled + self.read


@dataclass
class Work:
    """What has to be sampled and encoded, and what of it is done. pieces: by kind, in order; done: how many of each.

    pool: what was given, or the held-out prompts, whose ``responses`` are filled piece by piece. sampler: None with
    a given pool. whole: the encoder at all blocks, until --layer auto has chosen (``settle``); before that, ``encoder``
    is a shallow one. depth: how it chose. judged: the judge's scores (K, n) of the responses, piece by piece; margins:
    those of held-out pairs.
    """

    settings: PreflightOptions
    found: Inputs
    pool: Pool
    encoder: Encoder
    sampler: Sampler | None
    judge: RewardModel | None
    pieces: dict[str, list[Piece]]
    whole: Encoder | None = None
    depth: Depth | None = None
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    judged: list[torch.Tensor] = field(default_factory=list)
    margins: list[torch.Tensor] = field(default_factory=list)
    _enough: set[str] = field(default_factory=set)

    def rows(self, kind: str) -> list[Any]:
        """What is done of a kind, in the order of the input."""
        return sorted(row for piece in self.pieces[kind][: self.done[kind]] for row in piece.rows)

    def total(self, kind: str) -> int:
        """Rows of all pieces of a kind."""
        return sum(len(piece.rows) for piece in self.pieces[kind])

    @property
    def complete(self) -> bool:
        """Whether every piece is done."""
        return all(self.done[kind] == len(self.pieces[kind]) for kind in SHARES)

    @property
    def texts(self) -> int:
        """Texts of all pieces."""
        return sum(piece.texts for pieces in self.pieces.values() for piece in pieces)

    @property
    def encodings(self) -> int:
        """Texts that all pieces encode."""
        pairs = self.total(TRAIN) + self.total(TEST)
        each = 0 if self.sampler is None else self.sampler.samples
        return 2 * pairs + sum(len(texts) or each for texts in self.pool.responses)

    def read_at(self) -> dict[str, Any] | None:
        """What a result says of --layer auto; None without it."""
        if self.whole is not None:
            early = Depth(blocks_of(self.encoder), blocks_of(self.whole), reason="the run was stopped before")
            return early.as_dict(self.encodings)
        return None if self.depth is None else self.depth.as_dict(self.encodings)

    def left(self) -> list[Piece]:
        """Pieces that are not done yet, in their order."""
        return [piece for kind, pieces in self.pieces.items() for piece in pieces[self.done[kind] :]]

    def lacks(self, kind: str) -> bool:
        """Whether an answer still needs more of a kind: once it doesn't, it never does again."""
        if kind in self._enough:
            return False
        rows = self.rows(kind)
        if kind == CANDIDATES:
            enough = len(rows) >= (LEAST_PROMPTS if self.pool.gold or self.judge else 1)
        else:
            least = LEAST_PAIRS if kind == TRAIN else LEAST_HELD
            enough = len(rows) >= least and len({source for source, _ in rows}) == len(self.found.sources)
        if enough and kind == TRAIN:
            parts = [self._part(number, kind) for number in range(len(self.found.sources))]
            enough = len({group for part in parts for group in pair_groups(part)}) >= LEAST_PROMPTS
        if enough or self.done[kind] == len(self.pieces[kind]):
            self._enough.add(kind)
        return kind not in self._enough

    @property
    def ready(self) -> bool:
        """Whether there is enough for an answer."""
        return not any(self.lacks(kind) for kind in SHARES)

    def next_kind(self) -> str:
        """What to do next: what an answer lacks, then whatever has had least of the time that it is due."""
        open_kinds = [kind for kind in SHARES if self.done[kind] < len(self.pieces[kind])]
        spent = {
            kind: sum(piece.cost for piece in self.pieces[kind][: self.done[kind]]) / SHARES[kind]
            for kind in open_kinds
        }
        return min(open_kinds, key=lambda kind: (not self.lacks(kind), spent[kind]))

    def next_piece(self) -> Piece:
        """The piece to do next."""
        kind = self.next_kind()
        return self.pieces[kind][self.done[kind]]

    def settle(self, run: Run) -> None:
        """Choose the depth, where --layer auto hasn't yet; what was read at another one counts as not done."""
        if self.whole is None:
            return
        with clocked(run, "encoding"):
            chosen, self.depth = choose_depth(self.whole, self.found.trains, self.settings.seed)
        again, self.encoder, self.whole = chosen.layer != self.encoder.layer, chosen, None
        if not again:
            return
        for kind, done in self.done.items():
            self.pieces[kind][:done] = [p._replace(sampled=0, left=p.read) for p in self.pieces[kind][:done]]
        self.done = dict.fromkeys(SHARES, 0)
        self._enough.clear()
        self.judged.clear()
        self.margins.clear()

    def step(self, run: Run) -> None:
        """Do the next piece; interrupted, it counts as not begun."""
        kind = self.next_kind()
        piece = self.pieces[kind][self.done[kind]]
        if kind == CANDIDATES:
            self._candidates(piece.rows, run)
        else:
            self._pairs(kind, piece.rows, run)
        self.done[kind] += 1

    def _candidates(self, rows: list[int], run: Run) -> None:
        if self.sampler is not None:
            give_back_memory()
            with clocked(run, "sampling"):
                drawn = self.sampler.draw([self.pool.prompts[row] for row in rows])
            for row, texts in zip(rows, drawn, strict=True):
                self.pool.responses[row] = texts
        prompts, responses, _ = self.pool.take(rows).flat()
        self._encode(prompts, responses, run)
        if self.judge is not None:
            with clocked(run, "judging"), silent():
                scores = self.judge.score(prompts, responses)
            self.judged.append(scores)

    def _pairs(self, kind: str, rows: list[tuple[int, int]], run: Run) -> None:
        part = [getattr(self.found.sources[source], kind)[row] for source, row in rows]
        prompts = [pair["prompt"] for pair in part] * 2
        responses = [pair["chosen"] for pair in part] + [pair["rejected"] for pair in part]
        self._encode(prompts, responses, run)
        if kind == TEST and self.judge is not None and sum(map(len, self.margins)) < JUDGED_PAIRS:
            with clocked(run, "judging"), silent():
                both = self.judge.score(prompts, responses).mean(0)
            self.margins.append(both[: len(part)] - both[len(part) :])

    def _encode(self, prompts: list[Any], responses: list[Any], run: Run) -> None:
        give_back_memory()
        # A text that can't be encoded is named, or left out and counted, by the answer that reads the features.
        with clocked(run, "encoding"), contextlib.suppress(RowsError):
            self.encoder.encode(prompts, responses)

    def _part(self, number: int, kind: str) -> Dataset:
        chosen = [row for source, row in self.rows(kind) if source == number]
        return getattr(self.found.sources[number], kind).select(chosen)

    def so_far(self) -> tuple[Inputs, Pool]:
        """The inputs and candidates that are done; all of them as they were given once everything is."""
        pool = self.pool.take(self.rows(CANDIDATES))
        if self.complete:
            return self.found, pool

        sources = [
            Source(source.name, self._part(number, TRAIN), self._part(number, TEST))
            for number, source in enumerate(self.found.sources)
        ]
        return replace(self.found, sources=sources, notes=list(self.found.notes)), pool

    def share(self) -> dict[str, list[int]]:
        """How much is done of how much, by kind."""
        names = {CANDIDATES: "prompts", TRAIN: "pairs", TEST: "held_out_pairs"}
        return {names[kind]: [len(self.rows(kind)), self.total(kind)] for kind in SHARES}


def plan_work(settings: PreflightOptions, found: Inputs, pool: Pool | None, judge: RewardModel | None) -> Work:
    """Load the models, hold every text to them (unusable rows are named or left out here), cut all into pieces."""
    if pool is not None:
        encoder, whole, depth = at_first(settings, found, encoder_of(settings))
        encode_all(encoder, found, pool)
        found, pieces = _plan_pairs(settings, found, encoder)
        pool, tokens, held = check_pool(encoder, pool, found.notes, settings.on_error)
        pieces[CANDIDATES] = pool_pieces(pool, tokens, held)
        return Work(settings, found, pool, encoder, None, judge, pieces, whole, depth)
    prompts = held_out_prompts(found, settings.prompts, settings.seed)
    sampler = Sampler.load(settings)
    encoder, whole, depth = at_first(settings, found, encoder_of(settings, sampler))
    encode_all(encoder, found)
    found, pieces = _plan_pairs(settings, found, encoder)
    if len(prompts) < settings.prompts:
        found.notes.append(f"{len(prompts)} distinct prompts are held out; candidates were sampled for all of them")
    prompts, lengths = check_prompts(sampler, found, prompts, settings.on_error)
    pieces[CANDIDATES] = sampling_pieces(sampler, prompts, lengths)
    pool = Pool(prompts, [[] for _ in prompts], None, [f"prompt-{row}" for row in range(len(prompts))])
    return Work(settings, found, pool, encoder, sampler, judge, pieces, whole, depth)


def _plan_pairs(settings: PreflightOptions, found: Inputs, encoder: Encoder) -> tuple[Inputs, dict[str, list[Piece]]]:
    """The pairs that the encoder can read, and their pieces."""
    notes, pieces, parts = list(found.notes), {}, {}
    for kind in (TRAIN, TEST):
        checked = [
            check_pairs(encoder, getattr(source, kind), f"{source.name}, {kind}", notes, settings.on_error)
            for source in found.sources
        ]
        parts[kind] = [data for data, *_ in checked]
        pieces[kind] = pair_pieces(parts[kind], [sizes for _, *sizes in checked], settings.seed)
    sources = [
        Source(source.name, train, test)
        for source, train, test in zip(found.sources, parts[TRAIN], parts[TEST], strict=True)
    ]
    return replace(found, sources=sources, notes=notes), pieces


def encoder_of(settings: PreflightOptions, sampler: Sampler | None = None) -> Encoder:
    """The encoder of the features; where it is the policy, the model is in memory once."""
    how: dict[str, Any] = {"pooling": settings.pooling, "max_length": settings.max_length, "layer": settings.blocks}
    engine = settings.ray_engine()
    if sampler is not None and settings.encoder == settings.policy and engine is None:
        return Encoder((sampler.model, sampler.tokenizer), **how)
    return Encoder(settings.encoder, **how, dtype=settings.dtype, engine=engine)


def at_first(settings: PreflightOptions, found: Inputs, whole: Encoder) -> tuple[Encoder, Encoder | None, Depth | None]:
    """The encoder to begin with, and what ``Work`` holds of depths. With --layer auto it is a shallow one, for the
    rough first verdict; where an engine reads all texts at once, the depth is chosen before."""
    if settings.layer != AUTO:
        return whole, None, None
    if whole.engine is not None:
        chosen, depth = choose_depth(whole, found.trains, settings.seed)
        return chosen, None, depth
    return encoder_at(whole, shallow(blocks_of(whole))), whole, None


def encode_all(encoder: Encoder, found: Inputs, pool: Pool | None = None) -> None:
    """Encode all given texts by the engine's workers, where there is one, before pieces read them here."""
    if encoder.engine is None:
        return
    prompts, responses = pool.flat()[:2] if pool is not None else ([], [])
    prompts, responses = list(prompts), list(responses)
    for source in found.sources:
        for data in (source.train, source.test):
            prompts += [*data["prompt"]] * 2
            responses += [*data["chosen"], *data["rejected"]]
    with contextlib.suppress(RowsError):  # named, or left out and counted, where the pieces read
        encoder.keys(prompts, responses)
    encoder.engine = None


def pair_pieces(parts: Sequence[Dataset], sizes: Sequence[Sequence[Any]], seed: int) -> list[Piece]:
    """Pairs of several files in pieces, prompts in an order drawn by the seed, the files mixed evenly.

    sizes: of each file, tokens (n, 3) of prompt, chosen and rejected, and whether (n,) both sides are on disk.
    """
    ranked = []
    for number, data in enumerate(parts):
        rows: dict[str, list[tuple[int, int]]] = {}
        for row, group in enumerate(pair_groups(data)):
            rows.setdefault(group, []).append((number, row))
        names = sorted(rows)
        order = numpy_generator(seed).permutation(len(names))
        ranked += [(rank / len(names), number, rows[names[index]]) for rank, index in enumerate(order)]
    ranked.sort(key=lambda item: item[:2])
    items = []
    for _, number, rows_of_prompt in ranked:
        tokens, held = sizes[number]
        for first, (_, row) in enumerate(rows_of_prompt):
            prompt = int(tokens[row][0]) if first == 0 else 0  # read once for all answers to it
            read = prompt + int(tokens[row][1] + tokens[row][2])
            items.append(((number, row), read, 0 if held[row] else read))
    return _cut(items, 2)


def pool_pieces(pool: Pool, tokens: Any, held: Any) -> list[Piece]:
    """Prompts of a pool in pieces. tokens (N, 2), held (N,): of its responses, as ``Encoder.sizes`` counts them."""
    items, start = [], 0
    for row, texts in enumerate(pool.responses):
        part = slice(start, start + len(texts))
        start += len(texts)
        read = int(tokens[part, 1].sum()) + int(tokens[part.start, 0])
        items.append((row, read, 0 if held[part].all() else read))
    pieces = _cut(items, max(map(len, pool.responses)))
    return [piece._replace(texts=sum(len(pool.responses[row]) for row in piece.rows)) for piece in pieces]


def sampling_pieces(sampler: Sampler, prompts: Sequence[Any], lengths: Sequence[int]) -> list[Piece]:
    """Prompts of so many tokens in pieces to be sampled and then encoded; one prompt's at least."""
    each, pieces, start = sampler.samples * sampler.longest, [], 0
    most = max(1, min(TEXTS // sampler.samples, SAMPLED // each))
    while start < len(prompts):
        count, held = most, KEYS // (sampler.samples * sampler.token_bytes)  # tokens of a row, all of them held
        while count > 1 and count * (max(lengths[start : start + count]) + sampler.longest) > held:
            count -= 1
        rows = list(range(start, min(start + count, len(prompts))))
        start += count
        kept = sampler.file([prompts[row] for row in rows]).is_file()
        read = len(rows) * each + sum(lengths[row] for row in rows)
        pieces.append(Piece(rows, 0 if kept else len(rows) * each, read, read, 2 * len(rows) * sampler.samples))
    return pieces


def _cut(items: Sequence[tuple[Any, int, int]], texts: int) -> list[Piece]:
    """(row, tokens, tokens not on disk) in pieces of at most TEXTS texts and TOKENS tokens; ``texts`` a row."""
    pieces: list[Piece] = []
    for row, read, left in items:
        last = pieces[-1] if pieces else None
        if last is None or last.texts + texts > TEXTS or last.read + read > TOKENS:
            last = Piece([], 0, 0, 0, 0)
            pieces.append(last)
        pieces[-1] = Piece([*last.rows, row], 0, last.read + read, last.left + left, last.texts + texts)
    return pieces


def speeds(work: Work) -> tuple[float, float]:
    """Tokens a second (sampled, read) of this machine now, from a trial of a few seconds; inf where nothing is left."""
    read = sampled = float("inf")
    if any(piece.left for piece in work.left()):
        read = work.encoder.speed()
    fresh = [piece for piece in work.pieces[CANDIDATES][work.done[CANDIDATES] :] if piece.sampled]
    if work.sampler is not None and fresh:
        prompts, steps = [work.pool.prompts[row] for row in fresh[0].rows], min(TRIAL_STEPS, work.sampler.longest)
        for longest in (1, steps):  # the first one warms up
            start = time.perf_counter()
            with silent():
                work.sampler.fresh(prompts, longest)
        sampled = len(prompts) * work.sampler.samples * steps / max(time.perf_counter() - start, 1e-9)
    return sampled, read


def seconds(pieces: Sequence[Piece], speed: tuple[float, float]) -> float:
    """How long pieces take at these speeds (``speeds``)."""
    sampled, read = speed
    return sum(piece.sampled / sampled + piece.left / read for piece in pieces)
