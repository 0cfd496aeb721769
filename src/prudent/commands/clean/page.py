"""The report of a cleaning run: what was found and done, in words, tables and charts."""

from __future__ import annotations

from typing import Any

import numpy as np

from prudent.commands.clean.outcome import Judged, Outcome
from prudent.commands.clean.page_proof import planted_faults, proof, proof_answer, shown
from prudent.data.cleaning import STRENGTH_RULES, count_changes
from prudent.data.rules import RULES
from prudent.reporting import charts
from prudent.reporting.numbers import percent
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
        proof(report, outcome.proof)
    for planted in outcome.planted:
        planted_faults(report, planted)
    if outcome.judged is not None:
        _suspicious(report, outcome)
    _reading(report, outcome)
    report.heading("Terms").glossary(GLOSSARY)
    return report


GLOSSARY = {
    "strength": "mean over reward models of the score of chosen minus that of rejected; below 0 they prefer rejected",
    "cross-fitted": "each pair is judged by reward models that saw no pair of its prompt",
    "near zero": "strength at most one standard deviation from 0: the reward models are undecided",
    "opposed": "strength below 0 by more than one standard deviation: the reward models prefer the rejected answer",
    "standard deviation": "over the reward models that judge a pair (sample, ddof = 1), unless another is named",
    "ridge": "weight of the penalty that holds a reward model's coefficients small, chosen by cross-validation",
    "Cohen's d": "difference of the mean lengths over their pooled standard deviation; 0.8 is large",
    "Krippendorff's alpha": "agreement of annotators beyond chance: 1 is perfect, 0 is chance",
    "noise ceiling": "the best accuracy that contradictory labels leave possible for any scorer",
}


def _answer(report: Report, outcome: Outcome) -> None:
    n, kept = len(outcome.inputs.data), len(outcome.cleaned.rows)
    flipped = sum(outcome.cleaned.flipped)
    done = [f"{n - kept} dropped", f"{flipped} flipped"]
    if outcome.cleaned.columns:
        done.append(f"{', '.join(outcome.cleaned.columns)} set")
    words = [f"**{n} pairs read, {kept} kept**: {', '.join(done)}."]
    tone = "neutral" if outcome.changes else "good"
    if outcome.proof:
        words.append(proof_answer(outcome.proof["table"])[0])
    if outcome.length["severe"]:
        tone = "warn"
        words.append("**Length gives the label away here**: a reward model may learn length and little else.")
    if conflicts := sum(change.rule == "conflict" for change in outcome.changes):
        words.append(
            f"On {conflicts} pairs the two sources of `--conflict` lie {outcome.settings.conflict_size:g} standard "
            "deviations apart or more."
        )
    ceiling = outcome.ceiling["exact"]
    if ceiling["contested_groups"]:
        words.append(
            f"{ceiling['contested_groups']} comparisons are labelled both ways, so no scorer can exceed "
            f"{percent(ceiling['best_accuracy'], 1)} on this file."
        )
    words.append("To do: accept or reject the changes in `review.html` and give the saved file to `--decisions`.")
    report.verdict("\n\n".join(words), tone, "What was found")
    if outcome.judged is not None:
        share = outcome.judged.shares
        report.cards(
            ("strength below zero", percent(share["below_zero"], 1), "they prefer rejected"),
            ("near zero", percent(share["near_zero"], 1), "they are undecided"),
            ("opposed", percent(share["opposed"], 1), "below zero by more than their standard deviation"),
        )
    report.text("Every change is a line of `changes.jsonl` with its evidence.")


def _rules(report: Report, outcome: Outcome) -> None:
    report.heading("Rules and repairs")
    meanings = {**{name: rule.what for name, rule in RULES.items()}, **STRENGTH_RULES}
    counts = count_changes(outcome.changes)
    found = {row["rule"] for row in counts}
    if counts:
        columns = ["rule", "found", "dropped", "flipped", "set", "flagged"]
        report.table(columns, counts, "A pair can break several rules. Flagged pairs stay in the cleaned file.")
        report.bullets([f"**{row['rule']}**: {meanings[row['rule']]}" for row in counts])
    nothing = [name for name, action in outcome.actions.items() if action != "keep" and name not in found]
    off = [name for name, action in outcome.actions.items() if action == "keep"]
    report.text(f"Found nothing: {', '.join(nothing) or 'no rule'}." + (f" Off: {', '.join(off)}." if off else ""))


