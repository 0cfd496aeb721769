"""Intervals and tests against closed forms, brute force, and the plain bootstrap that the fast one must equal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from prudent.errors import PrudentError
from prudent.evaluation import resampling
from prudent.evaluation import statistics as s


def test_wilson_known_values() -> None:
    assert s.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert s.wilson(0, 20)[0] == 0.0 and s.wilson(20, 20)[1] == 1.0
    assert all(math.isnan(end) for end in s.wilson(0, 0))
    with pytest.raises(PrudentError, match="no proportion"):
        s.wilson(3, 2)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_wilson_is_the_inverted_score_test(n: int, share: float, level: float) -> None:
    k = round(share * n)
    low, high = s.wilson(k, n, level)
    z = stats.norm.ppf(0.5 + level / 2)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(k / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-6)
    assert 0 <= low <= k / n <= high <= 1


def test_nothing_is_null_with_a_reason() -> None:
    for estimate in (
        s.proportion([]),
        s.bootstrap([]),
        s.auroc([1.0, 2.0], [1, 1]),
        s.correlation([1, 1, 1], [1, 2, 3]),
    ):
        assert estimate.value is None and estimate.reason
    assert "x is constant" in s.correlation([1, 1, 1], [1, 2, 3]).text
    assert s.risk_coverage([], []).reason == "no items"


def plain_bootstrap_moments(values: np.ndarray, sizes: np.ndarray | None = None) -> tuple[float, float]:
    rng = np.random.default_rng(5)
    sizes = np.ones_like(values) if sizes is None else sizes
    index = rng.integers(0, len(values), (4000, len(values)))
    means = values[index].sum(1) / sizes[index].sum(1)
    return float(means.mean()), float(means.std())


@pytest.mark.parametrize("kind", ["halves", "continuous", "blocks"])
def test_every_fast_path_is_the_plain_bootstrap(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([0, 0.5, 1], 300, p=[0.3, 0.1, 0.6]) if kind == "halves" else rng.exponential(1, 300)
    if kind == "blocks":  # blocks of 64 rows: four whole ones and a rest
        monkeypatch.setattr(resampling, "BLOCK", 64)
    if kind != "halves":
        monkeypatch.setattr(resampling, "DISTINCT", 10)
    fast = resampling.resampled_means(values[:, None], 4000, 1)[:, 0] if kind != "blocks" else None
    if fast is None:
        # Sixteen random bits index a full block, so a smaller block must take the general generator's way.
        monkeypatch.setattr(resampling, "one_block", small_block)
        fast = resampling.blocked_sums(values[:, None], [100, 200], 4000, 1).sum(axis=(1, 2)) / 300
    mean, deviation = plain_bootstrap_moments(values)
    assert fast.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(4000))
    assert fast.std() == pytest.approx(deviation, rel=0.06)
    assert stats.skew(fast) == pytest.approx(0, abs=0.3)


def small_block(rows: np.ndarray, counts: np.ndarray, seed: object) -> np.ndarray:
    generator = resampling.fast_generator(seed)
    return np.stack([rows[generator.integers(0, len(rows), n)].sum(axis=0) for n in counts])


def test_full_blocks_draw_every_row_evenly() -> None:
    rows = np.arange(resampling.BLOCK, dtype=np.float64)[:, None]
    counts = np.full(200, 10_000)
    means = resampling.one_block(rows, counts, 3)[:, 0] / 10_000
    expected, deviation = (resampling.BLOCK - 1) / 2, resampling.BLOCK / math.sqrt(12 * 10_000)
    assert means.mean() == pytest.approx(expected, abs=5 * deviation / math.sqrt(200))
    assert means.std() == pytest.approx(deviation, rel=0.2)


def test_large_arrays_agree_with_the_normal_interval_on_any_number_of_threads() -> None:
    values = np.random.default_rng(0).standard_normal(150_000)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(s.bootstrap(values, rounds=200, seed=4))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]
    width = results[0].high - results[0].low
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(len(values)), rel=0.2)


def test_clusters_widen_the_interval_by_the_design_effect() -> None:
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(200), 5)
    values = np.repeat(rng.standard_normal(200), 5)  # all of a cluster equal: the design effect is 5
    alone, whole = s.bootstrap(values, seed=1), s.bootstrap(values, clusters=[f"p{c}" for c in cluster], seed=1)
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(5), rel=0.12)
    assert whole.method == "bootstrap of 200 clusters"
    assert s.bootstrap(values[:5], clusters=cluster[:5]).reason


def test_bootstrap_of_a_callable_and_of_uneven_clusters() -> None:
    rng = np.random.default_rng(3)
    values, cluster = rng.standard_normal(120), rng.integers(0, 30, 120)
    by_hand = s.bootstrap(values, lambda x: float(x.mean()), rounds=2000, clusters=cluster, seed=1)
    fast = s.bootstrap(values, rounds=2000, clusters=cluster, seed=1)
    assert (fast.low, fast.high) == pytest.approx((by_hand.low, by_hand.high), abs=0.03)
    median = s.bootstrap(values, lambda x: float(np.median(x)), seed=0)
    assert median.low < np.median(values) < median.high


def test_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(300):
        estimate = s.bootstrap(rng.normal(1, 2, 60), rounds=300, seed=seed)
        hits += estimate.low <= 1 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98


def test_paired_bootstrap_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 400)
    result = s.paired_bootstrap(base + 0.5 + rng.normal(0, 0.5, 400), base)
    assert result.difference.low > 0.4 and result.p < 0.01
    same = s.paired_bootstrap(base, base)
    assert same.difference.value == 0 and same.p == 1.0


def test_mcnemar_is_exact() -> None:
    a, b = [1] * 8 + [0] * 2 + [1] * 5, [0] * 8 + [1] * 2 + [1] * 5
    result = s.mcnemar(a, b)
    assert (result.a_only, result.b_only, result.same) == (8, 2, 5)
    assert result.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert s.mcnemar([1, 0], [1, 0]).p == 1.0


def test_holm_known_values_and_gaps() -> None:
    adjusted = s.holm([0.01, 0.04, math.nan, 0.03])
    assert adjusted[[0, 1, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06]) and math.isnan(adjusted[2])
    assert len(s.holm([])) == 0


def test_calibration_numbers_by_hand() -> None:
    p = [0.95, 0.85, 0.25, 0.5]  # folded: .95 right, .85 right, .75 wrong, .5 tie
    result = s.calibration(p, bins=5)
    assert result.brier.value == pytest.approx((0.05**2 + 0.15**2 + 0.75**2 + 0.25) / 4)
    assert result.ece.value == pytest.approx((0.05 + 0.15 + 0.75 + 0.0) / 4)
    assert [b.n for b in result.curve] == [1, 1, 1, 1] and sum(b.accuracy for b in result.curve) == 2.5
    plain = s.calibration([0.2, 0.2, 0.9], [0, 1, 1], bins=10)
    assert plain.ece.value == pytest.approx((2 * 0.3 + 0.1) / 3) and not plain.folded
    with pytest.raises(PrudentError, match="sigmoid"):
        s.calibration([1.2])


def test_calibrated_scores_have_small_error_and_intervals_that_hold_it() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 1, 20_000)
    result = s.calibration(truth, (rng.random(20_000) < truth).astype(float), rounds=2000, level=0.999)
    assert result.ece.value < 0.02 and result.brier.low < 1 / 6 < result.brier.high
    assert result.brier.low < result.brier.value < result.brier.high


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
@settings(max_examples=60, deadline=None)
def test_auroc_equals_scikit_learn_ties_included(pairs: list[tuple[int, bool]]) -> None:
    score, positive = [float(a) for a, _ in pairs], [int(b) for _, b in pairs]
    estimate = s.auroc(score, positive)
    if len(set(positive)) == 1:
        assert estimate.value is None
    else:
        assert estimate.value == pytest.approx(roc_auc_score(positive, score))


def test_auroc_interval_covers() -> None:
    rng = np.random.default_rng(0)
    truth, hits = stats.norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(300):
        estimate = s.auroc(np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 60)]), [1] * 60 + [0] * 60)
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 <= hits / 300 <= 0.985
    score, label = np.repeat(rng.normal(size=80), 4), np.repeat(rng.integers(0, 2, 80), 4)
    alone, whole = s.auroc(score, label), s.auroc(score, label, clusters=np.repeat(np.arange(80), 4))
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.1)


def test_risk_coverage_best_random_and_ties() -> None:
    error = [0, 0, 1, 1]
    perfect = s.risk_coverage([0.1, 0.2, 0.3, 0.4], error)
    assert perfect.gain == 1 and perfect.risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    blind = s.risk_coverage([1, 1, 1, 1], error)
    assert blind.gain == 0 and blind.risk.tolist() == pytest.approx([0.5] * 4)
    assert s.risk_coverage([1, 2], [0, 0]).gain is None


def test_correlation_values_intervals_and_the_large_case() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200)
    y = 0.6 * x + 0.8 * rng.standard_normal(200)
    pearson, spearman = s.correlation(x, y), s.correlation(torch.tensor(x), y, "spearman")
    assert pearson.value == pytest.approx(stats.pearsonr(x, y)[0]) and pearson.low < pearson.value < pearson.high
    assert spearman.value == pytest.approx(stats.spearmanr(x, y)[0])
    fisher = stats.pearsonr(x, y).confidence_interval()
    assert (pearson.low, pearson.high) == pytest.approx(tuple(fisher), abs=0.04)
    many = rng.standard_normal((2, 300_000))
    assert s.correlation(*many).method == "pearson, Fisher z"
    assert s.correlation([1, 2], [1, 2]).reason == "only 2 pairs"


def test_bad_input_names_value_and_place() -> None:
    with pytest.raises(PrudentError, match="nan at item 1"):
        s.bootstrap([1.0, math.nan])
    with pytest.raises(PrudentError, match="a has 2, b has 3"):
        s.mcnemar([1, 2], [1, 2, 3])
    with pytest.raises(PrudentError, match=r"clusters has shape \(1,\)"):
        s.bootstrap([1.0, 2.0], clusters=["a"])


def test_a_clustered_proportion_of_all_right_is_not_certain() -> None:
    """Three items of one or two prompts, all right, gave [1.000, 1.000]."""
    for labels, units in ((["a", "a", "b"], 2), (["a"] * 3, 1), (["a", "b", "c"], 3)):
        for credit in ([1.0] * 3, [0.0] * 3):
            found = s.proportion(credit, clusters=labels)
            assert (found.low, found.high) == s.wilson(credit[0] * units, units)
            assert found.high - found.low > 0.5
            assert s.bounded_mean(credit, clusters=labels, rounds=50).low == found.low
    assert s.bounded_mean([1.0] * 5, rounds=50).low == s.wilson(5, 5)[0] < 0.6
    assert s.bounded_mean([0.5] * 5, rounds=50).high > 0.8


def test_clustered_proportions_cover_the_truth() -> None:
    """40 prompts of 5 items that agree: the plain interval covers about 60 %, the clustered one 95 %."""
    rng = np.random.default_rng(0)
    plain = clustered = 0
    labels = np.repeat(np.arange(40), 5)
    for _ in range(1000):
        credit = np.repeat(rng.random(40) < 0.9, 5).astype(float)
        for name, found in (("plain", s.proportion(credit)), ("clustered", s.proportion(credit, clusters=labels))):
            inside = found.low <= 0.9 <= found.high
            plain, clustered = plain + (inside and name == "plain"), clustered + (inside and name == "clustered")
    assert plain < 700 and clustered > 930
    alone = rng.random(200) < 0.9
    assert s.proportion(alone, clusters=np.arange(200)).low == pytest.approx(s.proportion(alone).low, abs=1e-3)


def test_simultaneous_intervals_and_p_values_agree_and_keep_their_level() -> None:
    """Of many tables in which nothing differs, about 5 % hold a difference below p .05; and p < .05 is an interval
    without 0."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(200, 120, 1))
    tables = shared + generator.normal(size=(200, 120, 5))
    false = 0
    for number, table in enumerate(tables):
        found = s.simultaneous_bootstrap(table, rounds=300, seed=number)
        clear = [row.p < 0.05 for row in found]
        assert clear == [not row.difference.low <= 0 <= row.difference.high for row in found]
        false += any(clear)
    assert 2 <= false <= 22  # of 200; binomial with .05: 99.9 % within 2 to 21
    wide = s.simultaneous_bootstrap(tables[0], rounds=300)[0].difference
    alone = s.simultaneous_bootstrap(tables[0][:, :1], rounds=300)[0].difference
    assert wide.low < alone.low and wide.high > alone.high
    nothing, moved = s.simultaneous_bootstrap(np.stack([np.zeros(50), np.arange(50) / 50 + 1], 1))
    assert nothing.p == 1 and nothing.difference.low == 0 and moved.p < 0.01
    assert s.simultaneous_bootstrap(np.ones((4, 2)), clusters=[0, 0, 0, 0])[0].p is None
