"""Promises held against the truth, and why the two forms differ at equal KL."""

from __future__ import annotations

import pytest
import torch
from benchmarks.promises import COMPARED, calibrate, forms_table, methods_table, risk_curves, split_at_kl, summarise

from prudent.policies import METHODS, estimate, method_beta_for_kl
from prudent.policies.finite import kl, solve, value


def test_the_gap_at_equal_kl_is_the_link_s_worth_minus_what_it_costs() -> None:
    """Equation (40): the parts are gains of policies that spend what they say, and to first order what is predicted."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.full((40, 8), 1 / 8, dtype=torch.float64)
    gold = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    spread = torch.exp(-0.8 * gold + 0.5 * torch.randn(40, 8, generator=generator, dtype=torch.float64))
    scores = gold + spread.sqrt() * torch.randn(6, 40, 8, generator=generator, dtype=torch.float64)
    seen = estimate(scores, reference, reward="mean")
    for target in (0.01, 0.4):
        found = split_at_kl(seen.reward, reference, seen.variance, gold, target)
        beta = method_beta_for_kl("proportional", seen, reference, target)
        policy = METHODS["proportional"](seen, reference, beta)
        assert found.proportional == pytest.approx((value(policy, gold) - value(reference, gold)).mean().item())
        within = solve(seen.reward, reference, beta, variance=seen.variance, form="bregman")
        assert found.kl_within == pytest.approx(kl(within, reference).mean().item()) and found.kl_within < target
        assert found.bregman + found.given_up + found.link == pytest.approx(found.proportional)
        assert found.given_up < 0 < found.link  # low variance goes with truth in this world
    small = split_at_kl(seen.reward, reference, seen.variance, gold, 1e-6)
    assert small.proportional - small.bregman == pytest.approx(small.first_order, rel=0.02)
    assert split_at_kl(seen.reward, reference, seen.variance, gold, 50.0) is None


def test_calibration_on_a_linear_world() -> None:
    """Rewards linear in the features, clean preferences: most of what is promised is realised."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, 8, generator=generator)
    gold = features @ torch.randn(8, generator=generator) * 0.3
    test = torch.arange(20, 40)

    def choose(seed: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from prudent.demo.world import draw_preferences

        return draw_preferences(gold, torch.arange(20), 150, 2.0, seed)  # type: ignore[arg-type]

    rows = calibrate(features, gold, choose, test, slope=2.0, betas=(1.0,), kls=(0.1,), draws=6)
    table = summarise(rows["promises"])
    assert len(table) == 9 and len(rows["forms"]) == 6
    for row in table:
        assert row["bound"] < row["corrected"] < row["plug_in"]
        assert row["belief"] == "posterior" or row["realised"] > 0.5 * row["corrected"] > 0
        assert row["realised_risk"] == 0
        assert 0 <= row["covered"] <= 1
    reference = torch.full((20, 6), 1 / 6, dtype=torch.float64)
    curves = risk_curves(rows["promises"], reference, gold[test])
    for belief in ("ensemble", "sandwich", "posterior"):
        assert sum(row["n"] for row in curves if (row["belief"], row["method"]) == (belief, "vanilla")) == 6 * 20
    compared = methods_table(rows["gains"], 6)
    assert [row["method"] for row in compared] == list(COMPARED) and set(METHODS) >= set(COMPARED)
    gains = {row["method"]: row["gain"] for row in compared if row["reached"] == 1}
    assert "gain" not in next(row for row in compared if row["method"] == "exact")  # it can't move as little as that
    (parts,) = forms_table(rows["forms"])
    assert parts["proportional"] == pytest.approx(gains["proportional"], rel=1e-4)
    assert parts["gap"] == pytest.approx(gains["proportional"] - gains["bregman"], rel=1e-3)
    assert gains["vanilla"] > 0.05 > gains["variance-only"]
