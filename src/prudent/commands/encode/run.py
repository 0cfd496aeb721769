"""``prudent encode``: texts of files into the feature cache, here or by Ray's workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prudent.commands.common import say
from prudent.commands.encode.options import EncodeOptions
from prudent.errors import BadRow, DataError, PrudentError

if TYPE_CHECKING:
    import pyarrow as pa

    from prudent.features.blocks import Result
    from prudent.features.ray import Read

PIECE = 2048  # rows of a file that are checked at a time


def encode(options: EncodeOptions) -> dict[str, Any]:
    """Encode every text that can be; counts, rates and the rows that can't. DataError names those, unless they are to
    be skipped, when all others are in the cache."""
    from prudent.data.failing import counted
    from prudent.features.stats import EncodeStats, add_stats, tokens_read
    from prudent.files import cache_folder
    from prudent.progress import meter

    reads = reads_of(options)
    stats, bad, fingerprint, began, rows = EncodeStats(), [], "", time.perf_counter(), 0
    with meter("encoding", rows_of([*options.preferences, *options.data])) as advance:
        for result in results_of(options, reads):
            add_stats(stats, result.stats)
            rows += result.done
            bad += [_named(file, row, len(reads) > 1) for file, row in result.bad]
            if fingerprint and result.fingerprint != fingerprint:
                raise PrudentError(
                    "workers give features of different models or precisions; give --dtype, and every node the same "
                    "weights and library versions"
                )
            fingerprint = result.fingerprint
            advance(result.done, tokens_read(result.stats))
    bad.sort(key=lambda row: row.line)
    seconds = time.perf_counter() - began
    if bad and options.on_error == "raise":
        remedy = f"the other {stats.rows} texts are in the cache. Fix these rows, or leave them out: --on-error skip"
        raise DataError(", ".join([*options.preferences, *options.data]), bad, remedy)
    if bad:
        say("\n".join([f"{len(bad)} rows left out:", *map(str, bad[:20])]))
    return {
        "folder": str(cache_folder() / "features" / fingerprint[:32]),
        "fingerprint": fingerprint,
        "rows": rows,
        "texts": stats.rows,
        **{name: value for name, value in asdict(stats).items() if name not in ("rows", "seconds")},
        "seconds": seconds,
        "worker_seconds": stats.seconds,
        **counted(bad),
    }


def results_of(options: EncodeOptions, reads: Sequence[Read]) -> Iterator[Result]:
    """What the encoder makes of every block, here or by Ray's workers."""
    from prudent.features.blocks import EncodeBlocks, unpacked
    from prudent.features.ray import everywhere
    from prudent.files import cache_folder

    features = {
        "pooling": options.pooling,
        "max_length": options.max_length,
        "dtype": options.dtype,
        "layer": options.blocks,
        "cache": str((cache_folder() / "features").resolve()),
    }
    engine = options.ray_engine()
    if engine is not None:
        yield from engine.map(reads, EncodeBlocks, (everywhere(options.model), features))
        return
    worker = EncodeBlocks(options.model, features)
    for read in reads:
        for block in read():
            yield unpacked(worker(block).to_pylist()[0])


def reads_of(options: EncodeOptions) -> list[Read]:
    """A function for every file, which reads it block by block, in whatever process it is called."""
    from prudent.features.ray import everywhere

    columns, rows = options.columns, options.block_rows
    how = {"columns": columns, "without_prompt": options.without_prompt}
    return [
        *(partial(pair_blocks, everywhere(one), options.split, rows, **how) for one in options.preferences),
        *(partial(item_blocks, everywhere(one), rows, columns) for one in options.data),
    ]


def pair_blocks(source: str, split: str | None, rows: int, **how: Any) -> Iterator[pa.Table]:
    """Blocks with both answers of every pair, and the rows that can't be read. how: of ``read_preferences``."""
    from prudent.data.pairs import read_pairs, reading_plan
    from prudent.data.read_report import ReadReport
    from prudent.features.blocks import Text, in_blocks

    def groups() -> Iterator[list[Text]]:
        report = ReadReport(source)
        for pairs in read_pairs([source], split, reading_plan(on_error="skip", **how), report, PIECE):
            yield _faults(source, report.bad)
            for found in (report.bad, report.left_out, report.flagged):
                found.clear()  # memory stays flat
            for line, pair in pairs:
                yield [Text(source, line, pair.prompt, side) for side in (pair.chosen, pair.rejected)]

    return in_blocks(groups(), rows)


def item_blocks(source: str, rows: int, columns: dict[str, str]) -> Iterator[pa.Table]:
    """Blocks with the responses of every row, and the rows that can't be read."""
    from prudent.data.responses import read_items
    from prudent.features.blocks import Text, in_blocks

    def groups() -> Iterator[list[Text]]:
        for item, bad in read_items(Path(source), columns):
            if item is None:
                yield _faults(source, bad)
            else:
                texts = zip(item.prompts, item.responses)
                yield [Text(source, item.origin.line, prompt, response) for prompt, response in texts]

    return in_blocks(groups(), rows)


def _faults(source: str, bad: Sequence[BadRow]) -> list[Any]:
    from prudent.features.blocks import Text

    return [Text(source, row.line, fault=(row.field, row.reason, row.detail)) for row in bad]


def _named(file: str, row: BadRow, several: bool) -> BadRow:
    return BadRow(row.line, row.field, row.reason, f"{Path(file).name}: {row.detail}") if several else row


def rows_of(sources: Sequence[str]) -> int | None:
    """Rows of all sources, where counting them is quick (JSONL, Parquet); else None."""
    from prudent.data.files import file_kind

    total = 0
    for source in sources:
        kind = file_kind(Path(source)) if Path(source).is_file() else None
        if kind == "parquet":
            import pyarrow.parquet as pq

            total += pq.read_metadata(source).num_rows
        elif kind == "jsonl" and not source.endswith(".gz"):
            with open(source, "rb") as file:
                total += sum(piece.count(b"\n") for piece in iter(partial(file.read, 2**20), b""))
        else:
            return None
    return total


def show(result: dict[str, Any], options: EncodeOptions) -> None:
    """A line that a person reads."""
    print(
        f"{result['texts']} texts of {result['rows']} rows in {result['seconds']:.1f} s "
        f"({result['rows'] / max(result['seconds'], 1e-9):,.0f} rows/s): {result['encoded']} encoded, "
        f"{result['cached']} in the cache already, {result['truncated']} cut, {result['left_out']} rows left out\n"
        f"features are in {result['folder']}"
    )
