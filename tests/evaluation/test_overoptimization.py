"""Best of n against brute force, KL against its limits, fits against curves whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prudent.errors import PrudentError
from prudent.evaluation import best_of_n, fit_overoptimization, kl_best_of_n
from prudent.evaluation.overoptimization.fits import (
    best_of_n_curves,
    best_of_n_weights,
    n_of_kl,
    pass_at_k,
    regressional_goodhart,
)


def brute_force(proxy: list[float], gold: list[float], n: int) -> float:
    """Mean over all subsets of n, the winner's gold averaged over ties."""
    totals = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        winners = [gold[i] for i in subset if proxy[i] == best]
        totals.append(sum(winners) / len(winners))
    return sum(totals) / len(totals)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=7), st.data())
@settings(max_examples=100, deadline=None)
def test_best_of_n_is_the_mean_over_all_subsets_ties_averaged(
    samples: list[tuple[int, int]], data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(samples)))
    proxy, gold = [float(a) for a, _ in samples], [float(b) for _, b in samples]
    assert best_of_n([proxy], [gold], n)[0].item() == pytest.approx(brute_force(proxy, gold, n), abs=1e-12)


def test_kl_of_best_of_n() -> None:
    known = {1: 0.0, 2: 0.193147, 4: 0.636294, 16: 1.835089, 64: 3.174508, 1000: 5.908755}
    assert {n: pytest.approx(kl_best_of_n(n), abs=1e-6) for n in known} == known

    def discrete(n: int, items: int) -> float:
        """With replacement from m equiprobable untied items: p_i = (i^n - (i-1)^n) / m^n."""
        i = torch.arange(1, items + 1, dtype=torch.float64) / items
        p = i**n - (i - 1 / items).clamp(min=0) ** n
        return float(torch.special.xlogy(p, p * items).sum())

    assert discrete(16, 100_000) == pytest.approx(kl_best_of_n(16), abs=1e-3)
    coarse = [abs(discrete(16, m) - kl_best_of_n(16)) for m in (10, 100, 1000)]
    assert coarse[0] > coarse[1] > coarse[2]
    assert n_of_kl(kl_best_of_n(37)) == pytest.approx(37)
    with pytest.raises(PrudentError, match="at least 1"):
        kl_best_of_n(0)


def test_weights_are_a_distribution_even_for_large_pools() -> None:
    weights = best_of_n_weights(20_000, [1, 2, 1000, 20_000])
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1, 1], abs=1e-9)
    assert weights[0].tolist() == pytest.approx([1 / 20_000] * 20_000) and weights[3, -1] == 1
    assert weights[2, -1].item() == pytest.approx(1000 / 20_000)


def test_gaussian_noise_never_turns_gold_down() -> None:
    rng = np.random.default_rng(0)
    gold = rng.standard_normal((4000, 64))
    proxy = gold + rng.standard_normal((4000, 64))
    for n, expected in ((4, 1.02938), (16, 1.76599), (64, 2.36)):
        found = best_of_n(proxy, gold, n).mean().item()
        assert found == pytest.approx(expected / math.sqrt(2), rel=0.015 if n < 64 else 0.02)


def test_heavy_tailed_noise_turns_gold_down() -> None:
    """2,000 prompts, 1,024 samples, Student-t noise with 2 degrees of freedom: the best prize is soon pure noise."""
    rng = np.random.default_rng(0)
    gold = rng.standard_normal((2000, 1024))
    proxy = gold + rng.standard_t(2, (2000, 1024))
    curve = best_of_n_curves(proxy, [gold], [1, 4, 16, 64, 256, 1024])[0].mean(1)
    assert curve.tolist() == pytest.approx([0.0, 0.57, 0.72, 0.47, 0.26, 0.12], abs=0.05)


def test_unbiased_estimator_varies_less_than_disjoint_blocks() -> None:
    rng = np.random.default_rng(1)
    gold = rng.standard_normal((3000, 32))
    proxy = gold + rng.standard_normal((3000, 32))
    unbiased = best_of_n(proxy, gold, 8)
    blocks = proxy.reshape(3000, 4, 8).argmax(-1)
    naive = torch.from_numpy(np.take_along_axis(gold.reshape(3000, 4, 8), blocks[..., None], -1)[..., 0].mean(1))
    assert unbiased.var() < 0.95 * naive.var()
    assert abs((unbiased - naive).mean().item()) < 0.02


def test_draws_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    gold, proxy = rng.standard_normal((5, 12)), np.round(rng.standard_normal((7, 5, 12)), 1)
    whole = best_of_n_curves(proxy, [gold, proxy], [1, 3, 12])
    monkeypatch.setattr("prudent.evaluation.overoptimization.fits.ROWS_AT_ONCE", 60)
    parts = best_of_n_curves(proxy, [gold, proxy], [1, 3, 12])
    assert all(torch.equal(a, b) for a, b in zip(whole, parts)) and whole[0].shape == (3, 7, 5)
    assert torch.allclose(whole[0][1, 4], best_of_n(proxy[4], gold, 3))


