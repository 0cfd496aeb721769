"""Equal scores: every metric is the mean over the orders of the tied, counted out here one order at a time."""

import itertools

import numpy as np
import pytest
import torch

from prudent.evaluation.benchmarks.contest import member_uncertainty
from prudent.evaluation.benchmarks.pair_metrics import disagreement
from prudent.evaluation.label_noise import find_flips
from prudent.evaluation.ties import mean_over_orders, same_choice
from prudent.policies.best_of_n import pick


@pytest.mark.parametrize(
    "gains",
    [np.ones(2), 1 / np.log2(np.arange(2, 5)), 1 / np.arange(1, 6), np.ones(1)],
    ids=["recall@2", "ndcg@3", "reciprocal rank", "first"],
)
def test_the_closed_form_equals_all_orders(gains):
    scores = [3, 1, 2, 2, 2]
    wanted = np.zeros(5)
    orders = [order for order in itertools.permutations(range(5)) if [scores[i] for i in order] == [3, 2, 2, 2, 1]]
    for order in orders:
        for rank, item in enumerate(order[: len(gains)]):
            wanted[item] += gains[rank] / len(orders)
    found = mean_over_orders(gains, np.array([0, 4, 1, 1, 1]), np.array([1, 1, 3, 3, 3]))
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_two_choices_agree_as_often_as_independent_draws_of_their_best():
    one, other = np.array([True, True, False]), np.array([False, True, True])
    assert same_choice(one, other) == 1 / 4
    assert same_choice(one, one) == 1 / 2


def test_finding_flips_does_not_depend_on_the_order_of_equal_strengths():
    strength, wrong = np.zeros(8), np.array([True] * 2 + [False] * 6)
    for planted in (wrong, wrong[::-1].copy()):
        row = find_flips(strength, planted, [0.5])["by_share"][0]
        assert row["picked"] == 4
        assert row["precision"] == pytest.approx(0.25) and row["recall"] == pytest.approx(0.5)


def test_accuracy_by_disagreement_does_not_depend_on_the_order_of_equal_disagreement():
    credit = torch.tensor([1.0] * 5 + [0.0] * 5)
    for values in (credit, credit.flip(0)):
        found = disagreement(torch.zeros(10), values, "deviation", groups=5)
        assert [part.value for part in found.bins] == [0.5] * 5


def test_members_disagreement_does_not_depend_on_the_order_of_candidates():
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = [member_uncertainty(scores[:, list(order)], [3]) for order in itertools.permutations(range(3))]
    for name, values in found[0].items():
        assert all(other[name] == pytest.approx(values) for other in found)
    # the mean's best are candidates 1 and 2; member 1 has both at the top, the others one of them
    assert found[0]["votes"][0] == pytest.approx(1 - (2 / 4 + 1 / 2 + 1 / 2) / 3)
    assert found[0]["small margin"][0] == 0


def test_a_pick_names_every_candidate_that_ties():
    found = pick(torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0]]))
    assert found.index == 1 and found.margin == 0 and found.best.tolist() == [False, True, True]
    assert found.best_by_rule["min"].tolist() == [False, True, True]
