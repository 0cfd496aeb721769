"""RewardBench 1 (arXiv 2403.13787) and RewardBench 2 (arXiv 2506.01937) from plain arrays: no model code here.

Counts and weights are data, in ``data/reward_bench.json``. Every table keeps what is needed to recompute its totals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike
from prudent.errors import PrudentError
from prudent.evaluation.benchmarks.ties_domain import TiesScore, published, split_ties, ties_draws, ties_score
from prudent.evaluation.intervals import Estimate, array, proportion, quantiles, wilson
from prudent.evaluation.resampling import resampled_means
from prudent.rewards.accuracy import credit
from prudent.seeding import Seed, spawn

ROUNDS = 1000


@dataclass(frozen=True)
class SubsetRow:
    """A line of the table: accuracy with its interval, n scored, published items, ties (half credits), weight."""

    name: str
    section: str
    accuracy: Estimate
    n: int
    published: int | None
    ties: int
    weight: float


@dataclass(frozen=True)
class BenchmarkScore:
    """subsets, sections: name -> score; None for a subset without items and a section without all its subsets. overall:
    None without all sections.

    rows: a line a subset, enough to recompute every total. estimates: intervals of sections, overall, micro (mean over
    items) and macro (mean over subsets); what is known of an incomplete section stands under a name that says so, such
    as "Safety, 4 of 5 subsets". missing: published subsets without items. notes: what a reader must know.
    """

    benchmark: str
    subsets: dict[str, float | None]
    sections: dict[str, float | None]
    overall: float | None
    rows: list[SubsetRow]
    estimates: dict[str, Estimate]
    missing: list[str]
    notes: list[str]
    ties: TiesScore | None = None


def credits(correct: ArrayLike, subsets: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Credits of the items as an array, each within [0, 1] and of a known subset, or PrudentError naming the item."""
    values = array(correct, "correct")
    names = list(subsets)
    if len(names) != len(values):
        raise PrudentError(f"correct has {len(values)} items, subsets {len(names)}")
    outside = np.flatnonzero((values < 0) | (values > 1))
    if len(outside):
        raise PrudentError(
            f"correct is {values[outside[0]]} at item {outside[0]}; expected 0, 1, or 0.5 for a tie (not a score)"
        )
    unknown = {name: names.index(name) for name in dict.fromkeys(names) if name not in set(known)}
    if unknown:
        name, item = next(iter(unknown.items()))
        raise PrudentError(
            f"unknown subset {name!r} at item {item}"
            + (f" and {len(unknown) - 1} more ({', '.join(list(unknown)[1:6])})" if len(unknown) > 1 else "")
            + f"; known: {', '.join(known)}"
        )
    return values


def subset_draws(
    values: np.ndarray, names: np.ndarray, clusters: Any, rounds: int, seed: Seed
) -> dict[str, np.ndarray]:
    """Bootstrap means of every subset, resampled on its own (subsets are fixed strata): name -> (rounds,)."""
    labels = None if clusters is None else np.asarray(clusters)
    present = [str(name) for name in np.unique(names)]
    draws = {}
    for name, child in zip(present, spawn(seed, len(present))):
        chosen = names == name
        own = None if labels is None else labels[chosen]
        draws[name] = resampled_means(values[chosen][:, None], rounds, child, own)[:, 0]
    return draws


def weighted(parts: dict[str, Any], weights: dict[str, float]) -> Any:
    """Weighted mean of the parts that are there (numbers or arrays of draws); None when none is."""
    there = [name for name in weights if parts.get(name) is not None]
    total = sum(weights[name] for name in there)
    return sum(parts[name] * weights[name] for name in there) / total if there else None


def estimate(
    value: float | None, draws: Any, n: int, method: str, reason: str | None = None, units: float = 0
) -> Estimate:
    """A number with the 95 % interval of its bootstrap ``draws`` (none where they are None).

    units: the effective number of independent items of the value; where every draw is the same (all right, say), the
    interval is Wilson's for so many.
    """
    if value is None:
        return Estimate(None, None, None, n, 0.95, method, reason)
    if units and draws is not None and np.ptp(draws) == 0:
        ends = wilson(min(1.0, float(value)) * units, units)
        return Estimate(float(value), *ends, n, 0.95, f"wilson on an effective {units:.1f} items", reason)
    low, high = (None, None) if draws is None else quantiles(np.asarray(draws), 0.95)
    return Estimate(float(value), low, high, n, 0.95, method, reason)


