import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent import PrudentError, aggregate, moments
from prudent.rewards.aggregation import RULES, describe
from prudent.rewards.uncertainty import (
    IdenticalMembersWarning,
    centre,
    drop_members,
    identical_members,
    margin_moments,
    normalise_variance,
    warn_if_identical,
)

matrices = (
    st.integers(2, 6)
    .flatmap(lambda k: st.lists(st.lists(st.floats(-100, 100), min_size=k, max_size=k), min_size=1, max_size=5))
    .map(lambda rows: torch.tensor(rows, dtype=torch.float64).T)
)


@settings(max_examples=40)
@given(matrices)
def test_moments_are_numpys_with_ddof_1(scores):
    mean, variance = moments(scores)
    assert np.allclose(mean, scores.numpy().mean(0)) and np.allclose(variance, scores.numpy().var(0, ddof=1))
    stacked = moments(scores[:, None, :])
    assert torch.equal(stacked[1][0], variance)


@settings(max_examples=40)
@given(matrices, st.floats(-50, 50))
def test_rules_move_with_a_constant_and_stay_within_the_members(scores, constant):
    for rule in RULES:
        value = aggregate(scores, rule)
        assert torch.allclose(aggregate(scores + constant, rule), value + constant, atol=1e-6), rule
        assert bool((value <= scores.amax(0) + 1e-9).all()), rule
        if rule not in ("lcb", "uwo"):
            assert bool((value >= scores.amin(0) - 1e-9).all()), rule
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
        if rule != "member":
            assert torch.allclose(aggregate(scores[order], rule), value, atol=1e-9), rule


def test_values_of_the_rules():
    scores = torch.tensor([[1.0], [2.0], [3.0]])
    assert float(aggregate(scores, "lcb", coefficient=0.5)) == pytest.approx(1.5)  # 1.591752 with ddof=0
    assert float(aggregate(scores, "uwo", coefficient=0.5)) == pytest.approx(1.5)
    assert float(aggregate(scores, "min")) == 1 and float(aggregate(scores, "median")) == 2
    assert float(aggregate(scores, "member", index=2)) == 3
    assert float(aggregate(scores, "quantile", level=0.25)) == pytest.approx(1.5)
    assert float(aggregate(scores, "cvar", level=0.5)) == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert float(aggregate(scores, "cvar", level=1.0)) == pytest.approx(2)
    entropic = -math.log((math.exp(-1) + math.exp(-2) + math.exp(-3)) / 3)
    assert float(aggregate(scores, "entropic")) == pytest.approx(entropic)
    assert float(aggregate(scores, "entropic", coefficient=0)) == 2
    assert float(aggregate(torch.tensor([[1.0], [2.0], [4.0], [9.0]]), "median")) == 3


def test_the_mean_of_noisy_members_has_the_stated_variance():
    """Section 7 (d): independent s2/k; with correlation c, s2 (c + (1 - c)/k)."""
    generator = torch.Generator().manual_seed(0)
    k, items, c = 4, 60_000, 0.3
    noise, shared = torch.randn(k, items, generator=generator), torch.randn(items, generator=generator)
    assert float(aggregate(noise, "mean").var()) == pytest.approx(1 / k, rel=0.05)
    correlated = math.sqrt(c) * shared + math.sqrt(1 - c) * noise
    assert float(aggregate(correlated, "mean").var()) == pytest.approx(c + (1 - c) / k, rel=0.05)


def test_descriptions_name_formula_ddof_and_options():
    assert describe("lcb", coefficient=2.0) == (
        "lcb: mean - coefficient * sample standard deviation (ddof=1) [coefficient=2]"
    )
    assert describe("mean") == "mean: mean over members"


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("best", {}, "unknown rule"),
        ("lcb", {"beta": 1.0}, "no option beta"),
        ("lcb", {"coefficient": math.nan}, "finite"),
        ("quantile", {"level": 1.5}, "level"),
        ("cvar", {"level": 0.0}, "level"),
        ("member", {"index": 3}, "member 3 of 3"),
    ],
)
def test_bad_rules_are_named(rule, options, message):
    with pytest.raises(PrudentError, match=message):
        aggregate(torch.randn(3, 4), rule, **options)


def test_half_precision_scores_are_combined_in_single_precision():
    scores = torch.tensor([[7.0, 3.40625], [7.03125, 3.390625]], dtype=torch.bfloat16)
    assert aggregate(scores, "mean").dtype == torch.float32
    assert float(aggregate(scores, "mean")[0]) == 7.015625


def test_centring_by_group_and_weight():
    scores = torch.tensor([[1.0, 3.0, 10.0, 20.0], [0.0, 4.0, -1.0, 1.0]])
    assert centre(scores, ["a", "a", "b", "b"]).tolist() == [[-1, 1, -5, 5], [-2, 2, -1, 1]]
    weighted = centre(scores, torch.tensor([7, 7, 2, 2]), weights=torch.tensor([0.75, 0.25, 0.5, 0.5]))
    assert weighted.tolist() == [[-0.5, 1.5, -5, 5], [-1, 3, -1, 1]]
    blocks = scores.view(2, 2, 2)
    assert torch.equal(centre(blocks).flatten(1), centre(scores, [0, 0, 1, 1]))
    shares = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    assert torch.allclose(centre(blocks, weights=shares).flatten(1), weighted)


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [0.0, 0.0]])
def test_centring_needs_usable_weights(weights):
    with pytest.raises(PrudentError, match="weights"):
        centre(torch.randn(2, 2), weights=weights)
    with pytest.raises(PrudentError, match="weights"):
        centre(torch.randn(2, 2), ["a", "a"], weights=weights)
    with pytest.raises(PrudentError, match="3 groups for 2"):
        centre(torch.randn(2, 2), ["a", "b", "c"])


def test_normalised_variance_has_mean_one_and_a_floor():
    variance = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    assert torch.allclose(normalise_variance(variance), torch.tensor([[0.01, 1.0], [2.0, 1.0]]))
    assert float(normalise_variance(variance, floor=0).mean()) == 1
    each = normalise_variance(variance, floor=0, dim=-1)
    assert torch.allclose(each.mean(-1), torch.ones(2))
    with pytest.raises(PrudentError, match="identical"):
        normalise_variance(torch.zeros(3))
    with pytest.raises(PrudentError, match="finite and not negative"):
        normalise_variance(torch.tensor([-1.0, 2.0]))
    with pytest.raises(PrudentError, match="floor"):
        normalise_variance(variance, floor=-1)


def test_identical_members_are_found_up_to_an_offset():
    scores = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scores[3] = scores[1] + 2.5
    scores[4] = scores[1]
    assert identical_members(scores) == [[1, 3, 4]]
    with pytest.warns(IdenticalMembersWarning, match="members 2, 4, 5"):
        warn_if_identical(scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_identical(scores[:3]) == []


def test_members_are_left_out_for_every_item():
    scores = torch.tensor([[1.0, 2.0], [1.3, math.nan], [0.7, 2.2]])
    kept, indices = drop_members(scores)
    assert indices == [0, 2] and kept.shape == (2, 2)
    with pytest.raises(PrudentError, match="every member"):
        drop_members(torch.full((2, 2), math.nan))


def test_margin_variance_is_free_of_offsets():
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    offset = torch.randn(4, 1) * 100
    assert torch.allclose(
        margin_moments(first, second)[1], margin_moments(first + offset, second + offset)[1], atol=1e-3
    )
    with pytest.raises(PrudentError, match="rejected"):
        margin_moments(first, second[:, :2])
