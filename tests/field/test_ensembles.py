"""Field cases about reward models that are saved, scored and combined: R13, R14, R15 (the scorer's half) and R16."""

import math
import warnings

import pytest
import torch

from prudent import HeadEnsemble, PrudentError, aggregate, moments
from prudent.rewards.transformers.external import last_state
from prudent.rewards.uncertainty import IdenticalMembersWarning, drop_members, normalise_variance, warn_if_identical


def pairs(n: int = 30):
    chosen, rejected = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(0))
    return chosen + 0.4, rejected


def test_r13_the_last_token_is_found_by_mask_on_either_side():
    right = torch.tensor([[0.1, 0.2, 0.9, -5.0, -5.0]])[..., None]
    left = torch.tensor([[-5.0, -5.0, 0.1, 0.2, 0.9]])[..., None]
    assert last_state(right, torch.tensor([[1, 1, 1, 0, 0]])).item() == pytest.approx(0.9)
    assert last_state(left, torch.tensor([[0, 0, 1, 1, 1]])).item() == pytest.approx(0.9)
    with pytest.raises(PrudentError, match="row 1"):
        last_state(torch.zeros(2, 3, 1), torch.tensor([[1, 1, 0], [0, 0, 0]]))


def test_r15_heads_compute_and_keep_single_precision_whatever_the_features_are():
    chosen, rejected = pairs()
    ensemble = HeadEnsemble.fit(chosen.bfloat16(), rejected.bfloat16(), members=2)
    assert ensemble.weights.dtype == torch.float32
    scores = ensemble.scores(chosen.bfloat16())
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())  # not on the coarse grid
    assert torch.equal(scores, ensemble.scores(chosen.bfloat16().float()))


def test_r16a_equal_members_are_named_and_their_variance_is_refused():
    chosen, rejected = pairs()
    equal = HeadEnsemble.fit(chosen, rejected, members=3, ridge=0.1, seed=[7, 7, 7])
    scores = equal.scores(chosen)
    assert float(moments(scores)[1].max()) < 1e-12
    with pytest.warns(IdenticalMembersWarning, match=r"members are identical; likely causes: .*seed.*bootstrap"):
        assert warn_if_identical(scores) == [[0, 1, 2]]
    with pytest.raises(PrudentError, match="identical"):
        normalise_variance(torch.zeros(30))
    # convex heads without resampling converge to one minimum: one start and one order are one member
    same = HeadEnsemble.fit(chosen, rejected, members=3, ridge=0.1, diversity="shuffle", epochs=1, batch_size=30)
    with pytest.warns(IdenticalMembersWarning):
        warn_if_identical(same.scores(chosen))


def test_r16b_the_spread_of_one_member_is_undefined():
    scores = HeadEnsemble.fit(*pairs(), members=1).scores(pairs()[0])
    for spread in (lambda: moments(scores), lambda: aggregate(scores, "lcb"), lambda: aggregate(scores, "uwo")):
        with pytest.raises(PrudentError, match=r"standard deviation of 1 member is undefined .*ddof=1.*at least 2"):
            spread()
    assert torch.equal(aggregate(scores, "mean"), scores[0])


def test_r16c_numbers_ddof_and_members_that_are_not_finite():
    items = torch.tensor([[1.0, 1.3, 0.7], [2.0, math.nan, 2.2]])
    scores = items.T  # members x items
    mean, variance = moments(scores[:, :1])
    assert float(mean) == pytest.approx(1.0) and float(variance) == pytest.approx(0.09)
    assert float(aggregate(scores[:, :1], "lcb", coefficient=1.0)) == pytest.approx(0.7)
    for call in (lambda: moments(scores), lambda: aggregate(scores, "mean")):
        with pytest.raises(PrudentError, match="item 2, member 2"):
            call()
    kept, members = drop_members(scores)  # only on request, and then for every item
    assert members == [0, 2] and kept.shape == (2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(moments(kept)[0][0]) == pytest.approx(0.85)
