"""The report of a series: verdict, value and risk by objective, curves over training, before and after."""

from __future__ import annotations

from typing import Any

from prudent.commands.align.options import AlignOptions
from prudent.commands.align.problem import Problem
from prudent.reporting import charts
from prudent.reporting.distributions import histogram
from prudent.reporting.report import Report
from prudent.runs import Run

GLOSSARY = {
    "gain": "true value of the final policy minus the reference's, on the same held-out prompts",
    "risk": "share of runs whose policy is no better than the reference",
    "KL": "mean over completions of log pi - log pi0, in nats",
    "promised": "what the exact policy over the reference's own samples, same draw and beta, would gain",
}
CURVES = (
    ("reward", "proxy reward (mean over members, centred)"),
    ("truth", "true value on the training prompts"),
    ("kl", "KL from the reference (nats)"),
    ("length_tokens", "length (tokens)"),
    ("entropy", "entropy per token (nats, -log pi of the samples)"),
)


def write_report(
    run: Run, summary: dict[str, Any], results: list[dict[str, Any]], problem: Problem, settings: AlignOptions
) -> None:
    """report.html with its charts, in the run folder."""
    title = "Alignment runs: vanilla and variance-aware" if settings.runs > 1 else "One alignment run an objective"
    subtitle = f"{settings.algorithm.upper()}, beta {settings.beta:g}, {settings.steps} steps, {settings.runs} runs"
    report = Report(title, subtitle)
    _verdict(report, summary, settings)
    _objectives(report, summary, settings)
    _promised(report, summary)
    _training(report, results)
    _monitor(report, results)
    _before_after(report, results, problem, settings)
    report.heading("How this was made").bullets(problem.notes)
    report.table(["option", "value"], [[k, str(v)] for k, v in settings.chosen().items()])
    report.glossary(GLOSSARY)
    report.write(run, images=settings.images)


def show(summary: dict[str, Any], options: AlignOptions) -> None:
    """The verdict in words, for a person."""
    if options.engine == "own":
        print(verdict_text(summary, options)[0].replace("**", ""))
        print(f"report: {options.out / 'report.html'}")


def verdict_text(summary: dict[str, Any], settings: AlignOptions) -> tuple[str, str]:
    """(words, tone): whether the true value rose, and how often a run ended at or below the reference."""
    unit = summary["truth"]["unit"]
    parts = []
    for row in summary["objectives"]:
        sure = row["gain_low_prompts"] > 0
        parts.append(
            f"**{row['objective']}**: gain {row['gain']:+.4f} [{row['gain_low_prompts']:+.4f}, "
            f"{row['gain_high_prompts']:+.4f}] at KL {row['kl']:.2f}, "
            f"{row['at_or_below']} of {row['draws']} runs at or below the reference"
            + ("" if sure else " (the interval holds 0: no rise shown)")
        )
    tone = "good" if summary["improved"] else "warn"
    lead = (
        f"The true value ({unit}) rose, beyond the interval over prompts, for: {', '.join(summary['improved'])}."
        if summary["improved"]
        else f"The true value ({unit}) did not rise beyond its interval for any objective."
    )
    return lead + " " + "; ".join(parts) + ".", tone


def _verdict(report: Report, summary: dict[str, Any], settings: AlignOptions) -> None:
    words, tone = verdict_text(summary, settings)
    report.verdict(words, tone, "What the runs gave")
    report.cards(*(_card(row) for row in summary["objectives"]))


def _card(row: dict[str, Any]) -> tuple[str, ...]:
    """Risk over several runs; one run has a gain but no share to speak of."""
    if row["draws"] > 1:
        note = f"interval {row['low']:.0%} to {row['high']:.0%}, {row['draws']} runs"
        return f"risk, {row['objective']}", f"{row['risk']:.0%}", note
    note = f"{row['gain_low_prompts']:+.3f} to {row['gain_high_prompts']:+.3f} over prompts"
    return f"gain, {row['objective']}", f"{row['gain']:+.3f}", note


def _objectives(report: Report, summary: dict[str, Any], settings: AlignOptions) -> None:
    rows = summary["objectives"]
    report.heading("Value and risk by objective")
    report.text(
        f"Expected reward of the reference: {summary['reference_value']:.4f} ({summary['truth']['unit']}). "
        "Every objective trained against the same reward-model draws with the same seeds."
    )
    report.records(
        rows,
        [
            ("objective", "objective"),
            ("gain", "gain"),
            ("interval over prompts", lambda r: f"{r['gain_low_prompts']:+.4f} to {r['gain_high_prompts']:+.4f}"),
            ("deviation over runs", "deviation"),
            ("risk", lambda r: f"{r['risk']:.0%}"),
            ("risk interval", lambda r: f"{r['low']:.0%} to {r['high']:.0%}"),
            ("KL", "kl"),
            ("prompts worse", lambda r: f"{r['prompts_worse']:.0%}"),
            ("length", "length_tokens"),
        ],
    )
    _gain_charts(report, summary, settings)
    if summary["paired"]:
        report.records(
            summary["paired"],
            [
                ("paired on the same draws", lambda p: f"{p['first']} - {p['second']}"),
                ("gain difference", "gain"),
                ("interval", lambda p: _range(p["gain_low"], p["gain_high"])),
                ("risk difference", "risk"),
                ("interval of it", lambda p: _range(p["risk_low"], p["risk_high"])),
            ],
        )


