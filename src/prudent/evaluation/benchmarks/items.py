"""Benchmark files as one kind of item: a prompt, its candidates (the correct ones first), a subset, an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prudent.data.failing import Origin, item_origins
from prudent.data.files import Record, open_records
from prudent.data.messages import Problem, Reject, read_side, squeeze
from prudent.data.preferences import read_preferences_with_report
from prudent.data.records import item_id, listed, mapped
from prudent.errors import BadRow, DataError, PrudentError

NO_ID = "not-an-id"
BENCHMARKS = ("rewardbench", "rewardbench2", "rewardmath", "preferences")
PER_ITEM = ("ids", "prompts", "candidates", "correct", "subsets", "sources", "steps", "lines")


@dataclass
class Items:
    """Items of a benchmark. correct: how many of each item's candidates, the first ones, are correct. sources: which
    model wrote each candidate ("" unknown). steps: solution steps, where the file lists them. has_ids: ids come from
    the file (else they are row numbers, and scores match by position). left_out: rows not used, by reason. lines: where
    each item (its first row) stands in the file."""

    benchmark: str
    source: str
    ids: list[str]
    prompts: list[Any]
    candidates: list[list[Any]]
    correct: list[int]
    subsets: list[str]
    sources: list[list[str]]
    steps: list[list[list[str]]] | None = None
    has_ids: bool = True
    left_out: dict[str, int] = field(default_factory=dict)
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> list[int]:
        """How many candidates each item has."""
        return [len(candidates) for candidates in self.candidates]

    @property
    def has_text(self) -> bool:
        """Whether any candidate has text (items made from scores alone have none)."""
        return any(isinstance(c, list) or c != "" for candidates in self.candidates for c in candidates)

    def flat(self) -> tuple[list[Any], list[Any]]:
        """(prompts, responses) with one entry a candidate, item by item."""
        prompts = [prompt for prompt, size in zip(self.prompts, self.sizes) for _ in range(size)]
        return prompts, [text for candidates in self.candidates for text in candidates]

    def chosen(self, keep: Iterable[int]) -> Items:
        """The items with these indices."""
        indices, whole = list(keep), {name: getattr(self, name) for name in PER_ITEM}
        taken: dict[str, Any] = {
            name: [values[i] for i in indices] for name, values in whole.items() if values is not None
        }
        return replace(self, left_out=dict(self.left_out), **taken)

    def origins(self) -> list[Origin]:
        """Where each item comes from."""
        return item_origins(self.ids, self.lines)

    def owners(self) -> list[int]:
        """The item of each candidate, in the order of ``flat``."""
        return [index for index, size in enumerate(self.sizes) for _ in range(size)]


@dataclass(frozen=True)
class Reading:
    """How a benchmark's file or hub data set is read: what ``read_items`` takes."""

    benchmark: str
    source: str | Path
    split: str | None
    subset: str | None
    on_error: str
    columns: Mapping[str, str]
    pairs: Mapping[str, Any]


def read_items(
    benchmark: str,
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    on_error: str = "raise",
    columns: Mapping[str, str] | None = None,
    **reading: Any,
) -> Items:
    """Items of a local file or hub data set.

    subset: only its items; rows that name none are taken to be of it. on_error: "raise", or "skip" (counted).
    columns: {our name: the file's}. reading: other options of ``read_preferences``, for benchmarks of pairs.
    """
    readers: dict[str, Callable[[Reading], Items]] = {
        "rewardbench": read_pairs,
        "preferences": read_pairs,
        "rewardbench2": read_best_of_k,
        "rewardmath": read_solutions,
    }
    if benchmark not in readers:
        raise PrudentError(f"benchmark is {benchmark!r}, expected one of {', '.join(BENCHMARKS)}")
    items = readers[benchmark](Reading(benchmark, source, split, subset, on_error, columns or {}, reading))
    if subset is None or set(items.subsets) == {subset}:
        return items
    kept = [index for index, name in enumerate(items.subsets) if name == subset]
    if not kept:
        raise PrudentError(f"{source} has no item of subset {subset!r}; it has {', '.join(sorted(set(items.subsets)))}")
    found = items.chosen(kept)
    found.left_out["other-subset"] = len(items) - len(kept)
    return found


def unique_ids(ids: Sequence[str], lines: Sequence[int], source: str | Path) -> None:
    """DataError naming every row whose id an earlier row has."""
    first: dict[str, int] = {}
    bad = []
    for name, line in zip(ids, lines):
        if name in first:
            bad.append(BadRow(line, "id", "duplicate-id", f"{name!r} is the id of line {first[name]} too"))
        first.setdefault(name, line)
    if bad:
        raise DataError(str(source), bad, "ids must be unique, since scores are matched by them")


