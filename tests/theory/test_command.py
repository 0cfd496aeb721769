"""``prudent theory``: strict JSON, reports, errors with status 2, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prudent.cli.main import app
from prudent.cli.theory_certify import _page, _prompt_rows, _row, _verdict, padded
from prudent.policies.methods import METHODS
from prudent.theory.certificates import RULES, belief_from_members, certify
from prudent.theory.claims import ball_claims, level_claims, penalty_claims, solver_claims
from prudent.theory.embedded import calibrate, summarise
from prudent.theory.experiments import penalty_draws


def test_map_writes_a_run(tmp_path: Path) -> None:
    out = tmp_path / "map"
    arguments = ["theory", "map", "--out", str(out), "--count", "20", "--draws", "2", "--no-images", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["link"]) == 25
    assert {path.name for path in out.iterdir()} >= {"manifest.json", "results.json", "report.html"}
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2


@pytest.mark.parametrize(
    "options",
    (["--model", "nowhere"], [], ["--embedded", "--model", "x"], ["--embedded", "--betas", "0.1,x"],
     ["--embedded", "--betas", "-1"], ["--embedded", "--delta", "0.7"]),
)  # fmt: skip
def test_certify_refuses(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["theory", "certify", "--out", str(tmp_path / "c"), *options])
    assert result.exit_code == 2
    assert not (tmp_path / "c").exists()


def test_claims_hold() -> None:
    """Those of the claims that need no long simulation; the command runs them all."""
    found = [*solver_claims(1), *ball_claims(1), *level_claims(1), *penalty_claims(penalty_draws(1, 4000))]
    assert len(found) > 20 and [claim.claim for claim in found if not claim.holds] == []


def test_certificate_rows_and_page() -> None:
    scores = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = torch.full((3, 4), 0.25, dtype=torch.float64)
    belief = belief_from_members(scores, reference)
    moved = scores - scores.mean(0)
    rows = [_row(certify(belief, 1.0, method), belief, moved, 0.05) for method in RULES]
    assert {"plug_in", "improvement", "bound", "member_improvement"} <= set(rows[0])
    assert len(_prompt_rows(certify(belief, 1.0, "vanilla"), ["a", "b", "c"])) == 3
    assert "No setting" in _verdict([row | {"bound": -1.0} for row in rows], 0.05)
    sure = _verdict([row | {"bound": 0.5} for row in rows], 0.05)
    assert sure.startswith("4 of 4")
    page = _page({"overall": rows, "belief": "ensemble of 6", "prompts": 3, "delta": 0.05, "verdict": sure}).html()
    assert "What this reward model may promise" in page
    assert padded(torch.arange(5.0), [2, 3]).tolist() == [[0, 1, 0], [2, 3, 4]]


def test_calibration_on_a_linear_world() -> None:
    """Rewards linear in the features, clean preferences: most of what is promised is realised."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, 8, generator=generator)
    gold = features @ torch.randn(8, generator=generator) * 0.3
    test = torch.arange(20, 40)

    def choose(seed: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from prudent.demo.world import draw_preferences

        return draw_preferences(gold, torch.arange(20), 150, 2.0, seed)  # type: ignore[arg-type]

    rows = calibrate(features, gold, choose, test, slope=2.0, betas=(1.0,), draws=6)
    table = summarise(rows["promises"])
    assert len(table) == 6 and len(rows["forms"]) == 6
    for row in table:
        assert row["bound"] < row["corrected"] < row["plug_in"]
        assert row["realised"] > 0.5 * row["corrected"] > 0 and row["realised_risk"] == 0
        assert 0 <= row["covered"] <= 1
    assert set(METHODS) >= {row["method"] for row in table}
