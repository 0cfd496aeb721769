"""``prudent theory``: strict JSON, reports, errors with status 2, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.theory.certify import padded
from prudent.commands.theory.page import reproduce_page
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.laplace import LaplacePosterior
from prudent.rewards.model import RewardModel
from prudent.theory.claims import ball_claims, bound_claims, failures, level_claims, penalty_claims, solver_claims
from prudent.theory.experiments import penalty_draws
from prudent.theory.realised import can_fail, realised_gain, risk_curve


@pytest.mark.parametrize(
    "options",
    (
        ["--model", "nowhere"],
        [],
        ["--model", "nowhere", "--pool", "x", "--betas", "0.1,x"],
        ["--model", "nowhere", "--pool", "x", "--betas", "-1"],
        ["--model", "nowhere", "--pool", "x", "--delta", "0.7"],
        ["--model", "nowhere", "--pool", "x", "--delta", "0.0001"],
    ),
)
def test_certify_refuses(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["theory", "certify", "--out", str(tmp_path / "c"), *options])
    assert result.exit_code == 2
    assert not (tmp_path / "c").exists()


def test_claims_hold() -> None:
    """Those of the claims that need no long simulation; the command runs them all."""
    found = [*solver_claims(1), *ball_claims(1), *level_claims(1), *penalty_claims(penalty_draws(1, 4000))]
    assert len(found) > 20 and [claim.claim for claim in found if not claim.holds] == []
    page = reproduce_page(list(ball_claims(1)), {}).html()
    assert "4 of 4 claims hold" in page and "0.95 to 1" in page.replace("0.95000", "0.95").replace("1.00000", "1")


@pytest.mark.parametrize("draws", (200, 400, 2000))
def test_a_bound_that_fails_too_often_is_no_claim_that_holds(draws: int) -> None:
    """A true rate of 18 % must not pass for 10 %, nor 5 % be turned away where there are draws enough to tell."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        bad, good = (torch.rand(draws, generator=generator) < rate for rate in (0.18, 0.05))
        assert not failures("", "", "", bad, 0.1).holds
        assert draws < 2000 or failures("", "", "", good, 0.1).holds
    assert failures("", "", "", torch.zeros(draws, dtype=torch.bool), 0.1).holds
    assert all(claim.holds for claim in bound_claims(1))


def test_the_sigma_ball_s_best_direction_is_found_in_its_own_metric() -> None:
    """Drawn in the plain metric the best of 10,000 directions would come to a small part of the optimum."""
    (found,) = [claim for claim in ball_claims(1) if claim.claim.startswith("Sigma ball: best")]
    assert found.holds and found.low == 0.95


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Problems with solutions; the longer one is right, and in the last one both are."""
    path = tmp_path / "pool.jsonl"
    rows = [
        {
            "problem_id": f"p{i}",
            "question": f"Say {i}.",
            "solutions": [
                {"solution": "No." + " Not so." * (i % 3), "is_correct": i == 7},
                {"solution": "Yes, it is so, and always was.", "is_correct": True},
            ],
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", ("heads", "laplace"))
def test_certify_a_saved_model_against_gold(family: str, pool: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from prudent.features.encoder import Encoder

    encoder = Encoder(tiny_folder, dtype="float32", progress=False)
    long, short = (encoder.encode(["Q"] * 12, [word * n for n in range(1, 13)]) for word in ("Yes, it is so. ", "No."))
    fit = {"heads": HeadEnsemble.fit, "laplace": LaplacePosterior.fit}[family]
    RewardModel(fit(long, short, members=5, ridge=0.1), encoder, model=str(tiny_folder)).save(tmp_path / "rm")
    out = tmp_path / "certificate"
    arguments = ["theory", "certify", "--model", str(tmp_path / "rm"), "--pool", str(pool), "--out", str(out), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--betas", "0.3,1", "--no-images"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["overall"]) == 8 and found["prompts"] == 8
    for row in found["overall"]:
        assert row["bound"] < row["improvement"] < row["plug_in"]
        assert ("uniform" in row) == (family == "laplace") and ("member_bound" in row) == (family == "heads")
        assert 0 <= row["promised_failures"] <= 1 and row["realised"] * (row["realised_failures"] - 0.5) < 0
    rows = [row for row in found["risk_curves"] if row["method"] == "vanilla"]
    assert sum(row["n"] for row in rows) == 2 * 7  # the prompt whose solutions are both right can't be improved
    assert "By gold" in found["verdict"] and "Promised against realised risk" in (out / "report.html").read_text()
    assert padded(torch.arange(5.0), [2, 3]).tolist() == [[0, 1, 0], [2, 3, 4]]


def test_risks_that_are_kept_lie_on_the_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(400, 30, generator=generator, dtype=torch.float64)
    failed = torch.rand(400, 30, generator=generator, dtype=torch.float64) < chance
    rows = risk_curve(chance, torch.where(failed, -1.0, 1.0))
    assert len(rows) == 10 and sum(row["n"] for row in rows) == 12_000
    assert all(abs(row["promised"] - row["realised"]) < 0.05 for row in rows)
    bold = risk_curve(chance**2, torch.where(failed, -1.0, 1.0))
    assert all(row["realised"] > row["promised"] for row in bold[:8])
    reference = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    gold = torch.tensor([[1.0, 1.0, 7.0], [0.0, 2.0, 7.0]])
    assert can_fail(reference, gold).tolist() == [False, True]
    assert realised_gain(torch.tensor([[0.2, 0.8, 0.0]] * 2), reference, gold).tolist() == pytest.approx([0.0, 0.6])
