"""Page and table of ``prudent compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prudent.reporting.charts import dot_intervals
from prudent.reporting.report import Report

if TYPE_CHECKING:
    from prudent.commands.compare.options import CompareOptions


def write_report(run: Any, result: dict[str, Any]) -> None:
    """report.html: the table and the chart."""
    report = Report(
        "Families of reward models",
        f"{result['pairs']} training pairs, {result['test_pairs']} test pairs, {result['model']}",
    )
    report.text(
        "Every family was fitted on the same pairs in a process of its own. Sigma is the members' sample standard "
        "deviation (ddof=1) of a pair's margin; log loss and calibration are of the mean over members of the "
        f"probability that the chosen answer is better. Unlike pairs: {result['ood']}."
    )
    for note in result["notes"]:
        report.text(f"{note}.")
    report.table(COLUMNS, [_table_row(row) for row in result["families"]], caption="Families side by side.")
    points = []
    for row in result["families"]:
        for key, label in (("accuracy", "accuracy"), ("error_auroc_sigma", "sigma finds errors (AUROC)")):
            one = row.get(key)
            if one is not None and one.value is not None:
                points.append(
                    {"family": row["family"], "measure": label, "value": one.value, "low": one.low, "high": one.high}
                )
    chart = dot_intervals(
        points,
        "family",
        "value",
        "low",
        "high",
        group="measure",
        x_title="share, with 95 % interval",
        reference=0.5,
        reference_label="chance",
    )
    report.chart(chart, "families", "Accuracy of the mean, and how well sigma ranks its errors.")
    report.write(run)


COLUMNS = (
    "family",
    "K",
    "accuracy",
    "low",
    "high",
    "log loss",
    "Brier",
    "ECE",
    "AUROC sigma",
    "AUROC |margin|",
    "risk-coverage gain",
    "unlike/test sigma",
    "parameters",
    "fit s",
    "score s",
    "peak MiB",
    "note",
)


def _table_row(row: dict[str, Any]) -> list[Any]:
    def value(key: str, part: str = "value") -> Any:
        found = row.get(key)
        return getattr(found, part, found)

    return [
        row["family"],
        row.get("members"),
        value("accuracy"),
        value("accuracy", "low"),
        value("accuracy", "high"),
        row.get("log_loss"),
        value("brier"),
        value("ece"),
        value("error_auroc_sigma"),
        value("error_auroc_margin"),
        row.get("risk_coverage_gain"),
        row.get("ood_ratio"),
        row.get("parameters"),
        row.get("fit_seconds"),
        row.get("score_seconds"),
        row.get("peak_mib"),
        row.get("reason", ""),
    ]


def show(result: dict[str, Any], options: CompareOptions) -> None:
    """The table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['pairs']} pairs, tested on {result['test_pairs']}; longer answer {result['baseline'].value:.3f}"
    )
    shown = [0, 1, 2, 5, 7, 8, 9, 10, 11, 13, 15, 16]
    for index in shown:
        table.add_column(COLUMNS[index])
    for row in result["families"]:
        cells = _table_row(row)
        table.add_row(
            *(
                f"{cell:.3g}" if isinstance(cell, float) else str("" if cell is None else cell)
                for cell in (cells[index] for index in shown)
            )
        )
    Console(width=140).print(table)
    print(f"wrote {options.out}")
