"""Scorers on a benchmark: each one's views (members, mean, rules, step reductions), ties, disagreement, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from prudent.errors import PrudentError, RowsError
from prudent.evaluation.benchmarks.items import Items
from prudent.evaluation.benchmarks.judges import JudgeScore, credit, judge_score
from prudent.evaluation.benchmarks.pair_metrics import Disagreement, PairScore, disagreement, grid_warnings, pair_score
from prudent.evaluation.benchmarks.reward_bench import BenchmarkScore, credit_of, rewardbench, rewardbench2
from prudent.evaluation.benchmarks.reward_math import (
    REDUCTIONS,
    ReductionChoice,
    RewardMathScore,
    compare_reductions,
    reduce_steps,
    rewardmath,
    rewardmath_pairwise,
)
from prudent.evaluation.benchmarks.score_files import ScoreTable, match
from prudent.evaluation.benchmarks.ties_domain import tie_statistics
from prudent.evaluation.intervals import Estimate, proportion
from prudent.evaluation.ties import same_choice
from prudent.seeding import Seed

RULES = ("mean", "median", "min", "lcb", "uwo", "cvar", "entropic")  # of those that need no number from the user


@dataclass
class Contestant:
    """Scores of some items. kind: "scores" | "members" (values (K, N) over the items' candidates in order), "steps"
    (a list of step scores a candidate) or "judge" (a list of outcomes an item). indices: which items are scored. shown:
    what its model's length limit and template did to the texts (``features.limits``), where they are known."""

    name: str
    kind: str
    indices: list[int]
    values: Any
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shown: dict[str, Any] | None = None


@dataclass
class View:
    """One way to read a contestant. metrics: estimates by name. credit: (items,) strict credits, for paired tests."""

    name: str
    metrics: dict[str, Estimate]
    credit: torch.Tensor
    detail: BenchmarkScore | RewardMathScore | PairScore | JudgeScore


@dataclass
class Result:
    """A contestant's results. views: by name. chosen: the headline view. scores: its flat scores (None for a judge).
    shown: as of its ``Contestant``."""

    name: str
    kind: str
    items: Items
    indices: list[int]
    views: dict[str, View]
    chosen: str
    notes: list[str]
    shown: dict[str, Any] | None = None
    scores: np.ndarray | None = None
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)
    disagreement: list[Disagreement] = field(default_factory=list)
    pairs: PairScore | None = None
    reductions: ReductionChoice | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def view(self) -> View:
        """The view that the scorer is judged by."""
        return self.views[self.chosen]

    @property
    def headline(self) -> tuple[str, Estimate]:
        """(name, estimate) of the metric that the scorer is judged by."""
        return headline(self.view.metrics)


def headline(metrics: dict[str, Estimate]) -> tuple[str, Estimate]:
    """The number that stands for a view: overall where it exists, else the first one that does."""
    for name in ("overall", "accuracy", "micro"):
        if name in metrics and metrics[name].value is not None:
            return name, metrics[name]
    return next(iter(metrics.items()))


def of_table(table: ScoreTable, items: Items, on_error: str = "raise") -> Contestant:
    """A contestant from a scores file, matched to the items."""
    indices, values = match(table, items, on_error)
    left = len(items) - len(indices)
    notes = [f"{left} of {len(items)} items left out for want of usable scores"] if left else []
    if table.kind == "judge":
        return Contestant(table.name, "judge", indices, values, notes)
    flat = [candidate for row in values for candidate in row]
    if table.kind == "steps":
        return Contestant(table.name, "steps", indices, flat, notes)
    matrix = np.asarray(flat, dtype=np.float64)
    return Contestant(table.name, table.kind, indices, matrix[None] if matrix.ndim == 1 else matrix.T, notes)


def of_scores(name: str, scores: Any, items: Items) -> Contestant:
    """A contestant from a (N,) or (K, N) array over all items' candidates, item by item; not finite names the item."""
    try:
        values = torch.as_tensor(scores).double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PrudentError(f"{name} gave {type(scores).__name__} that is no array of numbers: {error}") from error
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != sum(items.sizes):
        raise PrudentError(f"{name} gave scores of shape {values.shape} for {sum(items.sizes)} responses")
    owners = items.owners()
    faults = np.argwhere(~np.isfinite(values))
    bad = {owners[index]: f"{name} gave it {values[member, index]}" for member, index in faults}
    if bad:
        raise RowsError(bad)
    return Contestant(name, "members" if len(values) > 1 else "scores", list(range(len(items))), values)


