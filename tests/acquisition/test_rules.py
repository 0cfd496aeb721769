"""Rules for which pair to label next: each held to a brute-force or closed-form answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import entr

import prudent
from prudent.acquisition import RULES, AcquireSettings, LabelModel
from prudent.acquisition.greedy import directed_greedy, lazy_greedy
from prudent.acquisition.known import known_pairs
from prudent.errors import PrudentError

GIVEN = AcquireSettings(ridge=0.05)


def draw(m: int = 60, n: int = 30, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, d, generator=generator) for shape in ((n,), (n,), (m, 2))]
    return made[0], made[1], made[2]


def known():
    chosen, rejected, pool = draw()
    groups = [i // 6 for i in range(len(pool))]
    return known_pairs(chosen, rejected, pool, groups, ridge=0.05, labels=LabelModel(), seed=0)


def covariance(found, picked: list[int]) -> np.ndarray:
    """Posterior covariance of all logits with these pairs' information added, by one inversion."""
    rows = found.factor.astype(np.float64)
    precision = np.eye(rows.shape[1]) + sum(found.weight[i] * np.outer(rows[i], rows[i]) for i in picked)
    return rows @ np.linalg.inv(precision) @ rows.T


def test_d_optimal_is_greedy_on_the_determinant_of_all_information():
    chosen, rejected, pool = draw()
    indices, scores = prudent.acquire(chosen, rejected, pool, 12, rule="d-optimal", settings=GIVEN)
    # Written out anew: the Fisher information of the labelled pairs and the ridge, and log det by numpy.
    found = known()
    root = found.posterior.root.numpy()
    start = np.linalg.inv(root @ root.T)
    rows = found.differences().astype(np.float64)
    taken: list[int] = []
    for index, score in zip(indices.tolist(), scores.tolist()):
        gains = [
            np.linalg.slogdet(start + found.weight[j] * np.outer(rows[j], rows[j]))[1] - np.linalg.slogdet(start)[1]
            for j in range(len(rows))
        ]
        free = [j for j in range(len(rows)) if j not in taken]
        assert index == max(free, key=lambda j: gains[j])
        assert score == pytest.approx(gains[index], rel=1e-4)
        start = start + found.weight[index] * np.outer(rows[index], rows[index])
        taken.append(index)


def test_a_batch_of_d_optimal_is_within_greedys_bound_of_the_best_batch():
    found = known()
    chosen, rejected, pool = draw()
    picks = prudent.acquire(chosen, rejected, pool, 2, rule="d-optimal", settings=GIVEN)[0].tolist()
    best = max(_gain(found, pair) for pair in itertools.combinations(range(len(pool)), 2))
    assert _gain(found, picks) >= (1 - 1 / np.e) * best  # the bound of greedy choice (Nemhauser et al. 1978)


def _gain(found, picks) -> float:
    rows = found.factor[list(picks)].astype(np.float64) * np.sqrt(found.weight[list(picks)])[:, None]
    return float(np.linalg.slogdet(np.eye(len(rows)) + rows @ rows.T)[1])


def test_rank_one_updates_equal_refits():
    found = known()
    again, scores = lazy_greedy(found.factor, found.weight, lambda v, i: np.log1p(found.weight[i] * v), 15, repeat=2)
    for turn, (index, score) in enumerate(zip(again.tolist(), scores.tolist())):
        exact = covariance(found, again[:turn].tolist())[index, index]
        assert score == pytest.approx(np.log1p(found.weight[index] * exact), rel=1e-4)


