"""Files of ``prudent clean``, and what it says when it is done."""

from __future__ import annotations

from typing import Any

from prudent.commands.clean.options import CleanOptions
from prudent.commands.clean.outcome import Outcome
from prudent.commands.clean.page import build_report
from prudent.commands.clean.page_proof import planted_answer, points, proof_answer
from prudent.commands.clean.review import review_page
from prudent.commands.common import say
from prudent.data.read_report import count_lines
from prudent.runs import Run


def write(run: Run, outcome: Outcome, result: dict[str, Any]) -> None:
    """Cleaned pairs, provenance, strength, results, report and review page."""
    reading = outcome.inputs.report
    unread = [
        {
            "pair": None,
            "row": row.line,
            "rule": row.reason,
            "suggestion": "drop",
            "action": "drop",
            "before": None,
            "after": None,
            "evidence": {"field": row.field, "detail": row.detail},
            "decided": None,
            "hash": None,
        }
        for row in [*reading.bad, *reading.left_out]
    ]
    run.write_jsonl("changes.jsonl", [*unread, *outcome.cleaned.log])
    if outcome.settings.output == "jsonl":
        run.write_jsonl("cleaned.jsonl", outcome.cleaned.rows)
    else:
        from datasets import Dataset

        Dataset.from_list(outcome.cleaned.rows).to_parquet(str(run.path("cleaned.parquet")))
    if outcome.judged is not None:
        judged = outcome.judged
        lines = outcome.inputs.data["row"]
        run.write_table(
            "strength.parquet",
            {
                "pair": judged.indices + 1,
                "row": [lines[int(index)] for index in judged.indices],
                "mean": judged.mean,
                "sigma": judged.std,
                "decile": judged.decile,
                "fold": judged.strength.fold,
                "members": judged.strength.margins.T,
            },
        )
    run.write_json("result.json", result)
    build_report(outcome).write(run)
    rows = outcome.inputs.data.select_columns(["prompt", "chosen", "rejected"])
    run.write_text("review.html", review_page(rows, outcome.changes, outcome.settings.source, outcome.settings.review))


def show(result: dict[str, Any], options: CleanOptions) -> None:
    """Say what was found and done."""
    out = options.out
    say(
        f"{result['pairs']} pairs read, {result['kept']} kept: {result['dropped']} dropped, {result['flipped']} flipped"
    )
    for row in result["changes"]:
        counts = [f"{row[what]} {what}" for what in ("dropped", "flipped", "set", "flagged") if row[what]]
        say(f"  {row['rule']}: {row['found']} found, {', '.join(counts)}")
    for name, counts in result["reading"]["counts"].items():
        if counts:
            say("\n".join(count_lines(name, counts, result["reading"]["examples"][name])))
    strength = result["strength"]
    if strength:
        shares = strength["shares"]
        say(
            f"strength ({strength['mode']}): {shares['below_zero']:.1%} below zero, {shares['near_zero']:.1%} near "
            f"zero, {shares['opposed']:.1%} opposed (below zero by more than the members' standard deviation)"
        )
    if result["proof"]:
        say("test accuracy of reward models trained on each, gain in points [interval for all rows together]:")
        show_table(result["proof"]["table"])
        say(proof_answer(result["proof"]["table"])[0].replace("**", ""))
    for planted in result["planted"]:
        say(planted_answer(planted))
        show_table(planted.get("training", []))
    say(f"report: {out / 'report.html'}; review: {out / 'review.html'}")


def show_table(table: list[dict[str, Any]]) -> None:
    """Accuracy and gain of each row of a proof."""
    for row in table:
        more = "" if row["gain"] is None else f", gain {points(row['gain'])}"
        say(f"  {row['labels']}: {row['accuracy']['value']:.3f}{more}")
