"""Blind rules on the embedded world: what each gains is computed from texts alone and is small beside gold."""

from __future__ import annotations

import torch

from prudent.commands.preflight.blind_rules import blind_gains, tilt_gain
from prudent.commands.preflight.page_regimes import blind_section
from prudent.demo.world import load_world
from prudent.reporting.report import Report


def test_a_balanced_world_leaves_little_to_a_rule_that_never_reads_the_prompt() -> None:
    rows = blind_gains(load_world(160))
    *rules, gold = rows
    assert gold["rule"] == "gold itself" and gold["gain"] > 0.2
    assert {"shorter", "longer", "fewer commas", "likelier a token"} <= {row["rule"] for row in rules}
    assert max(row["gain"] for row in rules) < 0.15 * gold["gain"]
    assert all(row["low"] <= row["gain"] <= row["high"] for row in rows)
    report = Report("world")
    blind_section(report, rows)
    assert "gold itself would gain" in report.html()


def test_a_tilt_gains_what_its_policy_is_worth() -> None:
    gold = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert (tilt_gain(gold, gold) > 0.4).all()  # half a nat from uniform over two is nearly all on one
    assert (tilt_gain(-gold, gold) < -0.4).all()
