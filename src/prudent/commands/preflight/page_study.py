"""The report's section on how much reward models that differ by chance disagree, one part a preference file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.commands.preflight.study import Study, most_disputed, typical_response
from prudent.reporting import charts
from prudent.reporting.numbers import percent
from prudent.reporting.report import Report

SHOWN_POINTS = 400


@dataclass(frozen=True)
class StudiedFile:
    """A study with its texts: pairs as mappings of prompt, chosen, rejected; scores (K, n) of both answers."""

    study: Study
    pairs: Sequence[Mapping[str, Any]]
    chosen: torch.Tensor
    rejected: torch.Tensor


def study_section(report: Report, files: Sequence[StudiedFile], diversities: Sequence[Mapping[str, Any]]) -> None:
    """One part a file, then what makes members differ."""
    report.heading("How much reward models disagree")
    members = files[0].study.facts["members"]
    report.text(
        f"{members} reward models that differ by chance alone (each head learnt from its own resample of the pairs), "
        "on pairs that none of them was fitted on. Sigma is the sample standard deviation over members (ddof = 1); a "
        "margin is the score of the chosen answer minus that of the rejected one."
    )
    for number, file in enumerate(files):
        _one_file(report, file, number, len(files) > 1)
    if diversities:
        report.table(
            (
                "members differ by",
                "accuracy of the mean",
                "members' accuracies",
                "median sigma of margins",
                "median sigma / |margin|",
                "not unanimous",
            ),
            [
                [
                    row["diversity"],
                    percent(row["accuracy"]),
                    f"{percent(row['member_accuracy_lowest'])} to {percent(row['member_accuracy_highest'])}",
                    row["median_deviation"],
                    row["median_ratio"],
                    percent(row["share_not_unanimous"]),
                ]
                for row in diversities
            ],
            "`bootstrap`: exact fits to resamples (used above and in the draws). `init+shuffle`: one epoch of "
            "stochastic training from different initial weights in different order, as the ten models of arXiv "
            "2410.23726 differ.",
        )


def _one_file(report: Report, file: StudiedFile, number: int, several: bool) -> None:
    found, facts = file.study, file.study.facts
    stem = f"-{number + 1}" if several else ""
    report.heading(found.name, 3)
    report.text(
        f"On {facts['pairs']} held-out pairs the members' accuracies lie between "
        f"{percent(facts['member_accuracy_lowest'])} and {percent(facts['member_accuracy_highest'])}; their mean is "
        f"right on {percent(found.ensemble['accuracy'])} "
        f'({percent(found.ensemble["low"])} to {percent(found.ensemble["high"])}), "the longer answer" on '
        f"{percent(found.longer['accuracy'])}. For {percent(facts['share_ratio_above_1'])} of the pairs sigma is "
        f"larger than the margin itself (median sigma / |margin| {facts['median_ratio']:.2f}); on "
        f"{percent(facts['share_not_unanimous'])} the members don't vote alike."
    )
    rows = [{"who": f"member {i + 1}", "group": "member", **row} for i, row in enumerate(found.by_member)]
    rows.append({"who": "their mean", "group": "mean", **found.ensemble})
    rows.append({"who": "longer answer", "group": "reference", **found.longer})
    chart = charts.dot_intervals(
        rows,
        "who",
        "accuracy",
        x_title="accuracy on held-out pairs",
        x_format="%",
        title="Accuracy of each member",
        reference=(0.5, "guessing"),
    )
    report.chart(
        chart,
        f"member-accuracy{stem}",
        "Members are about equally accurate although they score differently. Bars: 95 % Wilson intervals.",
    )
    _one_response(report, file, stem)
    _variance_charts(report, found, stem)
    _disputed(report, file)


def _variance_charts(report: Report, found: Study, stem: str) -> None:
    positive = found.variance[found.variance > 0]
    chart = charts.histogram(
        positive,
        log_x=True,
        x_title="variance over members (log scale)",
        y_title="responses",
        title="Variance of a response's score",
    )
    report.chart(
        chart,
        f"variance{stem}",
        "Scores of held-out answers, each member centred on the training answers. The long right tail is what a "
        "variance-aware policy keeps away from.",
    )
    step = max(1, len(found.mean) // SHOWN_POINTS)
    points = [
        {"margin": abs(float(m)), "deviation": float(s), "members": "agree" if r <= 1 else "sigma exceeds margin"}
        for m, s, r in zip(found.mean[::step], found.deviation[::step], found.ratio[::step])
    ]
    chart = charts.scatter(
        points,
        "margin",
        "deviation",
        group="members",
        x_title="|mean margin|",
        y_title="sigma over members",
        title="Standard deviation against margin",
        diagonal=False,
    )
    report.chart(
        chart,
        f"deviation-against-margin{stem}",
        "One point a held-out pair. Where sigma exceeds the margin, another resample could have turned the order.",
    )


def _one_response(report: Report, file: StudiedFile, stem: str) -> None:
    """Ten members' scores of one response, with its text: the picture that both papers begin with."""
    found = file.study
    index = typical_response(found)
    n = len(file.pairs)
    side, row = ("chosen", index) if index < n else ("rejected", index - n)
    scores = (file.chosen if side == "chosen" else file.rejected)[:, row]
    rows = [{"member": f"member {i + 1}", "score": float(score)} for i, score in enumerate(scores)]
    chart = charts.bars(rows, "member", "score", x_title="score", title="One response, all members")
    report.chart(
        chart,
        f"one-response{stem}",
        f"Scores of the same response, one whose variance exceeds that of three in four. Mean "
        f"{float(scores.mean()):+.3f}, standard deviation {float(scores.std(correction=1)):.3f}.",
    )
    with report.details("The pair that this response is from"):
        report.pairs([{**file.pairs[row], "note": f"The response scored above is the {side} one."}])


def _disputed(report: Report, file: StudiedFile) -> None:
    found = file.study
    indices = most_disputed(found, 5)
    with report.details(f"The {len(indices)} most disputed pairs, in full"):
        report.pairs(
            [
                {
                    **file.pairs[i],
                    "note": f"{int((found.margins[:, i] > 0).sum())} of {len(found.margins)} members prefer the chosen "
                    "answer.",
                    "facts": {"mean margin": float(found.mean[i]), "standard deviation": float(found.deviation[i])},
                }
                for i in indices
            ]
        )
