"""The report of a comparison: tail against overall recall, uncertainty against popularity, tables, examples."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from prudent.recommend.comparison import BLEND, SCORE, UNCERTAINTY, Comparison
from prudent.recommend.pipeline import Model
from prudent.reporting import charts, numbers
from prudent.reporting.report import Report, p_value
from prudent.seeding import Seed, numpy_generator

OVERALL, TAIL, RELATIVE = "recall@20 overall", "recall@20 tail absolute", "recall@20 tail relative"
LEVEL = 0.05
GLOSSARY = {
    "backbone": "the recommender whose score is given; it is frozen while the uncertainty is learnt",
    "blend": "(1 - w) times the standardised score plus w times the standardised uncertainty",
    "Recall@20": "share of a user's held-out positives that are among the 20 items recommended",
    "NDCG@20": "like Recall@20, but a hit at the top of the list counts for more; 1 is an ideal list",
    "tail": "items with few training positives; the threshold is in the table of data",
    "tail absolute": "all items compete, only tail positives count",
    "tail relative": "only tail items compete, only tail positives count",
    "uncertainty": "s, the log-variance of a pair's label, learnt from the residuals of the frozen backbone",
    "Gini": "how unevenly recommendations fall on items: 0 evenly, 1 all on one item",
}


def interval(cell: dict[str, Any] | None) -> str:
    """``0.281 [0.260, 0.303]`` or a dash with the reason."""
    if cell is None:
        return "–"
    if cell["mean"] is None:
        return f"– ({cell['reason']})"
    return numbers.interval(cell["mean"], cell["low"], cell["high"])


def difference(found: Comparison, name: str, metric: str) -> dict[str, Any] | None:
    """The row of a ranking's difference from the backbone's score, or None."""
    return next((row for row in found.paired if row["ranking"] == name and row["metric"] == metric), None)


def said(row: dict[str, Any] | None) -> str:
    """A difference with its interval: ``+0.012 [-0.003, +0.027]``."""
    return "–" if row is None else numbers.interval(row["difference"], row["low"], row["high"], "+.3f")


def direction(row: dict[str, Any] | None) -> int:
    """1 or -1 when a difference is clear (its interval leaves out zero, p below .05 after Holm), else 0."""
    if row is None or row["low"] is None or row.get("p_holm") is None or row["p_holm"] >= LEVEL:
        return 0
    return 1 if row["low"] > 0 else -1 if row["high"] < 0 else 0


def beats_score(found: Comparison, name: str) -> bool:
    """Whether a ranking finds clearly more than the score, overall or in the tail, and clearly less nowhere."""
    ways = [direction(difference(found, name, metric)) for metric in (OVERALL, TAIL, RELATIVE)]
    return max(ways) > 0 and min(ways) >= 0


def answer(model: Model, found: Comparison) -> tuple[str, str]:
    """Which ranking to use, what does better, and how thin the choice of the blend was; and the tone."""
    uncertainty, blend = (row["ranking"] for row in found.table[1:3])
    weight = model.blend.weight
    mixed = 0 < weight < 1
    if mixed and beats_score(found, blend):
        use, why = BLEND, f"the blend (w = {weight:g}) finds clearly more than the score, and nowhere clearly less"
    elif beats_score(found, uncertainty):
        use, why = UNCERTAINTY, "uncertainty finds clearly more than the score, and nowhere clearly less"
    else:
        use, why = SCORE, "neither uncertainty nor the blend is clearly better on the test side"
    text = f"**Rank by {use}** (`prudent recommend top --rank {use}`): {why}."
    rivals = [row for row in found.table[3:] if direction(difference(found, row["ranking"], OVERALL)) > 0]
    if rivals:
        best = max(rivals, key=lambda row: row[OVERALL]["mean"])
        text += (
            f" **{best['ranking']} finds more than the backbone**: Recall@20 {best[OVERALL]['mean']:.3f} against "
            f"{found.table[0][OVERALL]['mean']:.3f}. Tune the backbone (width, epochs, learning rate) first."
        )
    valid = found.validation
    text += f"\n\nThe blend's w = {weight:g} was chosen on {valid['positives']} validation positives of "
    text += f"{valid['users']} users"
    if not mixed:
        text += f": it is the {UNCERTAINTY if weight else SCORE} alone."
    elif valid["low"] is None:
        text += ": too few to say how sure that choice is."
    else:
        thin = "a clear lead" if valid["low"] > 0 else "too thin a lead to tell the two apart"
        lead = numbers.interval(valid["gain"], valid["low"], valid["high"], "+.3f")
        text += f", where its Recall@20 is {lead} from the score's: {thin}."
    return text, "warn" if rivals else "good" if use != SCORE else "neutral"


def build(model: Model, found: Comparison, seed: Seed = 0, title: str = "Recommendation by uncertainty") -> Report:
    """The whole report."""
    data = model.data
    report = Report(title, f"Backbone {model.backbone.name}, {len(data.users):,} users, {len(data.items):,} items")
    report.verdict(*answer(model, found), title="Answer")
    rows = [
        [row["ranking"], *(said(difference(found, row["ranking"], metric)) for metric in (OVERALL, TAIL, RELATIVE))]
        for row in found.table[1:]
    ]
    report.table(
        ["Recall@20 minus the score's", "overall", "tail absolute", "tail relative"],
        rows,
        "With 95 % intervals over users, each alone. Clear in the answer: also p below .05 after Holm, over all "
        "rankings and metrics.",
    )
    add_sweep(report, model, found)
    add_tables(report, found)
    add_popularity(report, found)
    add_examples(report, model, found, seed)
    add_data(report, model, found)
    report.heading("Terms").glossary(GLOSSARY)
    return report


def add_sweep(report: Report, model: Model, found: Comparison) -> None:
    """Tail recall against overall recall as the blend moves from score to uncertainty."""
    report.heading("From score to uncertainty")
    report.text(
        "A blend ranks by (1 - w) times the standardised score and w times the standardised uncertainty. "
        f"On the validation side w = {model.blend.weight:g} was chosen (rule: {model.blend.by}). "
        "The charts show every w on the test side."
    )
    marks = {0.0: "score", 1.0: "uncertainty", model.blend.weight: f"chosen, w {model.blend.weight:g}"}
    for view, metric in (("absolute", TAIL), ("relative", RELATIVE)):
        values = {row[metric] for row in found.sweep}
        if len(values) == 1:  # nothing moves: a chart would show one flat row of points
            report.text(f"The tail's Recall@20 ({view}) is {values.pop():.3f} at every w, so it has no chart.")
            continue
        swept = sorted(found.sweep, key=lambda row: row["weight"] in marks)  # named points on top
        rows = [
            {
                "w": row["weight"],
                "overall": row[OVERALL],
                "tail": row[metric],
                "point": marks.get(row["weight"], "other w"),
            }
            for row in swept
        ]
        chart = charts.scatter(
            rows,
            "overall",
            "tail",
            group="point",
            label="w",
            tooltip=["w"],
            x_title="overall Recall@20",
            y_title=f"tail Recall@20 ({view})",
            title=f"Tail ({view}) against overall recall as the blend moves",
            height=260,
        )
        who = "All items compete." if view == "absolute" else "Only tail items compete."
        report.chart(chart, f"blend-{view}", f"Beside each point its w. Up and to the right is better. {who}")
    by_weight = [[row["weight"], row[OVERALL], row[TAIL], row[RELATIVE]] for row in found.sweep]
    chosen = [number for number, row in enumerate(found.sweep) if row["weight"] == model.blend.weight]
    with report.details("The same in numbers"):
        columns = ["w", "overall Recall@20", "tail absolute", "tail relative"]
        report.table(columns, by_weight, "In bold: the blend chosen on validation.", emphasise=chosen)


def add_tables(report: Report, found: Comparison) -> None:
    """All rankings: recall, NDCG, coverage, and differences from the backbone's score."""
    report.heading("All rankings")
    columns = ["ranking", "overall", "tail absolute", "tail relative"]
    views = ("overall", "tail absolute", "tail relative")
    ks = sorted({int(metric.split("@")[1].split()[0]) for metric in found.table[0] if metric.startswith("recall@")})
    for k in ks:
        report.heading(f"Recall@{k}", level=3)
        rows = [[row["ranking"], *(interval(row.get(f"recall@{k} {view}")) for view in views)] for row in found.table]
        report.table(columns, rows, f"Recall@{k}, mean over users and 95 % interval.", emphasise=[0, 1, 2])
    with report.details("NDCG"):
        for k in ks:
            rows = [[row["ranking"], *(interval(row.get(f"ndcg@{k} {view}")) for view in views)] for row in found.table]
            report.table(columns, rows, f"NDCG@{k}, mean over users and 95 % interval.")
    report.heading("What is shown", level=3)
    names = ["coverage@20", "gini@20", "popularity@20"]
    rows = [[row["ranking"], *(row[name] for name in names)] for row in found.table]
    report.table(
        ["ranking", "coverage", "Gini", "mean popularity"],
        rows,
        "What is shown in the first 20 places: share of the catalogue, how unevenly, and training positives an item.",
    )
    with report.details("Differences from ranking by score, paired over users"):
        rows = [
            [row["ranking"], row["metric"], said(row), row["users"], p_value(row["p"]), p_value(row.get("p_holm"))]
            for row in found.paired
            if "@20" in row["metric"]
        ]
        report.table(["ranking", "metric", "difference", "users", "p", "p (Holm)"], rows)


