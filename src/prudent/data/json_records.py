"""Records of JSONL and JSON: decoded here, since a decoder that knows no lines costs a whole file for one bad row."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prudent.data.records import DEPTH, LINE_BYTES, Record, brief, prune
from prudent.errors import BadRow, PrudentError
from prudent.files import LONE_SURROGATE, clean_text

LFS = "version https://git-lfs"
KINDS = {
    list: "an array",
    str: "a string",
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def _decoder() -> tuple[json.JSONDecoder, list[tuple[str, Any]], list[str]]:
    """JSON decoder that notes keys given twice (with the value that wins) and numbers that JSON doesn't have."""
    twice: list[tuple[str, Any]] = []
    constants: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            counts = Counter(key for key, _ in items)
            twice.extend((key, value[key]) for key, count in counts.items() if count > 1)
        return value

    def constant(name: str) -> float:
        constants.append(name)
        return float(name.replace("Infinity", "inf"))

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant), twice, constants


def _repair(record: dict[str, Any], note: Callable[[str, str, str], None]) -> dict[str, Any]:
    """``record`` with numbers that JSON doesn't have as None and lone surrogates as U+FFFD, each noted by field."""

    def named(key: str, name: str) -> str:
        if "\0" in key:
            note(clean_text(name), "nul-character", "U+0000 in a name was replaced by U+FFFD")
        return clean_text(key).replace("\0", "\ufffd")

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
            return {named(key, name): walk(item, name or key) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, name) for item in value]
        return value

    return {named(key, key): walk(value, clean_text(key)) for key, value in record.items()}


def _finish(value: Any, line: int, text: str, twice: list[tuple[str, Any]], constants: list[str]) -> Record:
    """Record of one decoded JSON value: an object, or the reason why it is none."""
    if not isinstance(value, dict):
        kind = KINDS.get(type(value), type(value).__name__)
        return Record(line, None, [BadRow(line, "", "not-an-object", f"{kind} where one object a row is expected")])
    record = Record(line, value)
    if text.count("[") + text.count("{") > DEPTH:
        prune(record)

    def note(name: str, reason: str, detail: str) -> None:
        record.flags.append(BadRow(line, name, reason, detail))

    for key, won in twice:
        note(clean_text(key), "duplicate-key", f"given more than once; the last value, {brief(won)}, won")
    if constants or "\\ud" in text or "\\uD" in text or "\\u0000" in text:
        record.value = _repair(value, note)
    return record


def not_json(error: Exception, column: int | None = None) -> str:
    """Why a text can't be decoded, in words."""
    if isinstance(error, json.JSONDecodeError):
        found = f"{error.msg.removesuffix(' at')} at column {column or error.colno}"
        if error.doc.startswith(LFS):
            return f"{found}; this is a pointer of Git LFS, not the data: fetch them with git lfs pull"
        if error.msg == "Extra data":
            return f"{found}; more follows the value, give one object a line"
        whole = error.pos < len(error.doc.rstrip()) and not error.msg.startswith("Unterminated")
        return found if whole else f"{found}; the line may be cut off"
    return "lists or objects are nested too deep" if isinstance(error, RecursionError) else str(error)


def _json_error(line: int, error: Exception, column: int | None = None) -> Record:
    return Record(line, None, [BadRow(line, "", "not-json", not_json(error, column))])


def jsonl_records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Records of JSON lines, numbered from 1, blank lines left out. A line that is too long, not UTF-8 or no JSON comes
    as a record with its fault and no value."""
    decoder, twice, constants = _decoder()
    for number, raw in enumerate(lines, start=1):
        if len(raw) > LINE_BYTES:
            detail = f"the line is longer than {LINE_BYTES >> 20} MiB"
            yield Record(number, None, [BadRow(number, "", "too-long", detail)])
            continue
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
    index = space.match(text, 0).end() + 1  # type: ignore[union-attr]
    line, counted = 1, 0
    while True:
        index = space.match(text, index).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, index), index
        if text.startswith("]", index):
            return
        twice.clear()
        constants.clear()
        try:
            value, end = decoder.raw_decode(text, index)
        except (ValueError, RecursionError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else None
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield _json_error(at, error, column)
            return  # where the next record begins is not known any more
        yield _finish(value, line, text[index:end], twice, constants)
        index = space.match(text, end).end()  # type: ignore[union-attr]
        if text.startswith(",", index):
            index = space.match(text, index + 1).end()  # type: ignore[union-attr]
            if text.startswith("]", index):
                line += text.count("\n", counted, index)
                yield Record(line, None, [BadRow(line, "", "not-json", "a comma before the end of the array")])
                return
        elif not text.startswith("]", index):
            line += text.count("\n", counted, index)
            yield Record(line, None, [BadRow(line, "", "not-json", "expected a comma or the end of the array")])
            return


def json_records(path: Path, data: bytes) -> Iterator[Record]:
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
        yield from jsonl_records(io.BytesIO(data))
        return
    listed = whole.get("data", whole.get("rows")) if isinstance(whole, dict) else None
    if isinstance(listed, list):
        for number, value in enumerate(listed, start=1):
            yield _finish(value, number, "\\ud" + "[" * (DEPTH + 1), [], [])  # always walked: its text is not at hand
        return
    yield from jsonl_records([json.dumps(whole).encode()])
