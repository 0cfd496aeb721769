"""The study of training runs: its paired test of deviations, and the rows that its tables are made of."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import results
import rl_monitor
import rl_study
import rl_tables


def test_the_interval_of_the_ratio_leaves_out_one_exactly_where_the_test_rejects():
    generator = np.random.default_rng(0)
    for scale in (0.4, 0.7, 0.85, 1.0, 1.4):
        common = generator.standard_normal(80)
        first, second = scale * (common + generator.standard_normal(80)), common + generator.standard_normal(80)
        ratio, low, high, p = rl_tables.deviation_ratio(first, second)
        assert ratio == pytest.approx(first.std(ddof=1) / second.std(ddof=1)) and low < ratio < high
        assert (p < 0.05) == (not low <= 1 <= high)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        common = generator.standard_normal(40)
        first, second = 0.7 * (common + generator.standard_normal(40)), common + generator.standard_normal(40)
        _, low, high, _ = rl_tables.deviation_ratio(first, second)
        held += low <= 0.7 <= high
    assert 0.92 <= held / 400 <= 0.98


def rows(arm, gains, promised):
    return [
        {
            "draw": number,
            "arm": arm,
            "beta": 0.1,
            "gain": gain,
            "judging": 0.01,
            "exact_gain": 0.1 - risk,
            "exact_kl": 0.2,
            "kl": 1.0,
            "promised_risk": risk,
            "promised_after": 0.5,
        }
        for number, (gain, risk) in enumerate(zip(gains, promised))
    ]


def test_an_arm_s_row_counts_runs_at_or_below_and_scores_its_promise():
    found = rows("vanilla", [0.2, -0.1, 0.3, 0.1], [0.1, 0.9, 0.0, 0.2])
    found += rows("lcb", [0.1, 0.1, 0.2, 0.15], [0.0, 0.0, 0.0, 0.2])
    base, other = rl_tables.adjusted([rl_tables.arm_row(found, arm) for arm in ("vanilla", "lcb")])
    assert base["at_or_below"] == 1 and base["promised"]["brier"] == pytest.approx((0.01 + 0.01 + 0 + 0.04) / 4)
    assert base["brier_of_own_mean"] == pytest.approx(3 / 16) and base["deviation_ratio"][0] == 1
    assert base["promised"]["auroc"] == 1 and base["promised_after"]["auroc"] == 0.5
    assert other["risk_difference"][0] == -0.25 and other["deviation_ratio"][0] < 1
    assert other["mcnemar_p"] == 1 and other["holm_p"] == other["deviation_ratio"][3]  # one run differs, one arm
    chart = rl_tables.reliability(found[:4], parts=2)
    assert [part["realised"] for part in chart] == [0.0, 0.5] and chart[1]["promised"] == pytest.approx(0.55)
    assert base["exact_at_or_below"] == 0.75 and base["exact_correlation"] > 0.5
    assert "| r | lcb |" in rl_tables.markdown([{"regime": "r", **row} for row in (base, other)])


def test_the_betas_for_equal_kl_give_vanillas_kl_where_kl_is_a_power_of_beta(monkeypatch, tmp_path):
    size = {arm: 1 + number / 3 for number, arm in enumerate(rl_study.ARMS)}
    slope = {arm: -0.2 - number / 20 for number, arm in enumerate(rl_study.ARMS)} | {"exact": 0.1}

    def kl(arm, beta):
        return size[arm] * (beta / 0.3) ** slope[arm]

    def cell(name, regime, draws, betas, folder, samples=0):
        found = [
            {"draw": n, "arm": arm, "beta": beta, "kl": kl(arm, beta)} for n in draws for arm, beta in betas.items()
        ]
        return {"rows": found}

    monkeypatch.setattr(rl_study, "cell", cell)
    said = []
    betas = rl_study.calibrated("high", tmp_path, said.append)
    assert len(said) == len(betas) == len(rl_study.ARMS) and betas["vanilla"] == pytest.approx(0.3)
    assert betas.pop("exact") == 0.3  # its KL doesn't fall with beta
    inside = {arm: beta for arm, beta in betas.items() if beta < rl_study.BETAS[1]}
    assert len(inside) >= 5
    for arm, beta in inside.items():
        assert kl(arm, beta) == pytest.approx(size["vanilla"])


def test_a_table_takes_the_place_of_the_last_one_and_of_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- one: made by x -->\n\nold\n\n<!-- end of one -->\nb\n<!-- two: y -->\n<!-- end of two -->\n"
    )
    for text in ("new", "newer"):
        results.fill(page, "one", text)
    results.fill(page, "two", "| 2 |")
    parts = [
        "a",
        "<!-- one: made by x -->",
        "",
        "newer",
        "",
        "<!-- end of one -->",
        "b",
        "<!-- two: y -->",
        "",
        "| 2 |",
        "",
    ]
    assert page.read_text() == "\n".join([*parts, "<!-- end of two -->", ""])


def test_a_run_has_turned_where_its_end_lies_clearly_below_its_best():
    steps = len([*range(0, rl_monitor.STEPS, rl_monitor.EVERY)]) + 1
    falls = {"gold": [0.0, 0.1, 0.4, 0.3] + [0.1] * (steps - 4), "errors": [0.02] * steps, "alarms": {}}
    rises = {"gold": np.linspace(0, 0.5, steps).tolist(), "errors": [0.02] * steps, "alarms": {}}
    assert rl_monitor.truth(falls) == (True, 2 * rl_monitor.EVERY)
    assert rl_monitor.truth(rises) == (False, rl_monitor.STEPS)
    assert rl_monitor.at(falls, 2 * rl_monitor.EVERY) == pytest.approx(0.4)
    falls["alarms"] = {"drift": {"step": 14, "keep": 13}}
    found = next(row for row in rl_monitor.points("r", [falls, rises]) if row["monitor"] == "drift")
    assert found["alarms_on_turned"] == 1 and found["delay_median"] == 6 and found["false_alarms"] == 0
