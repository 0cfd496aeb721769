"""Responses with their prompts, one a row or a pool's many, as they are scored and encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prudent.data.failing import Origin
from prudent.data.files import read_records
from prudent.data.messages import Reject
from prudent.data.ratings import read_response
from prudent.data.records import item_id, mapped
from prudent.errors import BadRow


class Item(NamedTuple):
    """A row as it was given, where it stands, and a prompt for each of its responses."""

    row: dict[str, Any]
    origin: Origin
    prompts: list[Any]
    responses: list[Any]


def read_items(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[tuple[Item | None, list[BadRow]]]:
    """Every row of a file: the item, or None and what is wrong with it.

    A row has ``prompt`` and ``response`` (text or messages) or ``responses`` (a list of texts).
    """
    for record in mapped(read_records(path), columns):
        row = record.value
        if row is None or record.errors:
            yield None, record.errors
            continue
        many = row.get("responses")
        if many is not None and (not isinstance(many, list) or not many):
            yield None, [BadRow(record.line, "responses", "not-a-list", "give a list with at least one text")]
            continue
        try:
            answers = [row] if many is None else [{**row, "response": answer} for answer in many]
            pairs = [read_response(answer, lambda *_: None) for answer in answers]
            origin = Origin(record.line, item_id(row.get("id")) or "")
        except Reject as reject:
            yield None, [BadRow(record.line, p.field, p.reason, p.detail) for p in reject.problems]
            continue
        except ValueError as error:
            yield None, [BadRow(record.line, "id", "not-an-id", str(error))]
            continue
        yield Item(row, origin, [prompt for prompt, _ in pairs], [response for _, response in pairs]), []
