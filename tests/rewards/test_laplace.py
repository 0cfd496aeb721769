import math

import numpy as np
import pytest
import torch

from prudent import HeadEnsemble, PrudentError
from prudent.rewards import artefact, network_posterior
from prudent.rewards.laplace import LaplacePosterior
from prudent.rewards.last_layer import LastLayerPosterior
from prudent.rewards.network_posterior import NetworkPosterior
from prudent.rewards.uncertainty import centre, margin_moments


def world(pairs: int, width: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(width, generator=generator) / 2
    first, second = torch.randn(2, pairs, width, generator=generator)
    better = torch.rand(pairs, generator=generator) < torch.sigmoid((first - second) @ truth)
    return torch.where(better[:, None], first, second), torch.where(better[:, None], second, first)


def test_covariance_is_the_inverse_of_a_numerical_hessian():
    chosen, rejected = world(60, width=4)
    weight, label = torch.rand(60) + 0.5, torch.rand(60)
    posterior = LaplacePosterior.fit(chosen, rejected, ridge=0.1, weight=weight, soft_label=label)
    rows = ((chosen - rejected) / posterior.scale).double()
    share = (weight / weight.mean()).double()

    def objective(w: torch.Tensor) -> torch.Tensor:
        z = rows @ w
        loss = torch.nn.functional.softplus(-z) + (1 - label.double()) * z
        return (share * loss).sum() + 0.1 * 60 / 2 * (w @ w)

    gradient = torch.autograd.functional.jacobian(objective, posterior.weight)
    assert float(gradient.norm()) < 1e-5
    hessian = torch.autograd.functional.hessian(objective, posterior.weight)
    assert torch.allclose(posterior.root @ posterior.root.T, torch.linalg.inv(hessian), atol=1e-9)


def test_variance_covariance_factor_and_draws_agree():
    chosen, rejected = world(100)
    posterior = LaplacePosterior.fit(chosen, rejected, ridge=0.05, members=4000)
    pool = torch.randn(6, 8)
    covariance = posterior.covariance(pool)
    assert torch.allclose(posterior.variance(pool), covariance.diagonal())
    factor = posterior.factor(pool)
    assert torch.allclose(factor @ factor.T, covariance)
    scores = posterior.scores(pool).double()
    assert np.allclose(np.cov(scores.numpy().T), covariance, atol=0.08 * float(covariance.diagonal().max()))
    assert torch.allclose(scores.mean(0), posterior.expected(pool), atol=4 * float(covariance.max()) ** 0.5 / 60)
    groups = ["a", "a", "b", "b", "b", "b"]
    projector = centre(torch.eye(6, dtype=torch.float64), groups).T  # centring as a matrix
    assert torch.allclose(posterior.covariance(pool, groups), projector @ covariance @ projector.T, atol=1e-12)
    margin = posterior.margin_variance(pool[:3], pool[3:])
    assert float(margin[0]) == pytest.approx(float(covariance[0, 0] + covariance[3, 3] - 2 * covariance[0, 3]))


def test_variances_agree_with_a_large_bootstrap_ensemble():
    """Bootstrap members measure the sandwich; with the model true and little ridge, the posterior is close to both."""
    chosen, rejected = world(1500)
    ensemble = HeadEnsemble.fit(chosen, rejected, ridge=1e-3, members=400)
    first, second = torch.randn(2, 200, 8)
    bootstrap = margin_moments(ensemble.scores(first), ensemble.scores(second))[1].double()
    for sandwich in (False, True):
        posterior = LaplacePosterior.fit(chosen, rejected, ridge=1e-3, sandwich=sandwich)
        ratio = posterior.margin_variance(first, second) / bootstrap
        assert float(ratio.median()) == pytest.approx(1, abs=0.12), sandwich


def test_sandwich_sees_noise_that_the_model_does_not_expect():
    """Pairs given twice halve the posterior variance; the sandwich measures residuals, and is 0 without any."""
    chosen, rejected = world(400)
    once = LaplacePosterior.fit(chosen, rejected, ridge=1e-3)
    twice = LaplacePosterior.fit(chosen.repeat(2, 1), rejected.repeat(2, 1), ridge=1e-3)
    pool = torch.randn(50, 8)
    assert float((twice.variance(pool) / once.variance(pool)).mean()) == pytest.approx(0.5, abs=0.01)
    soft = LaplacePosterior.fit(chosen, rejected, ridge=1e-3, soft_label=torch.full((400,), 0.5), sandwich=True)
    assert float(soft.variance(pool).max()) < 1e-12  # no residual at all: labels say one half and so does the head


def test_far_responses_are_less_certain_and_more_pairs_help():
    few, many = (LaplacePosterior.fit(*world(pairs), ridge=1e-3) for pairs in (100, 1600))
    near, far = torch.randn(40, 8), 5 * torch.randn(40, 8)
    assert float(few.variance(far).mean()) > 10 * float(few.variance(near).mean())
    assert float(few.variance(near).mean()) > 8 * float(many.variance(near).mean())


def test_saved_posterior_scores_the_same(tmp_path):
    posterior = LaplacePosterior.fit(*world(50), members=3)
    posterior.save(tmp_path / "model")
    again = LaplacePosterior.load(tmp_path / "model")
    pool = torch.randn(5, 8)
    assert torch.equal(again.scores(pool), posterior.scores(pool))
    assert torch.equal(again.covariance(pool), posterior.covariance(pool))
    assert again.info == posterior.info and math.isfinite(again.info["ridge"])


def test_bad_input_is_named():
    chosen, rejected = world(20)
    with pytest.raises(PrudentError, match="rejected"):
        LaplacePosterior.fit(chosen, rejected[:, :3])
    with pytest.raises(PrudentError, match="ridge"):
        LaplacePosterior.fit(chosen, rejected, ridge="auto")
    with pytest.raises(PrudentError, match=r"expected \(responses, 8\)"):
        LaplacePosterior.fit(chosen, rejected, ridge=1.0).variance(torch.randn(4, 3))


def test_last_layer_posterior_is_the_linear_one_on_hidden_units(tmp_path):
    chosen, rejected = world(120)
    posterior = LastLayerPosterior.fit(chosen, rejected, ridge=0.05, width=16, epochs=2, members=3)
    first, second = (posterior.network.hidden(side)[0] for side in (chosen, rejected))
    alone = LaplacePosterior.fit(first, second, ridge=0.05, members=3)
    pool = torch.randn(7, 8)
    assert torch.equal(posterior.scores(pool), alone.scores(posterior.network.hidden(pool)[0]))
    assert torch.allclose(posterior.covariance(pool).diagonal(), posterior.variance(pool))
    artefact.save(tmp_path / "model", posterior)
    assert torch.equal(artefact.load(tmp_path / "model").scores(pool), posterior.scores(pool))


def test_ridge_of_the_last_layer_is_judged_by_heads_that_never_saw_the_labels():
    """Labels are coins, so no margin is the best one. Hidden units that have seen them would say otherwise."""
    sides = torch.randn(2, 250, 30, generator=torch.Generator().manual_seed(0))
    posterior = LastLayerPosterior.fit(*sides, width=64, epochs=8, learning_rate=3e-3, groups=list(range(250)))
    hidden = [posterior.network.hidden(side)[0] for side in sides]
    fooled = LaplacePosterior.fit(*hidden)
    assert posterior.info["ridge"] >= 10 * fooled.info["ridge"]
    fresh = torch.randn(2, 1000, 30, generator=torch.Generator().manual_seed(1))
    chance = torch.sigmoid(posterior.scores(fresh[0]) - posterior.scores(fresh[1])).mean(0)
    assert float(-chance.log().mean()) < math.log(2) + 0.05


def test_network_posterior_is_the_inverse_of_the_gauss_newton_matrix():
    chosen, rejected = world(25, width=3)
    weight, label, wanted = torch.rand(25) + 0.5, torch.rand(25), torch.randn(25)
    posterior = NetworkPosterior.fit(
        chosen, rejected, width=5, prior=2.0, members=6000, weight=weight, soft_label=label, margin=wanted
    )
    network = posterior.network
    start = {name: network.tensors[name][0] for name in ("outer.weight", "inner.weight", "inner.bias")}

    def gradients(features: torch.Tensor) -> torch.Tensor:
        rows = []
        for x in (features - network.mean) / network.scale:
            parts = [tensor.clone().requires_grad_() for tensor in start.values()]
            outer, inner, bias = parts
            (outer @ torch.relu(inner @ x + bias)).backward()
            rows.append(torch.cat([part.grad.reshape(-1) for part in parts]))
        return torch.stack(rows).double()

    difference = gradients(chosen) - gradients(rejected)
    logit = (network.scores(chosen) - network.scores(rejected))[0].double() - wanted
    chance = torch.sigmoid(logit)
    count = (weight / weight.mean()).double() * chance * (1 - chance)
    precision = difference.T @ (count[:, None] * difference) + posterior.precision * torch.eye(difference.shape[1])
    pool = torch.randn(6, 3)
    rows = gradients(pool)
    covariance = rows @ torch.linalg.inv(precision) @ rows.T
    assert torch.allclose(posterior.covariance(pool), covariance, rtol=1e-4, atol=1e-6)
    assert torch.allclose(posterior.variance(pool), covariance.diagonal(), rtol=1e-4, atol=1e-6)
    margin = covariance.diagonal()[:3] + covariance.diagonal()[3:] - 2 * covariance[:3, 3:].diagonal()
    assert torch.allclose(posterior.margin_variance(pool[:3], pool[3:]), margin, rtol=1e-4, atol=1e-6)
    assert float(difference.square().sum(1).mean()) / posterior.precision == pytest.approx(2.0, rel=1e-5)
    drawn = np.cov(posterior.scores(pool).double().numpy().T)
    assert np.allclose(drawn, covariance, atol=0.08 * float(covariance.diagonal().max()))
    centred = posterior.covariance(pool, ["a", "a", "b", "b", "b", "b"])
    assert float(centred[:2, :2].sum()) == pytest.approx(0, abs=1e-9)


def test_network_posterior_picks_its_prior_saves_and_names_its_limit(tmp_path, monkeypatch):
    chosen, rejected = world(80)
    posterior = NetworkPosterior.fit(chosen, rejected, width=8, epochs=2, members=3)
    table = posterior.info["prior_table"]
    assert posterior.info["prior"] == table["grid"][int(np.argmin(table["held_out_loss"]))]
    near, far = torch.randn(40, 8), 5 * torch.randn(40, 8)
    assert float(posterior.variance(far).mean()) > 10 * float(posterior.variance(near).mean())
    artefact.save(tmp_path / "model", posterior)
    again = artefact.load(tmp_path / "model")
    assert torch.allclose(again.scores(near), posterior.scores(near), atol=1e-6)
    assert torch.allclose(again.covariance(near), posterior.covariance(near), rtol=1e-6)
    monkeypatch.setattr(network_posterior, "MOST_PAIRS", 79)
    with pytest.raises(PrudentError, match="last-layer"):
        NetworkPosterior.fit(chosen, rejected)
    with pytest.raises(PrudentError, match="prior"):
        NetworkPosterior.fit(*world(20), prior="auto")
