"""Empirical risk: counts, intervals and pairs against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prudent.errors import PrudentError
from prudent.evaluation.intervals import newcombe
from prudent.evaluation.risk import paired_risk, policy_gain, policy_risk
from prudent.evaluation.statistics import wilson


def test_gain_is_value_minus_reference_value_and_worse_counts_prompts() -> None:
    reference = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    truth = torch.tensor([[1.0, 3.0, float("nan")], [1.0, 2.0, 4.0]])  # the third place of prompt 1 is no candidate
    policy = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    gain, worse = policy_gain(policy, reference, truth)
    # draw 1: prompt 1 gains 3 - 2, prompt 2 loses 2.75 - 1; draw 2 is the reference itself
    assert gain.tolist() == pytest.approx([(1.0 - 1.75) / 2, 0.0], abs=1e-12)
    assert worse.tolist() == [0.5, 0.0]


def test_gain_keeps_its_digits_beside_a_large_offset() -> None:
    reference = torch.full((1, 4), 0.25, dtype=torch.float64)
    policy = torch.tensor([[0.25 + 1e-9, 0.25 - 1e-9, 0.25, 0.25]], dtype=torch.float64)
    truth = torch.tensor([[1.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    plain = float(policy_gain(policy, reference, truth)[0])
    shifted = float(policy_gain(policy, reference, truth + 2.0**20)[0])
    assert plain == pytest.approx(1e-9, rel=1e-6) and shifted == pytest.approx(plain, rel=1e-6)


def test_risk_counts_draws_at_or_below_the_reference() -> None:
    found = policy_risk([0.3, -0.1, 0.0, 0.2, 1e-15, 0.4])
    assert found.at_or_below == 3 and found.risk == 0.5  # rounding is no gain
    assert (found.low, found.high) == pytest.approx(wilson(3, 6))
    values = torch.tensor([0.3, -0.1, 0.0, 0.2, 1e-15, 0.4], dtype=torch.float64)
    assert found.gain == pytest.approx(float(values.mean()))
    assert found.variance == pytest.approx(float(values.var(correction=1)))
    assert found.gain_low is not None and found.gain_low < found.gain < found.gain_high


def test_one_draw_has_no_spread() -> None:
    found = policy_risk([0.3])
    assert found.variance is None and found.gain_low is None and found.risk == 0.0


def test_paired_differences_use_the_same_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, generator=generator, dtype=torch.float64)
    found = paired_risk(common + 0.05, common)
    assert found.gain == pytest.approx(0.05) and found.gain_low == pytest.approx(0.05)  # the common part cancels
    assert found.only_first == 0 and found.only_second == int(((common <= 0) & (common + 0.05 > 0)).sum()) > 0
    assert found.risk == pytest.approx(-found.only_second / 400) and found.risk_high <= 0


def test_paired_interval_is_newcombes_and_covers_with_few_draws() -> None:
    # Newcombe (1998), method 10, on 20, 12, 2 and 16 of 50: .0562 to .3292
    assert newcombe(20, 12, 2, 16) == pytest.approx((0.0562, 0.3292), abs=5e-5)
    assert newcombe(20, 2, 12, 16) == pytest.approx((-0.3292, -0.0562), abs=5e-5)
    same = paired_risk([0.1] * 20, [0.2] * 20)  # no failure in twenty proves no equal risk
    assert same.risk == 0.0 and same.risk_low == pytest.approx(-wilson(0, 20)[1])
    generator = np.random.default_rng(0)
    for draws in (10, 20, 50):
        for chances in ([0.02, 0.1, 0.02, 0.86], [0.3, 0.1, 0.05, 0.55], [0.1, 0.2, 0.0, 0.7], [0.2, 0.3, 0.1, 0.4]):
            ends = np.array([newcombe(*counts) for counts in generator.multinomial(draws, chances, 1000).tolist()])
            truth = chances[1] - chances[2]
            assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() > 0.93


def test_unusable_values_are_named() -> None:
    with pytest.raises(PrudentError, match="draw 1"):
        policy_risk([0.1, float("nan")])
    with pytest.raises(PrudentError, match="2 and 1 draws"):
        paired_risk([0.1, 0.2], [0.1])
    with pytest.raises(PrudentError, match="at least one"):
        policy_risk([])
    with pytest.raises(PrudentError, match="prompt 0, candidate 1"):
        policy_gain([[0.5, 0.5]], [[0.5, 0.5]], [[1.0, float("inf")]])