def _gain_charts(report: Report, summary: dict[str, Any], settings: AlignOptions) -> None:
    chart = charts.dot_intervals(
        summary["objectives"],
        "objective",
        "gain",
        ends=("gain_low_prompts", "gain_high_prompts"),
        x_title="gain over the reference",
        title="True gain with its interval over prompts",
        reference=(0.0, "reference"),
    )
    report.chart(chart, "gain")
    if settings.runs > 1:
        values = {o: [r["gain"] for r in summary["runs"] if r["objective"] == o] for o in settings.objectives}
        chart = histogram(values, bins=20, x_title="gain of a run", title="Runs", reference=(0.0, "reference"))
        report.chart(
            chart,
            "runs",
            "Each run is one policy against its own reward-model draw; left of the line it ended below the reference.",
        )
        chart = charts.scatter(summary["runs"], "kl", "gain", group="objective", x_title="KL (nats)", y_title="gain")
        report.chart(chart, "gain-by-kl", "Objectives move by different amounts at one beta: compare them at like KL.")


def _range(low: float | None, high: float | None) -> str:
    return "one run: none" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _promised(report: Report, summary: dict[str, Any]) -> None:
    report.heading("What preflight promised, and what the runs gave")
    report.text(
        "Promised: the exact policy over the reference's own samples of the held-out prompts, for the same draws and "
        "beta. A policy in training generalises from other prompts and can write what the samples don't hold, so the "
        "two need not agree."
    )
    report.records(
        summary["objectives"],
        [
            ("objective", "objective"),
            ("promised gain", "promised_gain"),
            ("gain", "gain"),
            ("promised risk", lambda r: f"{r['promised_risk']:.0%}"),
            ("risk", lambda r: f"{r['risk']:.0%}"),
            ("promised KL", "promised_kl"),
            ("KL", "kl"),
        ],
    )


def _training(report: Report, results: list[dict[str, Any]]) -> None:
    report.heading("Over training")
    for name, title in CURVES:
        rows = mean_curve(results, name)
        if rows:
            chart = charts.lines(rows, "step", "value", group="objective", x_title="step", y_title="", title=title)
            report.chart(chart, f"curve-{name}")


def _monitor(report: Report, results: list[dict[str, Any]]) -> None:
    """How near each objective's runs came to the monitor's alarm, and the alarms raised."""
    rows = [
        {**row, "group": f"{row['group']}, {kind}"}
        for kind in ("drift", "turn")
        for row in ({"group": r["objective"], **r} for r in mean_curve(results, f"monitor_{kind}"))
    ]
    if not rows:
        return
    report.heading("The monitor")
    chart = charts.lines(rows, "step", "value", group="group", x_title="step", y_title="share of the alarm's limit")
    report.chart(
        chart,
        "monitor",
        "1 is an alarm. Drift: disagreement, novelty, repetition or length beyond what the reference's samples of the "
        "same reward have. Turn: evidence that gold has fallen since its peak. Means over runs.",
    )
    alarms = [[f["objective"], f["run"], f["alarm"]["step"], f["alarm"]["text"]] for f in results if f.get("alarm")]
    if alarms:
        report.table(["objective", "run", "alarm at step", "why"], alarms)


def mean_curve(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Mean over runs of one measured number at each step, by objective."""
    sums: dict[tuple[str, int], list[float]] = {}
    for found in results:
        for entry in found["history"]:
            if entry.get(name) is not None:
                sums.setdefault((found["objective"], entry["step"]), []).append(entry[name])
    return [{"objective": o, "step": s, "value": sum(v) / len(v)} for (o, s), v in sums.items()]


def before_after(results: list[dict[str, Any]], problem: Problem, count: int = 6) -> list[dict[str, Any]]:
    """For some held-out prompts: the reference's first sample and each objective's, from the first run."""
    rows = []
    for index in range(min(count, len(problem.test))):
        texts = {"before": problem.test.responses[index][0]}
        texts |= {f["objective"]: f["samples"][index] for f in results if f["run"] == 0}
        values = {name: float(problem.judged[0].test([index], [text], None)) for name, text in texts.items()}
        rows.append({"prompt": problem.test.prompts[index][-1]["content"], "texts": texts, "values": values})
    return rows


def _before_after(report: Report, results: list[dict[str, Any]], problem: Problem, settings: AlignOptions) -> None:
    report.heading("Before and after, on the same prompts")
    for row in before_after(results, problem):
        report.heading(row["prompt"], level=3)
        report.table(
            ["policy", "true value", "text"], [[name, row["values"][name], text] for name, text in row["texts"].items()]
        )
