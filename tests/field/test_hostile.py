"""Hostile inputs: each ends in one clear PrudentError or in the right result, never in a traceback, and within bounds.

Inputs are made in place; those beside the checkout are taken where they are there.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prudent.data.pools import read_pool
from prudent.data.preferences import read_preferences_with_report
from prudent.errors import PrudentError

SECONDS, MEGABYTES = 60.0, 400  # of one case, on a busy machine; alone each takes 1 to 3 s
GOOD = {"prompt": "Name a tree.", "chosen": "An oak.", "rejected": "A rock."}
HUGE = "1" * 400


def lines(*rows: Any) -> bytes:
    """JSONL of rows; a text is a row as it stands."""
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def with_field(text: str) -> str:
    """GOOD as JSON with one more field, given as JSON."""
    return json.dumps(GOOD)[:-1] + f", {text}}}"


def packed(begin: bytes, block: bytes, megabytes: int = 1500) -> bytes:
    """A gzip bomb: one member a megabyte, so that it is made in no time."""
    return gzip.compress(begin) + gzip.compress(block * 2**20) * megabytes


def table(path: Path, column: Any, kind: str = "parquet") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table({**{name: [value, value] for name, value in GOOD.items()}, "other": column})
    if kind == "parquet":
        pq.write_table(made, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)


def bad_utf8() -> Any:
    import pyarrow as pa

    buffers = [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xff\xfe")]
    return pa.StringArray.from_buffers(2, buffers[1], buffers[2])


def out_of_range() -> Any:
    import pyarrow as pa

    return pa.array([0, 2**50], pa.int64()).cast(pa.timestamp("s"))


# name of the file, what it holds, and what reading gives: pairs kept and the flags, bad rows and notes that say why.
KEPT: dict[str, tuple[str, Any, int, dict[str, int]]] = {
    "integer of 400 digits as weight": (
        "a.jsonl",
        lines(GOOD, with_field(f'"weight": {HUGE}')),
        2,
        {"not-a-number": 1},
    ),
    "integer of 400 digits as margin": (
        "a.jsonl",
        lines(GOOD, with_field(f'"margin": -{HUGE}')),
        2,
        {"not-a-number": 1},
    ),
    "integer of 400 digits as scores": (
        "a.jsonl",
        lines(GOOD, with_field(f'"score_chosen": {HUGE}, "score_rejected": 1')),
        2,
        {"not-a-number": 1},
    ),
    "integer of 400 digits in a column of no use": ("a.jsonl", lines(GOOD, with_field(f'"x": {HUGE}')), 2, {}),
    "integer of 5,000 digits": ("a.jsonl", lines(GOOD, with_field(f'"x": {"1" * 5000}')), 1, {"not-json": 1}),
    "1e999 as weight": ("a.jsonl", lines(GOOD, with_field('"weight": 1e999')), 2, {"not-a-number": 1}),
    "inf in a CSV": ("a.csv", b"prompt,chosen,rejected,weight\na,b,c,inf\n", 1, {"not-a-number": 1}),
    "negative weight": ("a.jsonl", lines(GOOD, with_field('"weight": -3')), 2, {"out-of-range": 1}),
    "lists 900 deep": ("a.jsonl", lines(GOOD, with_field(f'"x": {"[" * 900}{"]" * 900}')), 2, {"too-deep": 1}),
    "lists 900 deep with NaN": (
        "a.jsonl",
        lines(GOOD, with_field(f'"x": {"[" * 900}NaN{"]" * 900}')),
        2,
        {"too-deep": 1},
    ),
    "objects 900 deep": (
        "a.jsonl",
        lines(GOOD, with_field('"x": ' + '{"a":' * 900 + "1" + "}" * 900)),
        2,
        {"too-deep": 1},
    ),
    "lists 100,000 deep": ("a.jsonl", lines(GOOD, with_field(f'"x": {"[" * 100_000}')), 1, {"not-json": 1}),
    "objects 900 deep in an array": (
        "a.json",
        b'{"data": [' + lines(GOOD, "," + with_field('"x": ' + '{"a":' * 900 + "1" + "}" * 900)) + b"]}",
        2,
        {"too-deep": 1},
    ),
    "name with NUL": ("a.jsonl", lines(GOOD, {**GOOD, "a\0b": 1}), 2, {"nul-character": 1}),
    "name with NUL inside an object": ("a.jsonl", lines(GOOD, {**GOOD, "x": {"a\0b": 1}}), 2, {"nul-character": 1}),
    "name with NUL in a CSV": ("a.csv", b"prompt,chosen,rejected,a\0b\nq,x,y,1\n", 1, {}),
    "column named twice": ("a.csv", b"prompt,chosen,chosen,rejected\nq,x,y,z\n", 1, {"duplicate-column": 1}),
    "15,000 keys given twice": (
        "a.jsonl",
        lines(GOOD, with_field(",".join(f'"k{i}": 1, "k{i}": 2' for i in range(15_000)))),
        2,
        {"duplicate-key": 15_000},
    ),
    "100,000 columns": ("a.jsonl", lines(GOOD, {**GOOD, **{f"k{i}": 1 for i in range(100_000)}}), 2, {}),
    "100,000 columns in a CSV": (
        "a.csv",
        b"prompt,chosen,rejected," + b",".join(b"k%d" % i for i in range(100_000)) + b"\nq,x,y" + b",1" * 100_000,
        1,
        {},
    ),
    "a line of 65 MiB": (
        "a.jsonl",
        lines(GOOD) + b'\n{"prompt": "' + b"x" * (65 * 2**20) + b'"}\n' + lines(GOOD),
        2,
        {"too-long": 1},
    ),
    "invalid UTF-8 in Parquet": ("a.parquet", bad_utf8, 2, {"not-utf8": 1}),
    "invalid UTF-8 in Arrow": ("a.arrow", bad_utf8, 2, {"not-utf8": 1}),
    "timestamp out of range in Parquet": ("a.parquet", out_of_range, 2, {"not-a-value": 1}),
    "timestamp out of range in Arrow": ("a.arrow", out_of_range, 2, {"not-a-value": 1}),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED: dict[str, tuple[str, Any, str]] = {
    "gzip bomb of white space": ("a.jsonl.gz", packed(b"", b" "), "unpacks to more than"),
    "gzip bomb in a CSV": ("a.csv.gz", packed(b"prompt,chosen,rejected\n", b"a"), "unpacks to more than"),
    "gzip bomb in a JSON array": ("a.json.gz", packed(b"[", b" "), "unpacks to more than"),
    "100,000 unknown columns": (
        "a.csv",
        b",".join(b"k%d" % i for i in range(100_000)) + b"\n" + b",".join([b"1"] * 100_000),
        "and 99980 more",
    ),
    "a pointer of Git LFS": ("a.jsonl", LFS, "fetch them with git lfs pull"),
    "two objects in a line": ("a.jsonl", lines(GOOD) + lines(GOOD), "give one object a line"),
    "Python's quotes": ("a.jsonl", str(GOOD).encode(), r"double quotes at column 2\n"),
    "gold of 400 digits": (
        "p.jsonl",
        lines(f'{{"prompt": "a", "responses": ["x", "y"], "gold": [{HUGE}, 1]}}'),
        "400 digits",
    ),
    "gold of 1e308": ("p.jsonl", lines('{"prompt": "a", "responses": ["x", "y"], "gold": [1e308, 1]}'), "1e.12"),
    "control characters in names": ("a.jsonl", lines({"prompt": "a", "ch\x1b[2J\u202eosen": "x"}), r"x1b\[2J.u202e"),
}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        table(path, content(), path.suffix[1:])
    return path


def bounded(function: Callable[[], Any]) -> Any:
    """What a function gives, within the bounds of time and of memory beyond what the process held at its most."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return function()
    finally:
        taken = time.monotonic() - began
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert taken < SECONDS, f"{taken:.1f} s"
        assert more < MEGABYTES, f"{more:.0f} MB"


