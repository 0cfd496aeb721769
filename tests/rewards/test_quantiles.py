import math

import pytest
import torch

from prudent import PrudentError, aggregate
from prudent.rewards import artefact
from prudent.rewards.quantiles import Gate, QuantileModel, crossings, levels, masked_pinball, pinball, utility
from prudent.rewards.training import Training

LOW, MIDDLE, HIGH = 0, 9, 18  # of .05, .10, ..., .95


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_pinball_values():
    """Section 4 (a)."""
    tau = torch.tensor([0.9])
    assert float(pinball(torch.tensor([1.0]), tau)) == pytest.approx(0.9)
    assert float(pinball(torch.tensor([-1.0]), tau)) == pytest.approx(0.1)
    assert levels().tolist() == pytest.approx([0.05 * i for i in range(1, 20)])


def test_missing_ratings_give_no_loss_and_no_gradient():
    """R08: a masked rating is not 0."""
    tau = levels(3)
    quantiles = torch.randn(4, 2, 3, requires_grad=True)
    target = torch.tensor([[1.0, math.nan], [0.0, 2.0], [math.nan, math.nan], [3.0, math.nan]])
    loss = masked_pinball(quantiles, target, tau)
    present = [(0, 0), (1, 0), (1, 1), (3, 0)]
    wanted = sum(pinball(target[i, a] - quantiles[i, a], tau).mean() for i, a in present) / 4
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()))
    loss.backward()
    assert float(quantiles.grad[2].abs().sum()) == 0 and float(quantiles.grad[0, 1].abs().sum()) == 0
    assert float(masked_pinball(quantiles, torch.full((4, 2), math.nan), tau).detach()) == 0


@pytest.mark.parametrize("monotone", [True, False])
def test_quantiles_of_a_standard_normal(monotone):
    """Section 4 (b): nothing but an intercept can be learnt here."""
    target = normal(100_000)
    model = QuantileModel.fit(torch.zeros(100_000, 1), target, epochs=1, batch_size=2000, monotone=monotone)
    found = model.attribute_quantiles(torch.zeros(1, 1))[:, 0, 0]
    for place, wanted in ((LOW, -1.645), (MIDDLE, 0.0), (HIGH, 1.645)):
        assert float(found[place]) == pytest.approx(wanted, abs=0.03)


def test_coverage_where_spread_depends_on_the_features():
    """Section 4 (c): y = x + (.2 + |x|) e, with |x| among the features; the rates are the defaults."""
    x = normal(22_000)
    y = x + (0.2 + x.abs()) * normal(22_000, 1)
    features = torch.stack([x, x.abs()], 1)
    model = QuantileModel.fit(features[:2000], y[:2000])
    test, target = features[2000:], y[2000:]
    found = model.attribute_quantiles(test)[..., 0]
    inside = ((target >= found[LOW]) & (target <= found[HIGH])).float()
    for part in test[:, 1].argsort().chunk(3):
        assert 0.86 < float(inside[part].mean()) < 0.94
    losses = list(model.info["held_out_loss"].values())
    assert model.info["epochs"] > 30 and losses[1] < losses[0] * 0.95  # 30 epochs, the old default, were too few


def test_training_without_a_number_of_epochs_is_the_training_with_the_chosen_one():
    x = normal(300)[:, None]
    chosen = QuantileModel.fit(x, x[:, 0] + normal(300, 1))
    again = QuantileModel.fit(x, x[:, 0] + normal(300, 1), epochs=chosen.info["epochs"])
    assert torch.equal(chosen.tensors["weight"], again.tensors["weight"])
    few = QuantileModel.fit(x[:20], x[:20, 0])
    assert few.info["epochs"] == 30 and few.info["held_out_loss"] is None


def test_cvar_of_levels_is_as_mild_as_it_says():
    """The stated bias: nothing is known below the lowest level."""
    for count, wanted in ((19, -1.118), (99, -1.231)):
        quantiles = torch.distributions.Normal(0.0, 1.0).icdf(levels(count))[:, None]
        assert float(utility(quantiles, "cvar", level=0.25)) == pytest.approx(wanted, abs=2e-3)


def test_bimodal_ratings_and_mean():
    """Section 4 (d): target +-1."""
    target = torch.where(normal(20_000) > 0, 1.0, -1.0)
    model = QuantileModel.fit(torch.zeros(20_000, 1), target, epochs=2)
    found = model.attribute_quantiles(torch.zeros(1, 1))[:, 0, 0]
    assert float(found[4]) == pytest.approx(-1, abs=0.1) and float(found[14]) == pytest.approx(1, abs=0.1)
    assert float(model.scores(torch.zeros(1, 1), torch.zeros(1, 1)).mean()) == pytest.approx(0, abs=0.1)