def test_pass_at_k_and_what_can_not_be_computed() -> None:
    assert [pass_at_k([1, 0, 0, 0, 0], k).item() for k in range(1, 6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    with pytest.raises(PrudentError, match="only 4 samples"):
        best_of_n([[0.2, 0.9, 0.5, 0.1]], [[1, -1, 3, 0]], 5)
    with pytest.raises(PrudentError, match="prompt 0, sample 1"):
        best_of_n([[0.2, math.nan]], [[1, 2]], 1)
    with pytest.raises(PrudentError, match="whole number"):
        best_of_n([[0.2, 1]], [[1, 2]], 0)
    with pytest.raises(PrudentError, match="don't match"):
        best_of_n([[0.2, 1]], [[1, 2, 3]], 1)


def test_constant_proxy_is_the_reference() -> None:
    assert best_of_n([[1.0] * 4], [[1, 2, 3, 6]], 4).item() == pytest.approx(3.0)


def test_noiseless_fits_recover_the_coefficients_and_the_peak() -> None:
    d = torch.linspace(0, 4, 30, dtype=torch.float64)
    fit = fit_overoptimization(d, d * (1.2 - 0.25 * d), "bon")
    assert (fit.alpha, fit.beta, fit.peak, fit.peak_value) == pytest.approx((1.2, 0.25, 2.4, 1.44), abs=1e-8)
    assert fit.r_squared == pytest.approx(1) and fit.warnings == []
    rl = fit_overoptimization(d, d - 0.5 * torch.special.xlogy(d, d), "rl")
    assert (rl.alpha, rl.beta) == pytest.approx((1, 0.5), abs=1e-8)
    assert (rl.peak, rl.peak_value) == pytest.approx((math.e, 1.359141), abs=1e-6)
    assert torch.allclose(rl.predict(d), d - 0.5 * torch.special.xlogy(d, d))


def test_peaks_beyond_the_data_or_absent_are_said_so() -> None:
    d = np.linspace(0, 1, 10)
    assert "beyond the data" in fit_overoptimization(d, d * (1.2 - 0.25 * d)).warnings[0]
    rising = fit_overoptimization(d, d * (1 + 0.1 * d))
    assert rising.peak is None and "no peak" in rising.warnings[0]
    falling = fit_overoptimization(d, -d * (1 + 0.5 * d))
    assert falling.peak is None and "falls from the start" in falling.warnings[0]


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_intervals_of_coefficients_and_peak_cover(form: str) -> None:
    rng, hits = np.random.default_rng(0), np.zeros(2)
    d = np.linspace(0.05, 3, 25)
    truth = d * (1.0 - 0.3 * (d if form == "bon" else np.log(d)))
    peak = 1 / 0.6 if form == "bon" else math.exp(1 / 0.3 - 1)
    for _ in range(300):
        fit = fit_overoptimization(d, truth + 0.1 * rng.standard_normal(25), form)
        hits += [abs(fit.alpha - 1.0) <= 2.069 * fit.alpha_error, fit.peak_low <= peak <= (fit.peak_high or math.inf)]
    assert np.all(hits / 300 > 0.91) and np.all(hits / 300 < 0.985)


def test_unclear_peak_is_unbounded() -> None:
    rng = np.random.default_rng(3)
    d = np.linspace(0.05, 1, 8)
    fits = [fit_overoptimization(d, d + 0.4 * rng.standard_normal(8)) for _ in range(40)]
    open_ended = [fit for fit in fits if fit.peak is not None and fit.peak_high is None]
    assert open_ended and all("not bounded from above" in fit.warnings[-1] for fit in open_ended)


def test_fit_refuses_what_it_can_not_use() -> None:
    with pytest.raises(PrudentError, match="two distinct"):
        fit_overoptimization([0, 1, 1], [0, 1, 1])
    with pytest.raises(PrudentError, match="point 1"):
        fit_overoptimization([0, 1, 2], [0, math.nan, 1])
    with pytest.raises(PrudentError, match="'bon' or 'rl'"):
        fit_overoptimization([0, 1, 2], [0, 1, 1], "linear")


def test_regressional_goodhart_matches_simulation() -> None:
    rng = np.random.default_rng(0)
    gold, noise = 1 + rng.standard_normal(400_000), 0.5 + 2 * rng.standard_normal(400_000)
    near = np.abs(gold + noise - 4) < 0.1
    assert gold[near].mean() == pytest.approx(regressional_goodhart(4, 1, 0.5, 1, 4), abs=0.03)