def test_the_direct_rule_takes_most_off_the_gains_variance():
    found = known()
    direction = np.random.default_rng(0).normal(size=found.factor.shape[1])
    index, score = directed_greedy(found.factor, found.weight, direction, 6)
    rows = found.factor.astype(np.float64)
    precision, taken = np.eye(rows.shape[1]), []
    for one, share in zip(index.tolist(), score.tolist()):
        before = direction @ np.linalg.inv(precision) @ direction
        after = {
            j: direction @ np.linalg.inv(precision + found.weight[j] * np.outer(rows[j], rows[j])) @ direction
            for j in range(len(rows))
            if j not in taken
        }
        assert one == min(after, key=after.__getitem__)
        assert share == pytest.approx((before - after[one]) / (direction @ direction), rel=1e-3)
        precision = precision + found.weight[one] * np.outer(rows[one], rows[one])
        taken.append(one)


@pytest.mark.parametrize("rule", ["bald", "d-optimal", "margin", "diversity", "maxmin-lcb", "delta-ucb"])
def test_what_both_sides_share_does_not_count(rule):
    chosen, rejected, pool = draw()
    shared = 50 * torch.randn(10, 1, 1, pool.shape[-1], generator=torch.Generator().manual_seed(1))
    groups = [i // 6 for i in range(len(pool))]
    moved = (pool.double().reshape(10, 6, 2, -1) + shared.double()).reshape(pool.shape)
    both = [
        prudent.acquire(chosen, rejected, one, 10, rule=rule, groups=groups, settings=GIVEN)[0] for one in (pool, moved)
    ]
    assert both[0].tolist() == both[1].tolist()


def test_bald_is_the_mutual_information():
    mean, variance = np.array([0.0, 1.0, -3.0, 6.0, 0.5]), np.array([1.0, 4.0, 9.0, 0.5, 1e-3])
    for labels in (LabelModel(), LabelModel(noise=0.2), LabelModel(noise=0.1, ties=0.3)):
        nodes, weights = np.polynomial.hermite_e.hermegauss(150)
        p = 1 / (1 + np.exp(-(mean[:, None] + np.sqrt(variance)[:, None] * nodes)))
        q, w = labels.noise + (1 - 2 * labels.noise) * p, weights / weights.sum()
        h = lambda x: entr(x) + entr(1 - x)  # noqa: E731
        exact = (1 - labels.ties) * (h(q @ w) - h(q) @ w)
        assert labels.bald(mean, variance) == pytest.approx(exact, rel=0.02)


def test_noise_lowers_a_labels_information_and_ties_take_their_share():
    logit = np.linspace(-4, 4, 9)
    clean = LabelModel().fisher(logit)
    assert (LabelModel(noise=0.1).fisher(logit) < clean).all()
    assert LabelModel(ties=0.25).fisher(logit) == pytest.approx(0.75 * clean)
    chance = 1 / (1 + np.exp(-logit))
    assert clean == pytest.approx(chance * (1 - chance))


def test_a_second_opinion_is_asked_for_only_where_it_says_more_than_a_new_pair():
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    loud = torch.zeros(5, 2, 4)
    loud[:, 0] = 0.01 * torch.randn(5, 4, generator=generator)
    loud[2, 0, 0] = 8.0  # the only pair that says much
    settings = AcquireSettings(ridge=1.0, repeat=3)
    picks = prudent.acquire(chosen, rejected, loud, 4, rule="d-optimal", settings=settings)[0].tolist()
    assert picks[:3] == [2, 2, 2] and picks[3] != 2
    once = prudent.acquire(chosen, rejected, loud, 4, rule="d-optimal", settings=settings._replace(repeat=1))[0]
    assert len(set(once.tolist())) == 4


def test_pairs_where_the_tilted_policy_goes_come_first():
    """Two prompts of like pairs; the policy leaves the third response of each, so its pairs weigh least."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([3.0, 0.0, 0.0])
    chosen, rejected = torch.randn(2, 200, 3, generator=generator)
    swap = ((chosen - rejected) @ truth < 0)[:, None]
    chosen, rejected = torch.where(swap, rejected, chosen), torch.where(swap, chosen, rejected)
    a, b, bad = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-4.0, 0.0, 1.0])
    pool = torch.stack([torch.stack(pair) for pair in ((a, b), (a, bad), (b, bad))])
    settings = AcquireSettings(ridge=0.1)
    picks = prudent.acquire(chosen, rejected, pool, 3, rule="envelope", groups=[0] * 3, settings=settings)[0]
    assert picks[0] == 0


def test_maxmin_picks_the_leader_by_its_worst_bound_and_its_strongest_rival():
    found = known()
    deviation = np.sqrt((found.factor.astype(np.float64) ** 2).sum(1))
    chosen, rejected, pool = draw()
    picks = prudent.acquire(
        chosen, rejected, pool, 60, rule="maxmin-lcb", groups=[i // 6 for i in range(60)], settings=GIVEN
    )[0].tolist()
    # Every response occurs once here, so a leader's worst bound is its pair's.
    for prompt in range(10):
        own = range(prompt * 6, prompt * 6 + 6)
        best = max(own, key=lambda j: abs(found.logit[j]) - deviation[j])
        assert next(i for i in picks if i in own) == best
    assert sorted(i // 6 for i in picks[:10]) == list(range(10))  # each prompt once before any twice


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_gives_distinct_pairs_the_same_ones_again_and_takes_numpy(rule):
    chosen, rejected, pool = draw()
    groups = [f"prompt {i // 6}" for i in range(len(pool))]
    first, scores = prudent.acquire(chosen, rejected, pool, 25, rule=rule, groups=groups, settings=GIVEN)
    again, _ = prudent.acquire(
        chosen.numpy(), rejected.numpy(), pool.numpy(), 25, rule=rule, groups=groups, settings=GIVEN
    )
    assert len(set(first.tolist())) == 25 and first.tolist() == again.tolist()
    assert scores.shape == (25,) and bool(torch.isfinite(scores).all())
    if not RULES[rule].sided:
        flat = prudent.acquire(chosen, rejected, pool[:, 0] - pool[:, 1], 25, rule=rule, groups=groups, settings=GIVEN)
        assert flat[0].tolist() == first.tolist()


def test_a_double_of_a_picked_pair_waits():
    chosen, rejected, pool = draw()
    doubled = torch.cat([pool, pool])
    first = prudent.acquire(chosen, rejected, doubled, 30, rule="diversity", settings=GIVEN)[0]
    assert len({int(i) % len(pool) for i in first}) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 61}, "60 candidates"),
        ({"k": 0}, "k is 0"),
        ({"rule": "best"}, "unknown rule 'best'"),
        ({"candidates": torch.zeros(5, 2, 4)}, "width 4"),
        ({"candidates": torch.zeros(5, 6), "rule": "risk", "k": 2}, "both sides"),
        ({"chosen": torch.zeros(3, 6), "rejected": torch.ones(3, 6)}, "3 labelled pairs"),
        ({"groups": [1, 2]}, "2 groups for 60"),
        ({"settings": AcquireSettings(labels=LabelModel(noise=0.5))}, "noise must lie"),
    ],
)
def test_what_can_not_be_used_is_named(change, message):
    chosen, rejected, pool = draw()
    given = {"chosen": chosen, "rejected": rejected, "candidates": pool, "k": 5, "settings": GIVEN, **change}
    with pytest.raises(PrudentError, match=message):
        prudent.acquire(given.pop("chosen"), given.pop("rejected"), given.pop("candidates"), given.pop("k"), **given)


def test_a_value_that_is_not_finite_is_named_by_its_pair():
    chosen, rejected, pool = draw()
    pool[7, 1, 2] = torch.nan
    with pytest.raises(PrudentError, match=r"pair 7"):
        prudent.acquire(chosen, rejected, pool, 5, settings=GIVEN)


def test_only_rules_that_know_a_second_labels_worth_repeat():
    chosen, rejected, pool = draw()
    with pytest.raises(PrudentError, match="'margin' can't say"):
        prudent.acquire(chosen, rejected, pool, 5, rule="margin", settings=GIVEN._replace(repeat=2))