def add_popularity(report: Report, found: Comparison) -> None:
    """Each item's mean uncertainty and mean score against its popularity."""
    report.heading("Uncertainty and popularity")
    words = []
    for name, label in (("score", "score"), ("log_variance", "uncertainty")):
        about = found.correlations[name]
        rho = numbers.interval(about["spearman"], about["low"], about["high"], "+.2f")
        words.append(f"{label} {'n/a' if about['spearman'] is None else rho}")
    report.text(
        "Rank correlation of an item's mean with its popularity, over the users who have not met it: "
        f"{'; '.join(words)}."
    )
    items = found.items
    picked = np.arange(len(items["popularity"]))
    if len(picked) > 1500:
        # Evenly over popularity ranks: a plain sample would show hardly any head item.
        order = np.argsort(items["popularity"], kind="stable")
        picked = np.unique(np.r_[order[np.linspace(0, len(order) - 1, 1200).astype(int)], order[-300:]])
    for name, label in (("log_variance", "mean uncertainty s"), ("score", "mean score f")):
        known = picked[np.isfinite(items[name][picked])]
        sides = np.where(items["tail"][known], "tail", "head").tolist()
        columns = (items["popularity"][known].tolist(), items[name][known].tolist(), sides)
        rows = [dict(zip(("popularity", "value", "side"), row)) for row in zip(*columns)]
        chart = charts.scatter(
            rows,
            "popularity",
            "value",
            group="side",
            x_scale="log",
            x_title="popularity (training positives)",
            y_title=label,
            title=f"{label[0].upper()}{label[1:]} of items by popularity",
        )
        note = f", {len(rows):,} of {len(items['popularity']):,} items" if len(rows) < len(items["popularity"]) else ""
        report.chart(chart, name.replace("_", "-"), f"One point an item{note}.")


