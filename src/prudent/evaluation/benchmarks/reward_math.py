"""RewardMATH (arXiv 2410.01729) from plain arrays: one correct solution against many, and process reward models' steps.

Ties are never resolved by where the correct solution happens to stand: each metric names its rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate, bounded_mean, mcnemar, proportion
from prudent.evaluation.resampling import resampled_means
from prudent.evaluation.ties import mean_over_orders
from prudent.seeding import Seed

REDUCTIONS = ("min", "max", "prod", "geometric_mean", "mean", "mean_logit", "mean_odds", "last")
RANGES = {"prod": (0, np.inf), "geometric_mean": (0, 1), "mean_logit": (0, 1), "mean_odds": (0, 1)}  # of its steps


@dataclass(frozen=True)
class RewardMathScore:
    """accuracy: correct strictly first. accuracy_with_ties: nothing above it. accuracy_expected: ties broken at random.
    mrr: ties count against the correct one. mrr_tie_averaged: mean over orders of the tied. random_*: what a scorer
    that knows nothing gets. estimates: intervals by name. per problem: greater and tied (others above, others equal),
    solutions. unscored: problems ranked worst because of a missing score, where that was asked for.
    """

    accuracy: float | None
    accuracy_with_ties: float | None
    accuracy_expected: float | None
    mrr: float | None
    mrr_tie_averaged: float | None
    random_accuracy: float | None
    random_mrr: float | None
    n: int
    tied_problems: int
    estimates: dict[str, Estimate]
    greater: torch.Tensor
    tied: torch.Tensor
    solutions: torch.Tensor
    unscored: list[int] = field(default_factory=list)

    @property
    def correct(self) -> torch.Tensor:
        """Strict correctness of each problem, (problems,) in {0, 1}."""
        return ((self.greater == 0) & (self.tied == 0)).double()


def rows_of(scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """(every score (scores,) float64 problem by problem, number of scores of each problem); ragged lists welcome. Not
    padded: one problem with ten thousand solutions costs itself alone."""
    if isinstance(scores, (torch.Tensor, np.ndarray)):
        matrix = as_tensor(scores, torch.float64).numpy()
        if matrix.ndim != 2:
            raise PrudentError(f"scores has shape {matrix.shape}, expected (problems, solutions)")
        return matrix.reshape(-1), np.full(len(matrix), matrix.shape[1])
    rows = [as_tensor(row, torch.float64).reshape(-1).numpy() for row in scores]
    return np.concatenate([np.empty(0), *rows]), np.array([len(row) for row in rows], dtype=np.int64)


def counted(which: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(problems,): how many of each problem's scores ``which`` (scores,) is true for."""
    return np.bincount(np.repeat(np.arange(len(counts)), counts)[which], minlength=len(counts))


def problem_and_solution(flat: int, counts: np.ndarray) -> tuple[int, int]:
    """(problem, solution) of a score's index among all."""
    ends = np.cumsum(counts)
    problem = int(np.searchsorted(ends, flat, side="right"))
    return problem, int(flat - ends[problem] + counts[problem])


def correct_columns(correct: int | Sequence[int] | ArrayLike, counts: np.ndarray) -> np.ndarray:
    """Column of the correct solution of each problem, of which it has so many, or PrudentError naming the problem that
    has none."""
    n = len(counts)
    columns = np.full(n, correct) if isinstance(correct, int) else as_tensor(list(correct)).reshape(-1).numpy()  # type: ignore[arg-type]
    if len(columns) != n:
        raise PrudentError(f"correct has {len(columns)} entries for {n} problems")
    columns = columns.astype(np.int64)
    bad = np.flatnonzero((columns < 0) | (columns >= counts))
    if len(bad):
        raise PrudentError(
            f"problem {bad[0]} has no correct solution (column {columns[bad[0]]} of {counts[bad[0]]} solutions); "
            "leave it out or name the right one"
        )
    alone = np.flatnonzero(counts < 2)
    if len(alone):
        raise PrudentError(f"problem {alone[0]} has no incorrect solution to rank the correct one against")
    return columns


