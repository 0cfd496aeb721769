"""``prudent acquire``: what it writes, what comes back as preferences, and what it refuses."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path

import pytest
from tests.tiny import tiny_causal_lm
from typer.testing import CliRunner

from prudent import DataError, read_preferences
from prudent.cli import app
from prudent.data.pools import read_pool

runner = CliRunner()


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_causal_lm(folder)
    return folder


@pytest.fixture
def files(tmp_path, model) -> list[object]:
    words = ["good", "bad", "sun", "rain", "tea", "sea"]
    labelled = [
        {"prompt": f"ask {i}", "chosen": f"{words[i % 6]} good {i}", "rejected": f"{words[i % 5]} bad {i}"}
        for i in range(36)
    ]
    pool = [{"prompt": f"ask {i}", "responses": [f"{word} yes {i}" for word in words[:4]]} for i in range(30, 40)]
    pool[0]["responses"] = ["sun good 30", "wind 30", labelled[30]["chosen"], labelled[30]["rejected"], "tea 30"]
    return [
        "acquire",
        "--preferences",
        write(tmp_path / "train.jsonl", labelled),
        "--candidates",
        write(tmp_path / "pool.jsonl", pool),
        "--encoder",
        model,
        "--out",
        tmp_path / "run",
    ]


def run(*arguments: object, status: int = 0):
    result = runner.invoke(app, [str(one) for one in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def test_pairs_come_in_order_with_reasons_and_labelled_ones_stay_out(files, tmp_path):
    found = json.loads(
        run(*files, "--budget", 12, "--rule", "d-optimal", "--simulations", 3, "--method", "lcb", "--json").stdout
    )
    rows = [json.loads(line) for line in (tmp_path / "run/to_label.jsonl").read_text().splitlines()]
    assert [row["order"] for row in rows] == list(range(1, 13)) and all(row["why"] for row in rows)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert found["left_out"]["already labelled"] == 1
    pool = read_pool(tmp_path / "pool.jsonl")
    both = {frozenset((row["response_1"], row["response_2"])) for row in rows}
    assert len(both) == 12 and frozenset(pool.responses[0][2:4]) not in both
    assert found["forecast"]["rows"][0]["labels"] == 36 and 48 in [row["labels"] for row in found["forecast"]["rows"]]
    assert "How many labels" in (tmp_path / "run/report.html").read_text()


def test_answers_from_argilla_and_from_the_form_are_preferences(files, tmp_path):
    run(*files, "--budget", 4, "--simulations", 0)
    records = json.loads((tmp_path / "run/argilla.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run/to_label.jsonl").read_text().splitlines()]
    for record, votes in zip(records, (["1"], ["2"], ["tie"], [])):
        record["responses"] = {"votes": [{"value": vote, "user_id": "a"} for vote in votes]}
    (tmp_path / "answers.json").write_text(json.dumps(records))
    read = read_preferences(tmp_path / "answers.json")
    assert read["chosen"][0][0]["content"] == rows[0]["response_1"]
    assert read["chosen"][1][0]["content"] == rows[1]["response_2"] and len(read) == 2
    # What the form's script writes: the row and its vote.
    data = (tmp_path / "run/label.html").read_text().split('id="data">')[1].split("</script>")[0]
    kept = json.loads(data)
    form = write(tmp_path / "labelled.jsonl", [{**kept[0], "votes": ["2"]}, {**kept[1], "votes": ["tie"]}])
    assert read_preferences(form)["chosen"][0][0]["content"] == rows[0]["response_2"]
    again = [*files[:-1], tmp_path / "again"]
    again[2:3] = [files[2], "--preferences", form]
    run(*again, "--budget", 4, "--simulations", 0)
    found = json.loads((tmp_path / "again/results.json").read_text())
    assert found["left_out"]["already labelled"] == 3, "one of the pool, one of the form, and its tie"
    assert found["labelled"] == 37 and any("1 ties" in note for note in found["notes"])
    write(form, [{**kept[1], "votes": ["tie"]}])
    alone = ["acquire", "--preferences", form, *files[3:-1], tmp_path / "alone"]
    assert "holds ties alone" in run(*alone, "--budget", 4, status=2).stderr


@pytest.mark.chromium
def test_the_form_in_a_browser_saves_what_read_preferences_reads(files, tmp_path, chromium):
    run(*files, "--budget", 4, "--simulations", 0)
    rows = [json.loads(line) for line in (tmp_path / "run/to_label.jsonl").read_text().splitlines()]
    answer = """<script>
      for (const [order, vote] of [["1", "2"], ["3", "1"], ["4", "tie"]])
        document.querySelector(`input[data-order="${order}"][value="${vote}"]`).click();
      document.title = document.getElementById("done").textContent + window.prudentLabels();
    </script></body>"""
    (tmp_path / "form.html").write_text((tmp_path / "run/label.html").read_text().replace("</body>", answer))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000"]
    shown = subprocess.run([*command, f"file://{tmp_path / 'form.html'}"], capture_output=True, text=True, timeout=60)
    title = html.unescape(shown.stdout.split("<title>")[1].split("</title>")[0])
    assert title[0] == "3"
    (tmp_path / "labelled.jsonl").write_text(title[1:])
    read = read_preferences(tmp_path / "labelled.jsonl")
    assert [pair[0]["content"] for pair in read["chosen"]] == [rows[0]["response_2"], rows[2]["response_1"]]
    assert [pair[0]["content"] for pair in read["rejected"]] == [rows[0]["response_1"], rows[2]["response_2"]]


def test_markup_in_a_response_is_text(files, tmp_path):
    write(tmp_path / "pool.jsonl", [{"prompt": "x", "responses": ["<script>alert(1)</script>", "sun"]}])
    run(*files, "--budget", 1, "--simulations", 0)
    assert "<script>alert" not in (tmp_path / "run/label.html").read_text()


def test_repeat_asks_again_and_says_so(files, tmp_path):
    found = json.loads(
        run(
            *files, "--budget", 60, "--rule", "bald", "--repeat", 2, "--noise", 0.1, "--simulations", 0, "--json"
        ).stdout
    )
    rows = [json.loads(line) for line in (tmp_path / "run/to_label.jsonl").read_text().splitlines()]
    assert found["second_labels"] == sum("label 2 of this pair" in row["why"] for row in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", 500], "--budget is 500, but"),
        (["--rule", "margin", "--repeat", 2], "--rule margin can't say"),
        (["--noise", 0.5], "--noise is 0.5"),
        (["--policy-tilt", 0], "--policy-tilt is 0"),
    ],
)
def test_options_that_can_not_be_are_refused(files, more, message, tmp_path):
    assert message in " ".join(run(*files, *more, status=2).stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_pool_with_one_response_a_prompt_is_named_by_its_line(files, tmp_path):
    write(tmp_path / "pool.jsonl", [{"prompt": "x", "responses": ["a", "b"]}, {"prompt": "y", "responses": ["a"]}])
    with pytest.raises(DataError, match="line 2"):
        read_pool(tmp_path / "pool.jsonl")
    assert "line 2" in run(*files, status=2).stderr