def units_of(weights: dict[str, float], units: dict[str, int]) -> float:
    """Effective number of items of a weighted mean over subsets: (sum w)^2 / sum w^2 / n (Kish), n items or prompts."""
    there = [name for name in weights if units.get(name)]
    return sum(weights[name] for name in there) ** 2 / sum(weights[name] ** 2 / units[name] for name in there)


def table_rows(
    values: np.ndarray,
    names: np.ndarray,
    sections: dict[str, dict[str, float]],
    items: dict[str, int],
    clusters: np.ndarray | None = None,
) -> list[SubsetRow]:
    """A line a subset from credits (items,) and their subsets' names; clusters: labels of items that share a prompt."""
    rows = []
    for section, weights in sections.items():
        for name, weight in weights.items():
            mine = values[names == name]
            accuracy = proportion(mine, clusters=None if clusters is None else clusters[names == name])
            tied = int(((mine > 0) & (mine < 1)).sum())
            rows.append(SubsetRow(name, section, accuracy, len(mine), items.get(name), tied, weight))
    return rows


def rewardbench(
    correct: ArrayLike,
    subsets: Sequence[str],
    *,
    weights: str = "counts",
    prior: bool = False,
    clusters: Any = None,
    rounds: int = ROUNDS,
    seed: Seed = 0,
) -> BenchmarkScore:
    """RewardBench 1. correct: (items,) credits, 1 right, 0 wrong, 0.5 a tie; subsets: (items,) their names.

    A section is the mean of its subsets weighted by the published counts (math-prm as 984), None while one of them has
    no items; overall is the mean of the four sections, None while one is incomplete. weights: "counts" (the data set
    card's) or "leaderboard" (the released code's, which holds the two XSTest counts the other way round). prior: add
    the prior sets (their plain mean) at half weight. clusters: labels of items that share a prompt. Raises PrudentError
    naming the item for an unknown subset or a credit outside [0, 1].
    """
    if weights not in ("counts", "leaderboard"):
        raise PrudentError(f"weights is {weights!r}, expected 'counts' or 'leaderboard'")
    table = published()["rewardbench"]
    chosen = "weight" if weights == "counts" else "leaderboard_weight"
    sections = {
        section: {name: float(entry.get(chosen, entry["weight"])) for name, entry in members.items()}
        for section, members in table["sections"].items()
    }
    items = {name: entry["items"] for members in table["sections"].values() for name, entry in members.items()}
    extra = table["prior_sets"]
    prior_subsets = dict.fromkeys(extra["subsets"], 1.0)
    values = credits(correct, subsets, [*items, *prior_subsets])
    names = np.asarray(list(subsets), dtype=str)
    if prior or set(names) & set(prior_subsets):
        sections[extra["section"]] = prior_subsets
    section_weights = dict.fromkeys(table["sections"], 1.0) | ({extra["section"]: extra["weight"]} if prior else {})
    return assemble(values, names, sections, section_weights, items, clusters, rounds, seed)


