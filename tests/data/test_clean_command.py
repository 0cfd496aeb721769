"""``prudent clean`` from a file to a folder: what it writes, what it refuses, and the way of a person's decisions."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.clean.page_proof import proof_answer
from prudent.data.preferences import read_preferences, read_preferences_with_report, training_columns
from prudent.rewards.heads import HeadEnsemble

N = 300


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """pairs.jsonl with known features; line 7 repeats line 6, line 11 is empty, line 21 has a script in its text."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(8, generator=generator)
    one, other = torch.randn(2, N, 8, generator=generator)
    first = ((one - other) @ truth > 0)[:, None]
    chosen, rejected = torch.where(first, one, other), torch.where(first, other, one)
    wrong = torch.arange(N) % 10 == 3
    features = {"chosen": torch.where(wrong[:, None], rejected, chosen)}
    features["rejected"] = torch.where(wrong[:, None], chosen, rejected)
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"P{i}",
            "chosen": f"yes {i} and more",
            "rejected": f"no {i} or less",
            "judge": 1 - 0.9 * bool(wrong[i]),
        }
        for i in range(N)
    ]
    rows[6] = dict(rows[5])
    rows[10]["rejected"] = ""
    rows[20]["chosen"] = "<script>document.title='broken'</script><b>bold</b>"
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    save_file({name: value.contiguous() for name, value in features.items()}, tmp_path / "f.safetensors")
    return tmp_path


def run(files: Path, *arguments: str, out: str = "run", code: int = 0) -> Any:
    command = ["clean", str(files / "pairs.jsonl"), "--out", str(files / out), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    return result


def features(files: Path) -> tuple[str, ...]:
    return "--features", str(files / "f.safetensors"), "--seeds", "3", "--ridge", "0.02"


def test_the_whole_way(files: Path) -> None:
    result = run(
        files,
        *features(files),
        "--flip",
        "0.1",
        "--widen",
        "9-10",
        "--second-label",
        "judge",
        "--plant",
        "0.2",
        "--json",
    )
    found = json.loads(result.stdout)
    assert (found["pairs"], found["kept"], found["dropped"]) == (N, N - 2, 2)
    assert found["columns_set"] == ["margin"] and found["strength"]["mode"] == "cross-fitted"
    assert found["strength"]["deciles"][0]["agreement"] < 0.3 and found["strength"]["deciles"][-1]["agreement"] == 1
    assert [row["labels"] for row in found["proof"]["table"]][:3] == ["as given", "rules", "your options"]
    assert found["planted"][0]["finding"]["auroc"]["value"] > 0.8
    proof = found["proof"]["table"]
    assert {row["ridge"] for row in proof} == {0.02} and proof[2]["own_ridge_gain"] is None  # the ridge was given
    clear = [row["p_adjusted"] < 0.05 for row in proof[1:]]
    assert clear == [not row["gain"]["low"] <= 0 <= row["gain"]["high"] for row in proof[1:]]
    report = (files / "run/report.html").read_text()
    assert "opposed" in report and {"opposed", "below_zero", "near_zero"} == set(found["strength"]["shares"])
    changes = [json.loads(line) for line in (files / "run/changes.jsonl").read_text().splitlines()]
    flips = [change for change in changes if change["action"] == "flip"]
    assert len(flips) == 29 and sum(change["row"] % 10 == 4 for change in flips) >= 24
    assert {"pair", "row", "rule", "before", "after", "evidence"} <= set(changes[0])
    cleaned = read_preferences(files / "run/cleaned.jsonl")
    assert len(cleaned) == N - 2 and sum(cleaned["flipped"]) == 29 and set(training_columns(cleaned)) == {"margin"}
    manifest = json.loads((files / "run/manifest.json").read_text())
    assert manifest["command"] == "clean" and {"result.json", "report.html", "review.html"} <= set(manifest["files"])
    heads = HeadEnsemble.fit(torch.randn(len(cleaned), 4), torch.randn(len(cleaned), 4), **training_columns(cleaned))
    assert heads.members == 10  # the columns are what fit reads


def test_the_terminal_says_what_planting_found_and_what_repairs_do(files: Path) -> None:
    said = run(files, *features(files), "--plant", "0.2").stderr
    assert "20% of the labels turned round: of the 45 weakest pairs" in said and "planted pairs left out" in said
    assert "turned round (chance: 20 %)" in said and "tried" in said


@pytest.mark.parametrize(
    ("gains", "p", "text"),
    [
        (
            [-3.0, -1.0, 0.5],
            [0.2, 0.9, 0.9],
            "Of 3 tried, 1 came out higher on this test split and 2 lower (-3.0 to +0.5",
        ),
        ([-3.0, 2.0], [0.01, 0.9], "No repair is shown to help.** Worse: repair 0 (-3.0"),
        ([4.0, -1.0], [0.01, 0.9], "**Better than the labels as given: repair 0 (+4.0"),
    ],
)
def test_the_answer_counts_repairs_that_look_worse(gains: list[float], p: list[float], text: str) -> None:
    rows = [
        {
            "labels": f"repair {i}",
            "gain": {"value": gain / 100, "low": gain / 100 - 0.01, "high": gain / 100 + 0.01},
            "p_adjusted": value,
        }
        for i, (gain, value) in enumerate(zip(gains, p))
    ]
    assert text in proof_answer([{"labels": "as given", "gain": None, "p_adjusted": None}, *rows])[0]


def test_the_same_seed_gives_the_same_bytes(files: Path) -> None:
    for out in ("one", "two"):
        run(files, *features(files), "--flip", "0.1", "--soften", "1-2", out=out)
    for name in ("cleaned.jsonl", "changes.jsonl", "strength.parquet"):
        assert (files / "one" / name).read_bytes() == (files / "two" / name).read_bytes()


def test_parquet_output_reads_back(files: Path) -> None:
    run(files, "--encoder", "none", "--output", "parquet")
    assert len(read_preferences(files / "run/cleaned.parquet")) == N - 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "spelling=drop"], "unknown rule 'spelling'"),
        (["--rule", "votes=apply"], 'column "votes"'),
        (["--rule", "scores=apply"], "score_chosen"),
        (["--rule", "truncated=drop"], "--encoder"),
        (["--rule", "leak=drop"], "--against or --test"),
        (["--flip", "0.1"], "needs --encoder or --features"),
        (["--second-label", "judge"], "needs --encoder or --features"),
        (["--decisions", "none.json"], "does not exist"),
        (["--output", "xml"], "parquet"),
        (["--features", __file__, "--max-pairs", "9"], "leave them out"),
        (["--ties", "split"], "keep"),
        (["--column", "prompt"], "OURS=THEIRS"),
        (["--column", "prompt=question"], "mapped column is not there"),
    ],
)
def test_what_can_not_be_done_is_said_and_nothing_is_written(files: Path, arguments: list[str], message: str) -> None:
    result = run(files, "--encoder", "none", *arguments, code=2)
    assert message in result.stderr and not (files / "run").exists()


