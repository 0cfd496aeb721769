"""Every field of every reader with every wrong value."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.field.hostile.cases import Case, join, jsonl, of_bytes, with_field
from tests.field.hostile.readers import FINE, READERS

DIGITS = "1" * 400
DEEP = '{"a":' * 450 + "[" * 450 + "1" + "]" * 450 + "}" * 450
VALUES = {
    "null": "null",
    "number": "7",
    "negative": "-3",
    "true": "true",
    "text": '"x y"',
    "empty text": '""',
    "blank text": '" \\t"',
    "list": "[]",
    "list of numbers": "[1, 2]",
    "list of texts": '["a", "b"]',
    "list of null": "[null, 1]",
    "list of NaN": "[NaN, 1]",
    "lists of numbers": "[[1, 2], [3, 4]]",
    "object": "{}",
    "object of numbers": '{"a": 1}',
    "NaN": "NaN",
    "1e999": "1e999",
    "400 digits": DIGITS,
    "900 deep": DEEP,
    "missing": "",
}
TURNS = {
    "role unknown": {"role": "alien", "content": "x"},
    "role a number": {"role": 1, "content": "x"},
    "role null": {"role": None, "content": "x"},
    "role a list": {"role": ["user"], "content": "x"},
    "no content": {"role": "assistant"},
    "content null": {"role": "assistant", "content": None},
    "content a number": {"role": "assistant", "content": 5},
    "content an object": {"role": "assistant", "content": {"text": "x"}},
    "an image": {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]},
    "a tool call": {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
}
TEXTS_ALONE = (("rewardbench2", "chosen"), ("rewardbench2", "rejected"))
SPOKEN = ("prompt", "chosen", "rejected", "response", "response_1")  # fields that may hold messages


def value_cases() -> Iterator[Case]:
    """Each field with each wrong value in the second row."""
    for reader, kind in READERS.items():
        lines = jsonl(kind.rows)
        for name in kind.fields:
            values = dict(VALUES)
            if name in SPOKEN and (reader, name) not in TEXTS_ALONE:
                values |= {f"a turn, {what}": json.dumps([turn]) for what, turn in TURNS.items()}
            for what, value in values.items():
                right = kind.right.get(name, {})
                answer = right.get(what) or right.get("any " + what.split(" ")[0].removesuffix("s"))
                line = with_field(kind.rows[1], name, value)
                content = join([lines[0], line, *lines[2:]])
                words = None if answer else ("line 2", *(() if what == "missing" else (name,)))
                reason = None if answer in (None, FINE) else answer
                write = of_bytes("rows.jsonl", lambda content=content: content)
                yield Case(f"{reader}: {name} is {what}", kind, write, words, reason, skip=words is not None)