def _conflicts(report: Report, outcome: Outcome) -> None:
    found = [change for change in outcome.changes if change.rule == "conflict"]
    if not found:
        return
    names = [name for name in found[0].evidence if name not in ("standard_deviations_apart", "rank", "compared")]
    report.heading("Where two sources of score disagree")
    report.table(
        ["rank", "line", "apart", *names],
        [
            [change.evidence["rank"], change.line, change.evidence["standard_deviations_apart"]]
            + [change.evidence[name] for name in names]
            for change in found[:SUSPICIOUS]
        ],
        f"The largest {min(SUSPICIOUS, len(found))} of {len(found)} conflicts of at least "
        f"{outcome.settings.conflict_size:g} standard deviations. Apart: how far the two are from each other, each "
        f"in standard deviations, over the {found[0].evidence['compared']} pairs that both score.",
    )


def _length(report: Report, outcome: Outcome) -> None:
    report.heading("Length")
    length = outcome.length
    low, high = length["longer_accuracy_interval"]
    note = f"[{100 * low:.1f}, {100 * high:.1f}]; shorter: {percent(1 - length['longer_accuracy'], 1)}"
    d = length["reasons"].get("cohen_d_pooled", "of lengths in words")
    report.cards(
        ("pick the longer", percent(length["longer_accuracy"], 1), note, "warn" if length["severe"] else ""),
        ("words, chosen", length["mean_chosen"]),
        ("words, rejected", length["mean_rejected"]),
        ("Cohen's d, pooled", length["cohen_d_pooled"], d),
    )
    report.text("Put this accuracy beside any reward model's: one that does not beat it has shown nothing.")


def _votes(report: Report, votes: dict[str, Any]) -> None:
    report.heading("Annotators")
    rates = votes["first_response_win_rate"]
    outcomes = [votes["outcomes"].get(k, 0) for k in ("first", "second", "tie", "both-bad", "undecided")]
    report.table(
        ["rows", "first", "second", "tie", "both bad", "undecided", "unanimous", "Krippendorff's alpha"],
        [[votes["rows"], *outcomes, percent(votes["unanimous"], 1), votes["krippendorff_alpha"]]],
        f"Majority of all votes. Alpha: {votes['alpha_level']}. The first wins {percent(rates['wins_only'], 1)} by "
        f"wins only, {percent(rates['half_ties'], 1)} with ties as half.",
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
    chart = charts.histogram(
        {"all pairs": judged.mean},
        x_title="strength (mean margin)",
        y_title="pairs",
        title="Strength of the labels",
        reference=(0.0, "no preference"),
    )
    report.chart(chart, "strength", "Left of zero, the other pairs speak for the opposite label.")
    columns = ["decile", "pairs", "mean", "low", "high", "sigma"]
    names = ["decile", "pairs", "strength", "from", "to", "standard deviation"]
    if second is not None:
        columns += ["labelled", "agreement", "second_mean"]
        names += ["second labels", "agreement", "mean second label"]
    report.table(
        names,
        [[row.get(c) for c in columns] for row in judged.table],
        "Deciles from the weakest. Standard deviation: over members, mean in the decile.",
    )
    if judged.second is not None:
        agreed = {row["agreement"] for row in judged.table}
        key = "agreement" if len(agreed) > 1 else "second_mean"
        label = {"agreement": "share that agrees", "second_mean": f"mean of {second}"}[key]
        data = [{"decile": row["decile"], label: row[key]} for row in judged.table if row[key] is not None]
        title = f"Second label ({second}) by decile"
        chart = charts.lines(data, "decile", label, x_title="decile of strength", y_title=label, title=title)
        found_so = f"Spearman correlation of strength and {second}: {shown(judged.second['spearman'])}."
        report.chart(chart, "second-label", found_so)


def _suspicious(report: Report, outcome: Outcome) -> None:
    judged = outcome.judged
    assert judged is not None
    report.heading("The most suspicious pairs")
    report.text("As the file labels them; the members prefer the rejected answer.")
    pairs = []
    for i in np.argsort(judged.mean, kind="stable")[:SUSPICIOUS]:
        row = outcome.inputs.data[int(judged.indices[i])]
        facts = {"strength": float(judged.mean[i]), "standard deviation": float(judged.std[i])}
        texts = {name: row[name] for name in ("prompt", "chosen", "rejected")}
        pairs.append({**texts, "note": f"line {row['row']}", "facts": facts})
    report.pairs(pairs)


def _reading(report: Report, outcome: Outcome) -> None:
    reading = outcome.inputs.report
    with report.details("Reading, ceiling and times"):
        report.code(reading.summary())
        keys = ("pairs", "best_accuracy", "lowest_loss", "contested_groups")
        report.table(
            ["equality of texts", "pairs", "best accuracy", "lowest loss", "contested comparisons"],
            [[name.replace("_", " "), *(c[key] for key in keys)] for name, c in outcome.ceiling.items()],
            "The noise ceiling: what contradictory labels leave possible for any scorer.",
        )
        report.table(["stage", "seconds"], [[k, v] for k, v in outcome.timings.items()])
        report.text(f"Features: {outcome.features or 'none'}. Prompts: {outcome.prompts['prompts']} different ones.")
