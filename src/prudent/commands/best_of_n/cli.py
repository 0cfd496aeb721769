"""``prudent best-of-n``: pick each prompt's best candidate, see how sure the pick is and how it changes by rule."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    guarded,
    print_json,
    result_console,
    say,
)

if TYPE_CHECKING:
    import torch

    from prudent.data.pools import Pool
    from prudent.policies.best_of_n import Pick

EPILOG = "Example: prudent best-of-n --pool pool.jsonl --model runs/rm --rule lcb --out runs/picks"


def register(app: typer.Typer) -> None:
    app.command(name="best-of-n", epilog=EPILOG)(best_of_n)


@guarded
def best_of_n(
    pool: Annotated[
        Path, typer.Option(help="Pool: prompt and responses a row, gold where known; or solutions with is_correct.")
    ],
    model: Annotated[str, typer.Option(help="Reward model: folder that prudent fit wrote, or a hub id.")],
    out: OutOption,
    rule: Annotated[str, typer.Option(help="Rule over members: mean, min, lcb, uwo, median, cvar, entropic.")] = "lcb",
    n: Annotated[int | None, typer.Option(min=1, help="Use the first n candidates of each prompt only.")] = None,
    coefficient: Annotated[float | None, typer.Option(help="Coefficient of lcb, uwo or entropic.")] = None,
    language_model: Annotated[str | None, typer.Option(help="Language model in place of the folder's own.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of the language model: float32, bfloat16.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Best of n: every prompt's picked response, its score's mean and deviation, and what other rules pick."""
    from prudent.errors import PrudentError
    from prudent.evaluation.overoptimization.worlds import read_candidates
    from prudent.policies.best_of_n import picks
    from prudent.rewards.model import RewardModel
    from prudent.runs import hash_file, new_run, refuse_used

    refuse_used(out, overwrite)
    given = read_candidates(pool)
    if n is not None:
        given = first_candidates(given, n)
    owners, texts, _ = given.flat()
    reward_model = RewardModel.load(model, model=language_model, dtype=dtype)
    say(f"scoring {len(texts)} candidates of {len(given)} prompts with {reward_model.members} members")
    scores = reward_model.score(owners, texts)
    if rule in ("lcb", "uwo") and len(scores) < 2:
        raise PrudentError(f"rule {rule!r} needs at least two members and {model} has one; choose --rule mean")
    options = {} if coefficient is None else {"coefficient": coefficient}
    found = picks(scores, [len(r) for r in given.responses], rule, options=options)
    summary = summarise(given, found, scores, rule, seed)
    with new_run(
        out, "best-of-n", {"pool": str(pool), "model": model, "rule": rule, "n": n, **options}, seed, overwrite
    ) as run:
        run.manifest["hashes"]["pool"] = hash_file(pool)
        run.write_jsonl("picks.jsonl", rows_of(given, found, rule))
        run.write_json("best_of_n.json", summary)
        page(given, found, summary, rule).write(run)
    say(f"wrote {out}")
    if as_json:
        print_json(summary)
    else:
        show(summary)


def first_candidates(pool: Pool, n: int) -> Pool:
    """The pool with at most n candidates a prompt; PrudentError where a prompt has fewer."""
    from prudent.data.pools import Pool
    from prudent.errors import PrudentError

    short = [place for place, texts in enumerate(pool.responses) if len(texts) < n]
    if short:
        raise PrudentError(
            f"prompt {pool.ids[short[0]]!r} has only {len(pool.responses[short[0]])} responses, fewer than --n {n} "
            f"({len(short)} such prompts)"
        )
    gold = None if pool.gold is None else [values[:n] for values in pool.gold]
    return Pool(pool.prompts, [texts[:n] for texts in pool.responses], gold, pool.ids)


def rows_of(pool: Pool, found: list[Pick], rule: str) -> list[dict[str, Any]]:
    rows = []
    for place, (key, prompt, texts, chosen) in enumerate(zip(pool.ids, pool.prompts, pool.responses, found)):
        row = {
            "id": key,
            "prompt": prompt,
            "response": texts[chosen.index],
            "index": chosen.index,
            "rule": rule,
            "reward": chosen.reward,
            "mean": chosen.mean,
            "deviation": chosen.deviation,
            "margin": chosen.margin,
            "picks_by_rule": chosen.by_rule,
        }
        if pool.gold is not None:
            row["gold"] = pool.gold[place][chosen.index]
        rows.append(row)
    return rows


