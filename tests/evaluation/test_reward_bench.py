"""RewardBench 1 and 2: published weights, null for what is missing, ties, and totals that can be recomputed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prudent.errors import PrudentError
from prudent.evaluation import rewardbench, rewardbench2
from prudent.evaluation.benchmarks.reward_bench import best_of_k, credit_of
from prudent.evaluation.benchmarks.ties_domain import published, tie_statistics, ties_score

SECTIONS = published()["rewardbench"]["sections"]
ITEMS = {name: entry["items"] for members in SECTIONS.values() for name, entry in members.items()}
FULL = [name for name, n in ITEMS.items() for _ in range(n)]


def test_published_counts() -> None:
    sizes = {section: sum(e["items"] for e in members.values()) for section, members in SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431}
    assert sum(sizes.values()) == 2985 and sum(published()["rewardbench2"]["subsets"].values()) == 1865


def test_mathematics_is_half_of_reasoning() -> None:
    correct = [0.5 if name == "math-prm" else 1.0 for name in FULL]
    score = rewardbench(correct, FULL)
    assert score.sections["Reasoning"] == pytest.approx(0.75)
    assert score.overall == pytest.approx((3 + 0.75) / 4)
    assert score.rows[-7].name == "math-prm" and score.rows[-7].ties == 447
    assert any("math-prm as 984" in note for note in score.notes)


def test_totals_can_be_recomputed_from_the_table() -> None:
    rng = np.random.default_rng(0)
    correct = (rng.random(len(FULL)) < 0.7).astype(float)
    score = rewardbench(correct, FULL)
    for section, value in score.sections.items():
        rows = [row for row in score.rows if row.section == section]
        assert value == pytest.approx(sum(r.accuracy.value * r.weight for r in rows) / sum(r.weight for r in rows))
    assert score.overall == pytest.approx(np.mean(list(score.sections.values())))
    assert score.estimates["micro"].value == pytest.approx(correct.mean())
    overall = score.estimates["overall"]
    assert overall.low < score.overall < overall.high and overall.high - overall.low < 0.06


def test_leaderboard_weights_swap_the_two_xstest_counts() -> None:
    correct = [float(name == "xstest-should-refuse") for name in FULL]
    assert rewardbench(correct, FULL).sections["Safety"] == pytest.approx(154 / 740)
    assert rewardbench(correct, FULL, weights="leaderboard").sections["Safety"] == pytest.approx(250 / 740)


def test_missing_subsets_are_null_never_zero() -> None:
    score = rewardbench([1, 0], ["math-prm", "math-prm"])
    assert score.subsets["hep-cpp"] is None and score.sections["Chat"] is None and score.overall is None
    assert score.sections["Reasoning"] is None and len(score.missing) == 22
    assert score.estimates["Reasoning, 1 of 7 subsets"].value == 0.5
    assert "hep-cpp" in score.estimates["Reasoning"].reason and "Chat" in score.estimates["overall"].reason
    assert any("math-prm 2 of 447" in note for note in score.notes)


def test_a_section_without_one_subset_is_null_and_so_is_overall() -> None:
    """Safety printed .752 and overall .850 as if refusals-offensive had been there."""
    names = [name for name in FULL if name != "refusals-offensive"]
    score = rewardbench(np.ones(len(names)), names)
    assert score.sections["Safety"] is None and score.overall is None
    assert score.sections["Chat"] == 1 and score.estimates["Safety, 4 of 5 subsets"].value == 1
    for name in ("Safety", "overall"):
        assert score.estimates[name].value is None and "refusals-offensive" in score.estimates[name].reason
    assert any("refusals-offensive" in note for note in score.notes)
    assert rewardbench(np.ones(len(FULL)), FULL).overall == 1


def test_prior_sets_at_half_weight() -> None:
    names = [*FULL, *published()["rewardbench"]["prior_sets"]["subsets"]]
    correct = [1.0] * len(FULL) + [0.0, 1.0] * 2
    score = rewardbench(correct, names, prior=True)
    assert score.overall == pytest.approx((4 + 0.5 * 0.5) / 4.5)
    assert rewardbench(correct, names).overall == 1.0 and rewardbench(correct, names).sections["Prior Sets"] == 0.5


def test_random_and_constant_scorers() -> None:
    rng = np.random.default_rng(1)
    score = rewardbench(credit_of(rng.normal(size=2985), rng.normal(size=2985)), FULL)
    assert abs(score.estimates["micro"].value - 0.5) < 3 * 0.5 / math.sqrt(2985)
    constant = credit_of(np.ones(2985), np.ones(2985))
    assert set(constant.tolist()) == {0.5} and rewardbench((constant == 1).double(), FULL).overall == 0
    second = rewardbench2(rng.normal(size=(1763, 4)), plain_names())
    assert abs(second.estimates["micro"].value - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 1763)
    assert rewardbench2(np.ones((1763, 4)), plain_names()).estimates["micro"].value == pytest.approx(0.25)


def plain_names() -> list[str]:
    return [name for name, n in published()["rewardbench2"]["subsets"].items() if name != "Ties" for _ in range(n)]


def test_ties_by_hand() -> None:
    assert tie_statistics(np.array([3, 2.5, 1]), 2) == (1.0, 0.5, 1.5)
    assert tie_statistics(np.array([2.0, 1]), 1) == (1.0, 0.0, 1.0)
    score = rewardbench2([[2.0, 1.0], [3, 2.5, 1.0]], ["Ties", "Ties"], correct=[1, 2], ids=["ref:7", "tied:7"])
    expected = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1 / 0.5 - 1)
    assert score.ties.score == pytest.approx(expected) and score.subsets["Ties"] == pytest.approx(expected)
    assert score.overall is None and "Factuality" in score.estimates["overall"].reason


def test_ties_without_spread() -> None:
    flat = {"a": (1.0, 0.0, 0.0)}
    assert ties_score(flat, flat).margin == 0.0  # 0 / 0 counts as nothing
    assert ties_score({"a": (1.0, 0.0, 2.0)}, {"a": (1.0, 0.0, 1.0)}).margin == 1.0
    assert ties_score({}, flat).score is None and ties_score({"b": (1.0, 0, 1.0)}, flat).score is None


def test_six_domains_make_the_second_overall() -> None:
    rng = np.random.default_rng(2)
    names = [*plain_names(), *["Ties"] * 102]
    scores = [*rng.normal(size=(1763, 4)), *[rng.normal(size=8) + np.r_[[2] * 3, [0] * 5] for _ in range(102)]]
    ids = [str(i) for i in range(1763)] + [f"{kind}:{i}" for i in range(51) for kind in ("ref", "tied")]
    score = rewardbench2(scores, names, correct=[1] * 1763 + [3] * 102, ids=ids)
    assert score.overall == pytest.approx(np.mean(list(score.subsets.values())))
    overall = score.estimates["overall"]
    assert overall.low < score.overall < overall.high and score.missing == []
    assert score.subsets["Math"] == pytest.approx(
        np.mean([s.argmax() == 0 for s, n in zip(scores, names) if n == "Math"])
    )


def test_credit_at_the_top_is_shared() -> None:
    assert best_of_k([[1, 1, 0, 0], [1, 2, 0, 0], [3, 3, 3, 3]], [1, 1, 1]).tolist() == [0.5, 0, 0.25]


def test_bad_input_names_the_item() -> None:
    with pytest.raises(PrudentError, match="unknown subset 'maths' at item 1"):
        rewardbench([1, 1], ["math-prm", "maths"])
    with pytest.raises(PrudentError, match=r"7.0 at item 0.*not a score"):
        rewardbench([7.0], ["math-prm"])
    with pytest.raises(PrudentError, match="nan at item 1"):
        rewardbench([1, math.nan], ["math-prm", "math-prm"])
    with pytest.raises(PrudentError, match="scores of item 0 is nan"):
        rewardbench2([[1, math.nan, 0, 0]], ["Math"])
    with pytest.raises(PrudentError, match="no ids"):
        rewardbench2([[1, 0]], ["Ties"])
    with pytest.raises(PrudentError, match="'ref:KEY'"):
        rewardbench2([[1, 0]], ["Ties"], ids=["7"])
    with pytest.raises(PrudentError, match="occurs twice"):
        rewardbench2([[1, 0], [1, 0]], ["Ties"] * 2, ids=["ref:7", "ref:7"])
    with pytest.raises(PrudentError, match="0 correct of 4"):
        rewardbench2([[1, 0, 0, 0]], ["Math"], correct=0)


def test_everything_right_is_not_certain() -> None:
    score = rewardbench(np.ones(len(FULL)), FULL, rounds=20)
    for name in ("Chat", "Safety", "overall", "micro", "macro"):
        estimate = score.estimates[name]
        assert estimate.value == 1 and estimate.low < 1, name
    assert score.estimates["overall"].low > 0.98
    shared = rewardbench(np.ones(3), ["math-prm"] * 3, clusters=["a", "a", "b"], rounds=20)
    assert shared.estimates["micro"].low == shared.rows[-7].accuracy.low < 0.5
