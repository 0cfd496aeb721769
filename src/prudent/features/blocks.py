"""Texts in blocks, each of which says where it comes from, and what is made of a block; whatever runs it (this process,
or Ray's workers).

A block is an Arrow table of one row, so that nobody divides it, whose columns list its texts: ``file`` and ``line``
(from 1) where each stands, ``prompt`` and ``response`` as JSON, and ``fault``, JSON's null or a list (field, reason,
detail) of a row that could not be read at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prudent.errors import BadRow, PrudentError, RowsError
from prudent.features.stats import EncodeStats, add_stats
from prudent.files import made_cache

if TYPE_CHECKING:
    import pyarrow as pa

REASON = "not-encoded"
STALE_SECONDS = 7 * 86400.0
BATCHES_A_READ = 16  # blocks that one reading task of written texts gives


class Text(NamedTuple):
    """One text of a block."""

    file: str
    line: int
    prompt: Any = None
    response: Any = None
    fault: tuple[str, str, str] | None = None


def block_of(texts: Iterable[Text]) -> pa.Table:
    """The texts as a block."""
    import pyarrow as pa

    columns = list(zip(*texts, strict=True)) or [()] * 5
    kinds = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.string())
    plain = [columns[0], columns[1], *([json.dumps(value) for value in column] for column in columns[2:])]
    return pa.table(
        {name: pa.array([column], pa.list_(kind)) for name, column, kind in zip(Text._fields, plain, kinds)}
    )


def in_blocks(groups: Iterable[Sequence[Text]], rows: int) -> Iterator[pa.Table]:
    """Blocks of about so many texts; a group (the answers of one row) is never divided."""
    held: list[Text] = []
    for group in groups:
        if held and len(held) + len(group) > rows:
            yield block_of(held)
            held = []
        held += group
    if held:
        yield block_of(held)


class Result(NamedTuple):
    """Of one block. lines (n,): of the texts that could be used; values (n, width): what was made of them. bad: the
    others, by file. done: rows of the files. stats: of the encoder. fingerprint: of the model."""

    lines: np.ndarray
    values: np.ndarray
    bad: list[tuple[str, BadRow]]
    done: int
    stats: dict[str, Any]
    fingerprint: str


def packed(result: Result) -> pa.Table:
    """A result as a table of one row, as Ray carries it."""
    import pyarrow as pa

    bad = json.dumps([(file, *vars(row).values()) for file, row in result.bad])
    row = {
        "lines": result.lines.astype(np.int64).tobytes(),
        "values": result.values.tobytes(),
        "about": json.dumps([str(result.values.dtype), list(result.values.shape)]),
        "bad": bad,
        "done": result.done,
        "stats": json.dumps(result.stats),
        "fingerprint": result.fingerprint,
    }
    return pa.table({name: [value] for name, value in row.items()})


def unpacked(row: dict[str, Any]) -> Result:
    """The result that ``packed`` made a row of."""
    kind, shape = json.loads(row["about"])
    values = np.frombuffer(row["values"], kind).reshape(shape)
    bad = [(file, BadRow(*rest)) for file, *rest in json.loads(row["bad"])]
    lines = np.frombuffer(row["lines"], np.int64)
    return Result(lines, values, bad, row["done"], json.loads(row["stats"]), row["fingerprint"])


Use = Callable[[list[Any], list[Any]], np.ndarray]


def use_block(block: pa.Table, use: Use) -> tuple[np.ndarray, np.ndarray, list[tuple[str, BadRow]], int]:
    """(lines, values, bad, rows of the files) of a block: ``use`` gives (n, width) of n texts; those that it names in a
    RowsError are left out and the others used again."""
    texts = [Text(*row[:2], *map(json.loads, row[2:])) for row in zip(*block.to_pylist()[0].values())]
    bad = [(text.file, BadRow(text.line, *text.fault)) for text in texts if text.fault]
    kept = [text for text in texts if not text.fault]
    values = np.empty((0, 0), np.float32)
    while kept:
        try:
            values = use([text.prompt for text in kept], [text.response for text in kept])
            break
        except RowsError as error:
            if not error.rows:
                raise
            bad += [(kept[at].file, BadRow(kept[at].line, "", REASON, detail)) for at, detail in error.rows.items()]
            kept = [text for at, text in enumerate(kept) if at not in error.rows]
    done = len({(text.file, text.line) for text in texts})
    return np.array([text.line for text in kept], np.int64), values, bad, done


class EncodeBlocks:
    """Encodes blocks into the feature cache; what it gives are the keys. options: of ``Encoder``; wanted: the
    fingerprint that the encoder must have, or "" for whatever it is."""

    def __init__(self, model: str, options: dict[str, Any], wanted: str = "") -> None:
        from prudent.features.encoder import Encoder

        self.encoder = Encoder(model, **options, progress=False)
        if wanted and self.encoder.fingerprint != wanted:
            raise PrudentError(
                f"a worker's language model {model!r} isn't the one here (fingerprint "
                f"{self.encoder.fingerprint[:12]}, expected {wanted[:12]}): give every node the same weights and "
                "library versions"
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        stats = EncodeStats()

        def use(prompts: list[Any], responses: list[Any]) -> np.ndarray:
            try:
                return self.encoder.keys(prompts, responses)
            finally:
                add_stats(stats, asdict(self.encoder.stats))

        lines, keys, bad, done = use_block(block, use)
        stats.rows = len(lines)
        return packed(Result(lines, keys, bad, done, asdict(stats), self.encoder.fingerprint))


@contextlib.contextmanager
def texts_folder(root: Path) -> Iterator[Path]:
    """A folder in ``root`` for texts on their way, gone afterwards; what a killed run left goes after a week."""
    made_cache(root)
    for left in root.glob("texts-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="texts-", dir=root) as folder:
        yield Path(folder)


def write_texts(
    folder: Path, prompts: Sequence[Any], responses: Sequence[Any], order: np.ndarray, rows: int
) -> list[Callable[[], Iterator[pa.Table]]]:
    """Write texts to a file in ``folder``, blocks of ``rows`` of them in this order, each with its row number as its
    line; functions that read a part of the blocks each."""
    import pyarrow as pa

    path = folder / "texts.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, block_of([]).schema) as writer:
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows].tolist()
            writer.write_table(block_of(Text("", row, prompts[row], responses[row]) for row in chosen))
    blocks = -(-len(order) // rows)
    return [
        partial(_read_texts, str(path), first, min(first + BATCHES_A_READ, blocks))
        for first in range(0, blocks, BATCHES_A_READ)
    ]


def _read_texts(path: str, first: int, last: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    with pa.memory_map(path) as file:
        batches = pa.ipc.open_file(file)
        for number in range(first, last):
            yield pa.Table.from_batches([batches.get_batch(number)])