def read_pairs(how: Reading) -> Items:
    """RewardBench 1's columns, or any preference file that ``read_preferences`` reads."""
    source, subset, asked = how.source, how.subset, {"split": how.split, "on_error": how.on_error, **how.pairs}
    errors = () if how.on_error == "skip" else NO_ID
    data, report = read_preferences_with_report(source, columns=how.columns, errors=errors, **asked)
    nameless = {row.line for row in report.flagged if row.reason == NO_ID}
    if nameless:
        data = data.select([i for i, line in enumerate(data["row"]) if line not in nameless])
    there = set(data.column_names)
    lines = data["row"]
    has_ids = "id" in there
    ids = [str(line if name is None else name) for name, line in zip(data["id"] if has_ids else lines, lines)]
    unique_ids(ids, lines, source)
    if how.benchmark == "rewardbench" and "subset" not in there and subset is None:
        raise PrudentError(f"{source} has no column 'subset'; name the subset of all its rows with --subset")
    subsets = data["subset"] if "subset" in there else [subset or "all"] * len(data)
    names = ("chosen_model", "rejected_model")
    columns = [data[name] if name in there else [""] * len(data) for name in names]
    models = [[str(value or "") for value in pair] for pair in zip(*columns)]
    left_out: Counter[str] = Counter(row.reason for row in [*report.bad, *report.left_out])
    left_out.update([NO_ID] * len(nameless))
    return Items(
        how.benchmark,
        str(source),
        ids,
        list(data["prompt"]),
        [[plain_answer(a), plain_answer(b)] for a, b in zip(data["chosen"], data["rejected"])],
        [1] * len(data),
        [str(s if s is not None else subset or "all") for s in subsets],
        models,
        has_ids=has_ids,
        left_out=dict(left_out),
        lines=list(lines),
    )


def plain_answer(turns: list[dict[str, str]]) -> Any:
    """A single assistant turn as its text, several as messages."""
    return turns[0]["content"] if len(turns) == 1 else turns


class Rows:
    """Collects bad rows over one pass, then raises them all or counts them as left out."""

    def __init__(self, source: str | Path) -> None:
        self.source, self.bad = source, [] if source is None else list[BadRow]()
        self.lines: set[int] = set()  # of the bad rows

    def note(self, line: int, name: str, reason: str, detail: str) -> None:
        """Remember a bad row."""
        self.bad.append(BadRow(line, name, reason, detail))
        self.lines.add(line)

    def settle(self, on_error: str) -> dict[str, int]:
        """Bad rows counted by reason, or one DataError with all of them where on_error is "raise"."""
        if self.bad and on_error == "raise":
            raise DataError(str(self.source), self.bad, "fix the rows, or leave them out with --on-error skip")
        return dict(Counter(row.reason for row in self.bad))


def objects(records: Iterable[Record], rows: Rows) -> Iterable[tuple[int, dict[str, Any]]]:
    """(line, value) of every record that could be read; faults of the others go to ``rows``."""
    for record in records:
        rows.bad += record.errors
        if record.value is not None and not record.errors:
            yield record.line, record.value


def texts(value: Any) -> list[str] | None:
    """A text or a list of texts as a list, None for anything else."""
    listed = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    return listed if listed is not None and all(isinstance(text, str) for text in listed) else None


def read_prompt(value: Mapping[str, Any], line: int, rows: Rows) -> Any:
    """The prompt of a row, a text or messages; what is wrong with it goes to ``rows``."""
    try:
        if "prompt" not in value:
            raise Reject(Problem("prompt", "missing-field", f"a text or messages are needed; found: {listed(value)}"))
        return read_side(value["prompt"], "prompt", lambda *_: None)
    except Reject as reject:
        for problem in reject.problems:
            rows.note(line, problem.field, problem.reason, problem.detail)
    return None


def read_id(value: Mapping[str, Any], name: str, line: int, rows: Rows) -> str | None:
    """The id of a row, None where it has none; what is no id goes to ``rows``."""
    try:
        return item_id(value.get(name))
    except ValueError as error:
        rows.note(line, name, NO_ID, str(error))
    return None


