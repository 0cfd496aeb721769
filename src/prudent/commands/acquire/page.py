"""What people see of ``prudent acquire``: the terminal, the report, the form to label in, and records for Argilla."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prudent.acquisition.forecast import CERTAIN
from prudent.commands.acquire.options import AcquireOptions
from prudent.reporting.charts import lines
from prudent.reporting.numbers import percent
from prudent.reporting.report import Report, embed, form, shortened, turns

SHOWN = 20  # pairs in full on the report


def sentences(value: dict[str, Any], options: AcquireOptions) -> list[str]:
    """What was picked and how many labels the forecast asks for."""
    left = ", ".join(f"{count} {reason}" for reason, count in value["left_out"].items() if count)
    said = [
        f"{value['picked']} labels to ask for, of {value['open']} open pairs{f' ({left} left out)' if left else ''}, "
        f"by rule {options.rule}; {value['labelled']} pairs are labelled."
    ]
    if options.repeat > 1:
        said.append(f"{value['second_labels']} of them are a further label of a pair that was picked before.")
    outlook = value["forecast"]
    if outlook is None:
        return [*said, *value["notes"]]
    now, last = outlook["rows"][0], outlook["rows"][-1]
    policy = f"{options.method} at beta {options.policy_tilt:g}"
    if outlook["enough"] == now["labels"]:
        said.append(f"The risk of {policy} is {percent(now['risk'])} already, under {percent(options.max_risk)}.")
    elif outlook["enough"] is not None:
        said.append(
            f"{outlook['enough']} labels in all bring the risk of {policy} under {percent(options.max_risk)} with at "
            f"least {CERTAIN:.0%} certainty (today {percent(now['risk'])})."
        )
    else:
        said.append(
            f"Not with these features: at {last['labels']} labels, the most that was simulated, the risk of {policy} "
            f"is under {percent(options.max_risk)} in {last['certain']:.0%} of simulations (today "
            f"{percent(now['risk'])})."
        )
    return [*said, *value["notes"]]


def show(value: dict[str, Any], options: AcquireOptions) -> None:
    """The answer on the terminal."""
    for sentence in sentences(value, options):
        print(sentence)
    for row in (value["forecast"] or {"rows": []})["rows"]:
        print(
            f"  {row['labels']:6d} labels: risk {percent(row['risk'])} [{percent(row['low'])}, {percent(row['high'])}]"
            f", under {percent(options.max_risk)} in {row['certain']:.0%}"
        )
    print(f"Label in {options.out / 'label.html'}; report: {options.out / 'report.html'}")


def report(value: dict[str, Any], rows: Sequence[dict[str, Any]], options: AcquireOptions) -> Report:
    """The page: how many labels, and the first pairs in full."""
    page = Report("Which pairs to label next, and how many", f"{options.candidates.name}, rule {options.rule}")
    outlook = value["forecast"]
    tone = "neutral" if outlook is None else "good" if outlook["enough"] is not None else "warn"
    page.heading("Answer").verdict("\n\n".join(sentences(value, options)), tone, "What to label")
    if outlook is not None:
        page.heading("How many labels")
        page.text(
            "Each simulation draws a reward from what the labelled pairs leave open, lets it answer the planned pairs "
            f"(noise {options.noise:g}, ties {options.ties:g}), fits anew and asks for preflight's risk. The band "
            "holds 80 % of simulations. It assumes that new pairs are like the pool's, and that people label as they "
            "have."
        )
        chart = lines(
            outlook["rows"],
            "labels",
            "risk",
            ends=("low", "high"),
            x_title="labels in all",
            y_title="risk",
            y_format=".0%",
            y_zero=True,
            reference=(options.max_risk, "low enough"),
        )
        page.chart(chart, "forecast", "Risk that preflight would state: median and 80 % of simulations.")
        page.table(
            ["labels", "risk", "low", "high", "certain", "realised", "gain"],
            outlook["rows"],
            "certain: share of simulations with a risk that is low enough. realised: share whose policy is truly no "
            "better than the reference. gain: mean, in logits.",
        )
    page.heading("The first pairs")
    page.text(f"Score: {rows[0]['why']}. All {len(rows)} are in `to_label.jsonl`; `label.html` is the form.")
    page.pairs(
        [
            {
                "prompt": row["prompt"],
                "chosen": row["response_1"],
                "rejected": row["response_2"],
                "facts": {"order": row["order"], "score": row["score"]},
            }
            for row in rows[:SHOWN]
        ],
        ("response 1", "response 2"),
    )
    return page


def argilla_records(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as ``argilla.Dataset.records.from_json`` takes them: a chat field ``prompt``, text fields ``response_1``
    and ``response_2``, and a label question ``votes`` with the labels 1, 2 and tie."""
    return [
        {
            "id": row["id"],
            "fields": {name: row[name] for name in ("prompt", "response_1", "response_2")},
            "metadata": {name: row[name] for name in ("order", "rule", "score")},
            "suggestions": {},
            "responses": {},
            "vectors": {},
        }
        for row in rows
    ]


def label_form(rows: Sequence[dict[str, Any]]) -> str:
    """HTML of the form: offline, every text escaped; it saves labelled.jsonl, which ``read_preferences`` reads."""
    folder = Path(__file__).parent / "templates"
    kept = [{name: row[name] for name in ("id", "prompt", "response_1", "response_2")} for row in rows]
    return form(
        folder / "label.html.j2",
        style=Path(__file__).parents[1] / "clean" / "templates" / "review.css",
        script=folder / "label.js",
        items=[
            {
                **row,
                "prompt": turns(row["prompt"]),
                "response_1": shortened(row["response_1"]),
                "response_2": shortened(row["response_2"]),
            }
            for row in rows
        ],
        data=embed(kept),
    )
