"""Picks by rule: offsets of members mean nothing, ties take the first, bad input names the prompt and the member."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prudent.cli import app
from prudent.errors import PrudentError
from prudent.policies.best_of_n import pick, picks, usable_rules
from prudent.rewards.aggregation import aggregate
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.model import RewardModel
from prudent.rewards.uncertainty import centre_members


def test_pick_by_hand() -> None:
    scores = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, -1.0]])  # third: mean 1, but members disagree
    mean, cautious = pick(scores, "mean"), pick(scores, "lcb")
    assert (mean.index, cautious.index) == (1, 1) and mean.mean == 1.0  # a tie of the means: the first is taken
    assert mean.margin == 0 and cautious.margin > 0.9
    assert cautious.by_rule["min"] == 1 and cautious.deviation == pytest.approx(
        float(torch.tensor([-1 / 3, 1.0]).std())
    )
    high = pick(scores + torch.tensor([[0.0, 0, 0.1]]), "mean")
    assert high.index == 2 and high.by_rule["lcb"] == 1


def test_offsets_of_members_change_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(5, 8)))
    for rule in usable_rules(5):
        moved = scores + torch.from_numpy(rng.normal(size=(5, 1))) * 100
        assert pick(scores, rule).index == pick(moved, rule).index
    centred = scores - scores.mean(1, keepdim=True)
    assert pick(scores, "lcb").index == int(aggregate(centred, "lcb").argmax())


def test_quantiles_share_an_origin_and_keep_their_deviation() -> None:
    """Levels of one reward: centring each alone would take away the deviation between them."""
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.5, 4.0]])
    apart, together = pick(scores, "mean"), pick(scores, "mean", together=True)
    assert apart.index == together.index == 2
    assert together.deviation == pytest.approx(float(scores[:, 2].std()))
    assert apart.deviation is not None and apart.deviation < together.deviation
    lone = centre_members(torch.tensor([[1.0, 3.0, 7.0, 5.0]]), ["a", "a", "b", "b"], together=True)
    assert lone.tolist() == [[-1.0, 1.0, 1.0, -1.0]]


def test_ragged_pools_and_one_member() -> None:
    found = picks(torch.tensor([[1.0, 2, 0, 5, 4, 9]]), [2, 1, 3])
    assert [p.index for p in found] == [1, 0, 2] and found[0].deviation is None and "lcb" not in found[0].by_rule
    with pytest.raises(PrudentError, match="6 candidates"):
        picks(torch.zeros(1, 5), [2, 4])


def test_bad_scores_name_prompt_and_member() -> None:
    scores = torch.zeros(2, 4)
    scores[1, 3] = float("nan")
    with pytest.raises(PrudentError, match="prompt 1: the score of item 2, member 2"):
        picks(scores, [2, 2])
    with pytest.raises(PrudentError, match="unknown rule"):
        pick(torch.zeros(2, 2), "best")


@pytest.fixture
def model_folder(tmp_path: Path, tiny_folder: Path) -> Path:
    from prudent.features.encoder import Encoder

    encoder = Encoder(tiny_folder, dtype="float32", progress=False)
    rng = np.random.default_rng(0)
    heads = HeadEnsemble.fit(
        rng.normal(size=(30, encoder.width)), rng.normal(size=(30, encoder.width)), members=4, ridge=0.1
    )
    RewardModel(heads, encoder, model=str(tiny_folder)).save(tmp_path / "rm")
    return tmp_path / "rm"


def test_command(model_folder: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"Say {i}.",
            "responses": ["Yes.", "No, never.", "Perhaps so."][: 2 + i % 2],
            "gold": [0.0, 1.0, 0.5][: 2 + i % 2],
        }
        for i in range(6)
    ]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner().invoke
    out = tmp_path / "out"
    result = run(app, ["best-of-n", "--pool", str(pool), "--model", str(model_folder), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["candidates"] == {"least": 2, "most": 3} and found["agreement"]["lcb"] == 1.0
    assert found["gold"]["reference"] == 0.5 and found["gold"]["lcb"]["value"] is not None
    score = ["score", "--data", str(pool), "--model", str(model_folder), "--rule", "lcb"]
    for place, line in enumerate(run(app, score).stdout.splitlines()):  # score and best-of-n pick the same
        scored, chosen = json.loads(line), json.loads((out / "picks.jsonl").read_text().splitlines()[place])
        best = scored["reward"].index(max(scored["reward"]))
        assert best == chosen["index"] and scored["reward"][best] == pytest.approx(chosen["reward"], abs=1e-5)
        deviation = scored["standard_deviation_centred"][best]
        assert deviation == pytest.approx(chosen["standard_deviation_centred"], abs=1e-5)
    picked = [json.loads(line) for line in (out / "picks.jsonl").read_text().splitlines()]
    assert all(row["response"] == rows[i]["responses"][row["index"]] for i, row in enumerate(picked))
    without = tmp_path / "nogold.jsonl"
    without.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "gold"}) + "\n" for row in rows))
    told = run(app, ["best-of-n", "--pool", str(without), "--model", str(model_folder), "--out", str(out) + "3"])
    assert "gold" not in told.stdout.lower() and "Picked by lcb" in " ".join(told.stdout.split())
    assert (out / "report.html").is_file() and (out / "manifest.json").is_file()
    refused = run(
        app, ["best-of-n", "--pool", str(pool), "--model", str(model_folder), "--n", "3", "--out", str(out) + "2"]
    )
    assert refused.exit_code == 2 and "'p0' has only 2 responses" in refused.stderr
