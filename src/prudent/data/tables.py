"""Rows of Parquet and Arrow files; a cell that holds no valid value costs itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prudent.data.records import Record, named_twice, prune
from prudent.errors import BadRow, PrudentError

BATCH = 2048


def read_table(path: Path, kind: str) -> Iterator[Record]:
    """Records of a "parquet" or "arrow" file (file or stream format). PrudentError where the file itself is damaged."""
    import pyarrow as pa

    try:
        number = 0
        for batch in _batches(path, kind):
            names = [str(name) for name in batch.schema.names]
            flags = [] if number else named_twice(names, 1)
            columns = [cells_of(batch.column(position), number, name, flags) for position, name in enumerate(names)]
            by_line: dict[int, list[BadRow]] = {}
            for flag in flags:
                by_line.setdefault(flag.line, []).append(flag)
            for cells in zip(*columns):
                number += 1
                record = Record(number, dict(zip(names, cells)), flags=by_line.get(number, []))
                prune(record)
                yield record
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise PrudentError(f"{path} can't be read as {kind} ({str(error)[:300]}); write or fetch it again") from error


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=BATCH)
        return
    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(file.num_record_batches):
        yield file.get_batch(index)


def cells_of(column: Any, before: int, name: str, flags: list[BadRow]) -> list[Any]:
    """Python values of one column of a batch that starts after row ``before``; what has none is None and flagged."""
    faults = (ValueError, OverflowError, UnicodeError)  # pyarrow's own errors are ValueErrors where a value is at fault
    try:
        return column.to_pylist()
    except faults:
        values = []
    for row, cell in enumerate(column, start=before + 1):
        try:
            values.append(cell.as_py())
        except faults as error:
            values.append(None)
            reason = "not-utf8" if isinstance(error, UnicodeError) else "not-a-value"
            detail = f"{type(error).__name__}: {str(error)[:120]}; treated as missing"
            flags.append(BadRow(row, name, reason, detail))
    return values
