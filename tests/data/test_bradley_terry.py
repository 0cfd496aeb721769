"""Noisy preferences from gold: equal gold is a coin flip, ragged pools keep to their candidates."""

import math

import pytest
import torch

from prudent.data.bradley_terry import draw_preferences
from prudent.errors import PrudentError


@pytest.mark.parametrize("slope", [3.0, math.inf])
def test_equal_gold_is_a_coin_flip_at_every_slope(slope: float) -> None:
    gold = torch.tensor([[0.0, 0.0, 1.0]])
    _, chosen, rejected = draw_preferences(gold, [0], 20_000, slope, 0)
    equal = (chosen != 2) & (rejected != 2)
    assert float(equal.double().mean()) == pytest.approx(1 / 3, abs=0.02)  # such pairs are drawn as often as others
    assert float((chosen[equal] == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    right = float((chosen[~equal] == 2).double().mean())
    assert right == pytest.approx(1 / (1 + math.exp(-slope)), abs=0.01)


def test_only_candidates_that_are_there_are_drawn_each_as_often() -> None:
    gold = torch.tensor([[0.0, 1.0, 9.0, 9.0], [0.0, 1.0, 2.0, 3.0]])
    present = torch.tensor([[True, True, False, False], [True] * 4])
    prompt, chosen, rejected = draw_preferences(gold, [0, 1], 12_000, 0.0, 1, present=present)
    assert bool((chosen != rejected).all()) and int(chosen[prompt == 0].max()) == 1
    shares = torch.bincount(chosen[prompt == 1], minlength=4) / (prompt == 1).sum()
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_what_gives_no_preference_is_refused() -> None:
    with pytest.raises(PrudentError, match="gold is constant"):
        draw_preferences(torch.ones(2, 3), [0, 1], 4, 1.0, 0)
    with pytest.raises(PrudentError, match="1 responses"):
        draw_preferences(torch.rand(1, 2), [0], 4, 1.0, 0, present=torch.tensor([[True, False]]))