def clusters_of(items: Items) -> list[str] | None:
    """Labels of items that share a prompt, or None where none do (or no prompt is known)."""
    keys = [repr(prompt) for prompt in items.prompts]
    return keys if len(set(keys)) < len(keys) and items.has_text else None


def flat_views(contestant: Contestant, sizes: Sequence[int], rules: Sequence[str]) -> dict[str, np.ndarray]:
    """Flat scores of every view. Members are centred per item before rules that compare members."""
    if contestant.kind == "steps":
        return {how: step_scores(contestant.values, sizes, how) for how in REDUCTIONS}
    if contestant.kind == "scores":
        return {"score": contestant.values[0]}
    from prudent.rewards.aggregation import RULES as KNOWN
    from prudent.rewards.aggregation import aggregate
    from prudent.rewards.uncertainty import centre

    raw = torch.from_numpy(contestant.values)
    centred = centre(raw, torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes))))
    views = {rule: aggregate(centred, rule).numpy() for rule in rules if KNOWN[rule].members <= len(raw)}
    return views | {f"member {k}": row.numpy() for k, row in enumerate(raw)}


def step_scores(steps: list[Any], sizes: Sequence[int], how: str) -> np.ndarray:
    """Flat scores by one reduction (prod as its logarithm), NaN for all candidates of an item that has one without."""
    values = reduce_steps(steps, how, "candidate", undefined="nan", log=True).numpy()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(np.isin(owner, owner[np.isnan(values)]), np.nan, values)


def split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Values (..., candidates of all items) cut into items of these sizes."""
    return np.split(values, np.cumsum(sizes)[:-1])


def pairs_of(values: np.ndarray, items: Items) -> tuple[np.ndarray, np.ndarray]:
    """(chosen, rejected) scores of pair items."""
    wide = [i for i, size in enumerate(items.sizes) if size != 2]
    if wide:
        raise PrudentError(
            f"item {items.ids[wide[0]]!r} has {items.sizes[wide[0]]} candidates; this benchmark has pairs"
        )
    return values[0::2], values[1::2]


def _bench_metrics(score: BenchmarkScore) -> dict[str, Estimate]:
    rows = {row.name: row.accuracy for row in score.rows if row.n}
    sections = {name: value for name, value in score.estimates.items() if name not in ("overall", "micro", "macro")}
    totals = {name: score.estimates[name] for name in ("overall", "micro", "macro") if name in score.estimates}
    return totals | sections | rows


def judge_view(name: str, items: Items, outcomes: list[list[str]], rounds: int, seed: Seed) -> View:
    """View of a judge's outcomes: invalid counts half in RewardBench (its convention), as wrong elsewhere."""
    if items.benchmark == "rewardmath":
        points = {"right": 1.0, "tie": 0.5, "wrong": 0.0, "invalid": 0.0}
        score = rewardmath_pairwise([[points[o] for o in row] for row in outcomes], rounds=rounds, seed=seed)
        return View(name, dict(score.estimates), score.correct, score)
    flat = [row[0] for row in outcomes]
    rule = "rewardbench" if items.benchmark == "rewardbench" else "invalid_wrong"
    credits = credit(flat, rule)
    counts = judge_score(flat)
    metrics = {f"accuracy, {key}": value for key, value in counts.accuracy.items()}
    if items.benchmark == "rewardbench":
        bench = rewardbench(credits, items.subsets, clusters=clusters_of(items), rounds=rounds, seed=seed)
        metrics = _bench_metrics(bench) | metrics
    else:
        whole = "micro" if items.benchmark == "rewardbench2" else "accuracy"
        metrics = {whole: proportion(credits, clusters=clusters_of(items))} | metrics | by_subset(credits, items)
    return View(name, metrics, credits, counts)


