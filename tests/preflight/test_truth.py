"""Truth: gold or a judge; halves that share no prompt; and the variability study."""

from __future__ import annotations

import pytest
import torch

from prudent.commands.preflight import study, truth
from prudent.errors import PrudentError
from prudent.rewards.draws import halves
from prudent.rewards.uncertainty import deviation_within


def test_halves_share_no_prompt_and_are_even() -> None:
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + [f"p{i}" for i in range(10)]
    first, second = halves(groups, 0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(20))
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    assert abs(len(first) - len(second)) <= 1
    assert halves(groups, 1)[0].tolist() != first.tolist()
    with pytest.raises(PrudentError, match="at least 4 prompts, found 2"):
        halves(["a", "a", "b"], 0)


def test_a_judges_scale_and_offsets_mean_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    reference = torch.full((5, 4), 0.25, dtype=torch.float64)
    plain = truth.standardised(scores, reference)
    moved = truth.standardised(7 * scores + torch.arange(5)[:, None] * 100.0, reference)
    assert torch.allclose(plain, moved, atol=1e-9)
    assert torch.allclose((reference * plain).sum(-1), torch.zeros(3, 5, dtype=torch.float64), atol=1e-12)
    assert [float(deviation_within(one, reference)) for one in plain] == pytest.approx([1, 1, 1])
    with pytest.raises(PrudentError, match="can't tell policies apart"):
        truth.standardised(torch.ones(5, 4), reference)


def test_gold_that_can_decide_nothing_is_refused() -> None:
    reference = torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3], dtype=torch.float64)
    gold = torch.tensor([[1.0, 2.0, float("nan")], [0.0, 1.0, 5.0]])  # the third place of prompt 1 is no candidate
    found = truth.gold_truth(gold, reference, "quality")
    assert found.quality["reference_value"] == pytest.approx((1.5 + 2.0) / 2) and found.unit == "units of quality"
    with pytest.raises(PrudentError, match="'quality' is the same for all responses"):
        truth.gold_truth(torch.ones(2, 3), reference, "quality")
    with pytest.raises(PrudentError, match="prompt 1, response 2"):
        truth.gold_truth(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, float("inf")]]), reference)


def test_accuracy_counts_ties_half() -> None:
    found = truth.accuracy([1.0, 2.0, -1.0, 0.0])
    assert found["accuracy"] == 0.625 and found["ties"] == 1 and found["low"] < 0.625 < found["high"]


def test_study_numbers() -> None:
    chosen = torch.tensor([[1.0, 0.0, 2.0], [2.0, 1.0, 0.0], [3.0, -1.0, 1.0]])
    rejected = torch.zeros(3, 3)
    found = study.study("file", chosen, rejected, [5, -1, 0])
    assert found.mean.tolist() == [2.0, 0.0, 1.0] and found.deviation.tolist() == [1.0, 1.0, 1.0]
    assert [row["accuracy"] for row in found.by_member] == pytest.approx([2.5 / 3, 2.5 / 3, 2 / 3])
    assert found.longer["accuracy"] == pytest.approx(0.5) and found.ensemble["accuracy"] == pytest.approx(2.5 / 3)
    assert found.variance.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert found.facts["share_not_unanimous"] == pytest.approx(2 / 3)
    assert study.most_disputed(found, 1) == [1]  # one vote of three: nearest to an even split, first of its spread
    assert study.typical_response(found) in (0, 1, 2)
    with pytest.raises(PrudentError, match="members >= 2"):
        study.study("file", chosen[:1], rejected[:1], [1, 1, 1])
