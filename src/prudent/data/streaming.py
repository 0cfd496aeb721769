"""Preference pairs of any number, a piece at a time: memory stays flat and nothing is downloaded whole first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prudent.data.formats import NEUTRAL, NUMBERS, Pair
from prudent.data.pairs import PIECE, Source, message_columns, read_pairs, reading_plan
from prudent.data.read_report import ReadReport

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def stream_preferences(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    rows: int = PIECE,
    report: ReadReport | None = None,
    **options: Any,
) -> Iterator[Dataset]:
    """Preference pairs of a hub id, a folder of data files or local files, as Datasets of what ``rows`` rows hold, each
    read when it is asked for.

    Columns: prompt, chosen, rejected, row, weight, soft_label and margin (a missing number is neutral). options: those
    of ``read_preferences``. report: counts what is read. Bad rows of a piece raise one DataError when it is reached.
    """
    from datasets import Dataset

    sources = [source] if isinstance(source, (str, Path)) else list(source)
    seen = ReadReport(", ".join(map(str, sources))) if report is None else report
    for pairs in read_pairs(sources, split, reading_plan(**options), seen, rows):
        if pairs:
            yield Dataset(table_of(pairs))


def table_of(pairs: Sequence[tuple[int, Pair]]) -> pa.Table:
    """The columns that every piece has, in one type whatever the piece holds."""
    import pyarrow as pa

    columns = message_columns(pairs)
    for name in NUMBERS:
        columns[name] = pa.array([pair.numbers.get(name, NEUTRAL[name]) for _, pair in pairs], pa.float64())
    return pa.table(columns)


def on_disk(parts: Iterable[Sequence[tuple[int, Pair]]]) -> Dataset:
    """One Dataset of all parts, memory-mapped from a temporary file (in $TMPDIR) that goes with the process."""
    import pyarrow as pa
    from datasets import Dataset

    with tempfile.TemporaryDirectory(prefix="prudent-") as folder:
        path = Path(folder) / "pairs.arrow"
        empty = table_of([])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, empty.schema) as writer:
            writer.write_table(empty)
            for pairs in parts:
                writer.write_table(table_of(pairs))
        return Dataset.from_file(str(path))  # the map outlives the file's name
