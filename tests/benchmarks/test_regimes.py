"""Worlds with known variance and the map: directions, the losing corner and errors."""

from __future__ import annotations

import pytest
import torch
from benchmarks.regimes import (
    Regime,
    compare,
    draw_maps,
    exact_ratio,
    lost,
    members_needed,
    observe,
    share_kept,
    small_ball_risks,
    worlds,
)

from prudent.errors import PrudentError
from prudent.theory.risks import misspecified_risk, risk


def test_worlds_are_as_described() -> None:
    truth, variance = worlds(Regime(inequality=1.0, correlation=-0.6, signal=0.5), 4000, seed=1)
    assert torch.allclose(variance.mean(-1), torch.ones(4000, dtype=torch.float64))
    assert torch.allclose(truth.std(-1), torch.full((4000,), 0.5, dtype=torch.float64))
    logs = torch.log(variance) - torch.log(variance).mean(-1, keepdim=True)
    link = (logs * truth).sum() / (logs.square().sum() * truth.square().sum()).sqrt()
    assert link.item() == pytest.approx(-0.6, abs=0.02)
    assert logs.square().mean().sqrt().item() == pytest.approx(15**0.5 / 4, abs=0.03)


def test_small_ball_risks_are_the_theory_s() -> None:
    """Equations (17) to (19), many worlds at once."""
    truth, variance = worlds(Regime(), 5, seed=2)
    wrong = torch.rand(5, 16, dtype=torch.float64) + 0.1
    for assumed, expected in (
        (None, lambda r, v, w: risk(r, v, aware=False, on_simplex=True)),
        (variance, lambda r, v, w: risk(r, v, aware=True, on_simplex=True)),
        (wrong, lambda r, v, w: misspecified_risk(r, v, w, on_simplex=True)),
    ):
        found = small_ball_risks(truth, variance, assumed)
        one_by_one = [expected(r, v, w) for r, v, w in zip(truth, variance, wrong)]
        assert found.tolist() == pytest.approx(one_by_one, abs=1e-10)


def test_estimated_variances() -> None:
    truth, variance = worlds(Regime(), 200, seed=3)
    _, known = observe(Regime(floor=0.0), truth, variance, 2, seed=0)
    assert torch.allclose(known, variance.expand(2, -1, -1))
    _, rough = observe(Regime(members=3, floor=0.0), truth, variance, 2, seed=0)
    _, fine = observe(Regime(members=200, floor=0.0), truth, variance, 2, seed=0)
    errors = [torch.log(found / variance).std().item() for found in (rough, fine)]
    assert errors[0] > 4 * errors[1]
    reward, inside = observe(Regime(members=3, in_sample=True, floor=0.0), truth, variance, 50, seed=0)
    _, apart = observe(Regime(members=3, floor=0.0), truth, variance, 50, seed=0)
    far = ((reward - truth) / variance.sqrt()).abs()
    together, separate = (
        torch.corrcoef(torch.stack([far.flatten(), x.log().flatten()]))[0, 1] for x in (inside, apart)
    )
    assert together > 0.2 and abs(separate) < 0.05  # a member far from the others raises its own variance


def test_the_forms_part_by_the_link() -> None:
    """Equations (30), (33): where low variance goes with truth the link gains and the proportional form leads."""
    options = {"count": 60, "draws": 6, "methods": ("vanilla", "proportional", "bregman", "variance-only")}
    for sign in (-1, 1):
        rows = {row["method"]: row for row in compare(Regime(correlation=0.8 * sign), **options)}
        assert all(row["kl"] == pytest.approx(0.5, rel=2e-3) for row in rows.values())
        lead = rows["proportional"]["gain"] - rows["bregman"]["gain"]
        assert lead * sign < -0.05 and rows["variance-only"]["gain"] * sign < -0.3
    equal = {row["method"]: row for row in compare(Regime(inequality=0.0), **options)}
    assert equal["proportional"]["gain"] == pytest.approx(equal["vanilla"]["gain"], abs=1e-3)
    assert equal["variance-only"]["risk"] is None and "fewer than half" in equal["variance-only"]["reason"]


def test_wrong_variances_cost() -> None:
    """Equation (19)."""
    ratios = [exact_ratio(Regime(error=error), count=500, draws=2)["ratio"] for error in (0.0, 1.0, 2.5)]
    assert ratios[0] < 0.5 < 1 < ratios[2] and ratios == sorted(ratios)


def test_members_needed() -> None:
    curve = [{"members": k, "share_gain": s} for k, s in ((2, 0.95), (3, 0.2), (5, 0.92), (10, 0.97))]
    assert members_needed(curve) == 5
    assert members_needed([{"members": 2, "share_gain": None}]) is None
    assert share_kept(0.3, 0.2, 0.4) == pytest.approx(0.5) and share_kept(0.3, 0.2, 0.2) is None


def test_map_names_the_losing_corner() -> None:
    maps = draw_maps(count=20, draws=3, inequalities=(1.0,), correlations=(0.8,), errors=(2.0,), members=(2, 20))
    assert len(maps["link"]) == len(maps["error"]) == 1 and len(maps["members"]) == 12
    assert {row["method"] for row in maps["losing"]} >= {"exact"} and "exact is riskier" in maps["verdict"]
    assert "losing corner at inequality 1, " in maps["verdict"]
    row = {
        "inequality": 1.0,
        "correlation": 0.0,
        "methods": {
            name: {"risk": 0.1, "low": 0.05, "high": 0.2} for name in ("vanilla", "proportional", "bregman", "exact")
        },
    }
    assert lost([row], "link") == []


def test_errors() -> None:
    for options in ({"correlation": 2.0}, {"members": 1}, {"signal": 0.0}):
        with pytest.raises(PrudentError):
            Regime(**options)
