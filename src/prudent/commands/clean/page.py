"""The report of a cleaning run: what was found and done, in words, tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prudent.commands.clean.run import Judged, Outcome
from prudent.data.cleaning import STRENGTH_RULES, count_changes
from prudent.data.rules import RULES
from prudent.reporting import charts
from prudent.reporting.report import Report

SUSPICIOUS = 20


def build_report(outcome: Outcome) -> Report:
    """The whole report; ``Report.write`` makes the files."""
    settings = outcome.settings
    report = Report("Preference data, cleaned", settings.source)
    _answer(report, outcome)
    _rules(report, outcome)
    _conflicts(report, outcome)
    _length(report, outcome)
    if outcome.inputs.votes:
        _votes(report, outcome.inputs.votes)
    if outcome.judged is not None:
        _strength(report, outcome.judged, settings.second_label)
    if outcome.proof:
        _proof(report, outcome.proof)
    for planted in outcome.planted:
        _planted(report, planted)
    if outcome.judged is not None:
        _suspicious(report, outcome)
    _reading(report, outcome)
    return report


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(estimate: Any) -> str:
    """``0.62 [0.58, 0.66]`` of an Estimate or of its plain form."""
    value, low, high = (
        (estimate[k] if isinstance(estimate, dict) else getattr(estimate, k)) for k in ("value", "low", "high")
    )
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _answer(report: Report, outcome: Outcome) -> None:
    n, kept = len(outcome.inputs.data), len(outcome.cleaned.rows)
    flipped = sum(outcome.cleaned.flipped)
    done = [f"{n - kept} dropped", f"{flipped} flipped"]
    if outcome.cleaned.columns:
        done.append(f"{', '.join(outcome.cleaned.columns)} set")
    words = [f"**{n} pairs** read, **{kept} kept**: {', '.join(done)}."]
    tone = "neutral" if outcome.changes else "good"
    if outcome.judged is not None:
        share, mode = outcome.judged.shares, outcome.judged.strength.mode
        words.append(
            f"Judged by members ({mode}), {percent(share['below_zero'])} of the pairs have negative strength, "
            f"{percent(share['near_zero'])} are near zero (within one standard deviation of the members), and "
            f"{percent(share['surely_below_zero'])} are below zero by more than one sigma."
        )
    if outcome.length["severe"]:
        tone = "warn"
        words.append("**Length gives the label away here**: a reward model may learn length and little else.")
    ceiling = outcome.ceiling["exact"]
    if ceiling["contested_groups"]:
        words.append(
            f"{ceiling['contested_groups']} comparisons are labelled both ways, so no scorer can exceed "
            f"{percent(ceiling['best_accuracy'])} on this file."
        )
    report.verdict("\n\n".join(words), tone, "What was found")
    report.text(
        "Every change is a line of `changes.jsonl` with its evidence. `review.html` lets a person accept or reject "
        "them; `--decisions` reads the choice back."
    )


def _rules(report: Report, outcome: Outcome) -> None:
    report.heading("Rules and repairs")
    meanings = {**{name: rule.what for name, rule in RULES.items()}, **STRENGTH_RULES}
    counts = count_changes(outcome.changes)
    found = {row["rule"] for row in counts}
    if counts:
        report.table(
            ["rule", "found", "dropped", "flipped", "set", "flagged"],
            [[row[k] for k in ("rule", "found", "dropped", "flipped", "set", "flagged")] for row in counts],
            "A pair can break several rules. Flagged pairs stay in the cleaned file.",
        )
        report.bullets([f"**{row['rule']}**: {meanings[row['rule']]}" for row in counts])
    nothing = [name for name, action in outcome.actions.items() if action != "keep" and name not in found]
    off = [name for name, action in outcome.actions.items() if action == "keep"]
    report.text(f"Found nothing: {', '.join(nothing) or 'no rule'}." + (f" Off: {', '.join(off)}." if off else ""))


def _conflicts(report: Report, outcome: Outcome) -> None:
    found = [change for change in outcome.changes if change.rule == "conflict"]
    if not found:
        return
    names = list(found[0].evidence)
    report.heading("Where two sources of score disagree")
    report.table(
        ["line", *(name.replace("_", " ") for name in names)],
        [[change.line, *(change.evidence[name] for name in names)] for change in found[:SUSPICIOUS]],
        f"The largest {min(SUSPICIOUS, len(found))} of {len(found)} conflicts of at least "
        f"{outcome.settings.conflict_size:g} standard deviations.",
    )


def _length(report: Report, outcome: Outcome) -> None:
    report.heading("Length")
    length = outcome.length
    low, high = length["longer_accuracy_interval"]
    report.cards(
        [
            {
                "label": "pick the longer",
                "value": percent(length["longer_accuracy"]),
                "note": f"[{100 * low:.1f}, {100 * high:.1f}]; the shorter: {percent(1 - length['longer_accuracy'])}",
                "tone": "warn" if length["severe"] else "",
            },
            {"label": "words, chosen", "value": length["mean_chosen"]},
            {"label": "words, rejected", "value": length["mean_rejected"]},
            {
                "label": "Cohen's d, pooled",
                "value": length["cohen_d_pooled"],
                "note": length["reasons"].get("cohen_d_pooled", "of lengths in words"),
            },
        ]
    )
    report.text("Put this accuracy beside any reward model's: one that does not beat it has shown nothing.")


def _votes(report: Report, votes: dict[str, Any]) -> None:
    report.heading("Annotators")
    alpha = votes["krippendorff_alpha"]
    rates = votes["first_response_win_rate"]
    report.table(
        ["rows", "first", "second", "tie", "both bad", "undecided", "unanimous", "Krippendorff's alpha"],
        [
            [
                votes["rows"],
                *(votes["outcomes"].get(k, 0) for k in ("first", "second", "tie", "both-bad", "undecided")),
                percent(votes["unanimous"]),
                alpha,
            ]
        ],
        f"Majority of all votes. Alpha: {votes['alpha_level']}. First response wins {percent(rates['wins_only'])} by "
        f"wins only, {percent(rates['half_ties'])} with ties as half.",
    )


def _strength(report: Report, judged: Judged, second: str | None) -> None:
    found = judged.strength
    report.heading("Strength")
    how = (
        "Every pair is judged by members that never saw its prompt."
        if found.mode == "cross-fitted"
        else "Members judge pairs that they were trained on, so they side with the labels more than they should."
    )
    report.text(
        f"Strength is the mean margin of {found.info['members']} reward models between chosen and rejected; "
        f"**{found.mode}**. {how}"
    )
    report.chart(
        charts.histogram(
            {"all pairs": judged.mean},
            x_title="strength (mean margin)",
            y_title="pairs",
            title="Strength of the labels",
            reference=0.0,
            reference_label="no preference",
        ),
        "strength",
        "Left of zero, the other pairs speak for the opposite label.",
    )
    columns = ["decile", "pairs", "mean", "low", "high", "sigma"]
    names = ["decile", "pairs", "strength", "from", "to", "sigma"]
    if second is not None:
        columns += ["labelled", "agreement", "second_mean"]
        names += ["second labels", "agreement", "mean second label"]
    report.table(
        names,
        [[row.get(c) for c in columns] for row in judged.table],
        "Deciles from the weakest. Sigma: sample standard deviation over members, mean in the decile.",
    )
    if judged.second is not None:
        key = (
            "agreement"
            if any(row["agreement"] != judged.table[0]["agreement"] for row in judged.table)
            else "second_mean"
        )
        label = {"agreement": "share that agrees", "second_mean": f"mean of {second}"}[key]
        data = [{"decile": row["decile"], label: row[key]} for row in judged.table if row[key] is not None]
        report.chart(
            charts.lines(
                data,
                "decile",
                label,
                x_title="decile of strength",
                y_title=label,
                title=f"Second label ({second}) by decile",
            ),
            "second-label",
            f"Spearman correlation of strength and {second}: {interval(judged.second['spearman'])}.",
        )


def proof_rows(table: Sequence[dict[str, Any]]) -> list[list[Any]]:
    return [
        [
            row["labels"],
            row["pairs"],
            interval(row["accuracy"]),
            row["sd_over_seeds"],
            None if row["gain"] is None else f"{100 * row['gain']['value']:+.1f}",
            row["p_holm"],
            row["seeds_better"],
        ]
        for row in table
    ]


PROOF = ["labels", "pairs", "test accuracy", "sd over seeds", "gain, points", "p (Holm)", "seeds better"]


def gains_chart(table: Sequence[dict[str, Any]], title: str) -> Any:
    """Gains over the first row, in percentage points, with their paired intervals."""
    data = [
        {"labels": row["labels"], **{k: 100 * row["gain"][k] for k in ("value", "low", "high")}}
        for row in table
        if row["gain"] is not None and row["gain"]["low"] is not None
    ]
    return charts.dot_intervals(
        data,
        "labels",
        "value",
        "low",
        "high",
        x_title="gain in test accuracy, points",
        title=title,
        reference=0.0,
        reference_label=table[0]["labels"],
    )


def _proof(report: Report, proof: dict[str, Any]) -> None:
    report.heading("Proof: reward models before and after")
    significant = [row for row in proof["table"] if row["p_holm"] is not None and row["p_holm"] < 0.05]
    better, worse = ([row["labels"] for row in significant if (row["gain"]["value"] > 0) is up] for up in (True, False))
    text = (
        f"Better than the labels as given: **{'; '.join(better)}**."
        if better
        else "**No repair is shown to be better than the labels as given** on this test split."
    )
    if worse:
        text += f" Worse: {'; '.join(worse)}."
    report.verdict(text, "good" if better else "neutral")
    if any(row["gain"] is not None and row["gain"]["low"] is not None for row in proof["table"]):
        report.chart(
            gains_chart(proof["table"], "Gain over the labels as given"),
            "proof",
            "95 % intervals: bootstrap of test prompts, paired.",
        )
    report.table(
        PROOF,
        proof_rows(proof["table"]),
        f"Trained on {proof['train_pairs']} of {proof['all_train_pairs']} pairs; {proof['seeds']} seeds (resamples of "
        "the training prompts), the same for every row; tested on "
        f"{proof['test_pairs']} untouched pairs ({proof['test']}). p: paired bootstrap over test prompts, two-sided, "
        "adjusted by Holm for this table. Test labels are as noisy as the training labels: a scorer of true "
        "accuracy a shows a(1 - p) + (1 - a)p when a share p of them is wrong.",
    )


def _planted(report: Report, planted: dict[str, Any]) -> None:
    share, finding = planted["share"], planted["finding"]
    report.heading(f"Planted faults: {share:.0%} of the labels turned round")
    report.text(
        f"{finding['wrong']} of {finding['pairs']} labels were turned round at random and sought again by strength "
        f"({planted['mode']}). Area under the curve: {interval(finding['auroc'])} (0.5 is guessing). This says what "
        "can be found in these data with these features."
    )
    report.table(
        ["called wrong", "pairs", "precision", "base rate", "recall", "wrong after flipping", "wrong after dropping"],
        [
            [
                f"lowest {row['share']:.0%}",
                row["picked"],
                row["precision"],
                finding["base_rate"],
                row["recall"],
                percent(row["wrong_after_flipping"]),
                percent(row["wrong_after_dropping"]),
            ]
            for row in finding["by_share"]
        ],
    )
    if "training" in planted:
        report.chart(
            gains_chart(planted["training"], "Test accuracy regained"),
            f"planted-{100 * share:g}",
            "Gain over training on the planted faults, paired, 95 % intervals.",
        )
        report.table(PROOF, proof_rows(planted["training"]), "Test accuracy lost to the planted faults and regained.")


def _suspicious(report: Report, outcome: Outcome) -> None:
    judged = outcome.judged
    assert judged is not None
    report.heading("The most suspicious pairs")
    report.text("As the file labels them; the members prefer the rejected answer.")
    pairs = []
    data = outcome.inputs.data
    for i in np.argsort(judged.mean, kind="stable")[:SUSPICIOUS]:
        row = data[int(judged.indices[i])]
        pairs.append(
            {
                **{name: row[name] for name in ("prompt", "chosen", "rejected")},
                "note": f"line {row['row']}",
                "facts": {"strength": float(judged.mean[i]), "sigma": float(judged.std[i])},
            }
        )
    report.pairs(pairs)


def _reading(report: Report, outcome: Outcome) -> None:
    reading = outcome.inputs.report
    with report.details("Reading, ceiling and times"):
        report.code(reading.summary())
        ceiling = outcome.ceiling
        report.table(
            ["equality of texts", "pairs", "best accuracy", "lowest loss", "contested comparisons"],
            [
                [name.replace("_", " "), c["pairs"], c["best_accuracy"], c["lowest_loss"], c["contested_groups"]]
                for name, c in ceiling.items()
            ],
            "The noise ceiling: what contradictory labels leave possible for any scorer.",
        )
        report.table(["stage", "seconds"], [[k, v] for k, v in outcome.timings.items()])
        report.text(f"Features: {outcome.features or 'none'}. Prompts: {outcome.prompts['prompts']} different ones.")
