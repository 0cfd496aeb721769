"""Records of a local file with their physical lines. One bad row never costs the others: it comes back with its reason.

Text files (JSONL, JSON, CSV) are read here rather than by ``datasets``, which refuses a whole file for one bad row and
knows no lines. Tables (Parquet, Arrow) go through pyarrow; their rows are numbered from 1.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from prudent.data.json_records import json_records, jsonl_records
from prudent.data.records import LINE_BYTES, WHOLE_BYTES, Record, named_twice
from prudent.data.tables import read_table
from prudent.errors import BadRow, PrudentError
from prudent.hub import hub_or_offline, hub_words

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32 (little-endian)"),
    (b"\x00\x00\xfe\xff", "UTF-32 (big-endian)"),
    (b"\xff\xfe", "UTF-16 (little-endian)"),
    (b"\xfe\xff", "UTF-16 (big-endian)"),
)
PACKED_RATIO, PACKED_LEAST = 100, 64 * 2**20
MISSING_TEXT = frozenset({"", "n/a", "na", "nan", "none", "null", "-"})


def file_kind(path: Path) -> str | None:
    """Kind of file by its name (".gz" set aside), or None when the name says nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def open_bytes(path: Path) -> IO[bytes]:
    """A file open for reading, unpacked on the way when it is gzip (by content, not by name)."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise PrudentError(f"{path} can't be read: {error.strerror or error}") from error


def damaged(path: Path, error: Exception) -> PrudentError:
    """The error of a gzip file that can't be unpacked."""
    return PrudentError(f"{path} is damaged gzip ({error}); fetch or write it again")


def most_bytes(path: Path) -> int:
    """Unpacked bytes that a file may hold: text packs to a tenth or so, hardly ever to a hundredth."""
    return max(PACKED_LEAST, PACKED_RATIO * path.stat().st_size)


def _too_large(path: Path, limit: int) -> PrudentError:
    return PrudentError(
        f"{path} unpacks to more than {limit >> 20} MiB, over {PACKED_RATIO} times its size; "
        "where this is meant, unpack it first"
    )


def read_bytes(path: Path) -> bytes:
    """Whole content of a file, unpacked. PrudentError beyond ``WHOLE_BYTES``."""
    with open_bytes(path) as file:
        try:
            limit = min(WHOLE_BYTES, most_bytes(path))
            data = file.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, error) from error
    if len(data) <= limit:
        return data
    if limit < WHOLE_BYTES:
        raise _too_large(path, limit)
    raise PrudentError(
        f"{path} holds more than {WHOLE_BYTES >> 20} MiB, and this kind of file is read whole; write it as JSONL or "
        "Parquet, which are read piece by piece"
    )


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked, one at a time: memory stays flat however long the file is. Its encoding is checked
    first. Raises PrudentError where there is nothing but white space."""
    blank, number, held, limit = True, 0, 0, most_bytes(path)
    with open_bytes(path) as file:
        try:
            while line := file.readline(LINE_BYTES + 1):
                held += len(line)
                rest = line
                while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):  # a line beyond the bound: drop what follows
                    rest = file.readline(LINE_BYTES + 1)
                    held += len(rest)
                    if held > limit:
                        raise _too_large(path, limit)
                if held > limit:
                    raise _too_large(path, limit)
                line = line if number else check_encoding(path, line)
                number += 1
                blank = blank and not line.strip()
                yield line
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, error) from error
    if blank:
        raise PrudentError(f"{path} is empty; it needs at least one row")


def check_encoding(path: Path, data: bytes) -> bytes:
    """``data`` without a UTF-8 byte order mark, or PrudentError naming the other encoding that was found."""
    found = next((name for mark, name in ENCODINGS if data.startswith(mark)), None)
    if found is None and len(data) >= 4 and data[1] == 0 and data[0] and data[3] == 0 and data[2]:
        found = "UTF-16 (little-endian, without a byte order mark)"
    if found is None and len(data) >= 4 and data[0] == 0 and data[1] and data[2] == 0 and data[3]:
        found = "UTF-16 (big-endian, without a byte order mark)"
    if found:
        raise PrudentError(
            f"{path} is encoded as {found}, expected UTF-8; convert it, for example with iconv -f "
            f"{found.split()[0]} -t UTF-8"
        )
    return data.removeprefix(b"\xef\xbb\xbf")


def _csv(path: Path, data: bytes) -> Iterator[Record]:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PrudentError(f"{path}: line {line} holds a byte that is not UTF-8; convert the file to UTF-8") from error
    csv.field_size_limit(1 << 30)
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    reader = csv.reader(text, delimiter="\t" if tabs else ",", strict=False)
    names: list[str] | None = None
    flags: list[BadRow] = []
    last = 0
    try:
        for cells in reader:
            line, last = last + 1, reader.line_num
            if not cells or all(not cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                flags = named_twice(names, line)
                continue
            if len(cells) != len(names):
                detail = f"{len(cells)} cells where the header names {len(names)} columns"
                yield Record(line, None, [BadRow(line, "", "wrong-cell-count", detail)])
                continue
            yield Record(line, dict(zip(names, cells)), flags=flags)
            flags = []
    except csv.Error as error:
        line = last + 1
        yield Record(line, None, [BadRow(line, "", "not-csv", str(error))])


def is_there(path: Path) -> bool:
    """Whether a path leads anywhere; PrudentError where that can't be known (a name too long, a closed folder)."""
    try:
        return path.exists()
    except OSError as error:
        raise PrudentError(f"{str(path)[:200]} can't be read: {error.strerror}; check the path") from error


