"""Every damage of JSONL, JSON and CSV files, and of the path itself."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator

from tests.field.hostile.cases import Answer, Case, answered, join, jsonl, of_bytes
from tests.field.hostile.readers import READERS, SAME, Row
from tests.field.hostile.values import DEEP, DIGITS

# What is done to the lines of a JSONL file of three rows or more, and what must come of it: words, or SAME.
LineDamage = tuple[Callable[[list[str]], bytes], Answer]


def second(change: Callable[[str], str]) -> Callable[[list[str]], bytes]:
    return lambda lines: join([lines[0], change(lines[1]), *lines[2:]])


def more(text: str) -> Callable[[list[str]], bytes]:
    """The second row with one more field."""
    return second(lambda line: line[:-1] + f", {text}}}")


def second_bytes(lines: list[str]) -> bytes:
    first, line, *rest = (part.encode() for part in lines)
    return b"\n".join([first, line[:-1] + b', "x": "\xe9"}', *rest])


BROKEN = ("line 2", "not-json")
LINES: dict[str, LineDamage] = {
    "last row cut off": (lambda lines: join(lines)[: -len(lines[-1]) // 2], ("not-json", "column")),
    "second row cut off": (second(lambda line: line[: len(line) // 2]), (*BROKEN, "column")),
    "two rows in a line": (second(lambda line: line + " " + line), BROKEN),
    "a comma at the end": (second(lambda line: line + ","), BROKEN),
    "single quotes": (second(lambda line: line.replace('"', "'")), BROKEN),
    "a comment": (second(lambda line: "# " + line), BROKEN),
    "a raw line end in a text": (second(lambda line: line[:-1] + ', "x": "a\nb"}'), ("line 2", "line 3")),
    "a raw NUL": (second(lambda line: line[:-1] + ', "x": "\0"}'), BROKEN),
    "an array": (second(lambda line: "[1]"), ("line 2", "an array")),
    "null": (second(lambda line: "null"), ("line 2", "null")),
    "a number": (second(lambda line: "12"), ("line 2", "a number")),
    "a text": (second(lambda line: '"x"'), ("line 2", "a string")),
    "a Latin-1 byte": (second_bytes, ("line 2", "not UTF-8")),
    "UTF-16": (lambda lines: join(lines).decode().encode("utf-16"), ("UTF-16", "iconv")),
    "UTF-16 without a mark": (lambda lines: join(lines).decode().encode("utf-16-le"), ("UTF-16", "iconv")),
    "UTF-32": (lambda lines: join(lines).decode().encode("utf-32"), ("UTF-32", "iconv")),
    "nothing": (lambda lines: b"", ("is empty",)),
    "white space": (lambda lines: b" \n\t\n\r\n", ("is empty",)),
    "100,000 levels": (more('"x": ' + "[" * 100_000), ("line 2", "nested too deep")),
    "5,000 digits": (more(f'"x": {"1" * 5000}'), ("line 2", "digits")),
    "damaged gzip": (lambda lines: gzip.compress(join(lines) * 50)[:-30], ("damaged gzip", "again")),
    "gzip of nothing": (lambda lines: gzip.compress(b""), ("is empty",)),
    "gzip": (lambda lines: gzip.compress(join(lines)), SAME),
    "a byte order mark": (lambda lines: b"\xef\xbb\xbf" + join(lines), SAME),
    "CRLF": (lambda lines: join(lines).replace(b"\n", b"\r\n"), SAME),
    "blank lines": (lambda lines: join(lines) + b" \t\n\n", SAME),
    "no last line end": (lambda lines: join(lines).rstrip(), SAME),
    "900 levels in a column more": (more(f'"x": {DEEP}'), SAME),
    "400 digits in a column more": (more(f'"x": {DIGITS}'), SAME),
    "NaN in a column more": (more('"x": NaN'), SAME),
    "-Infinity in a column more": (more('"x": [-Infinity, 1e999]'), SAME),
    "mixed types in a column more": (
        lambda lines: join([*(with_x(line, v) for line, v in zip(lines, MIXED)), *lines[3:]]),
        SAME,
    ),
    "half an emoji in a column more": (more('"x": "\\ud83d"'), SAME),
    "a column named with U+0000": (more('"a\\u0000b": 1'), SAME),
    "a column named with a bidi mark": (more('"a\\u202eb": 1'), SAME),
    "a column named with an escape": (more('"a\\u001b[2Jb": 1'), SAME),
    "a column without a name": (more('"": 1'), SAME),
    "a column given twice": (more('"x": 1, "x": {"y": 2}'), SAME),
    "a column that only one row has": (more('"x": {"y": [1, {"z": null}]}'), SAME),
}
MIXED = ('"a"', "1", '[{"b": 2}]')


def with_x(line: str, value: str) -> str:
    return f'{line[:-1]}, "x": {value}}}'


def line_cases() -> Iterator[Case]:
    for reader, kind in READERS.items():
        lines = jsonl(kind.rows)
        for what, (damage, answer) in LINES.items():
            name = "rows.jsonl.gz" if "gzip" in what else "rows.jsonl"
            write = of_bytes(name, lambda damage=damage, lines=lines: damage(lines))
            skip = answer[0] == "line 2" and "line 3" not in answer
            yield answered(f"{reader}: JSONL: {what}", kind, write, answer, skip)


JSON_FILES: dict[str, tuple[Callable[[list[str]], str], Answer]] = {
    "an array": (lambda lines: "[" + ",\n".join(lines) + "]", SAME),
    "an array in one line": (lambda lines: "[" + ",".join(lines) + "]", SAME),
    "an object with data": (lambda lines: '{"data": [' + ",".join(lines) + "]}", SAME),
    "lines": ("\n".join, SAME),
    "a byte order mark": (lambda lines: "\ufeff[" + ",".join(lines) + "]", SAME),
    "an array cut off": (lambda lines: "[" + ",\n".join(lines), ("not-json", "line")),
    "a row cut off": (lambda lines: "[" + ",\n".join(lines)[:-20], ("not-json", "line")),
    "a comma too many": (lambda lines: "[" + ",\n".join(lines) + ",]", ("not-json", "line")),
    "no comma": (lambda lines: "[" + "\n".join(lines) + "]", ("not-json", "line 2")),
    "a number among rows": (lambda lines: "[" + ",\n".join([lines[0], "7", *lines[1:]]) + "]", ("line 2", "a number")),
    "an empty array": (lambda lines: "[]", ()),
    "an empty object": (lambda lines: "{}", ()),
    "data that is no list": (lambda lines: '{"data": 7}', ()),
    "data with a text in it": (lambda lines: '{"data": ["x"]}', ("a string",)),
    "900 levels": (lambda lines: "[" + ",".join([with_x(lines[0], DEEP), *lines[1:]]) + "]", SAME),
    "100,000 levels": (lambda lines: "[" * 100_000, ("nested too deep",)),
    "a number": (lambda lines: "7", ("a number",)),
}


def json_cases() -> Iterator[Case]:
    for reader, kind in READERS.items():
        if reader == "interactions":
            continue
        lines = jsonl(kind.rows)
        for what, (make, answer) in JSON_FILES.items():
            write = of_bytes("rows.json", lambda make=make, lines=lines: make(lines).encode())
            yield answered(f"{reader}: JSON: {what}", kind, write, answer)


def as_csv(rows: list[Row], delimiter: str = ",") -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


CSV_FILES: dict[str, tuple[str, Callable[[str, list[Row]], bytes], Answer]] = {
    "as it should be": ("rows.csv", lambda text, rows: text.encode(), SAME),
    "tabs": ("rows.tsv", lambda text, rows: as_csv(rows, "\t").encode(), SAME),
    "CRLF and a mark": ("rows.csv", lambda text, rows: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), SAME),
    "blank lines": ("rows.csv", lambda text, rows: text.encode() + b"\n\n", SAME),
    "gzip": ("rows.csv.gz", lambda text, rows: gzip.compress(text.encode()), SAME),
    "a column more": (
        "rows.csv",
        lambda text, rows: text.replace("\n", ",7\n").replace(",7", ",a\u202eb", 1).encode(),
        SAME,
    ),
    "nothing": ("rows.csv", lambda text, rows: b"", ("empty",)),
    "a header alone": ("rows.csv", lambda text, rows: text.split("\n")[0].encode(), ()),
    "a cell too many": ("rows.csv", lambda text, rows: second_line(text, lambda line: line + ",x,y"), ("line 3",)),
    "a Latin-1 byte": ("rows.csv", lambda text, rows: text.encode() + b"\xe9", ("UTF-8",)),
    "UTF-16": ("rows.csv", lambda text, rows: text.encode("utf-16"), ("UTF-",)),
    "damaged gzip": ("rows.csv.gz", lambda text, rows: gzip.compress(text.encode() * 9)[:-20], ()),
    "a quote that never ends": ("rows.csv", lambda text, rows: second_line(text, lambda line: '"' + line), ()),
    "semicolons": ("rows.csv", lambda text, rows: as_csv(rows, ";").encode(), ()),
    "other columns": ("rows.csv", lambda text, rows: b"a,b\n1,2\n", ("a, b",)),
}


def second_line(text: str, change: Callable[[str], str]) -> bytes:
    lines = text.split("\n")
    return "\n".join([*lines[:2], change(lines[2]), *lines[3:]]).encode()


def csv_cases() -> Iterator[Case]:
    for reader, kind in READERS.items():
        if not kind.flat:
            continue
        text = as_csv(kind.rows)
        for what, (name, make, answer) in CSV_FILES.items():
            if len(kind.rows[0]) == 1 and what in ("semicolons", "tabs", "a quote that never ends"):
                continue  # with one column there is nothing to separate
            write = of_bytes(name, lambda make=make, text=text, rows=kind.rows: make(text, rows))
            yield answered(f"{reader}: CSV: {what}", kind, write, answer)


def path_cases() -> Iterator[Case]:
    for reader, kind in READERS.items():
        content = join(jsonl(kind.rows))
        yield Case(f"{reader}: no such file", kind, lambda folder: folder / "rows.jsonl", ())
        yield Case(f"{reader}: a folder", kind, lambda folder: folder, ())
        other = of_bytes("rows.docx", lambda content=content: content)
        yield Case(f"{reader}: another ending", kind, other, (".docx",))
