import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent import PrudentError
from prudent.rewards.columns import pair_columns
from prudent.rewards.losses import bradley_terry, pair_difference

numbers = st.floats(-30, 30, allow_nan=False)


def reference(difference: float, label: float, margin: float) -> float:
    def log_sigmoid(z: float) -> float:
        return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))

    z = difference - margin
    return -(label * log_sigmoid(z) + (1 - label) * log_sigmoid(-z))


@given(st.lists(st.tuples(numbers, st.floats(0, 1), numbers), min_size=1, max_size=8))
def test_losses_equal_a_loop_over_pairs(pairs):
    difference, label, margin = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    found = bradley_terry(difference, soft_label=label, margin=margin)
    assert found.tolist() == pytest.approx([reference(*pair) for pair in pairs], abs=1e-12)
    stacked = bradley_terry(difference.repeat(3, 1), soft_label=label, margin=margin)
    assert torch.equal(stacked, found.repeat(3, 1))


def test_values_of_the_papers_check():
    zero, one = torch.zeros(1), torch.ones(1)
    for label in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert float(bradley_terry(zero, soft_label=torch.tensor([label]))) == pytest.approx(math.log(2))
    # smoothing p = .1 means that chosen is better with probability .9
    assert float(bradley_terry(one, soft_label=torch.tensor([0.9]))) == pytest.approx(0.413262, abs=1e-6)
    assert float(bradley_terry(one, margin=one)) == pytest.approx(math.log(2))
    assert float(bradley_terry(torch.tensor([2.0]))) == pytest.approx(0.126928, abs=1e-6)


def test_soft_loss_is_lowest_at_the_log_odds():
    grid = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    losses = bradley_terry(grid, soft_label=torch.full_like(grid, 0.9))
    assert float(grid[losses.argmin()]) == pytest.approx(math.log(9), abs=2e-4)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(2, 5))
def test_no_column_broadcasts_by_accident(members, pairs):
    scores = torch.randn(members, pairs)
    with pytest.raises(PrudentError, match="must be equal"):
        pair_difference(torch.randn(pairs, 1), torch.randn(pairs))
    for name in ("soft_label", "margin"):
        with pytest.raises(PrudentError, match=name):
            bradley_terry(scores, **{name: torch.zeros(pairs, 1)})
        with pytest.raises(PrudentError, match=name):
            bradley_terry(scores, **{name: torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weight": [1.0, -1.0]}, "weight of pair 1 is -1"),
        ({"weight": [0.0, 0.0]}, "every pair is 0"),
        ({"soft_label": [0.5, 1.5]}, "soft_label of pair 1"),
        ({"margin": [math.inf, 0.0]}, "margin is inf at pair 0"),
        ({"margin": [[0.0], [0.0]]}, r"expected \(2,\)"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(PrudentError, match=message):
        pair_columns(2, **columns)
