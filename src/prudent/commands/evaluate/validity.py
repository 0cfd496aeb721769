"""The validity study: does a benchmark's score of reward models predict what happens when they are optimised?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prudent.commands.common import say
from prudent.commands.evaluate.options import ValidityOptions
from prudent.data.messages import number
from prudent.errors import BadRow, DataError, PrudentError
from prudent.files import hash_file
from prudent.runs import new_run


def read_table(path: Path, outcome: str, name: str) -> tuple[list[str], dict[str, list[float]]]:
    """(model names, numeric columns), a row a model. DataError names every bad row and every one without an outcome."""
    from prudent.data.files import read_records
    from prudent.data.records import brief, listed

    records = list(read_records(path))
    bad = [row for record in records for row in record.errors]
    rows = [(record.line, record.value) for record in records if record.value is not None]
    columns: dict[str, list[float]] = {}
    for column in dict.fromkeys(key for _, row in rows for key in row if key != name):
        values = [_as_number(row.get(column)) for _, row in rows]
        if all(value is not None for value in values):
            columns[column] = [value for value in values if value is not None]
        elif column == outcome:
            bad += [
                BadRow(line, outcome, "not-a-number", f"{brief(row.get(outcome))} is no finite number")
                for (line, row), value in zip(rows, values)
                if value is None
            ]
    if bad:
        remedy = f"fix these rows: each needs a number in the outcome column {outcome!r}"
        raise DataError(str(path), sorted(bad, key=lambda row: row.line), remedy)
    if outcome not in columns:
        given = listed(dict.fromkeys(key for _, row in rows for key in row))
        raise PrudentError(
            f"{path} has no column {outcome!r}; numeric columns: {listed(columns)}; columns found: {given}; name the "
            "outcome with --outcome"
        )
    return [str(row.get(name, line)) for line, row in rows], columns


def _as_number(value: Any) -> float | None:
    try:
        return number(value)
    except (TypeError, ValueError):
        return None


def study(given: ValidityOptions) -> dict[str, Any]:
    """Correlations of every numeric column with the outcome; says them, writes a run folder where asked."""
    from prudent.evaluation.intervals import correlation

    path, outcome = given.data, given.outcome
    models, columns = read_table(path, outcome, given.name)
    others = [column for column in columns if column != outcome]
    if not others:
        raise PrudentError(f"{path} has no numeric column beside {outcome!r} to correlate with it")
    found = {
        column: {
            kind: correlation(columns[column], columns[outcome], kind, rounds=given.rounds, seed=given.seed)
            for kind in ("pearson", "spearman")
        }
        for column in others
    }
    result = {"data": str(path), "outcome": outcome, "models": len(models), "correlations": found}
    _print_correlations(found, outcome, len(models))
    if given.out is not None:
        options = {"data": str(path), "outcome": outcome}
        with new_run(given.out, "evaluate validity", options, given.seed, given.overwrite) as run:
            run.manifest["hashes"][str(path)] = hash_file(path)
            run.write_json("validity.json", result)
            page(models, columns, found, outcome, path).write(run)
        say(f"wrote {given.out}")
    return result


def _print_correlations(found: dict[str, Any], outcome: str, models: int) -> None:
    say(f"{models} models; correlation with {outcome}")
    for column, kinds in found.items():
        say(f"  {column}: " + ", ".join(f"{kind} {value.text}" for kind, value in kinds.items()))


def page(models: list[str], columns: dict[str, list[float]], found: dict[str, Any], outcome: str, path: Path) -> Any:
    """The report: correlations and a scatter plot for each benchmark."""
    from prudent.reporting import charts
    from prudent.reporting.report import Report

    report = Report(f"Does a benchmark predict {outcome}?", f"{path}, {len(models)} reward models")
    clear = [c for c, kinds in found.items() if kinds["spearman"].low is not None and kinds["spearman"].low > 0]
    report.verdict(
        f"Rank correlation clearly above 0: {', '.join(clear)}."
        if clear
        else "No column's rank correlation with the outcome is clearly above 0 on these models.",
        "good" if clear else "warn",
        "Result",
    )
    report.heading("Correlations")
    pearson = {c: k["pearson"] for c, k in found.items()}
    squared = {c: None if r.value is None else r.value**2 for c, r in pearson.items()}
    report.table(
        ["benchmark", "models", "Pearson", "r squared", "Spearman"],
        [[c, r.n, r.text, squared[c], found[c]["spearman"].text] for c, r in pearson.items()],
        "95 % bootstrap intervals over models: with few models they are wide, and that is the finding.",
    )
    for index, column in enumerate(found):
        data = [{"model": m, column: x, outcome: y} for m, x, y in zip(models, columns[column], columns[outcome])]
        chart = charts.scatter(data, column, outcome, label="model" if len(models) <= 25 else None, tooltip=["model"])
        report.chart(
            chart, f"scatter-{index}", f"{outcome} against {column}: {found[column]['pearson'].text} (Pearson)."
        )
    return report