def score_view(name: str, items: Items, flat: np.ndarray, options: dict[str, Any]) -> View:
    """View of flat scores on the items' benchmark."""
    rounds, seed = options["rounds"], options["seed"]
    if items.benchmark == "rewardmath":
        score = rewardmath(split(flat, items.sizes), on_nan="error", rounds=rounds, seed=seed)
        return View(name, dict(score.estimates), score.correct, score)
    if items.benchmark == "rewardbench2":
        parts = split(flat, items.sizes)
        bench = rewardbench2(parts, items.subsets, correct=items.correct, ids=items.ids, rounds=rounds, seed=seed)
        shared = [
            tie_statistics(x, c)[0] if s == "Ties" else (x[:c] == x.max()).sum() / (x == x.max()).sum()
            for x, c, s in zip(parts, items.correct, items.subsets)
        ]
        return View(name, _bench_metrics(bench), torch.tensor(shared, dtype=torch.float64), bench)
    half = credit_of(*pairs_of(flat, items))
    strict = (half == 1).double()
    clusters = clusters_of(items)
    if items.benchmark == "rewardbench":
        how = {name: options[name] for name in ("weights", "prior", "rounds", "seed")}
        bench, ties = (rewardbench(points, items.subsets, clusters=clusters, **how) for points in (strict, half))
        metrics = _bench_metrics(bench)
        metrics["overall, ties half"] = ties.estimates["overall"]
        metrics["micro, ties half"] = proportion(half, clusters=clusters)
        return View(name, metrics, strict, bench)
    kinds = {"accuracy": strict, "accuracy, ties half": half}
    metrics = {kind: proportion(x, clusters=clusters) for kind, x in kinds.items()} | by_subset(strict, items)
    return View(name, metrics, strict, pair_score(*pairs_of(flat, items), rounds=min(rounds, 50), seed=seed))


def by_subset(credits: torch.Tensor, items: Items) -> dict[str, Estimate]:
    """Accuracy of each subset where there are several."""
    names, clusters = np.asarray(items.subsets), clusters_of(items)
    found = {}
    for subset in dict.fromkeys(items.subsets) if len(set(items.subsets)) > 1 else ():
        mine = names == subset
        labels = None if clusters is None else np.asarray(clusters)[mine]
        found[subset] = proportion(credits[torch.from_numpy(mine)], clusters=labels)
    return found