def read_records(path: str | Path) -> Iterator[Record]:
    """Records of a file, as ``_records`` gives them; PrudentError where it holds none."""
    number = 0
    for number, record in enumerate(_records(Path(path)), start=1):  # noqa: B007
        yield record
    if not number:
        raise PrudentError(f"{path} holds no row; it needs at least one")


def _records(path: Path) -> Iterator[Record]:
    """Records of a JSONL (also .gz), JSON, CSV, Parquet or Arrow file, in order, empty lines skipped.

    Line numbers are physical, from 1 (row numbers in tables). Raises PrudentError for what concerns the whole file: it
    is missing or empty, of an unknown kind, damaged, or not UTF-8 at all.
    """
    if not is_there(path) or not path.is_file():
        raise PrudentError(f"{path} is not a file; check the path")
    kind = file_kind(path)
    if kind is None:
        raise PrudentError(f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(KINDS)}, also with .gz")
    if path.stat().st_size == 0:
        raise PrudentError(f"{path} is empty; it needs at least one row")
    if kind in ("parquet", "arrow"):
        yield from read_table(path, kind)
        return
    if kind == "jsonl":
        yield from jsonl_records(read_lines(path))
        return
    data = check_encoding(path, read_bytes(path))
    if not data.strip():
        raise PrudentError(f"{path} is empty; it needs at least one row")
    yield from (json_records if kind == "json" else _csv)(path, data)


def open_records(
    source: str | Path, split: str | None = None, config: str | None = None, *, stream: bool = False
) -> Iterator[Record]:
    """Records of a local file, a folder (written by ``Dataset.save_to_disk``, or of data files as a hub data set holds
    them), or a hub data set. stream: read a hub data set or a folder of data files as it comes, without downloading or
    converting all of it first."""
    path = Path(source)
    if not str(source):
        raise PrudentError("no file is named; give a file, a folder or a hub id")
    if is_there(path) and not path.is_file() and not path.is_dir():
        raise PrudentError(f"{path} is a pipe or a device, which can't be read twice; write it to a file")
    if path.is_file():
        if split not in (None, "train"):
            raise PrudentError(f"{path} is a single file and has no split {split!r}; name the file of that split")
        yield from read_records(path)
        return
    looks_local = path.exists() or any(part.lower() in KINDS for part in path.suffixes) or path.is_absolute()
    if looks_local and not path.is_dir():
        raise PrudentError(f"{path} is not there; check the path")
    import datasets

    datasets.disable_progress_bars()
    saved = path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    try:
        with hub_or_offline(path):
            loaded: Any = (
                datasets.load_from_disk(str(path))
                if saved
                else datasets.load_dataset(str(source), config, streaming=stream)
            )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        said = f"{type(error).__name__}: {first[:300]}"
        if path.is_dir():
            raise PrudentError(f"{source} is not a folder of data files ({said}); check the path") from error
        raise PrudentError(
            f"{source} is not a file here (looked from {Path.cwd()}) or a data set of {hub_words()} "
            f"({said}); give a file, a folder or a hub id"
        ) from error
    if isinstance(loaded, Mapping):
        name = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
        if name is None or name not in loaded:
            raise PrudentError(f"{source} has splits {', '.join(map(str, loaded))}; split is {split!r}")
        loaded = loaded[name]
    for number, row in enumerate(loaded, start=1):
        yield Record(number, dict(row))
