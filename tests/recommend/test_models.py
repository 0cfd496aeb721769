"""Backbones and baselines against their definitions written out densely."""

import sys

import numpy as np
import pytest
import torch
from scipy import sparse
from tests.recommend.small import SHORT, TINY, data, dense

from prudent.errors import PrudentError
from prudent.recommend.baselines import fit_als, fit_knn, fit_popularity, propensity_weights
from prudent.recommend.batches import history
from prudent.recommend.models import (
    BackboneOptions,
    adjacency,
    draw_items,
    fit_lightgcn,
    fit_mf,
    fit_vae,
    propagate,
    squared_loss,
    vae_tensors,
)
from prudent.recommend.pipeline import fit_backbone
from prudent.recommend.training import Schedule, train


@pytest.mark.parametrize("width", [2, 50])  # either side of where Gram matrices are cheaper
@pytest.mark.parametrize("density", [0.02, 0.3])  # either side of where scores of whole columns are
@pytest.mark.parametrize("extra", ["", "weight", "bias"])
def test_squared_loss_equals_the_sum_over_pairs(width, density, extra):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(150, width, generator=generator, dtype=torch.float64, requires_grad=True)
    right = torch.randn(200, width, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(150, 200, generator=generator) < density
    drawn = draw_items(200, 0.4, np.random.default_rng(0))
    weight = torch.rand(200, generator=generator, dtype=torch.float64) if extra == "weight" else None
    bias = torch.randn(200, generator=generator, dtype=torch.float64) if extra == "bias" else None
    entries = history(sparse.csr_matrix(labels.numpy().astype(np.float32)), np.arange(150))
    loss = squared_loss(left, right, entries, drawn, 2.0, weight, bias)
    scores = left @ right.T + (0 if bias is None else bias)
    counted = torch.zeros(200, dtype=torch.bool)
    counted[drawn] = True
    of_positives = torch.ones(200, dtype=torch.float64) if weight is None else weight
    plain = (2 * labels * of_positives * (scores - 1) ** 2 + (~labels & counted) * scores**2).sum()
    torch.testing.assert_close(loss, plain)
    for part in (left, right):
        ours, theirs = (torch.autograd.grad(value, part, retain_graph=True)[0] for value in (loss, plain))
        torch.testing.assert_close(ours, theirs)


def test_lightgcn_propagates_over_the_normalised_graph_and_back():
    world = data(12, 10)
    graph = adjacency(world.train)
    labels = torch.from_numpy(world.train.toarray())
    full = torch.zeros(len(world.users) + len(world.items), len(world.users) + len(world.items))
    full[: len(world.users), len(world.users) :] = labels
    full = full + full.T
    scale = full.sum(1).rsqrt()
    full = scale[:, None] * full * scale[None, :]
    layer = torch.randn(len(full), 4, requires_grad=True)
    by_hand = (layer + full @ layer + full @ (full @ layer) + full @ (full @ (full @ layer))) / 4
    torch.testing.assert_close(propagate(graph, layer.detach(), 3), by_hand.detach())
    weight = torch.randn_like(by_hand)
    (by_hand * weight).sum().backward()
    torch.testing.assert_close(propagate(graph, weight, 3), layer.grad)


def test_lightgcn_step_equals_autograd_through_the_graph():
    world = data(12, 10)
    plan = Schedule(learning_rate=0.01, batch=100, epochs=1)
    options = BackboneOptions(width=4, share=1.0)
    fitted = fit_lightgcn(world, options, plan, seed=3)
    from prudent.recommend.models import embeddings

    base = torch.cat([part.detach() for part in embeddings(world, 4, 3)]).requires_grad_()
    full = adjacency(world.train).to_dense()
    count = len(world.users)

    def final():
        layer, total = base, base
        for _ in range(3):
            layer = full @ layer
            total = total + layer
        return total / 4

    out = final()
    scores, labels = out[:count] @ out[count:].T, torch.from_numpy(world.train.toarray())
    (torch.where(labels > 0, (scores - 1) ** 2, scores**2).sum() / count).backward()
    torch.optim.Adam([base], lr=0.01, fused=True).step()
    torch.testing.assert_close(fitted.tensors["user"], final()[:count].detach(), atol=2e-4, rtol=1e-3)


def test_vae_scores_follow_its_layers():
    world = data()
    fitted = fit_vae(world, TINY, SHORT, seed=1)
    tensors = fitted.tensors
    histories = torch.from_numpy(world.train.toarray())
    histories = histories / histories.norm(dim=1, keepdim=True)
    inner = torch.tanh(histories @ tensors["encoder"] + tensors["encoder_bias"])
    code = (inner @ tensors["latent"].T + tensors["latent_bias"])[:, : TINY.latent]
    last = torch.tanh(code @ tensors["decoder"].T + tensors["decoder_bias"])
    expected = last @ tensors["output"].T + tensors["output_bias"]
    torch.testing.assert_close(dense(fitted.scores, len(world.users)), expected)
    assert not torch.equal(tensors["output"], vae_tensors(len(world.items), TINY, 1)["output"])


def test_knn_equals_dense_cosine():
    world = data()
    fitted = fit_knn(world, neighbours=5, shrink=3.0)
    labels = world.train.toarray()
    together = labels.T @ labels
    norm = np.sqrt(np.diag(together))
    cosine = together / (norm[:, None] * norm[None, :] + 3)
    np.fill_diagonal(cosine, 0)
    kept = np.zeros_like(cosine)
    for item, row in enumerate(cosine):
        best = np.argsort(-row, kind="stable")[:5]
        kept[item, best] = row[best]
    # Ties at the fifth neighbour may be broken either way, so sums over all items are compared, not places.
    ours = dense(fitted.scores, len(world.users)).numpy()
    np.testing.assert_allclose(np.sort((fitted.tensors["values"]).numpy()), np.sort(kept[kept > 0]), rtol=1e-5)
    assert ours.shape == labels.shape
    unique = data(60, 40, seed=5)
    everything = fit_knn(unique, neighbours=100, shrink=0.0)
    labels = unique.train.toarray()
    together = labels.T @ labels
    norm = np.sqrt(np.diag(together))
    cosine = together / (norm[:, None] * norm[None, :])
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(dense(everything.scores, len(unique.users)).numpy(), labels @ cosine, rtol=1e-4)


def test_als_fits_and_is_reproducible_and_its_absence_is_told(monkeypatch):
    world = data()
    one, two = fit_als(world, TINY, 4), fit_als(world, TINY, 4)
    assert one.fingerprint() == two.fingerprint()
    scores = dense(one.scores, len(world.users)).numpy()
    labels = world.train.toarray() > 0
    assert scores[labels].mean() > scores[~labels].mean() + 0.2
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(PrudentError, match=r"prudent\[recommend\]"):
        fit_als(world, TINY, 4)


def test_popularity_and_propensity():
    world = data()
    counts = dense(fit_popularity(world).scores, 2)
    assert counts[0].tolist() == world.popularity.tolist() == counts[1].tolist()
    weight = propensity_weights(np.array([1, 4, 100]), floor=0.15)
    np.testing.assert_allclose(weight / weight[2], [1 / 0.15, 1 / 0.2, 1])
    assert weight @ np.array([1, 4, 100]) / 105 == pytest.approx(1)


@pytest.mark.parametrize("name", ["mf", "lightgcn", "vae", "ipw"])
def test_same_seed_same_bits_and_the_best_epoch_is_kept(name):
    world = data()
    plan = Schedule(learning_rate=0.01, batch=16, epochs=30, every=2)
    one, two = (fit_backbone(world, name, TINY, plan, 7) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != fit_backbone(world, name, TINY, plan, 8).fingerprint()
    figures = {row["epoch"]: row["recall@20"] for row in one.curve.rows}
    assert figures[one.curve.best_epoch] == max(figures.values())
    from prudent.recommend.models import validator

    assert validator(world, lambda: one.scores)() == max(figures.values())


def test_patience_counts_validations_after_steps_of_warmup():
    tensor = torch.zeros(1, requires_grad=True)

    def step(users, generator):
        tensor.grad = torch.ones(1)
        return 1.0

    def run(**changes):
        plan = Schedule(epochs=100, every=2, patience=3, **changes)
        return train("stage", [tensor], step, lambda: 0.5, np.arange(4), plan, 0)

    assert run().rows[-1]["epoch"] == 2 + 2 * 4  # the first validation gains, then more than three don't
    assert run(warmup=20).rows[-1]["epoch"] == 20 + 2 * 4  # a step an epoch
    assert run(warmup=20, batch=1).rows[-1]["epoch"] == 4 + 2 * 4  # four steps an epoch: 16 lie within, 24 don't
    assert run().stopped_early


def test_divergence_and_nonsense_are_told():
    world = data()
    with pytest.raises(PrudentError, match="lower the learning rate"):
        fit_mf(world, TINY, Schedule(learning_rate=1e12, batch=8, epochs=20), 0)
    with pytest.raises(PrudentError, match="backbone is 'bert'"):
        fit_backbone(world, "bert")
    with pytest.raises(PrudentError, match="sampling share"):
        BackboneOptions(share=0)
    with pytest.raises(PrudentError, match="batch is 0"):
        Schedule(batch=0)
