"""What a cleaning run's report and terminal say of the proof: reward models before and after, and planted faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prudent.reporting import charts
from prudent.reporting.numbers import interval, percent
from prudent.reporting.report import Columns, Report, p_value


def shown(estimate: Any) -> str:
    """``0.62 [0.58, 0.66]`` of an Estimate or of its plain form."""
    plain = estimate if isinstance(estimate, dict) else estimate.fields()
    return interval(plain["value"], plain["low"], plain["high"])


def points(estimate: dict[str, Any]) -> str:
    """``+1.2 [-0.4, +2.8]``: a difference of accuracies in percentage points."""
    value, low, high = (None if (v := estimate[k]) is None else 100 * v for k in ("value", "low", "high"))
    return interval(value, low, high, "+.1f")


def proof_answer(table: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """What the proof's table says in words, and its tone: which repairs help or hurt, and how the others look."""
    tested = [row for row in table if row["gain"] is not None]
    clear = [row for row in tested if row["p_adjusted"] is not None and row["p_adjusted"] < 0.05]
    better, worse = ([row for row in clear if (row["gain"]["value"] > 0) is up] for up in (True, False))

    def named(rows: Sequence[dict[str, Any]]) -> str:
        return "; ".join(f"{row['labels']} ({points(row['gain'])} points)" for row in rows)

    text = f"**Better than the labels as given: {named(better)}.**" if better else "**No repair is shown to help.**"
    if worse:
        text += f" Worse: {named(worse)}."
    gains = [100 * row["gain"]["value"] for row in tested if row not in clear]
    if gains:
        up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        text += (
            f" {'Of the other' if clear else 'Of'} {len(gains)} tried, {up} came out higher on this test split and "
            f"{down} lower ({min(gains):+.1f} to {max(gains):+.1f} points of accuracy), none clearly."
        )
    return text, "good" if better else "warn" if worse else "neutral"


def planted_answer(planted: dict[str, Any]) -> str:
    """What was found of the labels that were turned round, in a line."""
    finding, share = planted["finding"], planted["share"]
    row = next(row for row in finding["by_share"] if row["share"] == share)
    if row["precision"] is None:
        return f"{share:.0%} of the labels turned round: too few pairs to seek them."
    chance = percent(finding["base_rate"], 0)
    return (
        f"{share:.0%} of the labels turned round: of the {row['picked']} weakest pairs {percent(row['precision'], 0)} "
        f"are turned round (chance: {chance}), which finds {percent(row['recall'], 0)} of them."
    )


def _unless_none(key: str, text: Callable[[Any], str]) -> Callable[[dict[str, Any]], str | None]:
    return lambda row: None if row[key] is None else text(row[key])


PROOF: Columns = [
    ("labels", "labels"),
    ("pairs", "pairs"),
    ("test accuracy", lambda row: shown(row["accuracy"])),
    ("gain, points", _unless_none("gain", points)),
    ("p", _unless_none("p_adjusted", p_value)),
    ("gain, own ridge", _unless_none("own_ridge_gain", lambda gain: f"{100 * gain:+.1f}")),
    ("seeds better", _unless_none("seeds_better", lambda share: percent(share, 0))),
]
TOGETHER = (
    "Gain: in points of test accuracy, over the first row. Its 95 % interval and p hold for all rows together (max-t "
    "bootstrap over test prompts, paired). All rows share one ridge, chosen on the first row's labels; own ridge: the "
    "gain when each row chooses its own."
)


def gains_chart(table: Sequence[dict[str, Any]], title: str) -> Any:
    """Gains over the first row, in percentage points, with their paired intervals."""
    data = [
        {"labels": row["labels"], **{k: 100 * row["gain"][k] for k in ("value", "low", "high")}}
        for row in table
        if row["gain"] is not None and row["gain"]["low"] is not None
    ]
    line = (0.0, table[0]["labels"])
    axis = "gain in test accuracy, points"
    return charts.dot_intervals(data, "labels", "value", x_title=axis, title=title, reference=line)


def proof(report: Report, proof: dict[str, Any]) -> None:
    report.heading("Proof: reward models before and after")
    report.verdict(*proof_answer(proof["table"]))
    if any(row["gain"] is not None and row["gain"]["low"] is not None for row in proof["table"]):
        chart = gains_chart(proof["table"], "Gain over the labels as given")
        report.chart(chart, "proof", "95 % intervals that hold for all rows together.")
    report.records(proof["table"], PROOF, TOGETHER)
    report.text(
        f"Trained on {proof['train_pairs']} of {proof['all_train_pairs']} pairs, {proof['seeds']} resamples of the "
        f"training prompts (seeds), the same for every row; tested on {proof['test_pairs']} untouched pairs "
        f"({proof['test']}). Test labels are as noisy as the training labels, which hides a part of every gain."
    )


def planted_faults(report: Report, planted: dict[str, Any]) -> None:
    share, finding = planted["share"], planted["finding"]
    report.heading(f"Planted faults: {share:.0%} of the labels turned round")
    report.text(
        f"{planted_answer(planted)} AUROC, the chance that a wrong label has the lower strength of two: "
        f"{shown(finding['auroc'])} (0.5 is guessing)."
    )
    report.records(
        finding["by_share"],
        [
            ("called wrong", lambda row: f"lowest {row['share']:.0%}"),
            ("pairs", "picked"),
            ("precision", "precision"),
            ("base rate", lambda row: finding["base_rate"]),
            ("recall", "recall"),
            ("wrong after flipping", lambda row: percent(row["wrong_after_flipping"], 1)),
            ("wrong after dropping", lambda row: percent(row["wrong_after_dropping"], 1)),
        ],
    )
    if "training" in planted:
        chart = gains_chart(planted["training"], "Test accuracy regained")
        caption = "Gain over training on the planted faults; 95 % intervals that hold for all rows together."
        report.chart(chart, f"planted-{100 * share:g}", caption)
        report.records(planted["training"], PROOF, TOGETHER)
