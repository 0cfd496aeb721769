"""Records of a local file with their physical lines. One bad row never costs the others: it comes back with its reason.

Text files (JSONL, JSON, CSV) are read here rather than by ``datasets``, which refuses a whole file for one bad row and
knows no lines. Tables (Parquet, Arrow) go through pyarrow; their rows are numbered from 1.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from prudent.errors import BadRow, PrudentError
from prudent.runs import LONE_SURROGATE, clean_text

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
MISSING_TEXT = frozenset({"", "n/a", "na", "nan", "none", "null", "-"})


@dataclass
class Record:
    """One record of a file. value: the object, None where ``errors`` says why there is none. flags: what was mended."""

    line: int
    value: dict[str, Any] | None
    errors: list[BadRow] = field(default_factory=list)
    flags: list[BadRow] = field(default_factory=list)


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
    return PrudentError(f"{path} is damaged gzip ({error}); fetch or write it again")


def read_bytes(path: Path) -> bytes:
    """Whole content of a file, unpacked."""
    with open_bytes(path) as file:
        try:
            return file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, error) from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked, one at a time: memory stays flat however long the file is. Its encoding is checked
    first. Raises PrudentError where there is nothing but white space."""
    blank = True
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file):
                line = line if number else check_encoding(path, line)
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


def _decoder() -> tuple[json.JSONDecoder, list[tuple[str, Any]], list[str]]:
    """JSON decoder that notes keys given twice (with the value that wins) and numbers that JSON doesn't have."""
    twice: list[tuple[str, Any]] = []
    constants: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            keys = [key for key, _ in items]
            twice.extend((key, value[key]) for key in value if keys.count(key) > 1)
        return value

    def constant(name: str) -> float:
        constants.append(name)
        return float(name.replace("Infinity", "inf"))

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant), twice, constants


