"""Field case R24: repeats, zeros and gaps in interactions; NDCG's ideal; a recommendation given twice."""

import math

import numpy as np
import pytest

from prudent.errors import DataError
from prudent.recommend.interactions import read_interactions
from prudent.recommend.metrics import list_metrics

TEXT = "user,item,value\nu1,a,1\nu1,a,1\nu1,a,1\nu1,b,0\nu2,b,5\nu2,c,\nu3,c,4\n\nu3,d,-1\n"


def check(path):
    found, report = read_interactions(path, on_error="drop")
    assert found.pairs() == [("u1", "a"), ("u2", "b"), ("u3", "c")]
    assert report.counts["duplicate"] == 2
    assert report.counts["zero"] == 1
    assert report.counts["blank-line"] == 1
    assert [(row.line, row.field, row.reason) for row in report.bad] == [
        (7, "value", "missing-rating"),
        (10, "value", "negative-rating"),
    ]
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    assert [row.line for row in caught.value.rows] == [7, 10]


def test_r24_interactions(tmp_path):
    path = tmp_path / "interactions.csv"
    path.write_text(TEXT)
    check(path)


def test_r24_shared_file(shared):
    check(shared / "cases" / "R24_interactions.csv")


def test_r24_ideal_gain_counts_every_relevant_item_up_to_k():
    found = list_metrics([["a", "x", "y", "z", "w"]], [{"a", "b", "c"}], 5)
    assert found["ndcg"][0] == pytest.approx(0.469279, abs=1e-6)
    assert found["recall"][0] == pytest.approx(1 / 3)
    found = list_metrics([list("abcde")], [set("abcdefg")], 5)
    assert found["ndcg"][0] == pytest.approx(1)
    assert found["recall"][0] == pytest.approx(0.714286, abs=1e-6)


def test_r24_a_repeated_recommendation_counts_once():
    found = list_metrics([["a", "a", "b"]], [{"a", "b", "c"}], 5)
    assert found["recall"][0] == pytest.approx(2 / 3)
    assert found["ndcg"][0] == pytest.approx(1.5 / 2.130930, abs=1e-6)
    assert found["repeats"] == 1


def test_r24_users_without_test_items_are_left_out_and_counted():
    found = list_metrics([["a"], ["a"]], [{"a"}, set()], 5)
    assert found["users_without_truth"] == 1
    assert math.isnan(found["recall"][1])
    assert np.nanmean(found["recall"]) == 1
