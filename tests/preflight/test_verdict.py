"""The verdict says what the numbers say: who is safe, who is best, what an advantage is worth beside the controls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prudent.commands.preflight import outlook, truth
from prudent.commands.preflight.core import kind_of
from prudent.commands.preflight.verdict import choose, conclude
from prudent.evaluation.statistics import wilson
from prudent.reporting.numbers import percent


def row(method: str, setting: float, gain: float, below: int, draws: int = 200, **more: Any) -> dict[str, Any]:
    low, high = wilson(below, draws)
    return {
        "method": method,
        "setting": setting,
        "kind": kind_of(method),
        "gain": gain,
        "risk": below / draws,
        "low": low,
        "high": high,
        "draws": draws,
        "kl": 1.0,
        "worse": 0.1,
        "unreached": 0,
        **more,
    }


ROWS = [
    row("vanilla", 0.1, 0.9, 40),
    row("vanilla", 1.0, 0.4, 12),
    row("proportional", 0.1, 0.6, 1),
    row("bregman", 0.1, 0.7, 8),
    row("variance-only", 0.1, 2.0, 0),
    row("mean", 0.1, 0.5, 0),
]


def settle(
    rows: list[dict[str, Any]], equal_kl: list[dict[str, Any]] = (), trend: list[dict[str, Any]] = (), **more: Any
):
    return conclude(rows, equal_kl, trend, max_risk=0.05, unit="points", **more)


def test_the_best_among_those_whose_interval_is_low_enough() -> None:
    found = choose(ROWS, 0.05)
    assert (found["method"], found["setting"]) == ("proportional", 0.1)  # not the control, not 4 % with a wide interval
    verdict = settle(ROWS)
    assert verdict.tone == "warn" and verdict.headline == "Take proportional at beta 0.1"
    assert verdict.vanilla["setting"] == 0.1 and "20 % (" in verdict.sentences[0]
    assert any("mean of the members" in line for line in verdict.advice)


def test_safe_vanilla_is_said_to_be_safe() -> None:
    verdict = settle([row("vanilla", 0.1, 0.9, 0), row("mean", 0.1, 1.0, 0)])
    assert verdict.tone == "good" and "Vanilla is safe" in verdict.headline and verdict.advice == []
    assert verdict.choice["method"] == "mean"


def test_training_without_kl_is_told_apart_where_beta_0_was_asked_for() -> None:
    rows = [row("vanilla", 0.0, 0.2, 60, kl=2.0794), row("lcb", 0.0, 0.6, 20, kl=2.0794), *ROWS]
    text = " ".join(settle(rows).sentences)
    assert "without a KL term" in text and "2.08 nats" in text
    assert "lcb +0.600, risk 10 %; vanilla +0.200, risk 30 %" in text
    assert "without a KL term" not in " ".join(settle(ROWS).sentences)


def test_no_setting_is_safe() -> None:
    verdict = settle([row("vanilla", 0.1, 0.9, 60), row("lcb", 0.1, 0.3, 30)])
    assert verdict.tone == "bad" and verdict.choice is None and "No setting is safe" in verdict.headline
    assert "15 %" in verdict.sentences[1] and "lcb" in verdict.sentences[1]
    few = settle([row("vanilla", 0.1, 0.9, 0, draws=20)])
    assert "reaches above 5 %" in few.sentences[1]  # nothing failed, but the interval is wide


def test_too_few_data_give_no_number() -> None:
    reason = "12 pairs of 6 prompts; an estimate needs 30 of 8"
    nothing = {"method": "vanilla", "setting": 0.1, "kind": "baseline", "risk": None, "gain": None, "reason": reason}
    verdict = settle([nothing], kind="posterior")
    assert verdict.choice is None and verdict.tone == "warn" and reason in verdict.sentences[0]


def test_a_gain_below_zero_is_never_recommended() -> None:
    assert choose([row("lcb", 0.1, -0.1, 0)], 0.05) is None


def test_a_judge_that_guesses_makes_no_verdict() -> None:
    verdict = settle([row("vanilla", 0.1, 0.9, 0)], kind="judge", judge={"accuracy": 0.52, "low": 0.47, "high": 0.57})
    assert verdict.choice is None and verdict.tone == "warn" and "can't tell" in verdict.headline


def test_a_judge_claims_no_more_than_it_can_show() -> None:
    judge = {"accuracy": 0.6, "low": 0.57, "high": 0.63}
    safe = [row("vanilla", 0.1, 0.9, 0, judge_risk_low=0.0, judge_risk_high=0.02)]
    verdict = settle(safe, kind="judge", judge=judge)
    assert verdict.tone == "good" and verdict.headline.startswith("Vanilla looks safe")
    assert "60 % (57 % to 63 %)" in verdict.sentences[-1]
    wide = [row("vanilla", 0.1, 0.9, 0, judge_risk_low=0.0, judge_risk_high=0.4)]
    verdict = settle(wide, kind="judge", judge=judge)
    assert verdict.tone == "warn" and "between 0 % and 40 %" in " ".join(verdict.sentences)


def test_a_form_that_gains_less_is_said_to_gain_less() -> None:
    text = " ".join(settle(ROWS, [equal("exact", 0.5, -0.3, 40)]).sentences)
    assert "no safer than vanilla and gains less" in text


def test_a_posterior_says_what_it_takes_for_granted() -> None:
    procedure = {"procedure_risk": 0.1, "procedure_low": 0.0, "procedure_high": 0.4}
    found = settle([row("vanilla", 0.1, 0.9, 0, **procedure)], kind="posterior")
    assert "linear in the features" in found.sentences[-1]
    assert "Over fresh data sets of this size it would be 10 % (0 % to 40 %)" in found.sentences[0]


def test_reward_models_that_guess_are_named_first() -> None:
    verdict = settle([row("vanilla", 0.1, 0.9, 90)], order=0.51)
    assert "51 % of cases, hardly better than guessing" in verdict.sentences[-1]
    assert verdict.advice[1].startswith("**Better reward models**")
    assert "guessing" not in settle(ROWS, order=0.7).sentences[-1]


def equal(method: str, gain: float, versus: float, below: int, vanilla_below: int = 40) -> dict[str, Any]:
    """A row at equal KL whose paired differences from vanilla are sure within .1 in gain and 3 points in risk."""
    risk = (below - vanilla_below) / 200
    return row(
        method,
        0.1,
        gain,
        below,
        vs_gain=versus,
        vs_gain_low=versus - 0.1,
        vs_gain_high=versus + 0.1,
        vs_risk=risk,
        vs_risk_low=risk - 0.03,
        vs_risk_high=risk + 0.03,
    )


@pytest.mark.parametrize(
    ("blind", "shuffled", "words"),
    [
        (0.19, -0.3, ("part of the advantage is luck", "goes with truth")),
        (0.01, 0.19, ("isn't that luck", "keeps most of it")),
        (0.01, -0.3, ("isn't that luck", "comes from knowing which response is uncertain")),
    ],
)
def test_a_gain_is_weighed_against_both_controls(blind: float, shuffled: float, words: tuple[str, str]) -> None:
    table = [
        equal("proportional", 1.1, 0.2, 40),
        equal("variance-only", blind, -0.5, 80),
        equal("permuted", 0.9 + shuffled, shuffled, 30),
    ]
    text = " ".join(settle(ROWS, table).sentences)
    assert "better than vanilla" in text and "+0.100 to +0.300" in text and all(part in text for part in words)


@pytest.mark.parametrize(
    ("blind", "shuffled", "words"),
    [
        (22, 60, ("part of the advantage is luck",)),
        (80, 18, ("isn't that luck", "keeps most of it")),
        (80, 38, ("isn't that luck", "loses most of it")),
    ],
)
def test_a_lower_risk_is_said_first_with_what_it_costs(blind: int, shuffled: int, words: tuple[str, ...]) -> None:
    table = [
        equal("proportional", 0.8, -0.2, 12),
        equal("bregman", 1.3, 0.3, 38),
        equal("variance-only", 0.1, -0.9, blind),
        equal("permuted", 0.9, -0.1, shuffled),
    ]
    text = " ".join(settle(ROWS, table).sentences)
    assert "**proportional** is safer than vanilla: risk 6 % against 20 % (paired: -17 to -11 points)" in text
    assert "gain +0.800 against +1.000 (-0.300 to -0.100)" in text and all(part in text for part in words)


def test_no_advantage_is_said_plainly() -> None:
    text = " ".join(settle(ROWS, [equal("exact", 0.5, -0.1, 40)]).sentences)
    assert "neither safer nor better than vanilla" in text and "luck" not in text


def test_what_helps_is_ordered_by_how_much() -> None:
    trend = [
        {
            "change": "pairs",
            "method": "vanilla",
            "beta": 0.1,
            "risk_half": 0.3,
            "risk_full": 0.2,
            "risk_double_extrapolated": 0.12,
        }
    ]
    advice = settle(ROWS, trend=trend).advice
    kinds = [line.split("**")[1] for line in advice[1:]]
    assert kinds == ["More members", "A larger beta", "More pairs"]  # 20, 14 and 8 points
    assert "30 % with half" in advice[3] and "12 %" in advice[3]


def test_percentages_as_a_person_reads_them() -> None:
    assert [percent(x) for x in (0.0, 0.0001, 0.005, 0.05, 0.123, 1.0, None)] == [
        "0 %",
        "<0.1 %",
        "0.5 %",
        "5 %",
        "12 %",
        "100 %",
        "unknown",
    ]


def test_extrapolation_continues_the_trend_and_no_more() -> None:
    assert outlook.continued(1.0, 2**0.5) == pytest.approx(outlook.normal_risk(2.0))
    assert outlook.continued(1.0, 8.0) == pytest.approx(outlook.normal_risk(16.0))  # at most doubled
    assert outlook.continued(1.0, 0.9) == pytest.approx(outlook.normal_risk(0.9))  # no growth, no promise
    assert outlook.continued(-0.1, 1.0) is None and outlook.continued(None, 1.0) is None
    assert outlook.normal_risk(1.6448536) == pytest.approx(0.05, abs=1e-6)


def test_link_and_inequality_of_variances() -> None:
    reference = torch.full((2, 4), 0.25, dtype=torch.float64)
    gold = torch.tensor([[0.0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.float64)
    assert truth.link(torch.exp(-gold)[None], gold, reference) == pytest.approx(-1.0)
    assert truth.link(torch.exp(gold)[None], gold, reference) == pytest.approx(1.0)
    assert truth.inequality(torch.ones(3, 2, 4, dtype=torch.float64), reference) == 0.0
    assert truth.inequality(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[0.5, 0.5]])) == pytest.approx(1.0)


def test_ordering_counts_pairs_of_one_prompt() -> None:
    reference = torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3], dtype=torch.float64)
    gold = torch.tensor([[0.0, 1.0, 9.0], [1.0, 1.0, 2.0]])  # one pair, then two of three (one of them is a tie)
    reward = torch.tensor([[[0.0, 1.0, 0.0], [3.0, 2.0, 2.0]], [[1.0, 0.0, 5.0], [0.0, 1.0, 2.0]]])
    # draw 1: right; wrong, tied.  draw 2: wrong; right, right
    assert truth.ordering(reward, gold, reference) == pytest.approx((1 + 0 + 0.5 + 0 + 1 + 1) / 6)
