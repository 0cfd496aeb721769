"""Chat messages of any shape: lists with roles, one object, plain text, transcripts with Human and Assistant marks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prudent.data.files import MISSING_TEXT
from prudent.data.records import brief

Message = dict[str, str]
Note = Callable[[str, str, str], None]
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
}
MARK = re.compile(r"(?:\A|\n[ \t]*\r?\n)\s*(Human|Assistant):")
LISTED = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")
READ_KEYS = ("role", "content", "from", "value")


@dataclass(frozen=True)
class Problem:
    """Why a row (or one field of it) can't be used, before its line is known."""

    field: str
    reason: str
    detail: str


class Reject(Exception):
    """A row that gives no pair. ``problems`` holds every reason found in it."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{p.field}: {p.reason}: {p.detail}" for p in problems))


def number(value: Any) -> float | None:
    """``value`` as a finite float; None when it is missing ("N/A", "", null, NaN); ValueError when it is other text or
    beyond a float's range (1e999, an integer of 400 digits)."""
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING_TEXT):
        return None
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isinf(found):
        raise ValueError(f"{brief(value)} is beyond a float's range")
    return None if math.isnan(found) else found


def last_text(turns: str | Sequence[Message]) -> str:
    """A text as it is; the last content of messages, which is what a completion or a question is."""
    return turns if isinstance(turns, str) else turns[-1]["content"]


def text_of(message: Mapping[str, Any]) -> Any:
    """Content of a message; a list of text parts is joined. None where there is none."""
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts and len(texts) == len(parts) else None
    return content


def unread_parts(content: Any) -> list[str]:
    """Kinds of the parts of a content that hold no text: image, audio, ..."""
    parts = content if isinstance(content, list) else []
    kinds = [
        str(part.get("type") or next(iter(part), "unknown")) if isinstance(part, Mapping) else type(part).__name__
        for part in parts
    ]
    held = [
        isinstance(part, str) or (isinstance(part, Mapping) and isinstance(part.get("text"), str)) for part in parts
    ]
    return [kind.removesuffix("_url") for kind, text in zip(kinds, held) if not text]


def unread_keys(side: Any) -> list[dict[str, Any]]:
    """What messages hold besides role and content, and is not read."""
    turns = [side] if isinstance(side, Mapping) else side if isinstance(side, (list, tuple)) else []
    return [
        {key: value for key, value in turn.items() if value is not None and key not in READ_KEYS}
        for turn in turns
        if isinstance(turn, Mapping)
    ]


def read_messages(value: Sequence[Any], name: str, note: Note) -> list[Message]:
    """Chat messages with role and content alone. Null keys (Arrow's union of keys) vanish, other keys are noted."""
    if not value:
        raise Reject(Problem(name, "empty", "an empty list of messages"))
    if not all(isinstance(item, Mapping) for item in value):
        kind = type(next(item for item in value if not isinstance(item, Mapping))).__name__
        raise Reject(Problem(name, "not-messages", f"a list of {kind}; messages are objects with role and content"))
    messages = []
    for index, item in enumerate(value):
        where = f"message {index + 1}"
        role = item.get("role", item.get("from"))
        content = text_of(item)
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise Reject(
                Problem(name, "unknown-role", f"{where} has role {brief(role)}; known: {', '.join(sorted(ROLES))}")
            )
        calls = [key for key in ("tool_calls", "function_call") if item.get(key)]
        if calls:
            detail = f"{where} ({role}) makes a tool call ({calls[0]}), which isn't read: without it the turn says less"
            raise Reject(
                Problem(name, "tool-calls", f"{detail}; leave the row out, or write the call into the content")
            )
        if kinds := unread_parts(item.get("content", item.get("value"))):
            detail = f"{where} ({role}) holds an {kinds[0]} part; only text is read"
            raise Reject(Problem(name, f"{kinds[0]}-part", detail.replace("an video", "a video")))
        if content is None:
            raise Reject(Problem(name, "null-content", f"{where} ({role}) has no text content"))
        if not isinstance(content, str):
            raise Reject(Problem(name, "not-text", f"{where} ({role}) has content of type {type(content).__name__}"))
        other = sorted(unread_keys(item)[0])
        if other:
            note(name, "extra-message-keys", f"{where}: {', '.join(other)} left out; templates get role and content")
        messages.append({"role": ROLES[role.lower()], "content": content})
    return messages


def read_side(value: Any, name: str, note: Note, allow: frozenset[str] = frozenset()) -> str | list[Message]:
    """A prompt or an answer as text or as messages, whatever holds it (JSON text of a list too)."""
    if value is None:
        raise Reject(Problem(name, "null", "null where text or messages are needed"))
    if hasattr(value, "tolist"):
        value = value.tolist()  # numpy arrays of messages, as Parquet readers give them
    if isinstance(value, str):
        if LISTED.match(value):
            try:
                return read_messages(json.loads(value), name, note)
            except ValueError as error:
                remedy = "looks like a list of messages but is not JSON; write it with json.dumps"
                raise Reject(Problem(name, "not-json", f"{remedy} ({error})")) from error
        reason, detail = ("blank", "only white space") if value else ("empty", "empty text")
        if not value.strip() and reason not in allow:
            raise Reject(Problem(name, reason, detail))
        return value
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, (list, tuple)):
        return read_messages(value, name, note)
    detail = f"{brief(value)} ({type(value).__name__}) where text or messages are needed"
    raise Reject(Problem(name, "not-text", detail))


def is_transcript(text: Any) -> bool:
    """Whether a text begins with HH's "Human:" mark."""
    found = MARK.match(text) if isinstance(text, str) else None
    return found is not None and found.group(1) == "Human"


def parse_transcript(text: str, name: str, note: Note) -> list[Message]:
    """HH transcript -> messages. A mark counts only at the start or after an empty line; turns in a row are joined."""
    marks = list(MARK.finditer(text))
    messages: list[Message] = []
    for mark, following in zip(marks, [*marks[1:], None]):
        role = "user" if mark.group(1) == "Human" else "assistant"
        content = text[mark.end() : following.start() if following else len(text)].strip()
        if messages and messages[-1]["role"] == role:
            note(name, "joined-turns", f"two {role} turns in a row were joined with an empty line")
            messages[-1]["content"] += "\n\n" + content
        else:
            messages.append({"role": role, "content": content})
    return messages


def squeeze(text: str) -> str:
    """Text with every run of white space as one blank, for comparisons that white space must not decide."""
    return " ".join(text.split())
