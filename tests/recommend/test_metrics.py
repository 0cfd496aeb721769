"""Metrics against plain definitions, in every view, and with lists from elsewhere."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.recommend.lists import judge_lists, read_lists
from prudent.recommend.metrics import evaluate, gini, list_metrics, spread_of, tail_items
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
    spread = spread_of(np.array([[0, 1], [0, -1]]), np.array([10, 4, 1, 1]), k=2)
    assert spread == {"coverage@2": 0.5, "gini@2": pytest.approx(7 / 12), "popularity@2": 8.0}


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
