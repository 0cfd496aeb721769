"""Reading interactions: formats, ids, thresholds, repeats, zeros, and every bad row in one pass."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prudent.errors import DataError, PrudentError
from prudent.recommend.interactions import read_interactions

ROWS = [("7", "x", 5.0, 10), ("07", "x", 3.0, 20), ("7", "y", 4.0, 30), ("8", "y", 0.5, 40)]
PAIRS = [("07", "x"), ("7", "x"), ("7", "y"), ("8", "y")]


def write(path, rows=ROWS):
    names = ("user", "item", "rating", "timestamp")
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), path)
        return path
    if ".jsonl" in path.name:
        text = "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        text = "\n".join(mark.join(map(str, row)) for row in [names, *rows]) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_formats_read_alike(tmp_path, name):
    found, report = read_interactions(write(tmp_path / name))
    assert found.pairs() == PAIRS
    assert found.time.tolist() == [20, 10, 30, 40]
    assert report.counts["rows"] == 4
    assert report.rule == "rating > 0"


def test_numbers_and_texts_are_one_id_and_leading_zeros_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": 7, "item": 1}\n{"user": "7", "item": "1"}\n{"user": "07", "item": 2}\n')
    found, report = read_interactions(path)
    assert found.pairs() == [("07", "2"), ("7", "1")]
    assert report.counts["duplicate"] == 1
    assert report.rule == "every row"


def test_threshold_keeps_low_ratings_as_seen():
    columns = {"user": ["a", "a", "b"], "item": ["x", "y", "x"], "rating": [4, 3.5, -2]}
    found, report = read_interactions(columns, threshold=4)
    assert found.pairs() == [("a", "x")]
    assert len(found) == 3
    assert report.counts["below-threshold"] == 2
    assert not report.bad


def test_pair_rated_twice_is_positive_once_and_order_does_not_matter():
    columns = {"user": ["a", "a", "b", "a"], "item": ["x", "x", "x", "x"], "rating": [2, 5, 4, 4], "time": [9, 8, 7, 3]}
    shuffled = {name: [values[i] for i in (2, 3, 0, 1)] for name, values in columns.items()}
    found, report = read_interactions(columns, threshold=4)
    other, _ = read_interactions(shuffled, threshold=4)
    assert found.pairs() == other.pairs() == [("a", "x"), ("b", "x")]
    assert found.time.tolist() == other.time.tolist() == [3, 7]
    assert report.counts["duplicate"] == 2
    assert report.counts["pair-on-both-sides-of-threshold"] == 1


def test_all_bad_rows_are_told_at_once(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "user,item,rating,when\na,x,5,1\n,x,5,1\na,y,many,1\na,z,inf,1\na,b,5,1,9\n\nb,x,-1,1\nb,z,,1\nb,z,2,1\n"
    )
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    found = [(row.line, row.reason) for row in caught.value.rows]
    assert found == [
        (3, "missing-id"),
        (4, "unparsable-rating"),
        (5, "unparsable-rating"),
        (6, "too-many-fields"),
        (8, "negative-rating"),
        (9, "missing-rating"),
    ]
    kept, report = read_interactions(path, on_error="drop")
    assert kept.pairs() == [("a", "x"), ("b", "z")]
    assert report.counts["blank-line"] == 1
    assert len(report.bad) == 6


def test_bad_json_lines_have_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": "a", "item": "x"}\nnot json\n[1]\n\n{"user": ["a"], "item": "x"}\n')
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    assert [(row.line, row.reason) for row in caught.value.rows] == [(2, "not-json"), (3, "no-object"), (5, "no-id")]
    path.write_text('[{"user": "a", "item": "x"}]\n')
    with pytest.raises(DataError, match="one JSON object a line") as caught:
        read_interactions(path)
    assert [(row.line, row.reason) for row in caught.value.rows] == [(1, "no-object")]


def test_unparsable_time_is_kept_and_flagged():
    columns = {"user": ["a", "b"], "item": ["x", "y"], "timestamp": ["2024-01-01T00:00:00", "soon"]}
    found, report = read_interactions(columns)
    assert found.time[0] == 1704067200
    assert report.counts["unparsable-time"] == 1


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"person": ["a"], "item": ["x"]}, ["no user column", "person, item", "--column user="]),
        ({"user": ["a"], "item": ["x"], "rating": [0]}, ["no positive pair", "lower the threshold"]),
        ({"user": ["a", "b"], "item": ["x"]}, ["different lengths"]),
    ],
)
def test_unusable_tables_say_what_to_do(columns, words):
    with pytest.raises(PrudentError) as caught:
        read_interactions(columns)
    assert all(word in str(caught.value) for word in words)


def test_named_columns_and_damaged_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfwho,what,stars\r\na,x,5\r\nb,y,4\r\n")
    found, _ = read_interactions(path, user="who", item="what", rating="stars")
    assert found.pairs() == [("a", "x"), ("b", "y")]
    with pytest.raises(PrudentError, match="no column 'nobody'"):
        read_interactions(path, user="nobody")
    path.write_bytes(b"user,item\na,\xff\xfe\n")
    with pytest.raises(PrudentError, match="not UTF-8"):
        read_interactions(path)
    path.write_text("user;item;rating\na;x;5\n")
    with pytest.raises(PrudentError, match=r"separated by ';'.*save it with commas as \.csv"):
        read_interactions(path)
    broken = tmp_path / "b.csv.gz"
    broken.write_bytes(gzip.compress(b"user,item\n" + b"a,x\n" * 5000)[:-20])
    with pytest.raises(PrudentError, match="is damaged gzip"):
        read_interactions(broken)
    with pytest.raises(PrudentError, match="no such file"):
        read_interactions(tmp_path / "none.csv")
    with pytest.raises(PrudentError, match="unknown kind"):
        read_interactions(write(tmp_path / "a.csv").rename(tmp_path / "a.xlsx"))


def test_recboles_typed_headers_are_read_and_ids_stay_text(tmp_path):
    path = tmp_path / "a.inter"
    path.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\nu0\t001\t5.0\t10\nu1\t1\t4.0\t11\n")
    found, _ = read_interactions(path)
    assert found.items == ["001", "1"] and len(found) == 2 and found.time is not None
