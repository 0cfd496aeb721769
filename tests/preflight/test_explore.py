"""The explorer's grid is the answer's own numbers at more settings, and its sliders move the charts."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest
import torch

from prudent.commands.preflight.answer import answer
from prudent.commands.preflight.explore import PROMPTS, betas_of, most_moved, subsets
from prudent.commands.preflight.given_pairs import Plan
from prudent.commands.preflight.page_explorer import explorer_section
from prudent.commands.preflight.truth import gold_truth
from prudent.reporting.report import Report
from prudent.rewards.containers import CandidateFeatures

PLAN = Plan(betas=(0.1, 1.0), draws=16, members=3, ridge=1.0, reward="member:0", floor=0.01, max_risk=0.05)


@pytest.fixture(scope="module")
def explored(world):
    pairs, candidates, gold = world(pairs=120, prompts=12, width=4)
    texts = [[f"answer {p} {c} <b>" for c in range(4)] for p in range(12)]
    candidates = CandidateFeatures(candidates.features, candidates.reference, [f"ask {p}" for p in range(12)], texts)
    return pairs, candidates, gold, answer(pairs, candidates, None, PLAN)


def test_all_pairs_at_a_beta_of_the_table_is_the_table(explored) -> None:
    pairs, _, _, found = explored
    table = {(row["method"], row["setting"]): row for row in found.equal_beta}
    whole = [row for row in found.grid.rows if row["pairs"] == len(pairs) and row["beta"] in PLAN.betas]
    assert len(whole) == 6 * len(PLAN.betas)
    for row in whole:
        same = table[row["method"], row["beta"]]
        assert all(row[name] == pytest.approx(same[name], rel=1e-9) for name in ("risk", "low", "high", "gain", "kl"))


def test_fewer_pairs_are_nested_whole_prompts_and_enough(explored) -> None:
    pairs = explored[0]
    parts = subsets(pairs, 0)
    assert [len(part) for part in parts] == [30, 60, 120] and parts[-1] is pairs  # 15 of 60 pairs' prompts are too few
    for small, large in itertools.pairwise(parts):
        assert set(small.groups) < set(large.groups)
        assert all(small.groups.count(name) == pairs.groups.count(name) for name in set(small.groups))


def test_betas_between_and_beyond_those_that_were_asked_for() -> None:
    assert betas_of((1.0, 0.01)) == pytest.approx([0.01 / 3, 0.01, 0.1, 1.0, 3.0])
    many = tuple(0.1 * k for k in range(1, 11))
    assert betas_of(many) == list(many)
    assert betas_of((0.0,)) == [] and 0.0 not in betas_of((0.0, 0.1))  # no place on a logarithmic axis


def test_the_prompts_that_move_furthest_with_what_rises_and_falls() -> None:
    reference = torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3], dtype=torch.float64)
    policy = torch.tensor([[0.6, 0.4, 0.0], [0.8, 0.15, 0.05]], dtype=torch.float64)
    rows = most_moved(policy - reference, reference)
    assert [(row["prompt"], row["rises"], row["falls"]) for row in rows] == [(1, 0, 2), (0, 0, 1)]
    assert rows[1]["fall"] == pytest.approx(-0.1) and rows[0]["kl"] > rows[1]["kl"]


def test_with_gold_the_grid_is_by_gold(explored) -> None:
    pairs, candidates, gold, _ = explored
    found = answer(pairs, candidates, gold_truth(gold, candidates.reference), PLAN, check=False)
    row = next(row for row in found.grid.rows if row["pairs"] == len(pairs) and row["beta"] == 0.1)
    same = next(row for row in found.equal_beta if row["method"] == "vanilla" and row["setting"] == 0.1)
    assert row["method"] == "vanilla" and row["gain"] == pytest.approx(same["gain"])
    assert len([row for row in found.grid.moves if row["pairs"] == len(pairs)]) % PROMPTS == 0


@pytest.mark.chromium
def test_a_slider_moves_the_charts_without_a_script_of_ours(explored, tmp_path: Path, chromium: str) -> None:
    _, candidates, _, found = explored
    report = Report("x")
    explorer_section(report, found, candidates, 0.05)
    html = report.html()
    assert "answer 0 0 <b>" not in html
    probe = (
        "<script>setTimeout(()=>{const s=document.querySelector('.wide input[name=pairsAt]');s.value=0;"
        "s.dispatchEvent(new Event('input'))},20000)</script>"
    )
    before, end, after = html.rpartition("</body>")
    page = tmp_path / "report.html"
    page.write_text(before + probe + end + after, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    options += ["--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "from 30 of 120 pairs" in done.stdout and "from 120 of 120 pairs" not in done.stdout.split("<svg")[1]
    assert 'data-state="failed"' not in done.stdout
    assert done.stdout.count(">▲ ") == PROMPTS == done.stdout.count(">▼ ")