def rewardmath(
    scores: Any,
    correct: int | Sequence[int] | ArrayLike = 0,
    *,
    on_nan: str = "error",
    rounds: int = 1000,
    seed: Seed = 0,
) -> RewardMathScore:
    """Accuracy and MRR of one correct solution against the others. scores: (problems, solutions), or ragged lists.

    correct: column of the correct solution, one for all or one a problem. on_nan: "error" names the first missing
    score; "worst" ranks a problem whose correct solution has no score last, and lets a wrong solution without a score
    count as above it. Infinite scores are ordered as they are. Intervals: Wilson (accuracies), bootstrap over problems
    (MRR). Source: arXiv 2410.01729, section 3, and its released evaluation (ties against the correct one).
    """
    if on_nan not in ("error", "worst"):
        raise PrudentError(f"on_nan is {on_nan!r}, expected 'error' or 'worst'")
    flat, counts = rows_of(scores)
    first = np.cumsum(counts) - counts + correct_columns(correct, counts)  # index of each correct solution
    missing = np.isnan(flat)
    if missing.any() and on_nan == "error":
        problem, solution = problem_and_solution(int(np.flatnonzero(missing)[0]), counts)
        raise PrudentError(
            f"score of problem {problem}, solution {solution} is NaN ({int(missing.sum())} of {len(flat)}); "
            'fix it, or rank such problems worst with on_nan="worst"'
        )
    gold, nameless = np.repeat(flat[first], counts), np.repeat(missing[first], counts)
    other = np.ones(len(flat), dtype=bool)
    other[first] = False
    above = other & ((flat > gold) | missing | nameless)
    greater, tied = counted(above, counts), counted(other & (flat == gold) & ~above, counts)
    return summarise(greater, tied, counts, np.flatnonzero(counted(missing, counts)).tolist(), rounds, seed)


def summarise(
    greater: np.ndarray, tied: np.ndarray, counts: np.ndarray, unscored: list[int], rounds: int, seed: Seed
) -> RewardMathScore:
    """Metrics of problems from how many others score above (``greater``) and level with (``tied``) the correct
    solution among ``counts`` solutions, (problems,) each."""
    n = len(greater)
    reciprocal = 1 / np.arange(1, int(counts.max(initial=0)) + 1)
    per_problem = {
        "accuracy": ((greater == 0) & (tied == 0)).astype(float),
        "accuracy_with_ties": (greater == 0).astype(float),
        "accuracy_expected": mean_over_orders(np.ones(1), greater, tied + 1),
        "mrr": 1 / (1 + greater + tied),
        "mrr_tie_averaged": mean_over_orders(reciprocal, greater, tied + 1),
    }
    estimates = {
        name: proportion(values) if name.startswith("accuracy") else bounded_mean(values, rounds=rounds, seed=seed)
        for name, values in per_problem.items()
    }
    return RewardMathScore(
        **{name: estimate.value for name, estimate in estimates.items()},
        random_accuracy=float((1 / counts).mean()) if n else None,
        random_mrr=float(mean_over_orders(reciprocal, np.zeros_like(counts), counts).mean()) if n else None,
        n=n,
        tied_problems=int((tied > 0).sum()),
        estimates=estimates,
        greater=torch.from_numpy(greater),
        tied=torch.from_numpy(tied),
        solutions=torch.from_numpy(counts),
        unscored=unscored,
    )


def rewardmath_pairwise(wins: Any, *, rounds: int = 1000, seed: Seed = 0) -> RewardMathScore:
    """Pairwise mode. wins: (problems, comparisons), or ragged: 1 the correct solution won, 0.5 a tie, 0 it lost.

    Accuracy: every comparison won. MRR: 1 / (1 + number lost), a tie counting as lost in the pessimistic ones.
    """
    flat, counts = rows_of(wins)
    bad = np.flatnonzero(~np.isin(flat, (0.0, 0.5, 1.0)))
    if len(bad):
        problem, comparison = problem_and_solution(int(bad[0]), counts)
        raise PrudentError(f"comparison {comparison} of problem {problem} is {flat[bad[0]]}, not 0, 0.5 or 1")
    return summarise(counted(flat == 0, counts), counted(flat == 0.5, counts), counts + 1, [], rounds, seed)


