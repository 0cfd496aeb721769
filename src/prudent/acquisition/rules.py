"""One table of rules: from what is known of m candidate pairs to k of them, in the order to label, and their scores.

| rule | picks | source |
| --- | --- | --- |
| random | by chance | |
| diversity | the pair farthest from all labelled and picked ones (a pair and its mirror are one) | arXiv 1708.00489 |
| margin | the smallest absolute expected logit | arXiv 2402.08114 |
| bald | the most nats that the label says about the weights, given the picks before | arXiv 1112.5745, 1906.08158 |
| d-optimal | the largest gain of log det of the Fisher information, labelled pairs included | arXiv 2502.04354 |
| bal-pm | bald plus BALANCE times log distance to the nearest prompt labelled or picked | arXiv 2406.10023 |
| maxmin-lcb | a prompt's response with the best worst lower bound, against the one that attains it | arXiv 2406.16745 |
| drts | the best response of one posterior draw against the worst of another | arXiv 2603.09692 |
| delta-ucb | the pair with the largest upper bound of its gap | arXiv 2603.09692 |
| envelope | bald times the share of the tilted policy that is on the pair's two responses | |
| risk | the pair that takes most off the variance of the tilted policy's gain | |

``risk`` is the direct rule. A label moves the expected gain m of the tilted policy by a normal step whose variance t is
what it takes off the gain's variance, so the probability that the gain is negative doesn't change on average while the
policy stays as it is; what falls, and falls the more the larger t is, is the risk of whichever of policy and reference
is preferred once the label is there.

The three rules on a prompt's responses give each prompt one pair, prompts in random order, before any gets a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from prudent.acquisition.greedy import directed_greedy, lazy_greedy, squares
from prudent.acquisition.known import KnownPairs
from prudent.errors import PrudentError
from prudent.progress import track

BALANCE = 0.01  # nats of information that one nat of the prompts' entropy is worth in bal-pm
BOUND = 1.0  # standard deviations between the mean and the bounds of maxmin-lcb and delta-ucb
NEAREST = 1e-6  # distance below which two prompts are the same one

Picks = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """k picks, the tilted policy's KL weight, most labels of one pair, and the generator of every random choice."""

    k: int
    beta: float
    repeat: int
    generator: np.random.Generator


def _random(known: KnownPairs, task: Task) -> Picks:
    return task.generator.permutation(len(known))[: task.k], np.zeros(task.k)


def _margin(known: KnownPairs, task: Task) -> Picks:
    size = np.abs(known.logit)
    picked = np.argsort(size, kind="stable")[: task.k]
    return picked, -size[picked]


def _diversity(known: KnownPairs, task: Task) -> Picks:
    rows = known.differences()
    length = squares(rows)
    nearest = length.copy()  # a pair without a difference says nothing: the origin counts as labelled

    def approach(others: np.ndarray) -> None:
        for start in range(0, len(others), 256):
            part = others[start : start + 256]
            apart = length[:, None] + squares(part) - 2.0 * np.abs(rows @ part.T)
            np.minimum(nearest, apart.min(1), out=nearest)

    approach(known.labelled())
    picked, score = np.empty(task.k, dtype=np.int64), np.empty(task.k)
    for turn in track(range(task.k), "choosing pairs"):
        best = int(nearest.argmax())
        picked[turn], score[turn] = best, np.sqrt(max(nearest[best], 0.0))
        approach(rows[best : best + 1])
        nearest[picked[: turn + 1]] = -np.inf
    return picked, score


def _bald(known: KnownPairs, task: Task) -> Picks:
    def value(variance: np.ndarray, index: np.ndarray) -> np.ndarray:
        return known.labels.bald(known.logit[index], variance)

    return lazy_greedy(known.factor, known.weight, value, task.k, repeat=task.repeat)


