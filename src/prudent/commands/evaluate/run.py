"""What the evaluate commands do: read items, score them, read every view, compare, write and print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from prudent.commands.common import say
from prudent.commands.evaluate.options import EvaluateOptions
from prudent.data.files import file_kind
from prudent.errors import PrudentError
from prudent.evaluation.benchmarks.comparisons import compare_with
from prudent.evaluation.benchmarks.contest import RULES, Contestant, Result, judge, length_baselines, of_table
from prudent.evaluation.benchmarks.items import Items, read_items
from prudent.evaluation.benchmarks.reward_bench import BenchmarkScore
from prudent.evaluation.benchmarks.reward_math import RewardMathScore, leave_one_source_out
from prudent.evaluation.benchmarks.score_files import ScoreTable, items_of_scores, read_scores
from prudent.files import hash_file
from prudent.runs import new_run

HUGE = 1e300  # stands for an infinite ratio of deviation to margin


def evaluate(given: EvaluateOptions) -> dict[str, Any]:
    """One evaluate command from its options: what it found, and the run folder if asked."""
    benchmark = given.command.words.split()[-1]
    started = time.perf_counter()
    tables, specs = sort_out(given)
    items = _items_for(benchmark, given, tables)
    contestants = [of_table(table, items, given.on_error) for table in tables]
    contestants = [*_score_models(specs, items, given), *contestants]
    if not contestants:
        raise PrudentError("nothing to evaluate: give --model or --scores")
    contestants = unique_names(contestants, given.model[0] if given.model else None)
    options = _view_options(given)
    results = [judge(contestant, items, options) for contestant in contestants]
    baselines = [judge(baseline, items, options) for baseline in length_baselines(items)]
    payload = describe(benchmark, items, results, baselines, given)
    payload["seconds"] = time.perf_counter() - started
    if given.out is not None:
        write(given.out, benchmark, items, results, baselines, payload, given)
        say(f"wrote {given.out}")
    if not given.as_json:
        from prudent.commands.evaluate.terminal import print_table

        print_table(benchmark, results, baselines, payload)
    return payload


def sort_out(given: EvaluateOptions) -> tuple[list[ScoreTable], list[str]]:
    """(score tables, model specs); ``--against`` may be either."""
    specs, files = list(given.model), list(given.scores)
    for spec in given.against:
        if Path(spec).is_file() and file_kind(Path(spec)) is not None:
            files.append(Path(spec))
        else:
            specs.append(spec)
    tables = [table for file in files for table in read_scores(file, given.only)]
    return tables, specs


def _items_for(benchmark: str, given: EvaluateOptions, tables: list[ScoreTable]) -> Items:
    if given.data is not None:
        names = ("on_error", "columns", "without_prompt")
        reading: dict[str, Any] = {name: getattr(given, name) for name in names if hasattr(given, name)}
        items = read_items(benchmark, given.data, split=given.split, subset=given.subset, **reading)
        if items.left_out:
            say("left out: " + ", ".join(f"{n} {reason}" for reason, n in items.left_out.items()))
        return items
    if not tables:
        raise PrudentError("give the benchmark's file with --data (or --scores that hold a row an item)")
    longest = max(tables, key=lambda table: len(table.rows))
    source = (given.scores or given.against)[0]
    return items_of_scores(longest, benchmark, source, given.subset)


def _score_models(specs: list[str], items: Items, given: EvaluateOptions) -> list[Contestant]:
    if not specs:
        return []
    from prudent.evaluation.benchmarks.scorers import Options, is_reward_model, score_usable

    if given.max_length is not None and not any(map(is_reward_model, specs)):
        raise PrudentError("--max-length is for classifiers as reward models, and --model names none; leave it out")
    named = ("step_tag", "good", "bad", "swap", "ratings", "seed", "dtype", "language_model", "max_length")
    options = Options(beta=given.dpo_beta, **{name: getattr(given, name) for name in named})
    found = []
    for spec in specs:
        say(f"scoring {sum(items.sizes)} responses of {len(items)} items with {spec}")
        found.append(score_usable(spec, items, options, given.on_error))
        for warning in found[-1].warnings:
            say(f"warning: {found[-1].name}: {warning}")
    return found


def unique_names(contestants: list[Contestant], first: str | None) -> list[Contestant]:
    """Names made different by a number, the first model named on the command line first."""
    seen: dict[str, int] = {}
    for contestant in contestants:
        seen[contestant.name] = seen.get(contestant.name, 0) + 1
        if seen[contestant.name] > 1:
            contestant.name = f"{contestant.name} ({seen[contestant.name]})"
    return sorted(contestants, key=lambda c: c.name != first)


def _view_options(given: EvaluateOptions) -> dict[str, Any]:
    rule = given.rule
    from prudent.rewards.aggregation import RULES as KNOWN

    if rule not in KNOWN or rule in ("member",):
        raise PrudentError(f"rule is {rule!r}; known: {', '.join(name for name in KNOWN if name != 'member')}")
    return {
        "rule": rule,
        "rules": list(dict.fromkeys([*RULES, rule])),
        "reduction": given.reduction,
        "weights": getattr(given, "weights", "counts"),
        "prior": getattr(given, "prior", False),
        "rounds": given.rounds,
        "seed": given.seed,
    }


def describe(
    benchmark: str, items: Items, results: list[Result], baselines: list[Result], given: EvaluateOptions
) -> dict[str, Any]:
    """The JSON object: every number with its interval, counts of what was left out, and the rules in words."""
    reference, why = reference_of(results, given)
    others = sorted((r for r in results if r is not reference), key=lambda r: -(r.headline[1].value or 0.0))
    payload: dict[str, Any] = {
        "benchmark": benchmark,
        "data": given.data or items.source,
        "items": len(items),
        "left_out": items.left_out,
        "seed": given.seed,
        "models": [_of_result(result) for result in results],
        "baselines": {"random": random_baseline(benchmark, items)}
        | {base.name: base.view.metrics for base in baselines},
        "compared_with": {"name": reference.name, "why": why},
        "comparisons": compare_with(reference, others, benchmark != "rewardmath", given.rounds, given.seed),
        "rules": WORDS,
    }
    if getattr(given, "leave_out", False):
        payload["leave_one_source_out"] = left_out_sources(results)
    return payload


def reference_of(results: list[Result], given: EvaluateOptions) -> tuple[Result, str]:
    """The scorer that the others are compared with, and why: the one asked about, or else the best."""
    if given.model or given.against or len(results) < 3:
        return results[0], "named first"
    best = max(results, key=lambda result: -1.0 if result.headline[1].value is None else result.headline[1].value)
    return best, f"highest {best.headline[0]}"


WORDS = {
    "headline": "a tie never counts as right; 'ties half' counts it as half right",
    "interval": "95 %: Wilson for proportions (on effective items where items share a prompt), else bootstrap (within "
    "subsets, whole prompts drawn where items share one)",
    "p": "exact McNemar on strict correctness; p_holm adjusted by Holm over the scorers compared (all items) or over "
    "the subsets",
    "members": "members are centred per item before rules that compare them; sigma is the sample deviation (ddof=1)",
}


def _of_result(result: Result) -> dict[str, Any]:
    view = result.view
    found: dict[str, Any] = {
        "name": result.name,
        "kind": result.kind,
        "items": len(result.items),
        "view": result.chosen,
        "headline": dict(zip(("metric", "estimate"), result.headline)),
        "views": {name: other.metrics for name, other in result.views.items()},
        "warnings": result.warnings,
        "shown": result.shown,
        "notes": result.notes,
    }
    detail = view.detail
    if isinstance(detail, BenchmarkScore):
        found |= {"subsets": detail.rows, "ties": detail.ties, "missing": detail.missing}
        found["notes"] = [*result.notes, *detail.notes]
    elif isinstance(detail, RewardMathScore):
        found["tied_problems"] = detail.tied_problems
        found["random"] = {"accuracy": detail.random_accuracy, "mrr": detail.random_mrr}
    else:
        counts = ("right", "wrong", "tie", "invalid", "tied")
        found["counts"] = {name: getattr(detail, name) for name in counts if hasattr(detail, name)}
    if result.pairs is not None:
        named = ("right", "tied", "wrong", "log_loss", "calibration")
        found["pairs"] = {name: getattr(result.pairs, name) for name in named}
    if result.reductions is not None:
        choice = result.reductions
        found["reduction"] = {
            "best": choice.best,
            "runner_up": choice.runner_up,
            "share_of_resamples_best": choice.share,
            "p_against_runner_up": choice.clear,
        }
    if result.disagreement:
        found["disagreement"] = [
            {
                "measure": d.measure,
                "auroc": d.auroc,
                "errors": d.errors,
                "gain": d.risk.gain,
                "area": d.risk.area,
                "area_best": d.risk.best,
                "area_random": d.risk.random,
                "accuracy_by_fifth": d.bins,
                "curve": thinned(d.risk.coverage, d.risk.risk),
            }
            for d in result.disagreement
        ]
    return found


def thinned(coverage: Any, risk: Any, points: int = 100) -> list[dict[str, float]]:
    """At most ``points`` points of a risk-coverage curve, evenly spaced, the last one always there."""
    keep = np.unique(np.linspace(0, len(coverage) - 1, min(points, len(coverage))).round().astype(int))
    return [{"coverage": float(coverage[i]), "risk": float(risk[i])} for i in keep]


def random_baseline(benchmark: str, items: Items) -> dict[str, float]:
    """What a scorer that knows nothing gets in expectation."""
    sizes = np.array(items.sizes)
    right = np.array(items.correct)
    if benchmark != "rewardmath":
        names = ("micro", "accuracy", "accuracy, ties half") if benchmark == "preferences" else ("micro",)
        return dict.fromkeys(names, float((right / sizes).mean()))
    return {
        "accuracy": float((1 / sizes).mean()),
        "mrr": float(np.mean([(1 / np.arange(1, size + 1)).mean() for size in sizes])),
    }


def left_out_sources(results: list[Result]) -> dict[str, Any]:
    """RewardMATH without each source model's solutions, for every contestant that has scores."""
    found: dict[str, Any] = {}
    for result in results:
        if result.scores is None or not any(name for row in result.items.sources for name in row):
            continue
        parts = np.split(result.scores, np.cumsum(result.items.sizes)[:-1])
        left = leave_one_source_out(parts, result.items.sources)
        found[result.name] = {
            source: {"problems": score.n, "accuracy": score.estimates["accuracy"], "mrr": score.estimates["mrr"]}
            for source, score in left.items()
        }
    return found


