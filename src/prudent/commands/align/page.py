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
    report.cards([_card(row) for row in summary["objectives"]])


def _card(row: dict[str, Any]) -> dict[str, Any]:
    """Risk over several runs; one run has a gain but no share to speak of."""
    if row["draws"] > 1:
        note = f"interval {row['low']:.0%} to {row['high']:.0%}, {row['draws']} runs"
        return {"label": f"risk, {row['objective']}", "value": f"{row['risk']:.0%}", "note": note}
    note = f"{row['gain_low_prompts']:+.3f} to {row['gain_high_prompts']:+.3f} over prompts"
    return {"label": f"gain, {row['objective']}", "value": f"{row['gain']:+.3f}", "note": note}


def _objectives(report: Report, summary: dict[str, Any], settings: AlignOptions) -> None:
    rows = summary["objectives"]
    report.heading("Value and risk by objective")
    report.text(
        f"Expected reward of the reference: {summary['reference_value']:.4f} ({summary['truth']['unit']}). "
        "Every objective trained against the same reward-model draws with the same seeds."
    )
    report.table(
        [
            "objective",
            "gain",
            "interval over prompts",
            "deviation over runs",
            "risk",
            "risk interval",
            "KL",
            "prompts worse",
            "length",
        ],
        [
            [
                r["objective"],
                r["gain"],
                f"{r['gain_low_prompts']:+.4f} to {r['gain_high_prompts']:+.4f}",
                r["deviation"],
                f"{r['risk']:.0%}",
                f"{r['low']:.0%} to {r['high']:.0%}",
                r["kl"],
                f"{r['prompts_worse']:.0%}",
                r["length_tokens"],
            ]
            for r in rows
        ],
    )
    _gain_charts(report, summary, settings)
    if summary["paired"]:
        report.table(
            ["paired on the same draws", "gain difference", "interval", "risk difference", "interval of it"],
            [
                [
                    f"{p['first']} - {p['second']}",
                    p["gain"],
                    _range(p["gain_low"], p["gain_high"]),
                    p["risk"],
                    _range(p["risk_low"], p["risk_high"]),
                ]
                for p in summary["paired"]
            ],
        )


def _gain_charts(report: Report, summary: dict[str, Any], settings: AlignOptions) -> None:
    report.chart(
        charts.dot_intervals(
            summary["objectives"],
            "objective",
            "gain",
            "gain_low_prompts",
            "gain_high_prompts",
            x_title="gain over the reference",
            title="True gain with its interval over prompts",
            reference=0.0,
            reference_label="reference",
        ),
        "gain",
    )
    if settings.runs > 1:
        values = {o: [r["gain"] for r in summary["runs"] if r["objective"] == o] for o in settings.objectives}
        report.chart(
            histogram(
                values, bins=20, x_title="gain of a run", title="Runs", reference=0.0, reference_label="reference"
            ),
            "runs",
            "Each run is one policy against its own reward-model draw; left of the line it ended below the reference.",
        )
        report.chart(
            charts.scatter(summary["runs"], "kl", "gain", group="objective", x_title="KL (nats)", y_title="gain"),
            "gain-by-kl",
            "Objectives move by different amounts at one beta: compare them at like KL.",
        )


def _range(low: float | None, high: float | None) -> str:
    return "one run: none" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _promised(report: Report, summary: dict[str, Any]) -> None:
    report.heading("What preflight promised, and what the runs gave")
    report.text(
        "Promised: the exact policy over the reference's own samples of the held-out prompts, for the same draws and "
        "beta. A policy in training generalises from other prompts and can write what the samples don't hold, so the "
        "two need not agree."
    )
    report.table(
        ["objective", "promised gain", "gain", "promised risk", "risk", "promised KL", "KL"],
        [
            [
                r["objective"],
                r["promised_gain"],
                r["gain"],
                f"{r['promised_risk']:.0%}",
                f"{r['risk']:.0%}",
                r["promised_kl"],
                r["kl"],
            ]
            for r in summary["objectives"]
        ],
    )


def _training(report: Report, results: list[dict[str, Any]]) -> None:
    report.heading("Over training")
    for name, title in CURVES:
        rows = mean_curve(results, name)
        if rows:
            report.chart(
                charts.lines(rows, "step", "value", group="objective", x_title="step", y_title="", title=title),
                f"curve-{name}",
            )


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
    report.chart(
        charts.lines(rows, "step", "value", group="group", x_title="step", y_title="share of the alarm's limit"),
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
