"""A shard of the feature cache: a Parquet file that any reader of tables opens, and whose features are read in place.

Columns: ``key_high`` and ``key_low`` (int64), and ``features``, a list of so many float32 a row. Nothing is compressed,
and a column is one page of plain values, so that the features are the last bytes of their column: they are mapped into
memory where they lie, in whatever order rows are wanted, without a copy of the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike

from prudent.errors import PrudentError

SUFFIXES = (".parquet", ".safetensors")  # the second: written before shards were tables
LAYOUT = {b"prudent": b"one plain page a column"}


class Shard(NamedTuple):
    """keys (rows, 2) int64; features (rows, width) float32, mapped from the file."""

    keys: np.ndarray
    features: np.ndarray


def write_shard(path: Path, keys: np.ndarray, features: torch.Tensor) -> None:
    """Write (rows, 2) int64 keys and (rows, width) float32 features, and wait until they are on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, width = features.shape
    number = pa.field("element", pa.float32(), nullable=False)
    fields = [pa.field(name, pa.int64(), nullable=False) for name in ("key_high", "key_low")]
    fields.append(pa.field("features", pa.list_(number, width), nullable=False))
    values = pa.array(features.contiguous().numpy().reshape(-1))
    columns = [pa.array(np.ascontiguousarray(keys[:, half])) for half in (0, 1)]
    columns.append(pa.FixedSizeListArray.from_arrays(values, type=fields[2].type))
    with path.open("wb") as file:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=pa.schema(fields, LAYOUT)),
            file,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            data_page_size=2**31 - 1,
            max_rows_per_page=rows,
            row_group_size=rows,
        )
        file.flush()
        os.fsync(file.fileno())


def open_shard(path: Path, width: int) -> Shard:
    """The shard's keys, and its features as they lie in the file. FileNotFoundError where there is none; PrudentError
    for a damaged one and for another width."""
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    try:
        found = _open_parquet(path) if path.suffix == ".parquet" else _open_safetensors(path)
    except FileNotFoundError:
        raise
    except (ArrowException, SafetensorError, OSError, KeyError, ValueError) as error:
        raise PrudentError(
            f"cache file {path} is damaged ({error}); remove it, and its rows are computed again"
        ) from error
    if found.features.ndim != 2 or found.features.shape[1] != width or len(found.keys) != len(found.features):
        raise PrudentError(
            f"cache file {path} holds features of shape {found.features.shape}, expected width {width}; "
            "remove it, and its rows are computed again"
        )
    return found


def _open_parquet(path: Path) -> Shard:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        about, width = file.metadata, file.schema_arrow.field("features").type.list_size
        if about.num_row_groups != 1 or (about.metadata or {}).get(b"prudent") != LAYOUT[b"prudent"]:
            raise ValueError("it isn't laid out as Prudent writes shards")
    group, rows, whole = about.row_group(0), about.num_rows, np.memmap(path, np.uint8, "r")

    def values(number: int, size: int, kind: DTypeLike) -> np.ndarray:
        column = group.column(number)
        end = column.data_page_offset + column.total_compressed_size
        return whole[end - size : end].view(kind)

    keys = np.stack([values(number, 8 * rows, np.int64) for number in (0, 1)], 1)
    return Shard(keys, values(2, 4 * rows * width, np.float32).reshape(rows, width))


def _open_safetensors(path: Path) -> Shard:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return Shard(file.get_tensor("keys"), file.get_tensor("features"))