def member_uncertainty(members: np.ndarray, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """How far members disagree on each item, none of it using the label.

    deviation: sample standard deviation (ddof=1) over members of the margin between the mean's best and second-best
    candidate (free of members' offsets). deviation / |margin|: that, relative to the mean margin. votes: share of
    members whose best candidate is another. small margin: minus the mean margin, which needs no ensemble. Where
    candidates tie for a place, each is the mean over them.
    """
    result: dict[str, list[float]] = {"deviation": [], "deviation / |margin|": [], "votes": [], "small margin": []}
    start = 0
    for size in sizes:
        part = members[:, start : start + size]
        start += size
        mean = part.mean(0)
        best = mean == mean.max()
        second = best if best.sum() > 1 else mean == mean[~best].max()
        margins = [part[:, a] - part[:, b] for a in np.flatnonzero(best) for b in np.flatnonzero(second) if a != b]
        deviation = float(np.mean([values.std(ddof=1) for values in margins]))
        margin = 0.0 if second is best else float(margins[0].mean())
        result["deviation"].append(deviation)
        result["deviation / |margin|"].append(deviation / margin if margin > 0 else np.finfo(np.float64).max)
        result["votes"].append(1 - float(np.mean([same_choice(row == row.max(), best) for row in part])))
        result["small margin"].append(-margin)
    return {name: np.array(values) for name, values in result.items()}


def judge(contestant: Contestant, items: Items, options: dict[str, Any]) -> Result:
    """Result of a contestant on the items it scored. options: rule, reduction, rules, weights, prior, rounds, seed."""
    mine = items if len(contestant.indices) == len(items) else items.chosen(contestant.indices)
    common = {name: getattr(contestant, name) for name in ("name", "kind", "indices", "shown")}
    common |= {"items": mine, "notes": list(contestant.notes)}
    if contestant.kind == "judge":
        view = judge_view("verdict", mine, contestant.values, options["rounds"], options["seed"])
        return Result(**common, views={"verdict": view}, chosen="verdict", warnings=list(contestant.warnings))
    flat = flat_views(contestant, mine.sizes, options["rules"])
    views = {}
    for name, values in flat.items():
        there = np.flatnonzero(~np.isnan([part[0] for part in split(values, mine.sizes)]))
        some = mine if len(there) == len(mine) else mine.chosen(there)
        views[name] = score_view(name, some, values[~np.isnan(values)], options)
        if len(there) < len(mine):
            common["notes"].append(f"{name} has no value, so null, for {len(mine) - len(there)} of {len(mine)} items")
    chosen, reductions = choose(contestant, mine, views, options, common["notes"])
    there = np.flatnonzero(~np.isnan([part[0] for part in split(flat[chosen], mine.sizes)]))
    if not len(there):
        raise PrudentError(f"{chosen} has no value for any item of {contestant.name}; choose another --reduction")
    if len(there) < len(mine):  # of what the headline view has no value for, nothing is reported
        mine = mine.chosen(there)
        flat[chosen] = flat[chosen][~np.isnan(flat[chosen])]
        common |= {"items": mine, "indices": [contestant.indices[index] for index in there]}
    uncertainty: dict[str, np.ndarray] = {}
    found: list[Disagreement] = []
    if contestant.kind == "members":
        uncertainty = member_uncertainty(contestant.values, mine.sizes)
        clusters = clusters_of(mine)
        found = [disagreement(u, views[chosen].credit, name, clusters=clusters) for name, u in uncertainty.items()]
    pairs = None
    if len(mine) and all(size == 2 for size in mine.sizes):
        pairs = pair_score(*pairs_of(flat[chosen], mine), rounds=options["rounds"], seed=options["seed"])
    steps = contestant.kind == "steps"
    raw = np.concatenate([np.asarray(s) for s in contestant.values]) if steps else contestant.values
    warnings = [*contestant.warnings, *grid_warnings(raw, tied_items(views[chosen]), len(mine))]
    common |= {"views": views, "chosen": chosen, "scores": flat[chosen], "uncertainty": uncertainty}
    return Result(**common, disagreement=found, pairs=pairs, reductions=reductions, warnings=warnings)


def tied_items(view: View) -> int:
    """How many items have a tie for the first place."""
    detail = view.detail
    if isinstance(detail, RewardMathScore):
        return detail.tied_problems
    if isinstance(detail, PairScore):
        return detail.tied
    if isinstance(detail, JudgeScore):
        return detail.tie
    fractional = int(((view.credit > 0) & (view.credit < 1)).sum())
    ties = view.metrics.get("micro, ties half"), view.metrics.get("micro")
    if ties[0] is None or ties[0].value is None or ties[1] is None or ties[1].value is None:
        return fractional
    return round(2 * (ties[0].value - ties[1].value) * ties[0].n)


def choose(
    contestant: Contestant, items: Items, views: dict[str, View], options: dict[str, Any], notes: list[str]
) -> tuple[str, ReductionChoice | None]:
    """(headline view, comparison of step reductions where there are steps)."""
    if contestant.kind == "scores":
        return "score", None
    if contestant.kind == "members":
        rule = options["rule"]
        if rule not in views:
            raise PrudentError(f"rule {rule!r} is not among the views of {contestant.name}: {', '.join(views)}")
        return rule, None
    lengths = np.cumsum([0, *items.sizes])
    steps = [contestant.values[a:b] for a, b in pairwise(lengths)]
    several = any(count != 1 for count in items.correct)
    found = None if several else compare_reductions(steps, rounds=options["rounds"], seed=options["seed"])
    wanted = options.get("reduction")
    if wanted is None:
        wanted, how = "min", "the default"
        if found:
            wanted, share = found.best, found.share[found.best]
            how = f"best MRR of {len(REDUCTIONS)} on these very items; best in {share:.0%} of resamples"
        notes.append(f"step reduction {wanted} ({how}); fix one with --reduction")
    if wanted not in views:
        raise PrudentError(f"reduction is {wanted!r}, expected one of {', '.join(REDUCTIONS)}")
    if wanted == "prod":
        notes.append("scores of prod are logarithms of the product")
    return wanted, found


def length_baselines(items: Items) -> list[Contestant]:
    """Scorers that see lengths alone (characters of the answer): the longest wins, the shortest wins."""
    if not items.has_text:
        return []
    answers = items.flat()[1]
    lengths = np.array([float(len(c) if isinstance(c, str) else sum(len(t["content"]) for t in c)) for c in answers])
    return [of_scores("longest answer", lengths, items), of_scores("shortest answer", -lengths, items)]
