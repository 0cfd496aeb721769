"""The overoptimisation page: the curve, the fits, the sweeps, RL, and what holds of the published findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prudent.commands.overoptimize.options import OveroptimizeOptions
from prudent.evaluation.intervals import Estimate
from prudent.evaluation.overoptimization.curves import Curve, MethodCurve
from prudent.evaluation.overoptimization.fits import n_of_kl
from prudent.evaluation.overoptimization.rl_curves import RLCurve
from prudent.evaluation.overoptimization.worlds import TextWorld
from prudent.reporting import charts
from prudent.reporting.report import Report

TITLES = {
    "pairs": "Number of pairs",
    "layers": "Size of the feature model",
    "noise": "Label noise",
    "members": "Members",
    "rule": "Aggregation rule",
}
DISTANCE = "square root of KL (nats)"
CONFIRMED = {True: "holds here", False: "doesn't hold here", None: "can't tell"}
GLOSSARY = {
    "gold": "the true reward, known exactly here or given by a judge",
    "proxy": "the reward model's score, which is what gets optimised",
    "best of n": "sample n answers, keep the one with the highest proxy",
    "tilting": "weighing a prompt's own samples by exp(score / beta)",
    "KL": "how far a policy is from the reference, in nats",
}


def report(
    text: TextWorld,
    curves: dict[str, list[Curve]],
    methods: Sequence[MethodCurve],
    rl: Sequence[RLCurve],
    held: Sequence[Any],
    given: OveroptimizeOptions,
) -> Report:
    """The whole page."""
    base = curves["base"][0]
    page = Report("How far can this reward be pushed?", f"{text.name}: {len(text)} prompts; gold is {text.unit}")
    verdict(page, base)
    for note in text.notes:
        page.text(f"{note}.")
    _main_curve(page, base)
    fits(page, curves["base"])
    for sweep, group in curves.items():
        if sweep != "base":
            _sweep_section(page, sweep, group)
    if methods:
        matched(page, methods)
    if rl:
        reinforcement(page, rl)
    published(page, held)
    _method_notes(page, curves, given)
    return page


def sampled(curve: Curve) -> list[Any]:
    """Points of best of n, without those of tilted policies."""
    return [point for point in curve.points if point.how == "best of n"]


def verdict(page: Report, base: Curve) -> None:
    """The result in words: how far the reward can be pushed before gold falls."""
    points = sampled(base)
    top, last = max(points, key=lambda p: p.gold.value), points[-1]
    text = f"Best of {last.n:.0f} moves gold by {last.gold.text} from the reference (proxy by {last.proxy.value:.2f} "
    text += "standard deviations). "
    tone = "good"
    if last.gold.high is not None and last.gold.high <= 0:
        text, tone = text + "That is below the model that you started from. ", "bad"
    elif base.fall is not None and base.fall.high is not None and base.fall.high < 0:
        text += f"Gold is best near n = {top.n:.0f} and clearly lower at the end ({base.fall.text}): stop there. "
        tone = "warn"
    elif last.gold.low is not None and last.gold.low <= 0:
        text += "That can't be distinguished from nothing: don't optimise this reward. "
        tone = "warn"
    else:
        text += "Gold has not clearly turned down within the samples. "
    fit, peak = base.fit, base.peak
    if fit is not None and peak.value is not None:
        at = n_of_kl(peak.value**2)
        if peak.value > 2 * last.distance:
            text += (
                f"The fitted peak, d* = {peak.text}, lies far beyond the data (d <= {last.distance:.2f}): no forecast."
            )
        else:
            reached = "beyond the data, so extrapolated" if peak.value > last.distance else "within the data"
            text += f"The fitted peak is at d* = {peak.text}, n of about {at:.3g} ({reached})."
    else:
        text += f"The fit has no peak: {peak.reason}."
    page.verdict(text, tone, "Answer")


def _main_curve(page: Report, base: Curve) -> None:
    page.heading("Gold and proxy")
    size = base.facts.get("gold_deviation") or 1.0
    rows = []
    for p in base.points:
        tail = "" if p.how == "best of n" else ", by tilting"
        rows.append({"distance": p.distance, "what": f"gold{tail}", "n": p.n, **scaled(p.gold, 1 / size)})
        rows.append({"distance": p.distance, "what": f"proxy{tail}", "n": p.n, **scaled(p.proxy, 1.0)})
        if p.how == "best of n" and "gold_per_proxy" in base.facts:
            value = p.proxy.value * base.facts["gold_per_proxy"] / size
            rows.append({"distance": p.distance, "what": "errors were plain noise", "n": p.n, "value": value})
    chart = _by_distance(rows, "what", "value", True, "standard deviations within a prompt")
    page.chart(
        chart,
        "curve",
        "From the reference, in standard deviations within a prompt. 'Errors were plain noise' is what gold would be "
        "then (regressional Goodhart, by the correlation at the reference); gold below it is lost to errors that "
        "selection seeks out.",
    )
    for note in base.notes:
        page.text(f"Where samples end: {note}.")


def _by_distance(rows: Any, group: str, y: str = "gold", banded: bool = False, title: str = "") -> Any:
    """Lines of a value against the distance, with their intervals where ``banded``."""
    ends, axis = ("low", "high") if banded else None, title or "gold, from the reference"
    line = (0.0, "reference")
    return charts.lines(rows, "distance", y, ends=ends, group=group, x_title=DISTANCE, y_title=axis, reference=line)


def scaled(value: Estimate, factor: float) -> dict[str, float | None]:
    """Value and interval of an estimate times a factor, as fields of a chart's row."""
    return {name: None if v is None else v * factor for name, v in value.fields().items()}


