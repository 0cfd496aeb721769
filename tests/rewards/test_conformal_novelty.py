import pytest
import torch

from prudent import HeadEnsemble, PrudentError, moments
from prudent.rewards import artefact
from prudent.rewards.conformal import MarginIntervals
from prudent.rewards.novelty import Novelty, NoveltyEnsemble


def margins(n: int, seed: int):
    """Means, a spread that is right up to a factor 3, and targets."""
    generator = torch.Generator().manual_seed(seed)
    mean, sigma = torch.randn(n, generator=generator), 0.2 + torch.rand(n, generator=generator)
    return mean, sigma, mean + 3 * sigma * torch.randn(n, generator=generator)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_at_the_level_whatever_the_units_of_the_spread(level):
    intervals = MarginIntervals.calibrate(*margins(2000, 0), level=level)
    mean, sigma, target = margins(4000, 1)
    found = intervals.coverage(mean, sigma, target, groups=["narrow" if s < 0.7 else "wide" for s in sigma])
    assert found.share == pytest.approx(level, abs=0.03) and found.pairs == 4000
    assert set(found.groups) == {"narrow", "wide"}
    assert found.groups["narrow"]["width"] < found.groups["wide"]["width"]
    assert found.groups["narrow"]["share"] == pytest.approx(level, abs=0.05)
    low, high = intervals.interval(mean, sigma)
    assert torch.allclose((low + high) / 2, mean.double(), atol=1e-9)


def test_the_quantile_is_the_split_conformal_one():
    mean, sigma, target = torch.zeros(9), torch.ones(9), torch.arange(1.0, 10.0)
    low, high = MarginIntervals.calibrate(mean, sigma, target, level=0.8).interval([0.0, 1.0], [1.0, 2.0])
    assert high.tolist() == pytest.approx([8.0, 17.0]) and low.tolist() == pytest.approx([-8.0, -15.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5), torch.ones(5), torch.zeros(5)), "at least 9"),
        ((torch.zeros(20), torch.ones(20), torch.zeros(19)), "each with a target"),
        ((torch.zeros(20), -torch.ones(20), torch.zeros(20)), "not be negative"),
        ((torch.zeros(20), torch.ones(20), torch.full((20,), torch.nan)), "target"),
        ((torch.zeros(20, 1), torch.ones(20), torch.zeros(20)), r"\(pairs,\)"),
    ],
)
def test_bad_margins_are_named(arguments, message):
    with pytest.raises(PrudentError, match=message):
        MarginIntervals.calibrate(*arguments)


def test_novelty_is_one_at_home_and_large_abroad():
    generator = torch.Generator().manual_seed(0)
    home = torch.randn(500, 8, generator=generator)
    novelty = Novelty.fit(home)
    assert float(novelty.of(torch.randn(300, 8, generator=generator)).mean()) == pytest.approx(1, abs=0.3)
    assert float(novelty.of(4 + torch.randn(300, 8, generator=generator)).mean()) > 5
    with pytest.raises(PrudentError, match="at least 10"):
        Novelty.fit(home[:5])


def test_novelty_widens_the_spread_and_keeps_the_mean(tmp_path):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 200, 8, generator=generator)
    options = {"members": 4, "ridge": 0.1}
    plain = HeadEnsemble.fit(chosen + 0.3, rejected, **options)
    wide = NoveltyEnsemble.fit(chosen + 0.3, rejected, novelty_share=2.0, **options)
    pool = 3 * torch.randn(50, 8, generator=generator)
    mean, variance = moments(plain.scores(pool))
    wide_mean, wide_variance = moments(wide.scores(pool))
    assert torch.allclose(mean, wide_mean, atol=1e-4)
    assert torch.allclose(wide_variance, variance + 2 * wide.unit * wide.novelty.of(pool), rtol=1e-3)
    artefact.save(tmp_path / "model", wide)
    assert torch.equal(artefact.load(tmp_path / "model").scores(pool), wide.scores(pool))
    none = NoveltyEnsemble.fit(chosen + 0.3, rejected, novelty_share=0.0, **options)
    assert torch.allclose(none.scores(pool), plain.scores(pool), atol=1e-5)
    for bad in ({"members": 1}, {"novelty_share": -1.0}):
        with pytest.raises(PrudentError):
            NoveltyEnsemble.fit(chosen, rejected, **{**options, **bad})
