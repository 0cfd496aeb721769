"""The report of ``prudent theory reproduce``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prudent.reporting import charts
from prudent.reporting.report import Report
from prudent.theory.claims import LEVEL, Claim


def _number(value: float) -> str:
    return f"{value:.3g}" if value == 0 or abs(value) < 1e-3 else f"{value:.5f}"


def _predicted(claim: Claim) -> str:
    """What a claim predicts: a value, a bound on one side, or an inequality that the interval must keep."""
    if claim.predicted is not None:
        return _number(claim.predicted)
    if claim.low == float("-inf"):
        return f"at most {_number(claim.high)}"
    return f"at least {_number(claim.low)}" if claim.high == float("inf") else "an inequality"


def _interval(claim: Claim) -> str:
    one_sided = float("-inf") in (claim.low, -claim.high)
    return "–" if one_sided else f"{_number(claim.low)} to {_number(claim.high)}"


def reproduce_page(claims: Sequence[Claim], rows: Mapping[str, Any]) -> Report:
    """Table of claims by section, and the charts."""
    failed = [claim for claim in claims if not claim.holds]
    report = Report("The theory, recomputed", "Variance-aware alignment, arXiv 2410.23726 and 2507.15906")
    text = f"{len(claims) - len(failed)} of {len(claims)} claims hold."
    if failed:
        text += " Failed: " + "; ".join(claim.claim for claim in failed) + "."
    report.verdict(text, "good" if not failed else "bad")
    report.text(
        f"Each line is a claim, what it predicts and what was measured just now. Shares and means come with a "
        f"{100 * LEVEL:.1f} % interval, identities with the tolerance they must stay under. Equation numbers are "
        "those of docs/theory.md."
    )
    for section in dict.fromkeys(claim.section for claim in claims):
        own = [claim for claim in claims if claim.section == section]
        table = [
            [c.claim, c.equation, _predicted(c), _number(c.measured), _interval(c), "holds" if c.holds else "FAILS"]
            for c in own
        ]
        report.heading(section)
        report.table(["claim", "equation", "predicted", "measured", "interval", "verdict"], table)
        if section == "Risk of one step":
            _pairs(report, rows["pairs"])
        elif section == "With pi >= 0 imposed":
            _sizes(report, rows)
        elif section == "KL penalty":
            _penalty(report, rows["penalty"])
    return report


def _pairs(report: Report, pairs: Sequence[Any]) -> None:
    data = [{"vanilla": pair.vanilla, "aware": pair.aware} for pair in pairs]
    chart = charts.scatter(
        data,
        "vanilla",
        "aware",
        x_title="risk, vanilla",
        y_title="risk, variance-aware",
        diagonal=True,
        title="Exact risks of 400 random rewards and covariances",
    )
    report.chart(chart, "risks", "No point lies above the dashed line: the variance-aware step is never riskier.")


def _risk_lines(data: Any, x: str, title: str, x_title: str) -> Any:
    """Risk of each method, with its interval, by ``x`` on a log scale."""
    return charts.lines(
        data,
        x,
        "risk",
        ends=("low", "high"),
        group="method",
        x_scale="log",
        x_title=x_title,
        y_title="risk",
        title=title,
    )


def _sizes(report: Report, rows: Mapping[str, Any]) -> None:
    exact = rows["exact"]
    for name, title in (("L2 / Sigma", "radius"), ("KL", "nats")):
        data = [row for row in rows["size"] if row["ball"] == name]
        chart = _risk_lines(data, "size", f"{name} ball with pi >= 0", f"size of the ball ({title})")
        caption = (
            f"Small balls have the exact risks {exact.vanilla:.3f} (vanilla) and {exact.aware:.3f} (variance-aware), "
            "whatever their size; once pi >= 0 binds, both rise."
        )
        report.chart(chart, f"size-{'kl' if name == 'KL' else 'l2'}", caption)


def _penalty(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    from prudent.evaluation.statistics import wilson

    data = []
    for row in rows:
        below, total = int((row["gains"] <= 0).sum()), len(row["gains"])
        low, high = wilson(below, total)
        gain = {"gain": float(row["gains"].mean()), "variance": float(row["gains"].var())}
        setting = {name: row[name] for name in ("beta", "method", "kl")}
        data.append({**setting, "risk": below / total, "low": low, "high": high, **gain})
    report.table(
        ["beta", "method", "risk", "gain", "variance", "kl"],
        data,
        "4000 draws; gain is the true reward above the reference's. Its variance need not fall: only the risk is "
        "promised.",
    )
    chart = _risk_lines(data, "beta", "Risk of the KL-regularised policies", "beta")
    report.chart(chart, "penalty-risk", "Share of draws in which the policy ends at or below its reference.")
    gains = {row["method"]: row["gains"].numpy() for row in rows if row["beta"] == 0.3}
    title, axis = "Expected reward of the policies at beta 0.3", "true reward above the reference's"
    chart = charts.ridges(gains, x_title=axis, reference=(0.0, "reference"), title=title)
    caption = "Each ridge is 4000 draws of the reward; left of the line the policy is worse than its start."
    report.chart(chart, "penalty-values", caption)