def reduce_steps(
    steps: Sequence[Sequence[float]], how: str, where: str = "solution", *, undefined: str = "error", log: bool = False
) -> torch.Tensor:
    """One score a solution from a process reward model's step scores: list of (steps,) -> (solutions,) float64.

    how: min | max | prod | geometric_mean | mean | mean_logit (back through the sigmoid) | mean_odds | last. Products
    are of numbers that are not negative, geometric_mean, mean_logit and mean_odds of probabilities. A reduction without
    a value (a step outside its range, infinite odds, logits of both 0 and 1) raises PrudentError naming the solution,
    or with undefined "nan" is NaN for that solution alone. log: ``prod`` as its logarithm, in which a thousand steps
    don't underflow and keep their order; that of 0 is the lowest float64. Raises PrudentError naming the solution for
    no steps, and for steps that are not lists of finite numbers.
    """
    if how not in REDUCTIONS:
        raise PrudentError(f"reduction is {how!r}, expected one of {', '.join(REDUCTIONS)}")
    rows = [step_values(row, f"{where} {index}") for index, row in enumerate(steps)]
    if not rows:
        return torch.empty(0, dtype=torch.float64)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.concatenate(rows)
    owner, starts = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([[0], np.cumsum(lengths)[:-1]])
    low, high = RANGES.get(how, (-np.inf, np.inf))
    wrong = (flat < low) | (flat > high)
    if wrong.any() and undefined == "error":
        index = int(np.flatnonzero(wrong)[0])
        raise PrudentError(
            f"step {index - starts[owner[index]]} of {where} {owner[index]} is {flat[index]}, which {how} can't take"
        )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result = reduced(flat, starts, lengths, how, log)
    result[np.unique(owner[wrong])] = np.nan
    if np.isnan(result).any() and undefined == "error":
        index = int(np.flatnonzero(np.isnan(result))[0])
        words = {"mean_logit": "of probability 0 and of 1", "prod": "whose product is beyond a float's range"}
        found = words.get(how, "of probability 1")
        raise PrudentError(f"{where} {index} has steps {found}, which {how} can't take")
    return torch.from_numpy(result)