def test_second_labels_and_features_are_checked(files: Path) -> None:
    result = run(files, *features(files), "--second-label", "opinion", code=2)
    assert "no column 'opinion'" in result.stderr
    save_file({"chosen": torch.zeros(3, 4), "rejected": torch.zeros(3, 4)}, files / "f.safetensors")
    assert f"must be ({N}, width)" in run(files, *features(files), code=2).stderr
    assert not (files / "run").exists()


def decisions_of(files: Path, accept: bool) -> Path:
    """What the review page would save, taken from its own data."""
    page = (files / "run/review.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    for entry in data["decisions"]:
        entry["accept"] = accept
    path = files / "decisions.json"
    path.write_text(json.dumps(data))
    return path


def test_decisions_come_back(files: Path) -> None:
    run(files, *features(files), "--flip", "0.1")
    rejected = decisions_of(files, accept=False)
    run(files, "--encoder", "none", "--decisions", str(rejected), out="none")
    assert len(read_preferences(files / "none/cleaned.jsonl", allow=["empty"])) == N
    result = run(files, "--encoder", "none", "--decisions", str(decisions_of(files, accept=True)), "--json", out="all")
    found = json.loads(result.stdout)
    assert found["dropped"] == 2 and found["flipped"] >= 29 and found["decided"] >= 31  # without judging anew
    text = (files / "pairs.jsonl").read_text()
    (files / "pairs.jsonl").write_text(text.replace("yes 3 and more", "yes 3 and changed"))
    refused = run(files, "--encoder", "none", "--decisions", str(files / "decisions.json"), out="stale", code=2)
    assert "changed-since" in refused.stderr and "line 4" in refused.stderr and not (files / "stale").exists()


@pytest.mark.chromium
def test_pages_in_a_browser(files: Path, chromium: str) -> None:
    """Both pages open offline, show a script in a text as text, and the page gives what --decisions reads."""
    run(files, *features(files), "--flip", "0.1", "--rule", "near-duplicate=keep")
    page = files / "run/review.html"
    probe = page.read_text().replace("</body>", "<script>document.title = window.prudentDecisions()</script></body>")
    (files / "probe.html").write_text(probe)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000"]
    found = subprocess.run([*command, f"file://{files / 'probe.html'}"], capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(.*?)</title>", found.stdout, re.DOTALL)
    assert title is not None
    import html

    saved = json.loads(html.unescape(title.group(1)))
    assert saved["format"] == "prudent-decisions-1" and all("accept" in entry for entry in saved["decisions"])
    ticked = {entry["rule"] for entry in saved["decisions"] if entry["accept"]}
    assert {"duplicate", "empty", "strength-flip"} <= ticked
    assert "<b>bold</b>" not in found.stdout
    report = subprocess.run(
        [*command, f"file://{files / 'run/report.html'}"], capture_output=True, text=True, timeout=60
    )
    assert "<title>Preference data, cleaned</title>" in report.stdout and "<svg" in report.stdout


def test_trl_trains_on_the_cleaned_file(files: Path, tiny_folder: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run(files, *features(files), "--flip", "0.1", "--widen", "all", "--holdout", "0")
    data = load_dataset("json", data_files=str(files / "run/cleaned.jsonl"), split="train", cache_dir=str(files))
    options = trl.RewardConfig(
        output_dir=str(files / "trl"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1),
        args=options,
        train_dataset=data.select(range(8)),
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
    )
    margins = next(iter(trainer.get_train_dataloader()))["margin"]
    assert margins.shape == (4,) and bool((margins != 0).any())
    assert trainer.train().training_loss > 0


def test_two_sources_of_score_are_compared_and_ranked(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"P{i}",
            "chosen": f"yes {i}",
            "rejected": f"no {i}",
            "score": i % 5,
            "judge": {"overall": 2.0 * (i % 5)},
        }
        for i in range(30)
    ]
    rows[6]["judge"]["overall"], rows[17]["judge"]["overall"] = 40.0, -12.0
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("--encoder", "none", "--rule", "all=keep", "--json")
    found = run(tmp_path, *command, "--conflict", "score,judge.overall", "--conflict-size", "1.5")
    assert {row["rule"]: row["found"] for row in json.loads(found.stdout)["changes"]} == {"conflict": 2}
    report = (tmp_path / "run/report.html").read_text()
    assert "Where two sources of score disagree" in report and "standard deviations apart" in report
    changes = [json.loads(line) for line in (tmp_path / "run/changes.jsonl").read_text().splitlines()]
    assert {change["row"]: change["evidence"]["rank"] for change in changes} == {7: 1, 18: 2}
    refused = run(tmp_path, *command, "--conflict", "score,judge.points", out="other", code=2)
    assert "judge.points" in refused.stderr and "judge.overall" in refused.stderr
    refused = run(tmp_path, "--encoder", "none", "--rule", "conflict=drop", out="other", code=2)
    assert "--conflict ONE,OTHER" in refused.stderr
    refused = run(tmp_path, "--encoder", "none", "--conflict", "score", out="other", code=2)
    assert "give ONE,OTHER" in refused.stderr and not (tmp_path / "other").exists()


def test_what_was_flagged_is_shown_with_what_became_of_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"P{i}", "chosen": f"yes {i}", "rejected": f"no {i}", "weight": -2, "margin": 0} for i in range(9)
    ]
    text = "\n".join(map(json.dumps, rows)).replace('"margin": 0', '"margin": 1e999')
    (tmp_path / "pairs.jsonl").write_text(text)
    said = run(tmp_path, "--encoder", "none").stderr
    assert "flagged: 9 out-of-range, 9 not-a-number" in said
    assert "the first: line 1, field 'weight': out-of-range: -2.0 lies outside 0.0 to inf; treated as missing" in said
    assert "training takes 1" in said and "training takes 0" in said and "inf is no finite number" in said
    assert "training takes 1" in read_preferences_with_report(tmp_path / "pairs.jsonl")[1].summary()  # what fit says
    header, cells = "prompt,chosen,chosen,rejected\n", "".join(f"P{i},a,yes {i},no {i}\n" for i in range(9))
    (tmp_path / "twice.csv").write_text(header + cells)
    summary = read_preferences_with_report(tmp_path / "twice.csv")[1].summary()
    assert "field 'chosen': duplicate-column: named 2 times; the last of these columns won" in summary
