"""The forecast of the risk at more labels: what it must do where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prudent.acquisition import ForecastSettings, LabelModel, forecast_risk
from prudent.errors import PrudentError

SETTINGS = ForecastSettings(simulations=15)


def data(n: int, slope: float, d: int = 5, seed: int = 0):
    g = np.random.default_rng(seed)
    weights = slope * np.ones(d) / d**0.5
    a, b = g.normal(size=(2, n, d))
    wins = g.random(n) < 1 / (1 + np.exp(-(a - b) @ weights))
    pool = g.normal(size=(12, 6, d))
    planned = g.normal(size=(600, d)) - g.normal(size=(600, d))
    return (np.where(wins[:, None], a, b), np.where(wins[:, None], b, a), pool, np.full((12, 6), 1 / 6), planned)


def test_more_labels_lower_the_risk_where_there_is_a_signal():
    found = forecast_risk(*data(40, 0.6), (80, 640), settings=SETTINGS)
    risks = [row["risk"] for row in found["rows"]]
    assert [row["labels"] for row in found["rows"]] == [40, 80, 640]
    assert risks[2] < risks[0] and found["rows"][2]["certain"] >= found["rows"][1]["certain"]
    assert all(row["low"] <= row["risk"] <= row["high"] for row in found["rows"])


def test_without_a_signal_no_number_of_labels_is_enough():
    g = np.random.default_rng(0)
    a, b = g.normal(size=(2, 400, 5))
    _, _, pool, reference, planned = data(8, 1.0)
    found = forecast_risk(a, b, pool, reference, planned, (500,), settings=SETTINGS)
    assert found["enough"] is None and found["no_signal"] > 0.5


def test_where_the_risk_is_low_already_none_are_needed():
    found = forecast_risk(*data(400, 3.0), (500,), settings=SETTINGS)
    assert found["enough"] == 400 and found["rows"][0]["risk"] < 0.05


def test_noisy_labels_and_ties_teach_less():
    given = data(40, 0.6)
    nothing = forecast_risk(*given, (300,), settings=SETTINGS._replace(labels=LabelModel(ties=0.999)))["rows"]
    assert nothing[1]["risk"] == pytest.approx(nothing[0]["risk"], rel=0.2)
    clean, noisy = (
        forecast_risk(*given, (300,), settings=SETTINGS._replace(labels=LabelModel(noise=noise)))["rows"][1]
        for noise in (0.0, 0.35)
    )
    assert clean["high"] < noisy["high"]


def test_methods_that_need_members_get_them():
    found = forecast_risk(*data(60, 1.0), (90,), settings=SETTINGS._replace(method="lcb", simulations=2, members=3))
    assert 0 <= found["rows"][1]["risk"] <= 1


def test_the_same_seed_gives_the_same_forecast():
    first, again = (forecast_risk(*data(40, 1.0), (60,), settings=SETTINGS, seed=3) for _ in range(2))
    assert first["rows"] == again["rows"]


@pytest.mark.parametrize(("sizes", "message"), [((40,), "must lie above the 40"), ((900,), "within 640")])
def test_sizes_that_can_not_be_are_named(sizes, message):
    with pytest.raises(PrudentError, match=message):
        forecast_risk(*data(40, 1.0), sizes, settings=SETTINGS)


def test_torch_is_taken_too():
    given = [torch.from_numpy(np.asarray(x)) for x in data(40, 1.0)]
    assert (
        forecast_risk(*given, (60,), settings=SETTINGS)["rows"]
        == forecast_risk(*data(40, 1.0), (60,), settings=SETTINGS)["rows"]
    )
