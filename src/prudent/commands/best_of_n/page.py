"""Page and table of ``prudent best-of-n``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prudent.commands.common import result_console
from prudent.features.limits import words
from prudent.reporting import charts
from prudent.reporting.report import Report

if TYPE_CHECKING:
    from prudent.commands.best_of_n.options import BestOfNOptions
    from prudent.data.pools import Pool
    from prudent.policies.best_of_n import Pick


GLOSSARY = {
    "best of n": "of n sampled responses to a prompt, the one with the highest reward",
    "KL": "how far this policy moves from the one sampled from, in nats: ln n - (n - 1) / n",
    "gold": "the true reward, where the pool gives it",
    "margin": "reward of the picked response minus that of the next one; 0 is a tie",
    "centred": "a member's score minus its mean over the prompt's responses: its own offset means nothing",
    "standard deviation": "over members (sample, ddof = 1) of the centred score of the picked response",
}


def page(pool: Pool, found: list[Pick], summary: dict[str, Any], rule: str) -> Report:
    """The page: what is picked and by what rule, what other rules pick, gold where known, the most disputed picks."""
    report = Report(f"Best of n by {rule}", f"{len(pool)} prompts, {summary['members']} members")
    report.verdict(answer(summary, rule), "neutral", "Result")
    least, most = summary["candidates"]["least"], summary["candidates"]["most"]
    report.cards(
        ("responses a prompt", str(most) if least == most else f"{least} to {most}"),
        ("KL, nats", summary["kl_nats"], "from the policy that was sampled"),
        ("ties", summary["ties"], "prompts; the first of the tied is written"),
    )
    if summary["gold"] is not None:
        rows = [{"rule": name, **g.fields("gain")} for name, g in summary["gold"].items() if name != "reference"]
        report.heading("Gold by rule")
        chart = charts.dot_intervals(rows, "rule", "gain", x_title="gold, minus a random response's", reference=0.0)
        report.chart(
            chart,
            "gold",
            f"Mean over prompts, 95 % bootstrap intervals. A random response has {summary['gold']['reference']:.3f}.",
        )
    if said := words(summary["shown"]):
        report.text(f"{said}.")
    report.heading("Picks")
    report.table(
        ["rule", "same pick as " + rule],
        [[name, f"{share:.0%}"] for name, share in summary["agreement"].items() if name != rule],
        "Share of prompts; of tied responses each counts in part.",
    )
    doubtful = sorted(range(len(found)), key=lambda i: -(found[i].deviation or 0.0))[:10]
    report.table(
        ["prompt", "response", "reward", "raw mean", "standard deviation", "margin", "other rules pick"],
        [
            [
                pool.ids[i],
                found[i].index,
                found[i].reward,
                found[i].mean,
                found[i].deviation,
                found[i].margin,
                ", ".join(f"{name} {k}" for name, k in found[i].by_rule.items() if k != found[i].index),
            ]
            for i in doubtful
        ],
        "The ten picks on which members disagree most; responses counted from 0. Reward and standard deviation are of "
        "centred scores.",
    )
    with report.details("The most disputed picks in full"):
        for i in doubtful[:5]:
            report.text(f"**{pool.ids[i]}**: {' '.join(turn['content'] for turn in pool.prompts[i])[:600]}")
            report.code(pool.responses[i][found[i].index])
    report.heading("Terms").glossary(GLOSSARY)
    return report


def answer(summary: dict[str, Any], rule: str) -> str:
    """What was picked, how much other rules differ, and what it gains where gold is known."""
    text = f"Picked by {summary['rule']}, of members centred per prompt."
    others = {name: share for name, share in summary["agreement"].items() if name != rule}
    if others:
        name = min(others, key=lambda other: others[other])
        text += f" Other rules pick the same response for at least {others[name]:.0%} of the prompts ({name})."
    if summary["gold"] is not None:
        gain = summary["gold"][rule]
        text += f" Gold rises by {gain.text} over a random response"
        clear = gain.low is not None and not gain.low <= 0 <= gain.high
        text += "." if clear or gain.low is None else ": not clearly different from 0."
    return text


def show(summary: dict[str, Any], options: BestOfNOptions) -> None:
    """The answer and a line a rule in the terminal."""
    from rich.table import Table

    console = result_console()
    console.print(answer(summary, options.rule), markup=False)
    table = Table(title=f"Best of n: {summary['prompts']} prompts")
    table.add_column("rule")
    table.add_column("same pick", justify="right")
    if summary["gold"]:
        table.add_column("gold, minus a random response's", justify="right")
    for name, share in summary["agreement"].items():
        gold = [summary["gold"][name].text] if summary["gold"] else []
        table.add_row(name, f"{share:.0%}", *gold)
    console.print(table)
    if said := words(summary["shown"]):
        print(said)
    if summary["left_out"]:
        print(f"{summary['left_out']} prompts that can't be scored were left out")