def _shorten(value: Any, limit: int = 60) -> str:
    text = clean_text(value if isinstance(value, str) else repr(value))
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _mend(record: dict[str, Any], line: int, note: Callable[[str, str, str], None]) -> dict[str, Any]:
    """``record`` with numbers that JSON doesn't have as None and lone surrogates as U+FFFD, each noted by field."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, str):
            if LONE_SURROGATE.search(value):
                note(name, "lone-surrogate", "half a surrogate pair was replaced by U+FFFD")
                return clean_text(value)
            if "\0" in value:
                note(name, "nul-character", "holds U+0000; kept")
            return value
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            note(name, "not-a-number", f"{value} is not JSON; treated as missing")
            return None
        if isinstance(value, dict):
            return {clean_text(key): walk(item, name or key) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, name) for item in value]
        return value

    return {clean_text(key): walk(value, clean_text(key)) for key, value in record.items()}


def _finish(value: Any, line: int, text: str, twice: list[tuple[str, Any]], constants: list[str]) -> Record:
    """Record of one decoded JSON value: an object, or the reason why it is none."""
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
        return Record(line, None, [BadRow(line, "", "not-an-object", f"{kind} where one object a row is expected")])
    record = Record(line, value)

    def note(name: str, reason: str, detail: str) -> None:
        record.flags.append(BadRow(line, name, reason, detail))

    for key, won in twice:
        note(clean_text(key), "duplicate-key", f"given more than once; the last value, {_shorten(won)}, won")
    if constants or "\\ud" in text or "\\uD" in text or "\\u0000" in text:
        record.value = _mend(value, line, note)
    return record


def _json_error(line: int, error: Exception, column: int | None = None) -> Record:
    if isinstance(error, json.JSONDecodeError):
        where = f" at column {column or error.colno}"
        detail = f"{error.msg.removesuffix(' at')}{where}; the line may be cut off"
    else:
        detail = f"{type(error).__name__}: {error}"
    return Record(line, None, [BadRow(line, "", "not-json", detail)])


def _jsonl(lines: Iterable[bytes]) -> Iterator[Record]:
    decoder, twice, constants = _decoder()
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        twice.clear()
        constants.clear()
        try:
            text = raw.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} of the line ({raw[error.start]:#04x}) is not UTF-8"
            yield Record(number, None, [BadRow(number, "", "not-utf8", detail)])
            continue
        try:
            value = decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield _json_error(number, error)
            continue
        yield _finish(value, number, text, twice, constants)


def _json_array(path: Path, text: str) -> Iterator[Record]:
    """Records of one JSON array; the line of each is where it starts."""
    decoder, twice, constants = _decoder()
    space = re.compile(r"\s*")
    place = space.match(text, 0).end() + 1  # type: ignore[union-attr]
    line, counted = 1, 0
    while True:
        place = space.match(text, place).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, place), place
        if text.startswith("]", place):
            return
        twice.clear()
        constants.clear()
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else None
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield _json_error(at, error, column)
            return  # where the next record begins is not known any more
        yield _finish(value, line, text[place:end], twice, constants)
        place = space.match(text, end).end()  # type: ignore[union-attr]
        if text.startswith(",", place):
            place += 1
        elif not text.startswith("]", place):
            line += text.count("\n", counted, place)
            yield Record(line, None, [BadRow(line, "", "not-json", "expected a comma or the end of the array")])
            return


def _json(path: Path, data: bytes) -> Iterator[Record]:
    """An array of objects, an object that holds one under "data" or "rows", or (a common misnomer) JSONL."""
    start = data.lstrip()[:1]
    if start == b"[":
        try:
            yield from _json_array(path, data.decode("utf-8"))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise PrudentError(f"{path}: line {line} is not UTF-8; convert the file or write it as JSONL") from error
        return
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        yield from _jsonl(io.BytesIO(data))
        return
    listed = whole.get("data", whole.get("rows")) if isinstance(whole, dict) else None
    if isinstance(listed, list):
        for number, value in enumerate(listed, start=1):
            yield _finish(value, number, "\\ud", [], [])  # always walked: the text of one row is not at hand
        return
    yield from _jsonl([json.dumps(whole).encode()])


def _csv(path: Path, data: bytes) -> Iterator[Record]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PrudentError(f"{path}: line {line} holds a byte that is not UTF-8; convert the file to UTF-8") from error
    csv.field_size_limit(1 << 30)
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=False)
    names: list[str] | None = None
    last = 0
    try:
        for cells in reader:
            line, last = last + 1, reader.line_num
            if not cells or all(not cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(names):
                detail = f"{len(cells)} cells where the header names {len(names)} columns"
                yield Record(line, None, [BadRow(line, "", "wrong-cell-count", detail)])
                continue
            yield Record(line, dict(zip(names, cells)))
    except csv.Error as error:
        line = last + 1
        yield Record(line, None, [BadRow(line, "", "not-csv", str(error))])


def _table(path: Path, kind: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == "parquet":
            batches: Any = pq.ParquetFile(path).iter_batches(batch_size=2048)
        else:
            source = pa.memory_map(str(path))
            try:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                batches = pa.ipc.open_stream(source)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield Record(number, row)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise PrudentError(f"{path} can't be read as {kind}: {error}") from error


def read_records(path: str | Path) -> Iterator[Record]:
    """Records of a JSONL (also .gz), JSON, CSV, Parquet or Arrow file, in order, empty lines skipped.

    Line numbers are physical, from 1 (row numbers in tables). Raises PrudentError for what concerns the whole file: it
    is missing or empty, of an unknown kind, damaged, or not UTF-8 at all.
    """
    path = Path(path)
    if not path.is_file():
        raise PrudentError(f"{path} is not a file; check the path")
    kind = file_kind(path)
    if kind is None:
        raise PrudentError(f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(KINDS)}, also with .gz")
    if path.stat().st_size == 0:
        raise PrudentError(f"{path} is empty; it needs at least one row")
    if kind in ("parquet", "arrow"):
        yield from _table(path, kind)
        return
    if kind == "jsonl":
        yield from _jsonl(read_lines(path))
        return
    data = check_encoding(path, read_bytes(path))
    if not data.strip():
        raise PrudentError(f"{path} is empty; it needs at least one row")
    yield from (_json if kind == "json" else _csv)(path, data)


def open_records(
    source: str | Path, split: str | None = None, config: str | None = None, *, stream: bool = False
) -> Iterator[Record]:
    """Records of a local file, a folder (written by ``Dataset.save_to_disk``, or of data files as a hub data set holds
    them), or a hub data set. stream: read a hub data set or a folder of data files as it comes, without downloading or
    converting all of it first."""
    path = Path(source)
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
        loaded: Any = (
            datasets.load_from_disk(str(path))
            if saved
            else datasets.load_dataset(str(source), config, streaming=stream)
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "a folder of data files" if path.is_dir() else "a file here or a data set that the hub gives"
        raise PrudentError(f"{source} is not {what} ({type(error).__name__}: {first[:300]})") from error
    if isinstance(loaded, Mapping):
        name = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
        if name is None or name not in loaded:
            raise PrudentError(f"{source} has splits {', '.join(map(str, loaded))}; split is {split!r}")
        loaded = loaded[name]
    for number, row in enumerate(loaded, start=1):
        yield Record(number, dict(row))
