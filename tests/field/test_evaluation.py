"""Field cases: coarse grids, verdicts that are none, constant scorers, totals, best of k, values that do not exist."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from prudent.errors import PrudentError
from prudent.evaluation import best_of_n, rewardmath
from prudent.evaluation import statistics as s
from prudent.evaluation.benchmarks.judges import credit, judge_score, outcome, parse_verdict, placement, swapped_outcome
from prudent.evaluation.benchmarks.pair_metrics import pair_score
from prudent.evaluation.benchmarks.reward_bench import assemble
from prudent.evaluation.overoptimization.fits import pass_at_k
from prudent.files import dumps


def test_r15_half_precision_makes_ties() -> None:
    chosen, rejected = [7.012, 3.406, -2.501, 12.03, 0.1234], [7.004, 3.398, -2.509, 12.06, 0.1230]
    exact = pair_score(chosen, rejected)
    assert (exact.right, exact.tied, exact.wrong) == (4, 0, 1) and exact.warnings == []
    rounded = pair_score(torch.tensor(chosen).bfloat16(), torch.tensor(rejected).bfloat16())
    assert (rounded.right, rounded.tied, rounded.wrong) == (3, 1, 1)
    assert (rounded.strict.value, rounded.half.value) == pytest.approx((0.6, 0.7))
    assert "bfloat16" in rounded.warnings[0] and "1 of 5" in rounded.warnings[0]


def test_r20_verdicts_that_are_none(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "cases/R20_judgements.jsonl").read_text().splitlines()]
    outcomes = [outcome(parse_verdict(row["output"]), row["chosen_slot"]) for row in rows]
    score = judge_score(outcomes)
    assert (score.right, score.wrong, score.tie, score.invalid) == (2, 1, 1, 2)
    found = {rule: estimate.value for rule, estimate in score.accuracy.items()}
    assert found == pytest.approx(
        {"decided_only": 0.666667, "invalid_wrong": 0.416667, "rewardbench": 0.583333}, abs=1e-6
    )


def test_r20_placement_depends_on_seed_and_item_alone() -> None:
    names = [f"item-{i}" for i in range(400)]
    first = {name: placement(3, name) for name in names}
    assert {name: placement(3, name) for name in reversed(names)} == first
    assert 150 < sum(slot == "A" for slot in first.values()) < 250
    assert any(placement(4, name) != slot for name, slot in first.items())
    assert swapped_outcome("right", "wrong") == "tie" and swapped_outcome("right", "right") == "right"
    assert swapped_outcome("right", "invalid") == "invalid"


def test_r21_a_constant_scorer_must_not_win() -> None:
    constant = [5.0] * 10
    tied = [0.8, 0.8, 0.8, *[0.3] * 7]
    for scores, place in ((constant, 0), (constant, 7), (tied, 0), ([0.8, 0.3, 0.8, *[0.3] * 6, 0.8], 9)):
        found = rewardmath([scores], place)
        is_constant = scores is constant
        assert found.accuracy == 0 and found.mrr == pytest.approx(0.1 if is_constant else 1 / 3)
        assert found.mrr_tie_averaged == pytest.approx(0.292897 if is_constant else 0.611111, abs=1e-6)
        assert found.accuracy_expected == pytest.approx(0.1 if is_constant else 1 / 3)
    with pytest.raises(PrudentError, match="NaN"):
        rewardmath([[math.nan, *[0.1] * 9]])
    assert rewardmath([[math.nan, *[0.1] * 9]], on_nan="worst").mrr == pytest.approx(0.1)


def test_r22_means_can_be_recomputed() -> None:
    import numpy as np

    sizes, accuracy = {"a": 150, "b": 600, "c": 250}, {"a": 0.80, "b": 0.95, "c": 0.60}
    names = np.array([name for name, n in sizes.items() for _ in range(n)])
    values = np.concatenate([np.arange(n) < round(accuracy[name] * n) for name, n in sizes.items()]).astype(float)
    weights = dict.fromkeys(sizes, 1.0)
    score = assemble(values, names, {"all": weights}, {"all": 1.0}, sizes, None, 100, 0)
    assert score.estimates["micro"].value == pytest.approx(0.84)
    assert score.estimates["macro"].value == pytest.approx(0.783333, abs=1e-6)
    again = sum(row.accuracy.value * row.n for row in score.rows) / sum(row.n for row in score.rows)
    assert again == pytest.approx(0.84) and [row.n for row in score.rows] == [150, 600, 250]


def test_r23_best_at_k_and_k_beyond_the_pool() -> None:
    assert [pass_at_k([0, 1, 0, 0, 0], k).item() for k in range(1, 6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    proxy, gold = [[0.2, 0.9, 0.5, 0.1]], [[1, -1, 3, 0]]
    found = [best_of_n(proxy, gold, n).item() for n in range(1, 5)]
    assert found == pytest.approx([0.75, 2 / 3, 0, -1])
    with pytest.raises(PrudentError, match="only 4 samples"):
        best_of_n(proxy, gold, 5)
    solved = torch.zeros(120, 1)
    solved[:41] = 1
    assert pass_at_k(solved, 1).mean().item() == pytest.approx(0.341667, abs=1e-6)
    with pytest.raises(PrudentError, match="only 1 samples"):
        pass_at_k(solved, 10)


def test_r26_values_that_do_not_exist_are_null_with_a_reason() -> None:
    results = {
        "empty": s.proportion([]),
        "constant": s.correlation([1.0, 1.0, 1.0], [1, 2, 3], "spearman"),
        "win_rate": s.proportion(credit(["tie", "invalid"], "decided_only")),
        "note": "an answer may say NaN",
    }
    text = dumps(results)
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    for name in ("empty", "constant", "win_rate"):
        assert read[name]["value"] is None and read[name]["reason"]
    assert read["note"] == "an answer may say NaN"


def test_values_that_are_all_one_number_have_no_interval() -> None:
    """[0.5, 0.5] of three items would be certainty; a difference of 0 on every item still has p 1."""
    from prudent.evaluation.intervals import bootstrap, paired_bootstrap, simultaneous_bootstrap

    found = bootstrap([0.5] * 3)
    assert (found.value, found.low, found.high) == (0.5, None, None) and "all values are equal" in str(found.reason)
    assert bootstrap([0.1] * 7, clusters=[0, 0, 1, 1, 2, 2, 2]).low is None
    assert paired_bootstrap([1.0] * 4, [0.5] * 4).p is None
    same, nothing, ordinary = simultaneous_bootstrap([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0], [0.5, 0.0, 0.5]], rounds=200)
    assert same.p is None and same.difference.low is None and same.difference.value == 0.5
    assert nothing.p == 1 and (nothing.difference.low, nothing.difference.high) == (0, 0)
    assert ordinary.difference.low is not None and 0 < float(ordinary.p or 0) <= 1


def test_reductions_of_steps_at_the_ends_of_a_float() -> None:
    from prudent.evaluation.benchmarks.reward_math import reduce_steps

    big = [1e308] * 3
    assert float(reduce_steps([big], "mean")[0]) == pytest.approx(1e308)
    assert math.isnan(float(reduce_steps([big], "prod", undefined="nan")[0]))
    assert float(reduce_steps([big], "prod", log=True)[0]) == pytest.approx(3 * math.log(1e308))
    with pytest.raises(PrudentError, match="beyond a float's range"):
        reduce_steps([big], "prod")
    assert float(reduce_steps([[5e-324, 0.5]], "geometric_mean")[0]) == pytest.approx(1.57e-162, rel=1e-2)
