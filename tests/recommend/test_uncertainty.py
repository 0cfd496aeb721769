"""The uncertainty stage: acceptance checks (a), (b) and (c), and the estimator's definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.recommend.small import SHORT, TINY, data, dense

from prudent.errors import PrudentError
from prudent.recommend.batches import history
from prudent.recommend.models import fit_mf
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import (
    UncertaintyOptions,
    aleatoric_loss,
    estimator_tensors,
    fit_uncertainty,
    log_variances,
    loss_columns,
)


def minimise(residual, beta, gamma, floor):
    """The s of a pair alone that minimises its loss, by Newton's method on autograd's derivatives."""
    s = torch.zeros((), dtype=torch.float64)
    for _ in range(60):
        s = s.detach().requires_grad_()
        score = torch.tensor(math.sqrt(residual), dtype=torch.float64)
        loss = aleatoric_loss(score, s, torch.zeros(()), beta=beta, gamma=gamma, floor=floor)
        slope = torch.autograd.grad(loss, s, create_graph=True)[0]
        bend = torch.autograd.grad(slope, s)[0]
        s = s - (slope / bend.abs()).clamp(-1, 1)
    return s.item()


def test_a_the_optimum_of_a_pair_alone():
    assert minimise(0.25, 0.01, 0.0, 0.0) == pytest.approx(math.log(0.25 / 0.01), abs=1e-4)
    assert minimise(0.25, 0.01, 0.001, 1e-3) < 3.2189  # the prior pulls s towards 0


def test_b_free_log_variances_rank_as_squared_scores():
    scores = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    free = [minimise(score.item() ** 2, 0.01, 0.001, 1e-3) for score in scores]
    assert free == sorted(free)
    assert len(set(free)) == 9


def test_c_no_gradient_reaches_the_score_and_the_backbone_is_unchanged():
    score = torch.rand(4, 5, requires_grad=True)
    s = torch.zeros(4, 5, requires_grad=True)
    aleatoric_loss(score, s, torch.ones(4, 5)).backward()
    assert score.grad is None
    assert s.grad.abs().min() > 0
    world = data()
    backbone = fit_mf(world, TINY, SHORT, 0)
    before = backbone.fingerprint()
    copies = {name: tensor.clone() for name, tensor in backbone.tensors.items()}
    fit_uncertainty(world, backbone, UncertaintyOptions(width=16), SHORT, 1)
    assert backbone.fingerprint() == before
    assert all(torch.equal(copies[name], tensor) for name, tensor in backbone.tensors.items())


@pytest.mark.parametrize("activation", ["linear", "tanh"])
@pytest.mark.parametrize("user_embedding", [False, True])
def test_estimator_is_two_matrices_on_the_normalised_history(activation, user_embedding):
    world = data()
    options = UncertaintyOptions(width=16, activation=activation, user_embedding=user_embedding)
    tensors = estimator_tensors(len(world.users), len(world.items), options, 0)
    x = torch.from_numpy(world.train.toarray())
    hidden = (x / x.norm(dim=1, keepdim=True)) @ tensors["inner"]
    if user_embedding:
        hidden = hidden + tensors["user"]
    hidden = torch.tanh(hidden) if activation == "tanh" else hidden
    ours = log_variances(tensors, world.train, activation)
    torch.testing.assert_close(dense(ours, len(world.users)), (hidden @ tensors["outer"].T).detach())
    assert torch.cat([t.flatten() for t in tensors.values()]).std().item() == pytest.approx(0.01, rel=0.1)


def test_a_user_without_history_gets_zero():
    world = data()
    empty = world.train.copy()
    empty.data[:] = 0
    empty.eliminate_zeros()
    tensors = estimator_tensors(len(world.users), len(world.items), UncertaintyOptions(width=8), 0)
    assert dense(log_variances(tensors, empty), 3).abs().max() == 0


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_one_step_follows_the_dense_loss(share, monkeypatch):
    """One Adam step of 1e-3 moves each weight by its gradient's sign: compare with a loss written over all pairs."""
    world = data()
    backbone = fit_mf(world, TINY, SHORT, 0)
    options = UncertaintyOptions(alpha=2.0, beta=0.05, gamma=0.01, share=share, width=8)
    plan = Schedule(learning_rate=1e-3, batch=1000, epochs=1)
    drawn = torch.arange(len(world.items)) if share == 1 else torch.arange(0, len(world.items), 3)
    monkeypatch.setattr("prudent.recommend.uncertainty.draw_items", lambda items, share, generator: drawn)
    fitted = fit_uncertainty(world, backbone, options, plan, 5)
    from prudent.seeding import spawn

    tensors = estimator_tensors(len(world.users), len(world.items), options, spawn(5, 2)[0])
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    x = torch.from_numpy(world.train.toarray())
    s = (x / x.norm(dim=1, keepdim=True)) @ tensors["inner"] @ tensors["outer"].T
    counted = torch.zeros(len(world.items))
    counted[drawn] = 1
    weight = torch.where(x > 0, 2.0, counted.expand_as(x))
    f = dense(backbone.scores, len(world.users))
    loss = (weight * ((x - f) ** 2 / (s.exp() + 1e-3) + 0.05 * s + 0.01 * s**2)).sum() / len(world.users)
    loss.backward()
    assert fitted.curve.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in tensors.items():
        clear = tensor.grad.abs() > 1e-4
        moved = fitted.tensors[name] - start[name]
        torch.testing.assert_close(moved[clear], -1e-3 * tensor.grad[clear].sign(), atol=2e-5, rtol=0)


def test_sampled_columns_hold_the_positives():
    world = data()
    entries = history(world.train, np.arange(10))
    columns, place, drawn = loss_columns(len(world.items), entries, 0.2, np.random.default_rng(0))
    assert torch.equal(columns[place], entries.column)
    assert int(drawn.sum()) == int(len(world.items) * 0.2)
    assert set(columns.tolist()) >= set(entries.column.tolist())


def test_same_seed_same_bits():
    world = data()
    backbone = fit_mf(world, TINY, SHORT, 0)
    options = UncertaintyOptions(width=16, share=0.5, user_embedding=True)
    prints = [fit_uncertainty(world, backbone, options, SHORT, seed).fingerprint() for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"share": 1.5}, "sampling share"),
        ({"beta": 0}, "beta"),
        ({"gamma": -1}, "gamma"),
        ({"activation": "x"}, "linear"),
    ],
)
def test_nonsense_is_refused(changes, word):
    with pytest.raises(PrudentError, match=word):
        replace(UncertaintyOptions(), **changes)