def _d_optimal(known: KnownPairs, task: Task) -> Picks:
    def value(variance: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.log1p(known.weight[index] * variance)

    return lazy_greedy(known.factor, known.weight, value, task.k, repeat=task.repeat)


def _bal_pm(known: KnownPairs, task: Task) -> Picks:
    prompts, labelled = known.midpoints("bal-pm")
    length = squares(prompts)
    nearest = np.full(len(prompts), np.inf)

    def approach(others: np.ndarray) -> None:
        apart = length[:, None] + squares(others) - 2.0 * (prompts @ others.T)
        np.minimum(nearest, apart.min(1), out=nearest)

    for start in range(0, len(labelled), 256):
        approach(labelled[start : start + 256])

    def value(variance: np.ndarray, index: np.ndarray) -> np.ndarray:
        distance = np.sqrt(np.maximum(nearest[known.prompt[index]], NEAREST**2))
        return known.labels.bald(known.logit[index], variance) + BALANCE * np.log(distance)

    def picked(index: int) -> None:
        position = int(known.prompt[index])
        approach(prompts[position : position + 1])
        nearest[position] = 0.0

    return lazy_greedy(known.factor, known.weight, value, task.k, repeat=task.repeat, picked=picked)


def _envelope(known: KnownPairs, task: Task) -> Picks:
    responses = known.responses("envelope")
    share = known.tilted(responses, task.beta)[responses.of_pair].sum(1)

    def value(variance: np.ndarray, index: np.ndarray) -> np.ndarray:
        return share[index] * known.labels.bald(known.logit[index], variance)

    return lazy_greedy(known.factor, known.weight, value, task.k, repeat=task.repeat)


def _risk(known: KnownPairs, task: Task) -> Picks:
    responses = known.responses("risk")
    counts = np.bincount(responses.owner)
    change = (known.tilted(responses, task.beta) - 1.0 / counts[responses.owner]) / len(counts)
    direction = (change @ responses.features) @ known.posterior.root.numpy()
    return directed_greedy(known.factor, known.weight, direction, task.k, repeat=task.repeat)


def _rounds(known: KnownPairs, task: Task, order: np.ndarray, score: np.ndarray) -> Picks:
    """One pair a prompt, prompts in random order, then a second one each, and so on. order (m,): larger goes first
    within a prompt."""
    chance = task.generator.permutation(int(known.prompt.max()) + 1)[known.prompt]
    within = np.lexsort((np.arange(len(order)), -order, known.prompt))
    start = np.flatnonzero(np.diff(known.prompt[within], prepend=-1))
    turn = np.empty(len(order), dtype=np.int64)
    turn[within] = np.arange(len(order)) - np.repeat(start, np.diff(start, append=len(order)))
    picked = np.lexsort((chance, turn))[: task.k]
    return picked, score[picked]


def _maxmin_lcb(known: KnownPairs, task: Task) -> Picks:
    pairs = known.responses("maxmin-lcb").of_pair
    slack = BOUND * np.sqrt(squares(known.factor))
    lower = np.concatenate([known.logit - slack, -known.logit - slack])  # first leads, second leads
    leader = np.concatenate([pairs[:, 0], pairs[:, 1]])
    worst = np.full(pairs.max() + 1, np.inf)
    np.minimum.at(worst, leader, lower)
    rank = np.empty(len(lower), dtype=np.int64)
    rank[np.lexsort((-lower, worst[leader]))] = np.arange(len(lower))  # best leader last, its strongest rival last
    both = rank.reshape(2, -1)
    return _rounds(known, task, both.max(0), worst[leader].reshape(2, -1).max(0))


def _drts(known: KnownPairs, task: Task) -> Picks:
    responses = known.responses("drts")
    first, second = (responses.features @ draw for draw in known.posterior.draws.numpy())
    a, b = responses.of_pair.T
    score = np.maximum(first[a] - second[b], first[b] - second[a])
    return _rounds(known, task, score, score)


def _delta_ucb(known: KnownPairs, task: Task) -> Picks:
    upper = np.abs(known.logit) + BOUND * np.sqrt(squares(known.factor))
    return _rounds(known, task, upper, upper)


class Rule(NamedTuple):
    """pick: the function. why: what its score is, in words. sided: needs both sides of the candidates. repeats: knows
    what a second label of one pair still says."""

    pick: Callable[[KnownPairs, Task], Picks]
    why: str
    sided: bool = False
    repeats: bool = False


RULES: dict[str, Rule] = {
    "random": Rule(_random, "drawn at random"),
    "diversity": Rule(_diversity, "distance to the nearest labelled or picked pair"),
    "margin": Rule(_margin, "minus the absolute expected logit"),
    "bald": Rule(_bald, "nats that the label is expected to say about the reward", repeats=True),
    "d-optimal": Rule(_d_optimal, "gain of log det of the Fisher information", repeats=True),
    "bal-pm": Rule(_bal_pm, "nats of the label, plus the prompts' entropy", True, True),
    "maxmin-lcb": Rule(_maxmin_lcb, "the leader's worst lower bound", True),
    "drts": Rule(_drts, "gap between the best of one draw and the worst of another", True),
    "delta-ucb": Rule(_delta_ucb, "upper bound of the gap"),
    "envelope": Rule(_envelope, "nats of the label, times the tilted policy's share", True, True),
    "risk": Rule(_risk, "share taken off the variance of the tilted policy's gain", True, True),
}


def rule_of(name: Any) -> Rule:
    """The table's row, or PrudentError naming those there are."""
    if name not in RULES:
        raise PrudentError(f"unknown rule {name!r}; one of {', '.join(RULES)}")
    return RULES[name]
