"""Candidate pools: prompts with several responses each and, where it is known, the gold reward of each response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prudent.data.failing import Origin, item_origins, use_rows
from prudent.data.files import read_records
from prudent.data.messages import Message, Problem, Reject, read_side
from prudent.data.records import brief, item_id, listed, mapped
from prudent.errors import BadRow, DataError, PrudentError, RowsError
from prudent.files import dumps, write_atomic

R = TypeVar("R")
MOST_PADDING, FEW_CELLS = 8, 50_000  # cells of a padded table: times the responses there are, and what harms nobody
MOST_GOLD = 1e12  # beyond it differences of usual rewards are lost in rounding


@dataclass(frozen=True)
class Pool:
    """prompts: message lists. responses: texts, one list a prompt, of any lengths >= 2. gold: rewards of the same
    shape, or None. ids: one a prompt. lines: where each prompt stands in its file, or None (made here). left_out: rows
    that the reading dropped."""

    prompts: list[list[Message]]
    responses: list[list[str]]
    gold: list[list[float]] | None
    ids: list[str]
    lines: list[int] | None = field(default=None, compare=False)  # pools are equal by what they hold
    left_out: Sequence[BadRow] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: list[int]) -> Pool:
        """The prompts at these places; the pool itself where they are all."""
        if len(rows) == len(self):
            return self
        gold = None if self.gold is None else [self.gold[row] for row in rows]
        lines = None if self.lines is None else [self.lines[row] for row in rows]
        kept = [self.prompts[row] for row in rows], [self.responses[row] for row in rows]
        return Pool(*kept, gold, [self.ids[row] for row in rows], lines, self.left_out)

    def origins(self) -> list[Origin]:
        """Where each prompt comes from."""
        return item_origins(self.ids, self.lines)

    def flat(self) -> tuple[list[list[Message]], list[str], list[int]]:
        """(prompts, responses, prompt number) with one entry a response: what an encoder takes."""
        owner = [index for index, texts in enumerate(self.responses) for _ in texts]
        return [self.prompts[index] for index in owner], [text for texts in self.responses for text in texts], owner


def read_pool(
    path: str | Path, gold: str = "gold", columns: Mapping[str, str] | None = None, on_error: str | None = None
) -> Pool:
    """Pool of a JSONL file (or any other kind that ``read_records`` knows) with ``prompt`` (text or messages),
    ``responses``, and optionally ``gold`` and ``id``. gold: the column's name where it is another.
    columns: {our name: the file's} of the others. on_error: "skip" drops bad rows (``left_out`` says which); "raise"
    and None (for who can't skip) raise.

    Raises DataError with every bad row: fewer than two responses, a response that is no text, gold that is not finite
    or not one number a response, gold in some rows only.
    """
    path = Path(path)
    bad: list[BadRow] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    for record in mapped(read_records(path), columns):
        bad += record.errors
        bad += [flag for flag in record.flags if flag.reason == "not-a-number" and flag.field == gold]
        if record.value is None:
            continue
        try:
            value = record.value if gold == "gold" else {**record.value, "gold": record.value.get(gold)}
            rows.append((record.line, _read_row(value, gold)))
        except Reject as reject:
            bad += [BadRow(record.line, p.field, p.reason, p.detail) for p in reject.problems]
    with_gold = sum(row["gold"] is not None for _, row in rows)
    if 0 < with_gold < len(rows):
        detail = f"{with_gold} of {len(rows)} rows have gold; give it in every row or in none"
        bad += [BadRow(line, gold, "missing-field", detail) for line, row in rows if row["gold"] is None]
    bad = sorted({(row.line, row.field, row.reason): row for row in bad}.values(), key=lambda row: row.line)
    refuse_bad(path, bad, on_error)
    dropped = {row.line for row in bad}
    rows = [(line, row) for line, row in rows if line not in dropped]
    if not rows:
        first = f"; the first of {len(bad)} bad rows: {bad[0]}" if bad else ""
        raise PrudentError(f"{path} holds no prompt; a pool has one prompt with its responses a line{first}")
    ids = [row["id"] if row["id"] is not None else str(index) for index, (_, row) in enumerate(rows)]
    rewards = [row["gold"] for _, row in rows] if with_gold else None
    prompts, responses = [row["prompt"] for _, row in rows], [row["responses"] for _, row in rows]
    return Pool(prompts, responses, rewards, ids, [line for line, _ in rows], bad)


def refuse_uneven(counts: Sequence[int], names: Sequence[str] = ()) -> None:
    """PrudentError where one prompt has so many more responses than the others that a table of all of them, padded to
    the widest, would be mostly padding. counts: responses of each prompt; names: of the prompts."""
    if len(counts) <= MOST_PADDING:
        return
    widest, total = max(range(len(counts)), key=lambda row: counts[row]), sum(counts)
    others = MOST_PADDING * (total - counts[widest]) // (len(counts) - MOST_PADDING)
    most = max(others, FEW_CELLS // len(counts))
    if counts[widest] > most:
        name = repr(names[widest]) if len(names) else f"number {widest + 1}"
        raise PrudentError(
            f"prompt {name} has {counts[widest]:,} responses, and all {len(counts)} prompts together have {total:,}. "
            f"Prompts are computed side by side, as wide as the widest: the limit for these is {most:,} responses a "
            "prompt; give that one fewer, or compute it apart"
        )


def refuse_bad(path: str | Path, bad: list[BadRow], on_error: str | None) -> None:
    """DataError of bad rows unless they are to be skipped. on_error: as of ``read_pool``."""
    if bad and on_error != "skip":
        skip = ", or leave them out with --on-error skip" if on_error == "raise" else ""
        raise DataError(str(path), bad, f"fix these rows of the pool{skip}")


def use_pool(
    use: Callable[[list[list[Message]], list[str]], R], pool: Pool, source: str | Path, on_error: str = "raise"
) -> tuple[R, Pool, list[BadRow]]:
    """(``use(prompts, responses)`` with one entry a response, the pool it used, what it and the reading left out):
    prompts of which ``use`` names a response in a RowsError end in one DataError, or are left out with
    ``on_error="skip"``."""

    def part(rows: list[int]) -> R:
        prompts, responses, owners = pool.take(rows).flat()
        try:
            return use(prompts, responses)
        except RowsError as error:
            raise error.moved(owners) from error

    found, kept, bad = use_rows(part, pool.origins(), source, on_error)
    return found, pool.take(kept), [*pool.left_out, *bad]


def _read_prompt(row: dict[str, Any]) -> list[Message]:
    if "prompt" not in row:
        raise Reject(Problem("prompt", "missing-field", f"columns found: {listed(row)}"))
    prompt = read_side(row["prompt"], "prompt", lambda *_: None)
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def read_prompts(
    path: str | Path, columns: Mapping[str, str] | None = None
) -> tuple[list[list[Message]], list[Origin]]:
    """The distinct prompts of a file's ``prompt`` column, in order, and where each first stands. columns: as in
    ``read_pool``.

    Raises DataError with every row that has none."""
    found: dict[str, tuple[list[Message], Origin]] = {}
    bad: list[BadRow] = []
    for record in mapped(read_records(path), columns):
        bad += record.errors
        if record.value is None:
            continue
        try:
            prompt = _read_prompt(record.value)
            key = record.value.get("id")
            origin = Origin(record.line, "" if key is None else str(key))
            found.setdefault(dumps(prompt, indent=None), (prompt, origin))
        except Reject as reject:
            bad += [BadRow(record.line, p.field, p.reason, p.detail) for p in reject.problems]
    if bad:
        raise DataError(str(path), bad, "give each row a prompt: a text or a list of messages")
    if not found:
        raise PrudentError(f"{path} holds no prompt; give one a line, in a column named prompt")
    return [prompt for prompt, _ in found.values()], [origin for _, origin in found.values()]


def _read_row(row: dict[str, Any], gold_name: str = "gold") -> dict[str, Any]:
    """Prompt, responses, gold (of the column ``gold_name``) and id of one row; Reject names every fault in it."""
    problems: list[Problem] = []
    prompt: Any = None
    try:
        prompt = _read_prompt(row)
    except Reject as reject:
        problems += reject.problems
    responses = row.get("responses")
    if not isinstance(responses, list):
        detail = (
            f"no list of responses; columns found: {listed(row)}"
            if responses is None
            else f"{type(responses).__name__} where a list is needed"
        )
        problems.append(Problem("responses", "missing-field", detail))
        responses = []
    elif len(responses) < 2:
        detail = f"{len(responses)} response; a policy needs at least two candidates to choose from"
        problems.append(Problem("responses", "single-response", detail))
    for index, text in enumerate(responses, start=1):
        if not isinstance(text, str):
            problems.append(
                Problem("responses", "not-text", f"response {index} is {type(text).__name__}, expected text")
            )
    gold = row.get("gold")
    if gold is not None:
        gold, found = _read_gold(gold, len(responses), gold_name)
        problems += found
    name = None
    try:
        name = item_id(row.get("id"))
    except ValueError as error:
        problems.append(Problem("id", "not-an-id", str(error)))
    if problems:
        raise Reject(*problems)
    return {"prompt": prompt, "responses": list(responses), "gold": gold, "id": name}


def _read_gold(gold: Any, count: int, name: str) -> tuple[list[float] | None, list[Problem]]:
    if not isinstance(gold, list) or len(gold) != count:
        found = f"{len(gold)} numbers" if isinstance(gold, list) else brief(gold)
        return None, [Problem(name, "wrong-length", f"{found} for {count} responses; one number a response")]
    bad = [
        (index, value)
        for index, value in enumerate(gold, start=1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST_GOLD
    ]
    if bad:
        index, value = bad[0]
        detail = f"gold of response {index} is {brief(value)}; it must be a number from -{MOST_GOLD:g} to {MOST_GOLD:g}"
        return None, [Problem(name, "not-a-number", detail)]
    return [float(value) for value in gold], []


def write_pool(path: str | Path, pool: Pool) -> None:
    """Write a pool as JSONL, whole or not at all; ``read_pool`` gives it back."""
    write_atomic(path, pool_text(pool))


def pool_text(pool: Pool) -> str:
    """A pool as JSONL."""
    rows = []
    for index, prompt in enumerate(pool.prompts):
        row: dict[str, Any] = {"id": pool.ids[index], "prompt": prompt, "responses": pool.responses[index]}
        if pool.gold is not None:
            row["gold"] = pool.gold[index]
        rows.append(dumps(row, indent=None))
    return "\n".join(rows) + "\n"