def per_item(items: Items, results: list[Result]) -> list[dict[str, Any]]:
    """A row an item: id, subset, and for every contestant its credit, headline scores and members' disagreement."""
    rows: list[dict[str, Any]] = [
        {"id": key, "subset": subset, "models": {}} for key, subset in zip(items.ids, items.subsets)
    ]
    for result in results:
        parts = (
            [None] * len(result.items)
            if result.scores is None
            else np.split(result.scores, np.cumsum(result.items.sizes)[:-1])
        )
        for number, (index, part) in enumerate(zip(result.indices, parts)):
            entry: dict[str, Any] = {"credit": float(result.view.credit[number])}
            if part is not None:
                entry["scores"] = part
            for name, values in result.uncertainty.items():
                if name != "small margin":
                    entry[name] = None if values[number] >= HUGE else float(values[number])
            rows[index]["models"][result.name] = entry
    return rows


def write(
    out: Path,
    benchmark: str,
    items: Items,
    results: list[Result],
    baselines: list[Result],
    payload: dict[str, Any],
    given: EvaluateOptions,
) -> None:
    """Write the run folder: JSON, items, metrics and report."""
    from prudent.commands.evaluate.page import report

    with new_run(out, f"evaluate {benchmark}", given.chosen(), given.seed, given.overwrite) as run:
        files = [given.data, *given.scores, *given.against]
        run.manifest["hashes"] |= {str(file): hash_file(file) for file in files if file and Path(file).is_file()}
        run.write_json("evaluation.json", payload)
        run.write_jsonl("items.jsonl", per_item(items, results))
        rows = [
            (result.name, name, metric, value)
            for result in [*results, *baselines]
            for name, view in result.views.items()
            for metric, value in view.metrics.items()
        ]
        table: dict[str, list[Any]] = {
            name: [row[i] for row in rows] for i, name in enumerate(("model", "view", "metric"))
        }
        table |= {name: [getattr(row[3], name) for row in rows] for name in ("value", "low", "high", "n")}
        run.write_table("metrics.parquet", table)
        report(benchmark, items, results, baselines, payload).write(run)
