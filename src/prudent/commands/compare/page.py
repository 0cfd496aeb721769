"""Page and table of ``prudent compare``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prudent.commands.common import result_console
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
    report.records(result["families"], COLUMNS, "Families side by side.")
    points = []
    for row in result["families"]:
        for key, label in (("accuracy", "accuracy"), ("error_auroc_sigma", "sigma finds errors (AUROC)")):
            one = row.get(key)
            if one is not None and one.value is not None:
                points.append({"family": row["family"], "measure": label, **one.fields()})
    chart = dot_intervals(
        points, "family", "value", group="measure", x_title="share, with 95 % interval", reference=(0.5, "chance")
    )
    report.chart(chart, "families", "Accuracy of the mean, and how well sigma ranks its errors.")
    report.write(run)


def _of(key: str, part: str = "value") -> Callable[[dict[str, Any]], Any]:
    return lambda row: getattr(row.get(key), part, row.get(key))


COLUMNS = [
    ("family", _of("family")),
    ("K", _of("members")),
    ("accuracy", _of("accuracy")),
    ("low", _of("accuracy", "low")),
    ("high", _of("accuracy", "high")),
    ("log loss", _of("log_loss")),
    ("Brier", _of("brier")),
    ("ECE", _of("ece")),
    ("AUROC sigma", _of("error_auroc_sigma")),
    ("AUROC |margin|", _of("error_auroc_margin")),
    ("risk-coverage gain", _of("risk_coverage_gain")),
    ("unlike/test sigma", _of("ood_ratio")),
    ("parameters", _of("parameters")),
    ("fit s", _of("fit_seconds")),
    ("score s", _of("score_seconds")),
    ("peak MiB", _of("peak_mib")),
    ("note", lambda row: row.get("reason", "")),
]
BESIDE = ("low", "high", "Brier", "parameters", "score s")  # on the page alone


def show(result: dict[str, Any], options: CompareOptions) -> None:
    """The table on stdout."""
    from rich.table import Table

    table = Table(
        title=f"{result['pairs']} pairs, tested on {result['test_pairs']}; longer answer {result['baseline'].value:.3f}"
    )
    shown = [(heading, value) for heading, value in COLUMNS if heading not in BESIDE]
    for heading, _ in shown:
        table.add_column(heading)
    for row in result["families"]:
        cells = [value(row) for _, value in shown]
        table.add_row(*(f"{c:.3g}" if isinstance(c, float) else str("" if c is None else c) for c in cells))
    result_console(140).print(table)
    print(f"wrote {options.out}")