def test_no_level_crosses_another_when_monotone():
    """Section 4 (g): also far from the training data."""
    x = normal(2000)
    y = x * normal(2000, 1)
    far = torch.linspace(-40, 40, 200)[:, None]
    options = {"epochs": 10, "learning_rate": 3e-2}
    free = QuantileModel.fit(x[:, None], y, monotone=False, **options)
    bound = QuantileModel.fit(x[:, None], y, monotone=True, **options)
    assert crossings(free.attribute_quantiles(far)) > 0
    assert crossings(bound.attribute_quantiles(far)) == 0


def test_gate_rows_sum_to_its_scale_and_equal_gates_are_the_plain_average():
    """Section 4 (e)."""
    gate = Gate(5, 3, hidden=8).eval()
    with torch.no_grad():
        gate.scale.fill_(1.7)
    assert torch.allclose(gate(torch.randn(6, 5)).sum(1), torch.full((6,), 1.7))
    ratings = torch.stack([normal(200), 3 + normal(200, 1)], 1)
    model = QuantileModel.fit(torch.randn(200, 4), ratings, epochs=2)
    pool, prompts = torch.randn(7, 4), torch.randn(7, 5)
    assert torch.allclose(model.scores(pool, prompts), model.attribute_quantiles(pool).mean(-1))


def gated(seed: int = 0):
    """Two attributes; the prompt's first number says which of them people go by."""
    features = torch.randn(600, 4, generator=torch.Generator().manual_seed(seed))
    ratings = torch.stack([2 * features[:, 0], 2 * features[:, 1]], 1)
    ratings[::3, 1] = math.nan
    model = QuantileModel.fit(features, ratings, attributes=["kind", "right"], epochs=20, learning_rate=1e-2)
    generator = torch.Generator().manual_seed(seed + 1)
    prompts = torch.randn(500, 3, generator=generator)
    first, second = torch.randn(2, 500, 4, generator=generator)
    better = torch.where(prompts[:, 0] > 0, first[:, 0] - second[:, 0], first[:, 1] - second[:, 1]) > 0
    chosen, rejected = (torch.where(better[:, None], *sides) for sides in ((first, second), (second, first)))
    return model, prompts, chosen, rejected


def test_gate_learns_which_attribute_counts_and_leaves_the_heads_alone(tmp_path):
    model, prompts, chosen, rejected = gated()
    full = model.with_gate(prompts, chosen, rejected, hidden=32, plan=Training(30, 64, 1e-2, 1e-2))
    assert torch.equal(full.tensors["weight"], model.tensors["weight"])
    weights = full.gates(prompts)
    assert float(weights[prompts[:, 0] > 0.5, 0].mean()) > float(weights[prompts[:, 0] < -0.5, 0].mean()) + 0.3

    def accuracy(m):
        return float((m.scores(chosen, prompts).mean(0) > m.scores(rejected, prompts).mean(0)).float().mean())

    assert accuracy(full) > accuracy(model) + 0.05
    artefact.save(tmp_path / "model", full)
    again = artefact.load(tmp_path / "model")
    assert again.members == 19 and again.attributes == ["kind", "right"]
    assert torch.allclose(again.scores(chosen, prompts), full.scores(chosen, prompts), atol=1e-6)


def test_reading_the_distribution():
    model, prompts, chosen, _ = gated()
    found = model.scores(chosen, prompts)
    read = model.summary(chosen, prompts, level=0.25)
    assert torch.allclose(read["mean"], found.mean(0))
    # 25 % of 19 levels: the lowest four and three quarters of the fifth, each of mass 1/19
    lowest = found.sort(0).values
    assert torch.allclose(read["cvar"], (lowest[:4].sum(0) + 0.75 * lowest[4]) / 4.75, atol=1e-5)
    assert torch.allclose(read["cvar"], aggregate(found, "cvar", level=0.25))


def test_risk_averse_utilities_prefer_the_narrow_arm():
    """Section 4 (f): two arms of equal mean and different spread."""
    narrow, wide = torch.linspace(-0.5, 0.5, 19), torch.linspace(-3, 3, 19)
    arms = torch.stack([narrow, wide], 1)
    expected = utility(arms, "expected")
    assert float(expected[0]) == pytest.approx(float(expected[1]), abs=1e-6)
    for kind in ("steeper", "exponential", "cvar"):
        found = utility(arms, kind)
        assert float(found[0]) > float(found[1]) + 0.1
    assert torch.equal(utility(arms, "steeper", aversion=0.0), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utility(torch.zeros(3, 1), "linear"), "unknown utility"),
        (lambda: utility(torch.zeros(3, 1), "steeper", aversion=-1.0), "aversion"),
        (lambda: QuantileModel.fit(torch.zeros(3, 2), torch.zeros(4)), "don't match"),
        (lambda: QuantileModel.fit(torch.randn(3, 2), torch.full((3, 1), math.nan)), "at least two ratings"),
        (lambda: QuantileModel.fit(torch.randn(3, 2), torch.randn(3, 2), attributes=["one"]), "needs a name"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(PrudentError, match=message):
        call()