def fits(page: Report, curves: Sequence[Curve]) -> None:
    """Table of the fitted alpha, beta and peak of each curve."""
    paired = any(c.over_first is not None for c in curves)
    rows = []
    for c in curves:
        last = sampled(c)[-1]
        squared = None if c.fit is None else c.fit.r_squared
        over = [None if c.over_first is None else short(c.over_first)] if paired else []
        rows.append(
            [c.label, short(c.accuracy), last.gold.text, *over, short(c.alpha), short(c.beta), squared, short(c.peak)]
        )
    more = ["more than the first"] if paired else []
    page.table(
        ["reward model", "held-out accuracy", "gold at largest n", *more, "alpha", "beta", "R squared", "peak d*"],
        rows,
        "R(d) = d (alpha - beta d), gold in its own unit. Intervals: bootstrap over prompts and reward models; for "
        "accuracy the range over reward models. A dash: no peak, since beta is not above 0.",
    )


def short(value: Estimate) -> str | None:
    """An estimate as text, None where there is none."""
    return None if value.value is None else value.text


def _sweep_section(page: Report, sweep: str, group: Sequence[Curve]) -> None:
    page.heading(TITLES[sweep])
    rows = [
        {"distance": p.distance, "reward model": c.label, **p.gold.fields("gold"), "n": p.n}
        for c in group
        for p in sampled(c)
    ]
    chart = _by_distance(rows, "reward model", banded=len(group) <= 3)
    page.chart(chart, f"sweep-{sweep}", "Gold of best of n.")
    ends = [{"reward model": c.label, **g.fields("gold")} for c in group if (g := sampled(c)[-1].gold) is not None]
    chart = charts.dot_intervals(
        ends, "reward model", "gold", x_title=f"gold at n = {sampled(group[0])[-1].n:.0f}", reference=(0.0, "reference")
    )
    page.chart(chart, f"sweep-{sweep}-end", "Gold at the largest n that the samples allow, with 95 % intervals.")
    fits(page, group)


def matched(page: Report, methods: Sequence[MethodCurve]) -> None:
    """Methods at equal KL: gold, and the difference from vanilla."""
    page.heading("Vanilla against variance-aware at matched KL")
    rows = [
        {"kl": kl, "distance": kl**0.5, "method": m.method, **g.fields("gold")}
        for m in methods
        for kl, g in zip(m.kls, m.gold)
    ]
    chart = _by_distance(rows, "method")
    page.chart(
        chart,
        "matched-kl",
        "Exact policies over each prompt's samples. variance-only never looks at the reward, permuted "
        "shuffles the variances: both are controls.",
    )
    table = [
        [m.method, f"{kl:.2f}", g.text, None if m.method == "vanilla" else short(over), r.value, reached]
        for m in methods
        for kl, g, over, r, reached in zip(m.kls, m.gold, m.over_vanilla, m.risk, m.reached)
    ]
    with page.details("Table: every method and KL"):
        page.table(
            ["method", "KL", "gold", "more than vanilla", "share of draws at or below 0", "draws that reach it"],
            table,
            "The reward is the members' mean throughout, so that methods differ by the variance alone.",
        )


def reinforcement(page: Report, rl: Sequence[RLCurve]) -> None:
    """Curves of RL runs beside those of best of n."""
    page.heading("By reinforcement learning")
    rows = [
        {
            "policy": c.label,
            "low": row["gold_low"],
            "high": row["gold_high"],
            **{k: row[k] for k in ("distance", "gold")},
        }
        for c in rl
        for row in c.rows
    ]
    chart = _by_distance(rows, "policy", banded=True)
    page.chart(chart, "rl", "True value of each training step's own samples; runs averaged step by step.")
    fitted = [[getattr(c.fit, name, None) for name in ("alpha", "beta", "r_squared")] for c in rl]
    page.table(
        ["runs of", "runs", "alpha", "beta", "R squared", "peak d*"],
        [[c.label, c.runs, *found, short(c.peak) or c.peak.reason] for c, found in zip(rl, fitted)],
        "R(d) = d (alpha - beta ln d).",
    )
    for c in rl:
        for note in c.notes:
            page.text(f"{c.label}: {note}.")


def published(page: Report, held: Sequence[Any]) -> None:
    """Published findings, whether they hold here, and the evidence."""
    page.heading("What is published, and what holds here")
    page.table(
        ["finding", "here", "evidence"],
        [[f.claim, CONFIRMED[f.confirmed], f.evidence] for f in held],
        "On this world, at these sizes; not a verdict on the papers.",
    )


def _method_notes(page: Report, curves: dict[str, list[Curve]], given: OveroptimizeOptions) -> None:
    page.heading("How it was done")
    lines = [
        "Best of n: expected value over all subsets of n of a prompt's samples, never with replacement, ties averaged.",
        "KL of best of n: ln n - (n - 1) / n, exact without ties, an upper bound with them.",
        "Values are differences from the reference (n = 1); the proxy is in standard deviations within a prompt.",
    ]
    if given.model is None:
        lines += [
            "Half of the prompts give preferences, the other half is judged on; every draw has preferences of its own "
            f"(Bradley-Terry from gold, slope {given.slope:g} unless swept).",
            "Steps of a sweep share seeds, so they differ by what is swept.",
            "Fits use the points of best of n alone: tilting a finite pool saturates, which is no turning down.",
        ]
    page.bullets(lines)
    warnings = [f"{c.label}: {w}" for group in curves.values() for c in group if c.fit for w in c.fit.warnings]
    if warnings:
        with page.details("Warnings of the fits"):
            page.bullets(list(dict.fromkeys(warnings)))
    page.glossary(GLOSSARY)
