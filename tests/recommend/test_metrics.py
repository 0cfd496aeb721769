"""Metrics against plain definitions, in every view, and with lists from elsewhere."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from prudent.errors import DataError, PrudentError
from prudent.recommend.lists import judge_lists, read_lists
from prudent.recommend.metrics import Exposure, best_items, evaluate, exposure_shares, gini, list_metrics, tail_items
from prudent.recommend.splits import Truth


def world(users=40, items=60, seed=0):
    generator = np.random.default_rng(seed)
    seen = generator.random((users, items)) < 0.2
    truth = (generator.random((users, items)) < 0.1) & ~seen
    truth[0] = False
    unreachable = generator.integers(0, 2, users)
    unreachable[0] = 0
    tail = generator.random(items) < 0.6
    scores = torch.from_numpy(generator.standard_normal((users, items)).astype(np.float32))
    empty = sparse.csr_matrix(np.zeros((0, items), dtype=np.float32))
    held = Truth(sparse.csr_matrix(truth.astype(np.float32)), unreachable, empty, np.zeros(0, dtype=int))
    return scores, held, sparse.csr_matrix(seen.astype(np.float32)), tail


def plainly(ranked, relevant, total, k):
    """Recall and NDCG of one user by the definitions, one item at a time."""
    if total == 0:
        return math.nan, math.nan
    gains = [1 / math.log2(rank + 2) for rank, item in enumerate(ranked[:k]) if item in relevant]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(total, k)))
    return len(gains) / total, sum(gains) / ideal


def test_every_view_equals_the_plain_definition():
    scores, held, seen, tail = world()
    found = evaluate(lambda users: scores[users], held, seen, tail, ks=(5, 20))
    for user in range(40):
        open_items = [i for i in torch.argsort(scores[user], descending=True).tolist() if not seen[user, i]]
        right = set(held.positives[user].indices.tolist())
        views = {
            "overall": (open_items, right, len(right) + held.unreachable[user]),
            "tail absolute": (open_items, {i for i in right if tail[i]}, None),
            "tail relative": ([i for i in open_items if tail[i]], {i for i in right if tail[i]}, None),
        }
        for view, (ranked, relevant, total) in views.items():
            total = len(relevant) + held.unreachable[user] if total is None else total
            for k in (5, 20):
                recall, ndcg = plainly(ranked, relevant, total, k)
                # A user without any held-out positive isn't evaluated in any view.
                np.testing.assert_allclose(found.values[f"recall@{k} {view}"][user], recall, rtol=1e-12)
                np.testing.assert_allclose(found.values[f"ndcg@{k} {view}"][user], ndcg, rtol=1e-12)
    assert found.notes["users without held-out positives"] >= 1
    assert math.isnan(found.values["recall@5 overall"][0])


def test_seen_items_are_never_in_a_list_and_short_catalogues_end_early():
    scores, held, seen, tail = world(items=12)
    found = evaluate(lambda users: scores[users], held, seen, tail, ks=(20,))
    for user, places in enumerate(found.top):
        kept = places[places >= 0]
        assert not set(kept) & set(seen[user].indices)
        if len(kept):
            assert len(kept) == 12 - seen[user].nnz


def test_bad_scores_are_named():
    scores, held, seen, tail = world()
    scores[7, 3] = math.nan
    with pytest.raises(PrudentError, match="NaN for user number 7"):
        evaluate(lambda users: scores[users], held, seen, tail)
    with pytest.raises(PrudentError, match="shape"):
        evaluate(lambda users: scores[users, :5], held, seen, tail)


def test_tail_spread_and_gini():
    tail, threshold = tail_items(np.array([1, 2, 3, 4, 100]), percentile=80)
    assert tail.tolist() == [True, True, True, True, False]
    assert threshold == pytest.approx(23.2)
    assert tail_items(np.array([1, 5, 9]), below=5)[0].tolist() == [True, False, False]
    with pytest.raises(PrudentError, match="percentile"):
        tail_items(np.array([1]), percentile=0)
    assert gini(np.array([1, 1, 1, 1])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 4])) == pytest.approx(0.75)
    assert math.isnan(gini(np.zeros(3)))
    exposure = Exposure(np.zeros(4), np.ones(4), 2)
    exposure.add_indices(np.array([[0, 1], [0, -1]]))
    assert exposure_shares(exposure, np.array([10, 4, 1, 1])) == {
        "coverage@2": 0.5,
        "gini@2": pytest.approx(7 / 12),
        "popularity@2": 8.0,
    }


def test_lists_from_elsewhere_count_repeats_and_seen_items_once(tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("user,item,rank\nu0,b,2\nu0,a,1\nu0,a,3\nu1,c,1\nu1,zz,2\nu1,a,3\n")
    lists = read_lists(path)
    assert lists == {"u0": ["a", "b", "a"], "u1": ["c", "zz", "a"]}
    positives = sparse.csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32))
    seen = sparse.csr_matrix(np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32))
    truth = Truth(positives, np.zeros(3, dtype=int), positives[:0], np.zeros(0, dtype=int))
    found = judge_lists(
        lists, ["u0", "u1", "u2"], ["a", "b", "c"], truth, seen, np.array([True, False, False]), ks=(3,)
    )
    assert found.values["recall@3 overall"].tolist() == [1, 1, 0]
    assert found.values["ndcg@3 overall"][1] == pytest.approx(0.5)
    assert found.notes["repeated recommendations, counted once"] == 1
    assert found.notes["recommendations that the user has seen"] == 1
    assert found.notes["recommendations unknown to training"] == 1
    assert found.notes["users without a list"] == 1
    path.write_text("user,item\nu0,b\nu0,a\n")
    assert read_lists(path) == {"u0": ["b", "a"]}


def test_list_metrics_refuses_nonsense():
    with pytest.raises(PrudentError, match="at least 1"):
        list_metrics([["a"]], [{"a"}], 0)
    with pytest.raises(PrudentError, match="2 lists but 1"):
        list_metrics([["a"], ["b"]], [{"a"}], 5)


def tied_world(users=25, items=30, seed=3):
    """Scores of few distinct values, so that lists end among equal scores."""
    scores, held, seen, tail = world(users, items, seed)
    return torch.round(scores), held, seen, tail


def test_equal_scores_give_the_mean_over_orders():
    """The closed form against 800 random orders of the tied."""
    scores, held, seen, tail = tied_world()
    found = evaluate(lambda users: scores[users], held, seen, tail, ks=(5,))
    generator = np.random.default_rng(0)
    sums = {name: np.zeros(25) for name in found.values}
    rounds = 800
    for _ in range(rounds):
        noise = torch.from_numpy(generator.random(scores.shape).astype(np.float32)) * 0.5
        one = evaluate(lambda users, noise=noise: (scores + noise)[users], held, seen, tail, ks=(5,))
        for name, values in one.values.items():
            sums[name] += values
    for name, values in found.values.items():
        np.testing.assert_allclose(values, sums[name] / rounds, atol=0.045)


def test_a_constant_scorer_gets_the_share_of_items_shown_whatever_their_order():
    """All scores equal: Recall@5 of 30 unseen items is 5 / 30 for every user, and a renaming changes nothing."""
    _, held, _, tail = world(8, 30)
    held = Truth(held.positives, np.zeros(8, dtype=int), held.cold, held.cold_unreachable)
    seen = sparse.csr_matrix((8, 30), dtype=np.float32)
    order = np.random.default_rng(5).permutation(30)
    shuffled = Truth(held.positives[:, order], held.unreachable, held.cold, held.cold_unreachable)
    plain = evaluate(lambda users: torch.zeros(len(users), 30), held, seen, tail, ks=(5,))
    moved = evaluate(lambda users: torch.zeros(len(users), 30), shuffled, seen, tail[order], ks=(5,))
    known = ~np.isnan(plain.values["recall@5 overall"])
    np.testing.assert_allclose(plain.values["recall@5 overall"][known], 5 / 30, rtol=1e-12)
    for name, values in plain.values.items():
        np.testing.assert_allclose(values, moved.values[name], rtol=1e-12)
    users = int(known.sum())
    assert exposure_shares(plain.exposure, np.arange(30)) == {
        "coverage@20": pytest.approx(1 - (1 / 3) ** users),
        "gini@20": pytest.approx(0),
        "popularity@20": pytest.approx(14.5),
    }
    assert plain.notes["users whose first 5 end among equal scores, averaged over orders"] == users


def test_ties_at_the_end_of_a_list_are_drawn_by_the_users_number():
    scores = torch.zeros(2, 40)
    scores[:, 7] = 1
    first, again = (best_items(scores, 5, np.array([3, 9])).indices for _ in range(2))
    assert (first == again).all() and (first[:, 0] == 7).all()
    assert set(first[0]) != set(first[1]) and all(len(set(row)) == 5 for row in first.tolist())


def test_lists_with_two_items_at_one_rank_are_refused(tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("user,item,rank\nu0,b,1\nu0,a,1\n")
    with pytest.raises(DataError, match=r"line 3.*equal-rank.*line 2"):
        read_lists(path)
