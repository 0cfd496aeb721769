"""RewardMATH: tie rules, eight reductions, and real reward models' scores against the released rules."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prudent.errors import PrudentError
from prudent.evaluation import rewardmath
from prudent.evaluation.benchmarks.reward_math import (
    REDUCTIONS,
    compare_reductions,
    leave_one_source_out,
    reduce_steps,
    rewardmath_pairwise,
)


def test_first_and_fourth() -> None:
    score = rewardmath([[5, *[4] * 9], [5, 6, 7, 8, *[1] * 6]])
    assert score.accuracy == 0.5 and score.mrr == pytest.approx((1 + 0.25) / 2)


def test_constant_scorer_wins_nothing() -> None:
    score = rewardmath(torch.full((3, 10), 5.0))
    assert (score.accuracy, score.accuracy_with_ties, score.mrr) == (0, 1, pytest.approx(0.1))
    assert score.mrr_tie_averaged == pytest.approx(0.292897, abs=1e-6) and score.accuracy_expected == pytest.approx(0.1)
    assert (score.random_accuracy, score.random_mrr) == pytest.approx((0.1, 0.292897), abs=1e-6)


def test_random_scorer_is_at_the_baseline() -> None:
    score = rewardmath(np.random.default_rng(0).normal(size=(20_000, 10)))
    assert score.accuracy == pytest.approx(0.1, abs=0.007) and score.mrr == pytest.approx(0.292897, abs=0.006)
    assert score.estimates["mrr"].low < 0.292897 < score.estimates["mrr"].high


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=6), min_size=1, max_size=5), st.randoms())
@settings(max_examples=80, deadline=None)
def test_order_of_solutions_changes_nothing(rows: list[list[int]], random: object) -> None:
    straight = rewardmath([[float(x) for x in row] for row in rows])
    shuffled, correct = [], []
    for row in rows:
        order = list(range(len(row)))
        random.shuffle(order)  # type: ignore[attr-defined]
        shuffled.append([float(row[i]) for i in order])
        correct.append(order.index(0))
    other = rewardmath(shuffled, correct)
    for name in ("accuracy", "accuracy_with_ties", "accuracy_expected", "mrr", "mrr_tie_averaged"):
        assert getattr(straight, name) == pytest.approx(getattr(other, name))
    assert straight.accuracy <= straight.accuracy_expected <= straight.accuracy_with_ties
    assert straight.mrr <= straight.mrr_tie_averaged


def test_one_pair_is_easier_than_one_against_nine() -> None:
    rng, mu = np.random.default_rng(3), 0.8
    scores = rng.normal(size=(20_000, 10))
    scores[:, 0] += mu
    pair, many = rewardmath(scores[:, :2]), rewardmath(scores)
    assert pair.accuracy == pytest.approx(stats.norm.cdf(mu / math.sqrt(2)), abs=0.01)
    assert pair.accuracy > many.accuracy + 0.3


def test_missing_scores() -> None:
    with pytest.raises(PrudentError, match="problem 1, solution 0 is NaN"):
        rewardmath([[1, 0], [math.nan, 0]])
    worst = rewardmath([[1, 0, 0], [math.nan, 0, 1]], on_nan="worst")
    assert worst.mrr == pytest.approx((1 + 1 / 3) / 2) and worst.unscored == [1]
    assert rewardmath([[1, math.nan, 0]], on_nan="worst").mrr == 0.5


def test_problem_without_a_correct_or_an_incorrect_solution() -> None:
    with pytest.raises(PrudentError, match="problem 1 has no correct solution"):
        rewardmath([[1, 0], [1, 0]], correct=[0, -1])
    with pytest.raises(PrudentError, match="problem 0 has no incorrect"):
        rewardmath([[1.0]])
    assert rewardmath([]).accuracy is None and rewardmath([]).estimates["mrr"].reason == "no items"


def test_reductions_by_hand() -> None:
    steps = [[0.5, 0.5], [0.2, 0.8], [0.9]]
    found = {how: reduce_steps(steps, how).tolist() for how in REDUCTIONS}
    assert found["geometric_mean"] == pytest.approx([0.5, 0.4, 0.9])
    assert found["prod"] == pytest.approx([0.25, 0.16, 0.9]) and found["mean_logit"] == pytest.approx([0.5, 0.5, 0.9])
    assert found["mean_odds"] == pytest.approx([1, (0.25 + 4) / 2, 9]) and found["last"] == [0.5, 0.8, 0.9]
    assert (found["min"], found["max"]) == ([0.5, 0.2, 0.9], [0.5, 0.8, 0.9]) and found["mean"][1] == 0.5


def test_reductions_refuse_by_name() -> None:
    with pytest.raises(PrudentError, match="solution 1 has no step scores"):
        reduce_steps([[0.5], []], "min")
    with pytest.raises(PrudentError, match=r"step 1 of solution 1 is 1.5, which mean_odds"):
        reduce_steps([[0.5], [0.1, 1.5]], "mean_odds")
    with pytest.raises(PrudentError, match="probability 0 and of 1"):
        reduce_steps([[0.0, 1.0]], "mean_logit")
    with pytest.raises(PrudentError, match="expected one of"):
        reduce_steps([[0.5]], "sum")
    with pytest.raises(PrudentError, match="probability 1, which mean_odds"):
        reduce_steps([[1.0, 0.5]], "mean_odds")
    for steps, message in (
        ([0.5, 0.6], r"steps of solution 0 are 0\.5"),
        ([[0.5], "0.9 0.1"], r"steps of solution 1 are '0\.9"),
        ([["0.9"]], "a step of solution 0 is no number"),
        ([[True]], "a step of solution 0 is no number"),
        ([[[0.5]]], "nested"),
        ([[math.nan]], "step 0 of solution 0 is nan"),
    ):
        with pytest.raises(PrudentError, match=message):
            reduce_steps(steps, "min")


def test_a_thousand_steps_do_not_underflow() -> None:
    long, longer = [0.5] * 1100, [0.5] * 1200
    assert reduce_steps([long, longer], "geometric_mean").tolist() == pytest.approx([0.5, 0.5])
    logs = reduce_steps([long, longer], "prod", log=True)
    assert logs.tolist() == pytest.approx([1100 * math.log(0.5), 1200 * math.log(0.5)])
    choice = compare_reductions([[long, longer]] * 2, rounds=20)
    assert choice.scores["prod"].accuracy == 1  # both products are 0 in float64


def test_a_reduction_without_a_value_is_null_for_that_item_and_reduction_alone() -> None:
    steps = [[0.0, 1.0], [1.0, 0.5], [0.0, 0.5], [0.5, 1.5], [0.9, 0.8]]
    missing = {how: torch.isnan(reduce_steps(steps, how, undefined="nan")).tolist() for how in REDUCTIONS}
    no, last = [False] * 5, [False, False, False, True, False]
    assert missing["min"] == missing["max"] == missing["mean"] == missing["last"] == missing["prod"] == no
    assert missing["geometric_mean"] == last
    assert missing["mean_logit"] == [True, False, False, True, False]
    assert missing["mean_odds"] == [True, True, False, True, False]
    problems = [[[0.9, 0.8], [0.5, 0.4]]] * 3 + [[[1.0, 0.9], [0.2, 0.3]]]
    choice = compare_reductions(problems, rounds=50)
    assert choice.undefined == dict.fromkeys(REDUCTIONS, 0) | {"mean_odds": 1}
    assert choice.scores["mean_odds"].n == 3 and choice.scores["mean"].n == 4
    assert choice.best != "mean_odds" and choice.share["mean_odds"] == 0
    assert sum(choice.share.values()) == pytest.approx(1)  # seven reductions tie and share


def test_pairwise_mode() -> None:
    score = rewardmath_pairwise([[1] * 9, [1] * 8 + [0], [1] * 8 + [0.5]])
    assert score.accuracy == pytest.approx(1 / 3) and score.mrr == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert score.mrr_tie_averaged == pytest.approx((1 + 0.5 + 0.75) / 3)
    with pytest.raises(PrudentError, match="comparison 0 of problem 0 is 2"):
        rewardmath_pairwise([[2.0]])


def real(shared: Path) -> list[dict]:
    with gzip.open(shared / "data/evaluation/rewardmath_scores.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def released_rule(scores: list[float]) -> tuple[bool, bool, float]:
    """The published evaluation, restated: descending order, an incorrect solution before the correct one in a tie."""
    ranked = sorted(range(len(scores)), key=lambda j: (-scores[j], j == 0))
    others = max(scores[1:])
    return scores[0] > others, scores[0] >= others, 1 / (1 + ranked.index(0))


def test_every_real_model_by_the_released_rule(shared: Path) -> None:
    rows = real(shared)
    for model, first in rows[0]["scores"].items():
        for how in REDUCTIONS if isinstance(first[0], list) else (None,):
            scores = [
                row["scores"][model] if how is None else reduce_steps(row["scores"][model], how).tolist()
                for row in rows
            ]
            expected = np.array([released_rule(s) for s in scores], dtype=float).mean(0)
            found = rewardmath(scores, rounds=10)
            assert (found.accuracy, found.accuracy_with_ties, found.mrr) == pytest.approx(tuple(expected)), (model, how)


def test_real_process_models_need_different_reductions(shared: Path) -> None:
    rows = real(shared)
    choices = {
        model: compare_reductions([row["scores"][model] for row in rows], rounds=200)
        for model in ("Easy_to_hard", "Math_Shepherd", "ReasonEval_34B", "ReasonEval_7B")
    }
    assert {model: choice.best for model, choice in choices.items()} == {
        "Easy_to_hard": "mean_odds",
        "Math_Shepherd": "last",
        "ReasonEval_34B": "min",
        "ReasonEval_7B": "mean_logit",
    }
    assert choices["Math_Shepherd"].share["last"] > 0.9 > choices["ReasonEval_34B"].share["min"]


def test_judges_tie_so_much_that_the_rule_decides(shared: Path) -> None:
    score = rewardmath([row["scores"]["prometheus_8x7B"] for row in real(shared)])
    assert score.accuracy == 0 and score.accuracy_with_ties > 0.75 and score.tied_problems == 268


def test_leaving_a_source_out(shared: Path) -> None:
    rows = real(shared)
    scores, sources = [r["scores"]["internlm2"] for r in rows], [r["solution_reference"] for r in rows]
    left = leave_one_source_out(scores, sources, rounds=10)
    whole = rewardmath(scores, rounds=10)
    assert not {"human_to_GPT-4", ""} & set(left) and all(score.accuracy >= whole.accuracy for score in left.values())
    source = "modified_with_GPT-4"
    kept = [[x for j, x in enumerate(s) if j == 0 or names[j] != source] for s, names in zip(scores, sources)]
    assert left[source].accuracy == rewardmath(kept, rounds=10).accuracy
    with pytest.raises(PrudentError, match="at problem 0"):
        leave_one_source_out([[1, 0]], [["a"]])
