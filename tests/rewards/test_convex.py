import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from prudent import PrudentError
from prudent.rewards import convex, coordinates
from prudent.rewards.convex import fit_heads


def problem(pairs: int, width: int, heads: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((pairs, width)) * generator.uniform(0.1, 3, width)
    counts = generator.integers(0, 3, (heads, pairs)).astype(float)
    counts[:, 0] += 1
    return rows, counts, generator.uniform(0, 1, pairs), generator.standard_normal(pairs)


def by_scipy(rows, weights, ridge, label, margin):
    weights = weights / weights.sum()

    def objective(w):
        z = rows @ w - margin
        loss = np.logaddexp(0, -z) + (1 - label) * z
        slope = weights * (1 / (1 + np.exp(-z)) - label)
        return weights @ loss + ridge / 2 * w @ w, slope @ rows + ridge * w

    found = minimize(objective, np.zeros(rows.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-10})
    return found.x, objective(found.x)[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 4), st.sampled_from([1e-2, 0.1, 3.0]), st.integers(0, 99))
def test_heads_minimise_the_stated_objective(pairs, width, heads, ridge, seed):
    rows, counts, label, margin = problem(pairs, width, heads, seed)
    fit = fit_heads(rows, counts, ridge=ridge, soft_label=label, margin=margin)
    assert float(fit.gradient_norm.max()) <= 1e-8
    for head in range(heads):
        share = counts[head] / counts[head].sum()
        z = rows @ fit.weights[head].numpy() - margin
        gradient = (share * (1 / (1 + np.exp(-z)) - label)) @ rows + ridge * fit.weights[head].numpy()
        assert np.linalg.norm(gradient) <= 2e-8  # the objective's own gradient, computed apart from the solver
        loss = share @ (np.logaddexp(0, -z) + (1 - label) * z)
        assert float(fit.loss[head]) == pytest.approx(loss, abs=1e-9)


def test_same_minimum_as_a_general_optimiser():
    rows, counts, label, margin = problem(40, 12, 3)
    fit = fit_heads(rows, counts, ridge=[0.05, 0.2, 1.0], soft_label=label, margin=margin)
    for head, ridge in enumerate((0.05, 0.2, 1.0)):
        wanted, _ = by_scipy(rows, counts[head], ridge, label, margin)
        assert np.abs(fit.weights[head].numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("shape", [(30, 50), (90, 20)])
def test_joint_equals_alone(shape):
    rows, counts, *_ = problem(*shape, 10)
    joint = fit_heads(rows, counts, ridge=0.03).weights
    alone = torch.cat([fit_heads(rows, counts[[k]], ridge=0.03).weights for k in range(10)])
    assert float((joint - alone).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["repeated pairs", "separable", "one direction", "large", "small"])
def test_fewer_pairs_than_features_give_the_heads_of_the_other_coordinates(kind):
    """One ridge is solved among the pairs, several in the eigenbasis."""
    rows, counts, *_ = problem(40, 90, 5)
    if kind == "repeated pairs":
        rows[20:] = rows[:20]
    elif kind == "separable":
        rows = np.abs(rows) + 0.1
    elif kind == "one direction":
        rows = rows[:, :1] * np.ones((1, 90)) + 0.01 * rows
    else:
        rows *= 30.0 if kind == "large" else 1e-3
    among = fit_heads(rows, counts, ridge=0.05)
    wanted = fit_heads(rows, np.concatenate([counts, counts[:1]]), ridge=[0.05] * 5 + [0.06])
    assert float((among.weights - wanted.weights[:5]).abs().max()) < 1e-6
    assert among.iterations <= wanted.iterations + 5


def test_separable_pairs_with_a_tiny_ridge_converge():
    rows = np.abs(np.random.default_rng(0).standard_normal((50, 80))) + 0.1
    fit = fit_heads(rows, ridge=1e-6)
    assert float(fit.gradient_norm) <= 1e-8 and float(fit.loss) < 1e-3


@pytest.mark.parametrize("pairs", [40, 400])
def test_rows_read_in_chunks_from_disk_give_the_same_heads(tmp_path, monkeypatch, pairs):
    rows, counts, label, margin = problem(pairs, 60, 4)
    held = fit_heads(rows.astype(np.float32), counts, ridge=0.1, soft_label=label, margin=margin)
    path = tmp_path / "rows.npy"
    np.save(path, rows.astype(np.float32))
    monkeypatch.setattr(coordinates, "HELD_IN_MEMORY", 0)
    monkeypatch.setattr(coordinates, "CHUNK", 60 * 7)
    monkeypatch.setattr(convex, "HEAD_BLOCK", 2 * pairs)
    monkeypatch.setattr(convex, "LEAST_HEADS", 1)
    mapped = np.load(path, mmap_mode="r")
    streamed = fit_heads(mapped, counts, ridge=0.1, soft_label=label, margin=margin)
    assert float((held.weights - streamed.weights).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"ridge": [1.0, 1.0, 1.0]}, "one a head"),
        ({"row_weights": np.zeros((1, 5))}, "weight 0 on every pair"),
        ({"row_weights": -np.ones((1, 5))}, "negative"),
        ({"row_weights": np.ones(5)}, "expected"),
        ({"difference": np.full((5, 2), np.nan)}, "not finite"),
        ({"difference": np.zeros((0, 2))}, "neither empty"),
        ({"soft_label": np.ones((5, 1))}, "soft_label has shape"),
        ({"max_iterations": 1}, "stopped at gradient norm"),
    ],
)
def test_what_can_not_be_fitted_is_named(changes, message):
    options = {"difference": np.random.default_rng(0).standard_normal((5, 2)) + 1, "ridge": 0.1, **changes}
    with pytest.raises(PrudentError, match=message):
        fit_heads(options.pop("difference"), **options)
