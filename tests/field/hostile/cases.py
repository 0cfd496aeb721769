"""One hostile file, what is right for it, and whether that is what comes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.field.hostile.readers import SAME, Reader, Row

from prudent.errors import PrudentError

REMEDY = re.compile(
    r"\b(fix|give|write|check|convert|map|leave|name|rename|save|fetch|use|remove|quote|lower|set|unpack|expected|needs?|"
    r"needed|must|known|cut off|copy|make|load|found:|shorten|raise|keep|near)\b|--[a-z]"
)


@dataclass(frozen=True)
class Case:
    """write(folder) -> the file. refused: words of the refusal. reason: of the flag with which the rows are kept. Where
    neither is given, the file is read: as the undamaged one where ``same``."""

    name: str
    reader: Reader
    write: Callable[[Path], Path]
    refused: tuple[str, ...] | None = None
    reason: str | None = None
    same: bool = False
    skip: bool = False  # leaving bad rows out gives all rows but one


def of_bytes(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content())
        return path

    return write


def jsonl(rows: list[Row]) -> list[str]:
    return [json.dumps(row) for row in rows]


def with_field(row: Row, name: str, value: str) -> str:
    """A row as JSON with a field given as JSON; "" leaves it out."""
    rest = {key: cell for key, cell in row.items() if key != name}
    inner = json.dumps(rest)[1:-1]
    return "{" + ", ".join(part for part in (inner, f"{json.dumps(name)}: {value}" if value else "") if part) + "}"


def join(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


Answer = tuple[str, ...] | str  # words of the refusal, or SAME


def answered(name: str, reader: Reader, write: Callable[[Path], Path], answer: Answer, skip: bool = False) -> Case:
    """A case that is refused in these words, or read as the undamaged file."""
    return Case(name, reader, write, None if isinstance(answer, str) else answer, same=answer == SAME, skip=skip)


GOOD: dict[int, str] = {}


def undamaged(reader: Reader, folder: Path) -> str:
    """What a reader makes of its good file."""
    if id(reader) not in GOOD:
        good = folder / "good.jsonl"
        good.write_bytes(join(jsonl(reader.rows)))
        GOOD[id(reader)] = repr(reader.read(good))
    return GOOD[id(reader)]


def fault(case: Case, folder: Path) -> str | None:
    """What isn't right about how a case ends, or None."""
    path = case.write(folder)
    began = time.monotonic()
    try:
        found = case.reader.read(path)
    except PrudentError as error:
        return _of_refusal(case, path, str(error)) or _of_skip(case, path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        taken = time.monotonic() - began
        if taken > 30:
            raise AssertionError(f"{case.name}: {taken:.0f} s")
    if case.refused is not None:
        return f"was read: {str(found)[:200]}"
    if case.same:
        wanted = undamaged(case.reader, folder)
        return None if repr(found) == wanted else f"read as {str(found)[:200]}, not {wanted[:200]}"
    if case.reader.flags is not None:
        reasons = case.reader.flags(path)
        if case.reason is None or case.reason in reasons:
            return f"flagged {reasons}" if case.reason is None and reasons else None
        return f"flagged {reasons}, not {case.reason}"
    return None


def _of_refusal(case: Case, path: Path, text: str) -> str | None:
    if case.refused is None:
        return f"was refused: {text[:300]}"
    lacking = [word for word in (path.name, *case.refused) if word not in text]
    if lacking:
        return f"doesn't say {lacking}: {text[:300]}"
    if not REMEDY.search(text) or len(text) > 3000 or not text.replace("\n", "").isprintable():
        return f"no clear words: {text[:300]}"
    return None


def _of_skip(case: Case, path: Path) -> str | None:
    if not case.skip or case.reader.skip is None:
        return None
    try:
        left = case.reader.skip(path)
    except Exception as error:
        return f"with bad rows left out: {type(error).__name__}: {error}"[:300]
    return None if left == len(case.reader.rows) - 1 else f"with bad rows left out, {left} are kept"
