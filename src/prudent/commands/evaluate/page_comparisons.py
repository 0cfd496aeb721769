"""The part of the page that compares scorers with one of them, the reference."""

from __future__ import annotations

from typing import Any

from prudent.commands.evaluate.numbers import shown
from prudent.reporting import charts
from prudent.reporting.report import Report, p_value

LEVEL = 0.05


def undecided(payload: dict[str, Any]) -> str:
    """Which scorers aren't clearly different from the reference, in a sentence."""
    found = payload["comparisons"]
    near = [c["b"] for c in found if c["rows"][0].p_holm is None or c["rows"][0].p_holm >= LEVEL]
    name = payload["compared_with"]["name"]
    if not near:
        return f"Every other scorer differs clearly from {name} (p below {LEVEL:g} after Holm)."
    return f"{len(near)} of {len(found)} are not clearly different from {name} on these items: {', '.join(near)}."


def comparisons(page: Report, payload: dict[str, Any]) -> None:
    """Chart and table of the differences from the reference; by subset folded away."""
    found, reference = payload["comparisons"], payload["compared_with"]
    if not found:
        return
    name = reference["name"]
    page.heading("Paired comparisons")
    many = len(found) > 1
    page.text(
        f"Each scorer is compared with **{name}** ({reference['why']}) on the items that both scored."
        f"{f' {undecided(payload)}' if many else ''}"
    )
    heads = [(c["b"], c["rows"][0]) for c in found]
    drawn = [{"scorer": b, **row.difference.fields()} for b, row in heads if row.difference.low is not None]
    if len(drawn) > 1:
        chart = charts.dot_intervals(
            drawn, "scorer", "value", x_title=f"accuracy of {name} minus the scorer's", reference=(0.0, "no difference")
        )
        page.chart(chart, "comparisons", "95 % intervals, each alone: paired bootstrap over items.")
    parts = {"all items" if row.group == "all" else row.group for _, row in heads}
    page.table(
        ["scorer", "items", "accuracy", f"{name} minus it", f"only {name} right", "only it right", "p"],
        [[b, row.n, row.b, shown(row.difference), row.a_only, row.b_only, p_value(row.p_holm)] for b, row in heads],
        f"Over {', '.join(sorted(parts))}. Ties count as wrong. p: exact McNemar"
        f"{f', adjusted by Holm over the {len(found)} scorers' if many else ''}.",
    )
    for c in found:
        if len(c["rows"]) > 2:
            with page.details(f"{c['a']} against {c['b']} by subset"):
                page.table(
                    ["subset", "items", c["a"], c["b"], "difference", "p", "p (Holm)"],
                    [
                        [r.group, r.n, r.a, r.b, shown(r.difference), p_value(r.p), p_value(r.p_holm)]
                        for r in c["rows"][1:]
                    ],
                    "p (Holm) is adjusted over the subsets of this table.",
                )
