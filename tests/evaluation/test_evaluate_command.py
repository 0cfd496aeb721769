"""The evaluate commands end to end: one strict JSON object, a whole run folder, a comparison, errors that name rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from prudent.cli import app
from prudent.evaluation import rewardbench
from prudent.evaluation.benchmarks.ties_domain import published


def strict(text: str) -> dict:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def bench(tmp_path: Path) -> tuple[Path, Path]:
    """Every RewardBench subset at a tenth of its size, and scores of an ensemble and of a lone model."""
    rng = np.random.default_rng(0)
    items, scores = [], []
    for members in published()["rewardbench"]["sections"].values():
        for name, entry in members.items():
            for i in range(max(4, entry["items"] // 10)):
                key = f"{name}-{i}"
                items.append(
                    {
                        "id": key,
                        "prompt": f"Prompt {i // 2} of {name}",
                        "chosen": f"Good {i}.",
                        "rejected": f"Bad {i}.",
                        "subset": name,
                    }
                )
                shift = rng.normal(0.6, 0.5)
                pair = np.array([shift, 0.0])[:, None] + rng.normal(size=(2, 5))
                scores.append(
                    {"id": key, "scores": {"ensemble": pair.tolist(), "lone": [0.3 + rng.normal(), rng.normal()]}}
                )
    data, file = tmp_path / "bench.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in items))
    rng.shuffle(scores)
    file.write_text("".join(json.dumps(row) + "\n" for row in scores))
    return data, file


def test_rewardbench_end_to_end(bench: tuple[Path, Path], tmp_path: Path) -> None:
    data, file = bench
    out = tmp_path / "run"
    result = invoke("rewardbench", "--data", data, "--scores", file, "--rounds", 100, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = strict(result.stdout)
    ensemble, lone = found["models"]
    assert (ensemble["name"], ensemble["view"], lone["view"]) == ("ensemble", "mean", "score")
    assert {"mean", "member 0", "lcb", "median"} <= set(ensemble["views"])
    assert ensemble["headline"]["metric"] == "overall" and ensemble["headline"]["estimate"]["value"] > 0.6
    assert ensemble["disagreement"][0]["measure"] == "deviation" and lone.get("disagreement") is None
    assert found["baselines"]["random"] == {"micro": 0.5} and "longest answer" in found["baselines"]
    (comparison,) = found["comparisons"]
    assert len(comparison["rows"]) == 24 and comparison["rows"][0]["group"] == "all"
    assert all(row["p_holm"] >= row["p"] for row in comparison["rows"][1:])
    assert comparison["rows"][0]["p_holm"] == comparison["rows"][0]["p"]  # one comparison: nothing to adjust
    assert found["compared_with"] == {"name": "ensemble", "why": "named first"}
    for name in ("manifest.json", "evaluation.json", "items.jsonl", "metrics.parquet", "report.html"):
        assert (out / name).is_file()
    strict((out / "evaluation.json").read_text())
    rows = [strict(line) for line in (out / "items.jsonl").read_text().splitlines()]
    again = rewardbench([row["models"]["lone"]["credit"] for row in rows], [row["subset"] for row in rows])
    assert again.overall == pytest.approx(lone["headline"]["estimate"]["value"])
    assert pq.read_table(out / "metrics.parquet").num_rows > 100
    assert "<h1" in (out / "report.html").read_text()


def test_terminal_table_and_wrong_options(bench: tuple[Path, Path], tmp_path: Path) -> None:
    data, file = bench
    shown = invoke("rewardbench", "--data", data, "--scores", file, "--only", "lone", "--rounds", 20)
    assert shown.exit_code == 0 and "lone" in shown.stdout and "knows nothing" in shown.stdout
    assert "no items" not in shown.stdout
    part = invoke(
        "rewardbench", "--data", data, "--scores", file, "--subset", "hep-go", "--on-error", "skip", "--rounds", 20
    )
    assert part.exit_code == 0 and "no items, so null: alpacaeval-easy, " in part.stdout, part.stderr
    assert "overall score" not in part.stdout and "(all, 1 of 23 subsets)" in part.stdout
    words = "".join(part.stdout.split())
    assert all(word in words for word in ("Reasoning,", "subsets")), part.stdout
    for arguments, message in (
        (["rewardbench", "--data", data], "nothing to evaluate"),
        (["rewardbench", "--scores", file], "names no subset"),
        (["rewardbench", "--data", data, "--scores", file, "--rule", "best"], "rule is 'best'"),
        (["rewardbench", "--data", data, "--scores", file, "--subset", "nowhere"], "no item of subset 'nowhere'"),
        (["rewardmath", "--data", tmp_path / "no.jsonl", "--model", "x"], "is not there"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2 and message in refused.stderr, refused.stderr


def test_rewardmath_from_scores_alone(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke(
        "rewardmath",
        "--scores",
        shared / "data/evaluation/rewardmath_scores.jsonl.gz",
        "--only",
        "internlm2",
        "--only",
        "Math_Shepherd",
        "--only",
        "gpt4",
        "--leave-out",
        "--rounds",
        100,
        "--out",
        out,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    found = strict(result.stdout)
    models = {model["name"]: model for model in found["models"]}
    assert found["compared_with"] == {"name": "internlm2", "why": "highest accuracy"}
    assert [c["b"] for c in found["comparisons"]] == ["gpt4", "Math_Shepherd"]
    p = [c["rows"][0]["p"] for c in found["comparisons"]]
    assert max(c["rows"][0]["p_holm"] for c in found["comparisons"]) >= 2 * min(p)
    assert models["Math_Shepherd"]["view"] == "last" and models["Math_Shepherd"]["reduction"]["best"] == "last"
    assert models["gpt4"]["tied_problems"] == 169 and "whole numbers" in models["gpt4"]["warnings"][0]
    assert models["internlm2"]["headline"]["estimate"]["value"] == pytest.approx(114 / 272)


def test_judgements_and_preferences(bench: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = bench
    keys = [json.loads(line)["id"] for line in data.read_text().splitlines()]
    file = tmp_path / "judge.jsonl"
    outputs = ["[[A]]", "[[B]]", "[[C]]", "no idea"]
    file.write_text(
        "".join(
            json.dumps({"id": key, "chosen_slot": "A", "output": outputs[i % 4]}) + "\n" for i, key in enumerate(keys)
        )
    )
    result = invoke("preferences", "--data", data, "--scores", file, "--rounds", 20, "--json")
    (model,) = strict(result.stdout)["models"]
    n = len(keys)
    assert model["counts"]["right"] == -(-n // 4) and sum(model["counts"].values()) == n
    assert model["views"]["verdict"]["accuracy, decided_only"]["value"] == pytest.approx(0.5, abs=0.01)


def test_validity_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    skill = rng.normal(size=12)
    table = tmp_path / "t.csv"
    rows = ["model,good_bench,blind_bench,flat,best_of_64"]
    rows += [f"m{i},{s + 0.1 * rng.normal():.4f},{rng.normal():.4f},1,{s:.4f}" for i, s in enumerate(skill)]
    table.write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    result = invoke("validity", "--data", table, "--outcome", "best_of_64", "--out", out, "--json")
    found = strict(result.stdout)["correlations"]
    assert found["good_bench"]["spearman"]["low"] > 0.5 > found["blind_bench"]["spearman"]["low"]
    assert found["flat"]["pearson"]["value"] is None and "constant" in found["flat"]["pearson"]["reason"]
    assert (out / "report.html").is_file()
    refused = invoke("validity", "--data", table, "--outcome", "nothing")
    assert refused.exit_code == 2 and "no column 'nothing'" in refused.stderr