def read_best_of_k(how: Reading) -> Items:
    """RewardBench 2's columns: prompt, chosen and rejected (lists of texts), subset, id."""
    source, rows = how.source, Rows(how.source)
    found: list[tuple[int, str, Any, list[str], int, str, list[str]]] = []
    records = open_records(source, how.split or "test" if not Path(source).is_file() else None)
    for line, value in objects(mapped(records, how.columns), rows):
        chosen, rejected = texts(value.get("chosen")), texts(value.get("rejected"))
        named = value.get("subset", how.subset)
        for name, answers in (("chosen", chosen), ("rejected", rejected)):
            if not answers:
                rows.note(line, name, "not-texts", "a text or a list of at least one text is needed")
        if not isinstance(named, str) or not named.strip():
            rows.note(line, "subset", "missing-field", "name the domain in the row, or of all rows with --subset")
        prompt, key = read_prompt(value, line, rows), read_id(value, "id", line, rows)
        if not chosen or not rejected or line in rows.lines:
            continue
        writers = [*(texts(value.get("models")) or [])]
        sources = writers if len(writers) == len(chosen) + len(rejected) else [""] * (len(chosen) + len(rejected))
        found.append((line, key or str(line), prompt, [*chosen, *rejected], len(chosen), str(named), sources))
    left_out = rows.settle(how.on_error)
    if not found:
        raise PrudentError(f"{source} holds no usable item")
    lines, ids, *columns = map(list, zip(*found))
    unique_ids(ids, lines, source)
    named = dict(zip(("prompts", "candidates", "correct", "subsets", "sources"), columns))
    return Items(how.benchmark, str(source), ids, **named, left_out=left_out, lines=lines)


def read_solutions(how: Reading) -> Items:
    """RewardMATH's direct format (a row a solution) or pairwise format (a row a comparison): an item a problem."""
    rows = Rows(how.source)
    problems: dict[str, dict[str, Any]] = {}
    for line, value in objects(mapped(open_records(how.source, how.split), how.columns), rows):
        text = value.get("problem")
        key = read_id(value, "problem_id" if "problem_id" in value else "problem", line, rows)
        if not isinstance(text, str) or not text.strip() or (key is None and line not in rows.lines):
            rows.note(line, "problem", "missing-field", "problem (a text) and problem_id are needed")
        if line in rows.lines or key is None or not isinstance(text, str):
            continue
        entry = problems.setdefault(key, {"line": line, "problem": text, "right": [], "wrong": [], "known": set()})
        if squeeze(entry["problem"]) != squeeze(text):
            detail = f"problem_id {key} has another problem on line {entry['line']}"
            rows.note(line, "problem", "other-problem", detail)
            continue
        solutions = _pair_of_row(value) if "eval_solution_A" in value else _single_of_row(value)
        if solutions is None:
            needed = "steps (texts) and solution_type or chosen_position are needed"
            rows.note(line, "eval_solution", "not-a-solution", needed)
            continue
        for kind, steps in solutions:
            if kind == "wrong":
                entry["wrong"].append((steps, str(value.get("solution_reference", ""))))
            elif tuple(steps) not in entry["known"]:  # the pairwise format repeats the correct solution in every row
                entry["known"].add(tuple(steps))
                entry["right"].append((steps, "correct"))
    return _settle_problems(problems, rows, how)


def _single_of_row(value: dict[str, Any]) -> list[tuple[str, list[str]]] | None:
    steps, kind = texts(value.get("eval_solution")), {"chosen": "right", "rejected": "wrong"}
    given = value.get("solution_type")
    return [(kind[given], steps)] if steps and isinstance(given, str) and given in kind else None


def _pair_of_row(value: dict[str, Any]) -> list[tuple[str, list[str]]] | None:
    first, second = texts(value.get("eval_solution_A")), texts(value.get("eval_solution_B"))
    if not first or not second or value.get("chosen_position") not in ("A", "B"):
        return None
    right, wrong = (first, second) if value["chosen_position"] == "A" else (second, first)
    return [("right", right), ("wrong", wrong)]


def _settle_problems(problems: dict[str, dict[str, Any]], rows: Rows, how: Reading) -> Items:
    kept: dict[str, dict[str, Any]] = {}
    for key, entry in problems.items():
        counts = len(entry["right"]), len(entry["wrong"])
        if counts[0] != 1:
            reason = "no-correct-solution" if counts[0] == 0 else "many-correct"
            detail = f"problem_id {key} has {counts[0]} correct solutions, expected one"
            rows.note(entry["line"], "solution_type", reason, detail)
        elif counts[1] == 0:
            rows.note(entry["line"], "solution_type", "no-incorrect-solution", f"problem {key} has no incorrect one")
        else:
            kept[key] = entry
    left_out = rows.settle(how.on_error)
    if not kept:
        raise PrudentError(f"{how.source} holds no problem with one correct and some incorrect solutions")
    solutions = [[*entry["right"], *entry["wrong"]] for entry in kept.values()]
    steps, sources = ([[pair[part] for pair in item] for item in solutions] for part in (0, 1))
    return Items(
        how.benchmark,
        str(how.source),
        ids=list(kept),
        prompts=[entry["problem"] for entry in kept.values()],
        candidates=[["\n".join(texts_of_steps) for texts_of_steps in item] for item in steps],
        correct=[1] * len(kept),
        subsets=[how.subset or "all"] * len(kept),
        sources=sources,
        steps=steps,
        has_ids=True,
        left_out=left_out,
        lines=[entry["line"] for entry in kept.values()],
    )
