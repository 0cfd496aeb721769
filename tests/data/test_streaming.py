"""Preference pairs read piece by piece: the same pairs as read at once, from files and from folders of files."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from prudent.data import preferences
from prudent.data.preferences import read_preferences, read_preferences_with_report
from prudent.data.read_report import ReadReport
from prudent.data.streaming import stream_preferences
from prudent.errors import DataError, PrudentError

COLUMNS = ["prompt", "chosen", "rejected", "row"]


def lines(start: int, stop: int, **more: object) -> str:
    rows = ({"prompt": f"p{i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(start, stop))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def hub_like(tmp_path: Path) -> Path:
    """A data set as the hub holds one: a folder of shards, some packed."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train-0.jsonl").write_text(lines(0, 10))
    (folder / "train-1.jsonl.gz").write_bytes(gzip.compress(lines(10, 25).encode()))
    (folder / "test-0.jsonl").write_text(lines(25, 30))
    return folder


def test_a_data_set_in_streaming_mode_gives_the_same_pairs(hub_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, report = read_preferences_with_report(hub_like, split="train")
    monkeypatch.setattr(preferences, "PIECE", 4)
    streamed, counted = read_preferences_with_report(hub_like, split="train", stream=True)
    assert streamed.select_columns(COLUMNS).to_list() == whole.select_columns(COLUMNS).to_list()
    assert len(streamed) == 25 and (counted.read, counted.kept) == (report.read, report.kept) == (25, 25)
    assert streamed["weight"][:2] == [1.0, 1.0] and streamed["margin"][:2] == [0.0, 0.0]
    assert len(read_preferences(hub_like, split="test", stream=True)) == 5
    with pytest.raises(PrudentError, match="has splits train, test"):
        read_preferences(hub_like, split="gone", stream=True)


def test_pieces_come_when_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines(0, 10, weight=2.0) + "not json\n")
    report = ReadReport("pairs")
    pieces = stream_preferences(file, rows=4, report=report)
    first = next(pieces)
    assert first["weight"][:] == [2.0] * 4 and report.read == 4
    with pytest.raises(DataError, match="line 11"):
        list(pieces)
    assert [len(piece) for piece in stream_preferences(file, rows=4, on_error="skip")] == [4, 4, 2]


def test_what_needs_the_whole_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "response": f"r{i}", "score": i}) + "\n" for i in range(3)))
    assert len(read_preferences(file)) == 3
    with pytest.raises(PrudentError, match="don't stream"):
        read_preferences(file, stream=True)
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "a"}) + "\n")
    with pytest.raises(PrudentError, match="no usable preference pair in 1 rows"):
        read_preferences(tmp_path / "none.jsonl", stream=True, on_error="skip")


def test_memory_of_a_stream_stays_below_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    text = "word " * 1000
    file.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": text, "rejected": f"{i}"}) + "\n" for i in range(1500))
    )
    next(iter(stream_preferences(file, rows=25)))  # imports aside
    tracemalloc.start()
    count = sum(len(piece) for piece in stream_preferences(file, rows=25))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1500 and peak < file.stat().st_size / 4