def summarise(pool: Pool, found: list[Pick], scores: torch.Tensor, rule: str, seed: int) -> dict[str, Any]:
    """Counts, how often rules agree with the pick, KL, and gold by rule where it is known (mean over tied picks)."""
    from prudent.evaluation.intervals import bootstrap
    from prudent.evaluation.overoptimization.fits import kl_best_of_n
    from prudent.evaluation.ties import same_choice
    from prudent.rewards.aggregation import describe

    rules = list(found[0].by_rule)
    sizes = [len(texts) for texts in pool.responses]
    summary: dict[str, Any] = {
        "prompts": len(pool),
        "members": len(scores),
        "rule": describe(rule),
        "candidates": {"least": min(sizes), "most": max(sizes)},
        "kl_nats": sum(map(kl_best_of_n, sizes)) / len(sizes),
        "agreement": {
            name: sum(same_choice(p.best.numpy(), p.best_by_rule[name].numpy()) for p in found) / len(found)
            for name in rules
        },
        "ties": sum(p.margin == 0 and size > 1 for p, size in zip(found, sizes)),
        "gold": None,
    }
    if pool.gold is not None:
        reference = [sum(values) / len(values) for values in pool.gold]
        ways = {rule: [p.best for p in found]} | {name: [p.best_by_rule[name] for p in found] for name in rules}
        summary["gold"] = {"reference": sum(reference) / len(reference)} | {
            name: bootstrap(
                [
                    sum(itertools.compress(values, best.tolist())) / int(best.sum()) - base
                    for values, best, base in zip(pool.gold, chosen, reference)
                ],
                seed=seed,
            )
            for name, chosen in ways.items()
        }
    return summary


def page(pool: Pool, found: list[Pick], summary: dict[str, Any], rule: str) -> Any:
    from prudent.reporting import charts
    from prudent.reporting.report import Report

    report = Report(f"Best of n by {rule}", f"{len(pool)} prompts, {summary['members']} members")
    others = {name: share for name, share in summary["agreement"].items() if name != rule}
    least = min(others, key=lambda name: others[name]) if others else None
    text = f"The rule is {summary['rule']}. KL from the reference: {summary['kl_nats']:.2f} nats (analytic)."
    if least is not None:
        text += f" Other rules pick the same candidate for {others[least]:.0%} ({least}) of prompts or more."
    report.verdict(text, "neutral", "Result")
    if summary["gold"] is not None:
        rows = [
            {"rule": name, "gain": g.value, "low": g.low, "high": g.high}
            for name, g in summary["gold"].items()
            if name != "reference"
        ]
        report.heading("Gold by rule")
        report.chart(
            charts.dot_intervals(
                rows, "rule", "gain", "low", "high", x_title="gold, from a random candidate", reference=0.0
            ),
            "gold",
            f"Mean gain over a random candidate ({summary['gold']['reference']:.3f}), bootstrap over prompts.",
        )
    report.heading("Picks")
    wins = Counter(p.index for p in found)
    report.text(
        f"Picked places among the candidates: {len(wins)} different ones; {summary['ties']} ties (the first "
        "is written; gold and agreement are means over the tied)."
    )
    doubtful = sorted(range(len(found)), key=lambda i: -(found[i].deviation or 0.0))[:10]
    report.table(
        ["prompt", "pick", "reward", "mean", "deviation", "margin", "other picks"],
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
        "The ten picks on which members disagree most.",
    )
    with report.details("The most disputed picks in full"):
        for i in doubtful[:5]:
            report.text(f"**{pool.ids[i]}**: {' '.join(turn['content'] for turn in pool.prompts[i])[:600]}")
            report.code(pool.responses[i][found[i].index])
    return report


def show(summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"Best of n: {summary['prompts']} prompts, {summary['rule']}")
    table.add_column("rule")
    table.add_column("same pick", justify="right")
    table.add_column("gold, from a random candidate", justify="right")
    for name, share in summary["agreement"].items():
        gold = summary["gold"][name].text if summary["gold"] else "–"
        table.add_row(name, f"{share:.0%}", gold)
    result_console().print(table)