def step_values(row: Any, where: str) -> np.ndarray:
    """Step scores (steps,) of one solution, or PrudentError naming it and what stands there instead."""
    if isinstance(row, (str, bytes)) or not hasattr(row, "__len__"):
        raise PrudentError(f"steps of {where} are {row!r:.80}, expected a list with one score a step")
    if len(row) == 0:
        raise PrudentError(f"{where} has no step scores")
    try:
        if any(isinstance(step, (str, bytes, bool)) for step in row):
            raise TypeError
        values = np.asarray(row, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PrudentError(f"a step of {where} is no number: {list(row)!r:.80}") from error
    if values.ndim != 1:
        raise PrudentError(f"steps of {where} are nested ({values.shape}), expected one number a step")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise PrudentError(f"step {bad[0]} of {where} is {values[bad[0]]}; step scores must be finite")
    return values


def reduced(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, how: str, log: bool) -> np.ndarray:
    """The reduction of consecutive groups of ``flat``; NaN where it has no value."""
    if how == "min":
        return np.minimum.reduceat(flat, starts)
    if how == "max":
        return np.maximum.reduceat(flat, starts)
    if how == "last":
        return flat[starts + lengths - 1]
    if how == "mean":
        means = np.add.reduceat(flat, starts) / lengths
        return means if np.isfinite(means).all() else np.add.reduceat(flat / np.repeat(lengths, lengths), starts)
    if how == "mean_odds":
        odds = np.add.reduceat(flat / (1 - flat), starts) / lengths
        return np.where(np.isinf(odds), np.nan, odds)
    logs = np.add.reduceat(np.log(flat), starts)  # these don't underflow; a product does
    if how == "prod":
        products = np.exp(logs)
        return np.maximum(logs, np.finfo(np.float64).min) if log else np.where(np.isinf(products), np.nan, products)
    if how == "geometric_mean":
        return np.exp(logs / lengths)
    return 1 / (1 + np.exp(-np.add.reduceat(np.log(flat) - np.log1p(-flat), starts) / lengths))


@dataclass(frozen=True)
class ReductionChoice:
    """Which reduction a process reward model needs. scores: by reduction. best: highest MRR. share: how often each is
    best when problems are resampled. clear: best against the runner-up, exact McNemar p on strict accuracy. undefined:
    problems for which a reduction has no value."""

    scores: dict[str, RewardMathScore]
    best: str
    runner_up: str
    share: dict[str, float]
    clear: float
    undefined: dict[str, int]


def compare_reductions(
    steps: Sequence[Sequence[Sequence[float]]], correct: int | Sequence[int] = 0, *, rounds: int = 1000, seed: Seed = 0
) -> ReductionChoice:
    """All eight reductions of step scores [problem][solution][step], and how sure the best one is.

    A problem for which a reduction has no value is left out of that reduction's score; ``undefined`` counts them, and
    such a reduction is not the best one, since it was held to other problems. Reductions that tie share the best.
    """
    lengths = [len(problem) for problem in steps]
    flat = [solution for problem in steps for solution in problem]
    columns = correct_columns(correct, np.array(lengths, dtype=np.int64))
    scores, undefined = {}, {}
    for how in REDUCTIONS:
        values = reduce_steps(flat, how, undefined="nan", log=True).split(lengths)
        kept = [index for index, row in enumerate(values) if not bool(torch.isnan(row).any())]
        undefined[how] = len(values) - len(kept)
        scores[how] = rewardmath([values[i] for i in kept], columns[kept], rounds=rounds, seed=seed)
    able = [how for how in REDUCTIONS if not undefined[how]]
    best, second = sorted(able, key=lambda how: -(scores[how].mrr or 0))[:2]
    table = torch.stack([1.0 / (1 + scores[how].greater + scores[how].tied) for how in able], dim=1).numpy()
    means = resampled_means(table, rounds, seed)
    winners = means >= means.max(1, keepdims=True) - 1e-12
    share = (winners / winners.sum(1, keepdims=True)).mean(0)
    clear = mcnemar(scores[best].correct, scores[second].correct).p
    return ReductionChoice(
        scores, best, second, dict.fromkeys(REDUCTIONS, 0.0) | dict(zip(able, share.tolist())), clear, undefined
    )


def leave_one_source_out(
    scores: Any,
    sources: Sequence[Sequence[str]],
    correct: int | Sequence[int] = 0,
    *,
    rounds: int = 1000,
    seed: Seed = 0,
) -> dict[str, RewardMathScore]:
    """Metrics without the *incorrect* solutions of one source model, for each source: name -> score.

    sources: [problem][solution] names, "" where unknown. Problems left with no incorrect solution are dropped from that
    score's n.
    """
    flat, counts = rows_of(scores)
    column = correct_columns(correct, counts)
    parts = np.split(flat, np.cumsum(counts)[:-1])
    named = [list(map(str, row)) for row in sources]
    wrong = [i for i, (row, part) in enumerate(zip(named, parts)) if len(row) != len(part)]
    if len(named) != len(counts) or wrong:
        raise PrudentError(f"sources don't match scores{f' at problem {wrong[0]}' if wrong else ''}")
    every = sorted({s for i, row in enumerate(named) for j, s in enumerate(row) if s and j != column[i]})
    result = {}
    for source in every:
        rows = []
        for row, part, right in zip(named, parts, column):
            kept = [part[j] for j, name in enumerate(row) if j != right and name != source]
            if kept:
                rows.append([part[right], *kept])
        if rows:
            result[source] = rewardmath(rows, rounds=rounds, seed=seed)
    return result
