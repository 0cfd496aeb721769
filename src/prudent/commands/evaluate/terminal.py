"""The evaluation as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prudent.commands.common import result_console
from prudent.commands.evaluate.numbers import NAMES, TITLES, columns, metric_of, shown
from prudent.commands.evaluate.page_comparisons import undecided
from prudent.evaluation.benchmarks.contest import Result, tied_items
from prudent.evaluation.benchmarks.reward_bench import BenchmarkScore
from prudent.reporting.report import p_value

if TYPE_CHECKING:
    from rich.console import Console

NEAREST = 5  # scorers whose difference from the reference the terminal shows, the best ones


def print_table(benchmark: str, results: list[Result], baselines: list[Result], payload: dict[str, Any]) -> None:
    """Results, baselines and comparisons in the terminal."""
    from rich.table import Table

    metrics = columns(benchmark, results)
    console = result_console(40 + 24 * len(metrics))  # one line a scorer
    roomy = console.width >= 30 + 24 * len(metrics)
    table = Table(title=f"{TITLES[benchmark]}: {payload['items']} items")
    table.add_column("scorer", overflow="fold")
    for metric in metrics:
        table.add_column(NAMES.get(metric, metric), justify="right")
    table.add_column("ties", justify="right")
    for result in [*sorted(results, key=lambda r: -(r.headline[1].value or 0)), *baselines]:
        label = result.name + ("" if result.chosen in ("score", "verdict") else f" ({result.chosen})")
        ties = result.pairs.tied if result.pairs else tied_items(result.view)
        found = [metric_of(result, m) for m in metrics]
        cells = [shown(v) if roomy or i == 0 else shown(v).split(" ")[0] for i, v in enumerate(found)]
        table.add_row(label, *cells, str(ties))
    random = payload["baselines"]["random"]
    table.add_row("knows nothing", *(f"{random[m]:.3f}" if m in random else "–" for m in metrics), "")
    console.print(table)
    missing = {r.name: r.view.detail.missing for r in results if isinstance(r.view.detail, BenchmarkScore)}
    for names in dict.fromkeys(tuple(found) for found in missing.values() if found):
        who = [name for name, found in missing.items() if tuple(found) == names]
        whose = "" if len(who) == len(missing) else f" of {', '.join(who)}"
        console.print(f"no items{whose}, so null: {', '.join(names)}", markup=False)
    if payload["comparisons"]:
        print_comparisons(console, payload)


def print_comparisons(console: Console, payload: dict[str, Any]) -> None:
    """Differences from the reference, the best scorers first, and who isn't clearly different from it."""
    reference, found = payload["compared_with"], payload["comparisons"]
    console.print(
        f"Compared with {reference['name']} ({reference['why']}); p: McNemar"
        f"{f', adjusted by Holm over {len(found)} scorers' if len(found) > 1 else ''}",
        markup=False,
    )
    for comparison in found[:NEAREST]:
        row = comparison["rows"][0]
        console.print(
            f"  {reference['name']} - {comparison['b']}: {shown(row.difference)} on {row.n} items ({row.group}), "
            f"p {p_value(row.p_holm)}",
            markup=False,
        )
    if len(found) > NEAREST:
        console.print(f"  {len(found) - NEAREST} more below these: see evaluation.json", markup=False)
    if len(found) > 1:
        console.print(undecided(payload), markup=False)
