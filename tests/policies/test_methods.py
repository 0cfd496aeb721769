"""Rivals and controls in one slot: what each looks at, what it must ignore, and that all share one convention."""

from __future__ import annotations

import math

import pytest
import torch

from prudent.errors import PrudentError
from prudent.policies import METHODS, estimate, kl, method_beta_for_kl, solve
from prudent.policies.objectives import shuffle_within

DRAWS, MEMBERS, PROMPTS, CANDIDATES = 3, 5, 4, 6


@pytest.fixture
def world() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(DRAWS, MEMBERS, PROMPTS, CANDIDATES, generator=generator, dtype=torch.float64)
    reference = torch.rand(PROMPTS, CANDIDATES, generator=generator, dtype=torch.float64) + 0.1
    reference[2, 4:] = 0
    return scores, reference / reference.sum(-1, keepdim=True)


def test_estimate_states_its_conventions(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    assert torch.allclose((reference * known.reward).sum(-1), torch.zeros(DRAWS, PROMPTS, dtype=torch.float64))
    average = (reference * known.standard_deviation.square()).sum(-1).mean(-1)
    inside = reference > 0
    expected = (known.standard_deviation.square() / average[:, None, None]).clamp(min=1e-2)
    assert torch.allclose(known.variance[:, inside], expected[:, inside])
    offsets = torch.randn(DRAWS, MEMBERS, PROMPTS, 1, dtype=torch.float64)
    moved = estimate(scores + offsets, reference)
    assert torch.allclose(moved.variance, known.variance) and torch.allclose(moved.reward, known.reward)
    assert torch.allclose(estimate(scores, reference, reward="mean").reward, known.mean)
    assert torch.allclose(estimate(scores, reference, reward="member:2").reward, known.scores[:, 2])
    raw = estimate(scores, reference, centre=False, normalise=False, floor=0.0)
    assert torch.allclose(raw.variance[:, inside], scores.var(1)[:, inside])
    assert torch.equal(raw.reward[:, inside], scores[:, 0][:, inside])


def test_estimate_refuses_what_has_no_spread(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    with pytest.raises(PrudentError, match="1 member"):
        estimate(scores[:, :1], reference)
    with pytest.raises(PrudentError, match="identical"):
        estimate(scores[:, :1].expand(-1, 4, -1, -1), reference)
    with pytest.raises(PrudentError, match="member:9"):
        estimate(scores, reference, reward="member:9")
    spoiled = scores.clone()
    spoiled[1, 2, 3, 0] = math.nan
    with pytest.raises(PrudentError, match="scores is nan"):
        estimate(spoiled, reference)


def test_every_method_gives_policies_on_the_support(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    for name, method in METHODS.items():
        policy = method(known, reference, 0.7)
        assert policy.shape == (DRAWS, PROMPTS, CANDIDATES), name
        assert torch.allclose(policy.sum(-1), torch.ones(DRAWS, PROMPTS, dtype=torch.float64), atol=1e-12), name
        assert policy[:, 2, 4:].abs().max() == 0, name
        several = method(known, reference, torch.tensor([0.7, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1))
        assert torch.allclose(several[0], policy, atol=1e-12), name


def test_rivals_are_the_rules_they_are_named_for(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    centred = known.scores
    deviation = centred.std(1)
    rules = {
        "vanilla": centred[:, 0],
        "mean": centred.mean(1),
        "min": centred.min(1).values,
        "lcb": centred.mean(1) - deviation,
        "uwo": centred.mean(1) - deviation**2,
        "entropic": -torch.log(torch.exp(-centred).mean(1)),
    }
    for name, rule in rules.items():
        assert torch.allclose(METHODS[name](known, reference, 0.4), solve(rule, reference, 0.4), atol=1e-12), name
    assert torch.allclose(METHODS["lcb"](known, reference, 0.4, coefficient=0), METHODS["mean"](known, reference, 0.4))
    assert torch.allclose(METHODS["uwo"](known, reference, 0.4, coefficient=0), METHODS["mean"](known, reference, 0.4))


def test_variance_only_never_looks_at_which_response_is_better(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    blind = METHODS["variance-only"]
    flipped = known._replace(reward=-known.reward, mean=-known.mean, scores=-known.scores)
    assert torch.equal(blind(known, reference, 0.5), blind(flipped, reference, 0.5))
    tilt = torch.log(blind(known, reference, 0.5) / reference)[:, 0]
    low, high = known.variance[:, 0].argmin(-1, keepdim=True), known.variance[:, 0].argmax(-1, keepdim=True)
    assert bool((tilt.gather(-1, low) > tilt.gather(-1, high)).all())


def test_permuted_keeps_the_variances_and_breaks_the_link(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    terms = METHODS["permuted"].terms(known, seed=7)
    shuffled = terms.variance
    inside = reference > 0
    for draw in range(DRAWS):
        for prompt in range(PROMPTS):
            keep = inside[prompt]
            before, after = known.variance[draw, prompt][keep], shuffled[draw, prompt][keep]
            assert torch.equal(before.sort().values, after.sort().values)
    assert not torch.equal(shuffled[:, inside], known.variance[:, inside])
    expected = solve(known.reward, reference, 0.5, variance=shuffled)
    assert torch.equal(METHODS["permuted"](known, reference, 0.5, seed=7), expected)
    assert not torch.equal(METHODS["permuted"](known, reference, 0.5, seed=8), expected)
    many = torch.arange(4.0, dtype=torch.float64).expand(20_000, 4)
    one_prompt = torch.zeros(4, dtype=torch.long)
    shares = torch.stack([(shuffle_within(many, one_prompt, 1) == k).double().mean(0) for k in range(4)])
    assert (shares - 0.25).abs().max() < 0.02  # every variance is equally likely to land at every place


def test_methods_meet_at_equal_kl(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, reference = world
    known = estimate(scores, reference)
    for name, method in METHODS.items():
        beta = method_beta_for_kl(name, known, reference, 0.3, strict=False)
        found = kl(method(known, reference, beta[:, None, None]), reference).mean(-1)
        reached = torch.isfinite(beta)
        assert reached.sum() >= 2, name
        assert torch.allclose(found[reached], torch.full_like(found[reached], 0.3), rtol=1e-5), name
    common = method_beta_for_kl("vanilla", known, reference, 0.3, per="all")
    assert kl(METHODS["vanilla"](known, reference, common), reference).mean().item() == pytest.approx(0.3, rel=1e-5)
