"""Splits leak nothing, keep every user in training, and count what training can't know."""

import numpy as np
import pytest

from prudent.errors import PrudentError
from prudent.recommend.interactions import read_interactions
from prudent.recommend.splits import assemble, sides, split, with_test


def table(users=20, items=30, seed=0):
    generator = np.random.default_rng(seed)
    user, item = np.nonzero(generator.random((users, items)) < 0.4)
    return {
        "user": user.astype(str).tolist(),
        "item": item.astype(str).tolist(),
        "rating": generator.integers(1, 6, len(user)).tolist(),
        "timestamp": generator.permutation(len(user)).tolist(),
    }


@pytest.mark.parametrize("how", ["user", "random", "time"])
def test_sides_are_disjoint_and_reproducible(how):
    found, _ = read_interactions(table(), threshold=3)
    data = split(found, how, valid=0.2, test=0.2, seed=1)
    again = split(found, how, valid=0.2, test=0.2, seed=1)
    assert (data.train != again.train).nnz == 0
    assert data.train.multiply(data.valid.positives).nnz == 0
    assert data.train.multiply(data.test.positives).nnz == 0
    assert data.valid.positives.multiply(data.test.positives).nnz == 0
    held = sum(
        t.positives.nnz + t.unreachable.sum() + t.cold.nnz + t.cold_unreachable.sum() for t in (data.valid, data.test)
    )
    assert data.train.nnz + held == found.positive.sum()
    assert (data.seen - data.train).min() >= 0  # every positive is seen
    assert (np.diff(data.train.indptr) > 0).all()


def test_user_split_holds_out_a_share_of_each_user():
    found, _ = read_interactions(table(), threshold=3)
    side = sides(found, "user", 0.2, 0.2, 0)
    for user in range(len(found.users)):
        own = side[(found.user == user) & found.positive]
        assert (own == 0).any()
        assert abs((own == 2).sum() - 0.2 * len(own)) <= 0.5


def test_time_split_trains_on_nothing_after_the_cut():
    found, _ = read_interactions(table(), threshold=3)
    side = sides(found, "time", 0.1, 0.2, 0)
    assert found.time[side == 0].max() < found.time[side == 1].min()
    assert found.time[side == 1].max() < found.time[side == 2].min()
    timeless, _ = read_interactions({"user": ["a", "b"], "item": ["x", "y"]})
    with pytest.raises(PrudentError, match="no time column"):
        sides(timeless, "time", 0.1, 0.1, 0)


def test_unknown_users_and_items_are_counted_not_lost():
    train, _ = read_interactions({"user": ["a", "a", "b", "b"], "item": ["x", "y", "x", "z"]})
    valid, _ = read_interactions({"user": ["a"], "item": ["z"]})
    test, _ = read_interactions({"user": ["a", "a", "b", "new", "new"], "item": ["new", "x", "y", "x", "new"]})
    data = with_test(assemble(train, valid), test)
    assert data.test.positives.toarray().tolist() == [[0, 0, 0], [0, 1, 0]]
    assert data.test.unreachable.tolist() == [1, 0]
    assert data.test.cold_users == ["new"]
    assert data.test.cold.toarray().tolist() == [[1, 0, 0]]
    assert data.test.cold_unreachable.tolist() == [1]
    counts = data.test.counts()
    assert counts["positive pairs of items unseen in training"] == 2
    assert counts["pairs left out because training has them"] == 1
    assert counts["users without training history (popularity is shown to them)"] == 1


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"user": ["a", "a"], "item": ["x", "y"]}, "1 user ('a')"),
        ({"user": ["a", "b"], "item": ["x", "x"]}, "1 item ('x')"),
    ],
)
def test_one_user_or_one_item_is_refused(columns, word):
    found, _ = read_interactions(columns)
    with pytest.raises(PrudentError) as caught:
        split(found)
    assert word in str(caught.value)


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.5, 0.5), (0.1, -0.1)])
def test_impossible_shares_are_refused(shares):
    found, _ = read_interactions(table())
    with pytest.raises(PrudentError, match="leave no training side"):
        split(found, valid=shares[0], test=shares[1])
    with pytest.raises(PrudentError, match="choose one of"):
        split(found, "never")