@pytest.mark.parametrize("case", KEPT)
def test_one_bad_item_costs_itself_alone(case: str, tmp_path: Path) -> None:
    name, content, kept, reasons = KEPT[case]
    path = write(tmp_path, name, content)
    data, report = bounded(lambda: read_preferences_with_report(path, on_error="skip"))
    assert len(data) == report.kept == kept
    counts = report.counts()
    assert {**counts["bad"], **counts["flagged"]} == reasons
    assert data[0]["prompt"][0]["content"] in (GOOD["prompt"], "a", "q")
    assert report.summary().replace("\n", "").isprintable()


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_t_be_read_is_refused_in_clear_words(case: str, tmp_path: Path) -> None:
    name, content, words = REFUSED[case]
    path = write(tmp_path, name, content)
    with pytest.raises(PrudentError, match=words) as raised:
        bounded(lambda: read_pool(path) if name.startswith("p") else read_preferences_with_report(path))
    text = str(raised.value)
    assert len(text) < 3000 and text.replace("\n", "").isprintable()


def test_a_column_that_a_table_names_twice_is_flagged(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["prompt", "chosen", "chosen", "rejected"]
    made = pa.Table.from_arrays([pa.array([text]) for text in ("q", "x", "y", "z")], names=names)
    pq.write_table(made, tmp_path / "a.parquet")
    data, report = read_preferences_with_report(tmp_path / "a.parquet")
    assert report.counts()["flagged"] == {"duplicate-column": 1} and data[0]["chosen"][0]["content"] == "y"


def test_paths_that_lead_to_no_file_are_named(tmp_path: Path) -> None:
    from tests.field.test_items import run

    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, words in (
        (tmp_path / "pipe.jsonl", "is a pipe or a device"),
        ("", "no file is named"),
        ("x" * 300 + ".jsonl", "File name too long; check the path"),
        (tmp_path / "gone.jsonl", "is not there"),
    ):
        with pytest.raises(PrudentError, match=words):
            read_preferences_with_report(path)
    for words in (("score", "--data"), ("fit", "--preferences"), ("clean",), ("best-of-n", "--pool")):
        refused = run(*words, tmp_path / ("n" * 300 + ".jsonl"), "--out", tmp_path / "out", "--model", "m", "--json")
        assert refused.exit_code == 2 and "error" in json.loads(refused.stdout)


def test_hostile_files_beside_the_checkout(shared: Path) -> None:
    folder = shared / "cases/hostile"
    if not folder.is_dir():
        pytest.skip("the hostile files are not here")
    for path in sorted(folder.glob("*")):
        if path.suffix in (".jsonl", ".csv", ".parquet", ".arrow"):
            try:
                bounded(
                    lambda path=path: (
                        read_pool(path) if path.name.startswith("p_") else read_preferences_with_report(path)
                    )
                )
            except PrudentError as error:
                assert str(error).replace("\n", "").isprintable()


def test_one_prompt_with_ten_thousand_responses_is_bounded(tmp_path: Path, tiny_folder: Path) -> None:
    from tests.field.test_items import pairs, run, write

    big = {"id": "big", "prompt": "ask", "responses": [f"a {i}" for i in range(10_000)], "gold": list(range(10_000))}
    small = [{"id": f"s{k}", "prompt": f"ask {k}", "responses": ["x", "y"], "gold": [0, 1]} for k in range(12)]
    pool, given = write(tmp_path / "pool.jsonl", [big, *small]), write(tmp_path / "pairs.jsonl", pairs(40))
    out = ("--out", tmp_path / "out")
    for words in (
        ("preflight", "--preferences", given, "--pool", pool, "--encoder", tiny_folder),
        ("overoptimize", "--pool", pool, "--language-model", tiny_folder),
        ("rlp", "--pool", pool, "--language-model", tiny_folder),
        ("acquire", "--preferences", given, "--candidates", pool, "--encoder", tiny_folder, "--budget", 2),
    ):
        refused = bounded(lambda words=words: run(*words, *out))
        assert refused.exit_code == 2 and "prompt 'big' has 10,000 responses" in refused.output
        assert "the limit for these is 3,846 responses a prompt" in refused.output
    even = [{**big, "id": f"e{k}", "responses": big["responses"][:4000], "gold": big["gold"][:4000]} for k in range(4)]
    wide = write(tmp_path / "wide.jsonl", [{**row, "prompt": row["id"]} for row in even])
    refused = bounded(lambda: run("acquire", "--preferences", given, "--candidates", wide, "--budget", 2, *out))
    assert refused.exit_code == 2 and "the limit is 5,000,000" in refused.output


def test_scoring_ten_thousand_responses_of_one_prompt_is_linear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.field.test_items import classifier_with, last_json, run, write
    from tests.tiny import TEMPLATE

    big = {"id": "big", "prompt": "ask", "responses": [f"a {i}" for i in range(10_000)]}
    small = [{"id": f"s{k}", "prompt": f"ask {k}", "responses": ["x", "y"]} for k in range(12)]
    pool, model = write(tmp_path / "pool.jsonl", [big, *small]), classifier_with(TEMPLATE, tmp_path / "rm")
    picks = ("best-of-n", "--pool", pool, "--model", model, "--rule", "mean", "--out", tmp_path / "picks", "--json")
    assert last_json(bounded(lambda: run(*picks)))["candidates"] == {"least": 2, "most": 10_000}
    scored = ("score", "--data", pool, "--model", model, "--output", tmp_path / "scored.jsonl", "--json")
    assert last_json(bounded(lambda: run(*scored)))["responses"] == 10_024
    (tmp_path / "mine_counts.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {"problem_id": row["id"], "problem": row["prompt"], "eval_solution": steps, "solution_type": kind}
        for row in (big, *small)
        for kind, steps in [("chosen", ["a much longer one"]), *(("rejected", [text]) for text in row["responses"])]
    ]
    command = ("evaluate", "rewardmath", "--model", "mine_counts:score", "--data", write(tmp_path / "m.jsonl", rows))
    found = last_json(bounded(lambda: run(*command, "--out", tmp_path / "math", "--json")))["models"][0]
    assert found["items"] == 13 and found["headline"]["estimate"]["value"] == 1


def test_one_problem_with_many_solutions_costs_itself_alone() -> None:
    import torch

    from prudent.evaluation import rewardmath
    from prudent.policies import solve

    scores = [[1.0, *[0.0] * 49_999], *[[0.0, 1.0]] * 20_000]  # as one table: 8 GB
    found = bounded(lambda: rewardmath(scores, rounds=10))
    assert found.accuracy == 1 / 20_001 and found.mrr == pytest.approx((1 + 20_000 / 2) / 20_001)
    reference = torch.zeros(13, 50_000, dtype=torch.float64)
    reference[0], reference[1:, :2] = 1 / 50_000, 0.5
    reward = torch.linspace(0, 1, 50_000).expand(13, -1)
    policy = bounded(lambda: solve(reward, reference, 0.1, variance=torch.ones_like(reference), form="exact"))
    assert torch.allclose(policy.sum(1), torch.ones(13, dtype=torch.float64)) and bool((policy[1:, 2:] == 0).all())