def assemble(
    values: np.ndarray,
    names: np.ndarray,
    sections: dict[str, dict[str, float]],
    section_weights: dict[str, float],
    items: dict[str, int],
    clusters: Any,
    rounds: int,
    seed: Seed,
) -> BenchmarkScore:
    """Table and totals of RewardBench 1 from credits (items,); what is incomplete has no value under the plain name."""
    labels = None if clusters is None else np.asarray(clusters)
    rows = table_rows(values, names, sections, items, labels)
    units = {row.name: row.n if labels is None else len(np.unique(labels[names == row.name])) for row in rows if row.n}
    draws = subset_draws(values, names, clusters, rounds, seed)
    scores = {row.name: row.accuracy.value for row in rows}
    method = "bootstrap within subsets" + ("" if clusters is None else ", whole prompts drawn")
    means: dict[str, float | None] = {}
    shares: dict[str, float] = {}
    section_draws, estimates = {}, {}
    for section, weights in sections.items():
        mine = [row for row in rows if row.section == section]
        there, n = [row for row in mine if row.n], sum(row.n for row in mine)
        part, section_draws[section] = weighted(scores, weights), weighted(draws, weights)
        whole = len(there) == len(mine)
        absent = ", ".join(row.name for row in mine if not row.n)
        means[section] = part if whole else None
        shares |= {name: section_weights.get(section, 0.0) * weights[name] / sum(weights.values()) for name in weights}
        size = units_of(weights, units) if there else 0
        reason = None if whole else f"no items in {absent}"
        estimates[section] = estimate(means[section], section_draws[section], n, method, reason, size)
        if there and not whole:
            name = f"{section}, {len(there)} of {len(mine)} subsets"
            estimates[name] = estimate(part, section_draws[section], n, method, units=size)
    incomplete = [section for section in section_weights if means[section] is None]
    overall = None if incomplete else weighted(means, section_weights)
    missing = [row.name for row in rows if row.n == 0]
    reason = f"no complete {', '.join(incomplete)}: no items in {', '.join(missing)}" if incomplete else None
    whole_draws, size = None, 0.0
    if not incomplete:
        whole_draws = weighted(section_draws, section_weights)
        size = units_of({k: w for k, w in shares.items() if w}, units)
    estimates["overall"] = estimate(overall, whole_draws, len(values), method, reason, size)
    present = {row.name: float(row.n) for row in rows if row.n}
    for name, share in (("micro", present), ("macro", dict.fromkeys(present, 1.0))):
        reason, size = (None, units_of(share, units)) if present else ("no items", 0.0)
        estimates[name] = estimate(weighted(scores, share), weighted(draws, share), len(values), method, reason, size)
    return BenchmarkScore("RewardBench", scores, means, overall, rows, estimates, missing, notes_on(rows, missing))


def notes_on(rows: list[SubsetRow], missing: list[str]) -> list[str]:
    """What a reader of the table must know: missing subsets, other numbers of items, weights of their own."""
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(rows)} subsets have no items, so their sections and overall are null: "
            + ", ".join(missing)
        )
    short = [row for row in rows if row.n and row.published is not None and row.n != row.published]
    if short:
        listed = ", ".join(f"{r.name} {r.n} of {r.published}" for r in short)
        notes.append(f"not the published number of items: {listed}")
    changed = [row for row in rows if row.published is not None and row.weight != row.published and row.n]
    if changed:
        listed = ", ".join(f"{r.name} as {r.weight:g}" for r in changed)
        notes.append(f"weights that are not the number of items: {listed}")
    return notes


def best_of_k(scores: Sequence[ArrayLike], correct: Sequence[int]) -> np.ndarray:
    """Credit of each item: 1 / (number tied at the maximum) if a correct candidate is there, else 0 (RewardBench 2).

    scores: one sequence an item, correct candidates first; correct: how many of them. With several correct ones at the
    top each brings its share.
    """
    credit = np.empty(len(scores))
    for item, (values, right) in enumerate(zip(scores, correct)):
        x = array(values, f"scores of item {item}")
        if not 0 < right < len(x):
            raise PrudentError(f"item {item} has {right} correct of {len(x)} candidates; it needs both kinds")
        top = x == x.max()
        credit[item] = top[:right].sum() / top.sum()
    return credit


