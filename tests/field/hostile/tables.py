"""Every damage of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.field.hostile.cases import Case, join, jsonl, of_bytes
from tests.field.hostile.readers import READERS, Reader, Row

TEXTS = ("prompt", "chosen", "rejected", "response", "response_1", "problem", "question", "user", "item")


def bad_utf8(rows: int) -> Any:
    import pyarrow as pa

    offsets = pa.array(range(0, 2 * rows + 1, 2), pa.int32()).buffers()[1]
    return pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(b"ok" * (rows - 1) + b"\xff\xfe"))


def columns_of(rows: int) -> dict[str, Any]:
    """Columns that no reader asks for."""
    import pyarrow as pa

    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}
    return {
        "invalid UTF-8": bad_utf8(rows),
        "dates out of range": pa.array([2**50] * rows, pa.int64()).cast(pa.timestamp("s")),
        "60 levels": pa.array([deep] * rows),
        "nulls": pa.nulls(rows),
        "binary": pa.array([b"\xff"] * rows, pa.binary()),
        "a dictionary": pa.array(["x"] * rows).dictionary_encode(),
        "NaN and infinity": pa.array([float("nan"), float("inf")] * rows, pa.float64())[:rows],
        "decimals": pa.array([10**30] * rows, pa.decimal128(38, 2)),
        "durations": pa.array([2**60] * rows, pa.duration("ns")),
    }


def write_table(path: Path, rows: list[Row], columns: dict[str, Any], count: int | None = None) -> Path:
    """Rows (or the first ``count``) as a table, with columns more or in place of theirs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table({key: [row[key] for row in rows] for key in rows[0]} | columns)[:count]
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
    return path


def table_cases() -> Iterator[Case]:
    for reader, kind in READERS.items():
        for ending in kind.tables:
            yield from _of_one(f"{reader}: {ending}", kind, ending)


def _of_one(name: str, kind: Reader, ending: str) -> Iterator[Case]:
    rows = kind.rows

    def table(columns: Callable[[], dict[str, Any]], count: int | None = None) -> Callable[[Path], Path]:
        return lambda folder: write_table(folder / f"rows.{ending}", rows, columns(), count)

    def cut(folder: Path) -> Path:
        path = write_table(folder / f"rows.{ending}", rows, {})
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        return path

    yield Case(f"{name}: as it should be", kind, table(dict), same=True)
    for what in columns_of(1):
        write = table(lambda what=what: {"x": columns_of(len(rows))[what]})
        yield Case(f"{name}: {what}", kind, write, same=True)
    for field in TEXTS:
        if isinstance(rows[0].get(field), str):
            write = table(lambda field=field: {field: bad_utf8(len(rows))})
            yield Case(f"{name}: invalid UTF-8 as {field}", kind, write, (f"line {len(rows)}", field))
    yield Case(f"{name}: no row", kind, table(dict, 0), ())
    yield Case(f"{name}: cut off", kind, cut, (ending,))
    yield Case(f"{name}: JSON under that name", kind, of_bytes(f"rows.{ending}", lambda: join(jsonl(rows))), (ending,))