def add_examples(report: Report, model: Model, found: Comparison, seed: Seed, count: int = 4) -> None:
    """A few users: their history and the first ten items by score and by uncertainty."""
    report.heading("Examples")
    report.text(
        "Users drawn at random, items best first. In brackets an item's popularity; * marks a held-out positive of the "
        "user."
    )
    data, popularity = model.data, model.data.popularity
    assert data.test is not None
    by_score, by_uncertainty = (list(found.rankings.values())[index].top for index in (0, 1))
    able = np.flatnonzero(np.diff(data.test.positives.indptr) > 0)
    for user in np.sort(numpy_generator(seed).choice(able, min(count, len(able)), replace=False)):
        held = data.test.positives
        truth = set(held.indices[held.indptr[user] : held.indptr[user + 1]].tolist())
        taken = data.train.indices[data.train.indptr[user] : data.train.indptr[user + 1]]
        columns = [taken[np.argsort(-popularity[taken], kind="stable")], by_score[user], by_uncertainty[user]]
        shown = [
            [f"{data.items[i]} ({popularity[i]}){'*' if i in truth else ''}" for i in column[:10] if i >= 0]
            for column in columns
        ]
        rows = list(itertools.zip_longest(*shown))
        caption = f"User {data.users[user]}: {len(taken)} training positives, {len(truth)} held out."
        report.table(["history (most popular)", "by score", "by uncertainty"], rows, caption)


def add_data(report: Report, model: Model, found: Comparison) -> None:
    """What was read and held out, and what each stage took."""
    report.heading("Data and training")
    data = model.data
    rows: list[list[Any]] = [
        ["users", len(data.users)],
        ["items", len(data.items)],
        ["training positives", int(data.train.nnz)],
        ["validation positives", int(data.valid.positives.nnz)],
        [f"tail items (fewer than {math.ceil(model.tail_below)} training positives)", int(model.tail.sum())],
    ]
    rows += [[f"test: {name}", value] for name, value in found.counts.items()]
    rows += [[name, value] for name, value in {**data.notes, **model.notes}.items()]
    report.table(["count", "value"], rows)
    stages = [[name, seconds] for name, seconds in {**model.seconds, **found.seconds}.items()]
    report.table(["stage", "seconds"], stages, "Wall clock of the machine that ran it.")
    curves = [
        {"epoch": row["epoch"], "recall": row["recall@20"], "stage": curve.stage}
        for curve in (model.backbone.curve, model.uncertainty.curve)
        if curve is not None
        for row in curve.rows
    ]
    if curves:
        chart = charts.lines(
            curves,
            "epoch",
            "recall",
            group="stage",
            x_title="epoch",
            y_title="validation Recall@20",
            title="Validation Recall@20 as training goes on",
        )
        report.chart(chart, "training", "The weights of the best epoch are kept.")