def rewardbench2(
    scores: Sequence[ArrayLike] | ArrayLike,
    subsets: Sequence[str],
    *,
    correct: int | Sequence[int] = 1,
    ids: Sequence[str] | None = None,
    rounds: int = ROUNDS,
    seed: Seed = 0,
) -> BenchmarkScore:
    """RewardBench 2. scores: one sequence of scores an item, correct candidates first ((items, 4), or ragged).

    correct: how many candidates of each item are correct (1 outside Ties). subsets: the six domains' names. ids: needed
    by Ties, ``ref:KEY`` and ``tied:KEY``. An item's credit is 1 / (number tied at the maximum) if the correct one is
    there, else 0; Ties has a score of its own (``ties``). Overall: the plain mean of the six domains, None while one is
    missing. Raises PrudentError naming the item for unknown domains, non-finite scores, or no correct candidate.
    """
    values = list(scores)  # type: ignore[arg-type]
    names = np.asarray(list(subsets), dtype=str)
    if len(values) != len(names):
        raise PrudentError(f"scores has {len(values)} items, subsets {len(names)}")
    counts = [correct] * len(values) if isinstance(correct, int) else [int(c) for c in correct]
    if len(counts) != len(values):
        raise PrudentError(f"scores has {len(values)} items, correct {len(counts)}")
    items = published()["rewardbench2"]["subsets"]
    plain = np.flatnonzero(names != "Ties").tolist()
    credit = credits(np.zeros(len(names)), names.tolist(), list(items))
    credit[plain] = best_of_k([values[i] for i in plain], [counts[i] for i in plain])
    tied_items = np.flatnonzero(names == "Ties").tolist()
    if len(tied_items) and ids is None:
        raise PrudentError("Ties items are there but no ids; they pair up by 'ref:KEY' and 'tied:KEY'")
    every = ids if ids is not None else []
    reference, tied = split_ties(
        [values[i] for i in tied_items], [counts[i] for i in tied_items], [every[i] for i in tied_items]
    )
    ties = ties_score(reference, tied)
    return assemble_second(credit, names, items, ties, ties_draws(reference, tied, rounds, seed), rounds, seed)


def assemble_second(
    credit: np.ndarray,
    names: np.ndarray,
    items: dict[str, int],
    ties: TiesScore,
    tie_draws: np.ndarray | None,
    rounds: int,
    seed: Seed,
) -> BenchmarkScore:
    """Table and totals of RewardBench 2 from the credits (items,) of five domains and the score of Ties."""
    plain = names != "Ties"
    rows = table_rows(credit[plain], names[plain], {"": {name: 1.0 for name in items if name != "Ties"}}, items)
    draws: dict[str, Any] = dict(subset_draws(credit[plain], names[plain], None, rounds, seed))
    there = int((~plain).sum())
    tied = estimate(ties.score, tie_draws, there, "bootstrap over prompts", ties.reason or "no items")
    rows.append(SubsetRow("Ties", "", tied, there, items["Ties"], 0, 1.0))
    draws["Ties"] = tie_draws
    scores = {row.name: row.accuracy.value for row in rows}
    missing = [row.name for row in rows if row.accuracy.value is None]
    overall = None if missing else float(np.mean(list(scores.values())))
    whole = None if missing or tie_draws is None else sum(draws[name] for name in scores) / len(scores)
    method = "bootstrap within domains"
    why = f"no score for {', '.join(missing)}" if missing else None
    estimates = {"overall": estimate(overall, whole, len(names), method, why)}
    shares = {row.name: float(row.n) for row in rows if row.n and row.name != "Ties"}
    reason, size = (None, units_of(shares, {row.name: row.n for row in rows})) if shares else ("no items", 0.0)
    estimates["micro"] = estimate(
        weighted(scores, shares), weighted(draws, shares), int(plain.sum()), f"{method}, without Ties", reason, size
    )
    notes = notes_on(rows, [row.name for row in rows if row.n == 0])
    notes = [note for note in notes if not note.startswith("weights")]
    return BenchmarkScore(
        "RewardBench 2", scores, dict(scores), overall, rows, estimates, missing, notes, ties if there else None
    )


def credit_of(chosen: ArrayLike, rejected: ArrayLike) -> torch.Tensor:
    """Credits of pairs from their scores: 1 chosen higher, 0.5 exact tie, 0 lower."""
    a, b = array(chosen, "chosen score"), array(rejected, "rejected score")
    if len(a) != len(b):
        raise PrudentError(f"chosen has {len(a)} scores, rejected {len(b)}")
    return credit(a - b)
