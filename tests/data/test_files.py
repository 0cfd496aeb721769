"""Local files of every kind: what a reader meets in the wild, with the line that a person must look at."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent.data.files import read_records
from prudent.data.preferences import read_preferences, read_preferences_with_report
from prudent.errors import DataError, PrudentError

GOOD = {"prompt": "P", "chosen": "yes", "rejected": "no"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_gzip_by_content_and_damaged_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(GOOD).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    (tmp_path / "b.jsonl").write_bytes(packed)  # packed, but not named so
    assert len(read_preferences(tmp_path / "a.jsonl.gz")) == len(read_preferences(tmp_path / "b.jsonl")) == 1
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(PrudentError, match="damaged gzip"):
        read_preferences(tmp_path / "cut.jsonl.gz")


def test_json_array_knows_the_line_of_each_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([GOOD, {**GOOD, "chosen": None}, GOOD], indent=1))
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert [(row.line, row.field) for row in caught.value.rows] == [(7, "chosen")]
    cut = write(tmp_path / "cut.json", json.dumps([GOOD, GOOD], indent=1)[:-20])
    data, report = read_preferences_with_report(cut, on_error="skip")
    assert data["row"] == [2] and report.bad[0].reason == "not-json"


def test_json_in_other_wrappings(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(GOOD) for _ in range(3))
    for name, text, rows in (
        ("lines.json", lines, 3),
        ("data.json", json.dumps({"data": [GOOD, GOOD]}), 2),
        ("one.json", json.dumps(GOOD), 1),
    ):
        assert len(read_preferences(write(tmp_path / name, text))) == rows, name


def test_bytes_that_are_not_utf8_cost_one_row(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + good.replace(b"yes", b"y\xffs") + b"\n" + good)
    data, report = read_preferences_with_report(tmp_path / "a.jsonl", on_error="skip")
    assert data["row"] == [1, 3]
    assert (report.bad[0].line, report.bad[0].reason) == (2, "not-utf8")


def test_separators_inside_text_are_no_line_ends(tmp_path: Path) -> None:
    text = json.dumps({**GOOD, "chosen": "a\u2028b\x85c"}, ensure_ascii=False)
    data = read_preferences(write(tmp_path / "a.jsonl", text + "\n" + text))
    assert data["row"] == [1, 2] and data[0]["chosen"][0]["content"] == "a\u2028b\x85c"


def test_deep_nesting_and_endless_numbers_are_bad_rows(tmp_path: Path) -> None:
    rows = ["[" * 200_000, '{"prompt": ' + "9" * 5000 + "}", json.dumps(GOOD)]
    data, report = read_preferences_with_report(write(tmp_path / "a.jsonl", "\n".join(rows)), on_error="skip")
    assert data["row"] == [3] and [row.line for row in report.bad] == [1, 2]


def test_csv_lines_quotes_and_wrong_cell_counts(tmp_path: Path) -> None:
    text = '\ufeffprompt,chosen,rejected\r\nP,"two\r\nlines",no\r\nP,yes\r\n\r\nP,"with ""quotes""",no\r\n'
    data, report = read_preferences_with_report(write(tmp_path / "a.csv", text), on_error="skip")
    assert data["row"] == [2, 6]
    assert data[0]["chosen"][0]["content"] == "two\r\nlines"
    assert data[1]["chosen"][0]["content"] == 'with "quotes"'
    assert [(row.line, row.reason) for row in report.bad] == [(4, "wrong-cell-count")]


def test_whole_file_faults(tmp_path: Path) -> None:
    with pytest.raises(PrudentError, match="not there"):
        read_preferences(tmp_path / "none.jsonl")
    with pytest.raises(PrudentError, match="empty"):
        read_preferences(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(PrudentError, match="empty"):
        read_preferences(write(tmp_path / "blank.jsonl", "\n  \n"))
    with pytest.raises(PrudentError, match="unknown kind"):
        read_preferences(write(tmp_path / "a.xyz", "x"))
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(PrudentError, match="parquet"):
        read_preferences(tmp_path / "a.parquet")
    with pytest.raises(PrudentError, match="no split"):
        read_preferences(write(tmp_path / "a.jsonl", json.dumps(GOOD)), split="test")


def test_unknown_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrudentError, match="nobody/nothing"):
        read_preferences("nobody/nothing")


def test_hub_data_sets_are_read_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_list([{**GOOD, "source": name}]) for name in ("train", "test")}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    assert read_preferences("some/data")["source"] == ["train"]
    assert read_preferences("some/data", split="test")["source"] == ["test"]
    with pytest.raises(PrudentError, match="train, test"):
        read_preferences("some/data", split="validation")


def test_several_files_keep_their_names_in_errors(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", json.dumps(GOOD))
    two = write(tmp_path / "two.jsonl", json.dumps({**GOOD, "chosen": ""}))
    with pytest.raises(DataError, match=r"two\.jsonl"):
        read_preferences([one, two])
    assert len(read_preferences([one, one])) == 2


def test_extra_columns_stay_where_types_allow(tmp_path: Path) -> None:
    rows = [{**GOOD, "n": 1, "mixed": 1, "row": 9}, {**GOOD, "n": 2, "mixed": "two"}]
    data, report = read_preferences_with_report(write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert data["n"] == [1, 2] and data["row"] == [1, 2] and "mixed" not in data.column_names
    assert any("mixed" in note for note in report.notes) and any("'row'" in note for note in report.notes)


def test_numbers_of_pairs_are_checked(tmp_path: Path) -> None:
    rows = [{**GOOD, "margin": 1.5, "soft_label": 0.7, "weight": 2}, {**GOOD, "margin": "?", "soft_label": 1.7}]
    data, report = read_preferences_with_report(write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert data["margin"] == [1.5, None] and data["soft_label"] == [0.7, None]
    assert sorted(row.reason for row in report.flagged) == ["not-a-number", "out-of-range"]
    from prudent.data.preferences import training_columns

    columns = training_columns(data)
    assert columns["margin"].tolist() == [1.5, 0.0] and columns["soft_label"].tolist() == [0.7, 1.0]


def test_records_are_lazy_about_nothing_else(tmp_path: Path) -> None:
    records = list(read_records(write(tmp_path / "a.jsonl", "\n" + json.dumps(GOOD) + "\n\n3\n")))
    assert [record.line for record in records] == [2, 4]
    assert records[1].value is None and records[1].errors[0].reason == "not-an-object"


def test_no_pair_at_all_is_an_error_with_counts(tmp_path: Path) -> None:
    row = {"prompt": "P", "response_1": "a", "response_2": "b", "votes": [0, 0, 0]}
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for _ in range(3)))
    with pytest.raises(PrudentError, match=r"no usable preference pair.*3 tie"):
        read_preferences(path)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.dictionaries(
                st.sampled_from(
                    ["prompt", "chosen", "rejected", "votes", "response", "response_1", "response_2", "score"]
                ),
                st.recursive(
                    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
                    lambda inner: (
                        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner)
                    ),
                    max_leaves=6,
                ),
            ),
            max_size=4,
        ).map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
    ),
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"]),
)
def test_no_file_breaks_the_reader(content: bytes, suffix: str) -> None:
    """Whatever a file holds, reading it ends in pairs or in an error that a person can fix."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        try:
            data, report = read_preferences_with_report(path, on_error="skip")
        except PrudentError:
            return
        assert len(data) == report.kept > 0
        for row in data:
            assert row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"]
