"""The risk of a policy that has been trained: of what its samples moved, given the pairs."""

import numpy as np
import pytest
import torch

from prudent.errors import PrudentError
from prudent.evaluation import estimate_trained_risk
from prudent.evaluation.posterior_risk import NO_SIGNAL
from prudent.evaluation.risk_estimate import estimate_risk


def pairs_of(reward, count, generator):
    sides = generator.standard_normal((2, count, len(reward)))
    first = generator.random(count) < 1 / (1 + np.exp(-(sides[0] - sides[1]) @ reward))
    return np.where(first[:, None], sides[0], sides[1]), np.where(first[:, None], sides[1], sides[0])


def test_a_policy_that_is_the_exact_one_has_the_risk_promised_before_training():
    generator = np.random.default_rng(0)
    reward = np.array([1.0, -0.5, 0.3, 0.0])
    chosen, rejected = pairs_of(reward, 60, generator)
    groups = [number % 20 for number in range(60)]
    candidates = generator.standard_normal((12, 40, 4))
    before = estimate_risk(
        chosen, rejected, groups, candidates, np.full((12, 40), 1 / 40), methods=("vanilla",), betas=(1.0,)
    )[0]
    # The policy of that row, as samples: tilt by the head that is fitted on all pairs, then draw.
    from prudent.evaluation.risk_estimate import fit_rewards, policy_moves

    tensors = [torch.as_tensor(x, dtype=torch.float64) for x in (chosen, rejected)]
    weight = torch.full((12, 40), 1 / 40, dtype=torch.float64)
    fit = fit_rewards(*tensors, groups, torch.as_tensor(candidates), weight, members=10)
    policy = (policy_moves(fit, [{"method": "vanilla", "beta": 1.0}])[0] + weight).numpy()
    drawn = [generator.choice(40, size=20_000, p=row / row.sum()) for row in policy]
    samples = np.stack([candidates[prompt][rows] for prompt, rows in enumerate(drawn)])
    after = estimate_trained_risk(chosen, rejected, groups, samples, candidates)
    assert after["risk"] == pytest.approx(before["risk"], abs=0.02) and after["reason"] is None
    assert after["gain"] == pytest.approx(before["gain"], rel=0.05)


def test_the_risk_it_states_comes_as_often():
    """Rewards as the prior has them (none at all in 15 %: a coin), moves by what was learnt and by much noise."""
    generator = np.random.default_rng(1)
    stated, came = [], []
    for _ in range(300):
        signal = generator.random() > NO_SIGNAL
        reward = 0.25 * generator.standard_normal(6) * signal
        chosen, rejected = pairs_of(reward, 40, generator)
        learnt = (chosen - rejected).mean(0)
        move = 0.3 * learnt / np.linalg.norm(learnt) + 0.2 * generator.standard_normal(6)
        reference = np.zeros((8, 1, 6))
        found = estimate_trained_risk(chosen, rejected, [i % 10 for i in range(40)], reference + move, reference)
        stated.append(found["risk"])
        came.append(move @ reward <= 0 if signal else generator.random() < 0.5)
    assert np.mean(stated) == pytest.approx(np.mean(came), abs=0.06) and np.mean(stated) > 0.15
    low, high = (
        np.mean([c for s, c in zip(stated, came) if (s < np.median(stated)) == side]) for side in (True, False)
    )
    assert low < high


def test_a_policy_that_stayed_has_risk_a_half_and_few_pairs_give_none():
    generator = np.random.default_rng(2)
    chosen, rejected = pairs_of(np.ones(3), 40, generator)
    same = generator.standard_normal((8, 5, 3))
    assert estimate_trained_risk(chosen, rejected, list(range(40)), same, same)["risk"] == pytest.approx(0.5)
    few = estimate_trained_risk(chosen[:9], rejected[:9], list(range(9)), same, same)
    assert few["risk"] is None and (few["low"], few["high"]) == (0.0, 1.0) and "9 pairs" in few["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": np.zeros((8, 5, 2))}, "of the same prompts"),
        ({"samples": np.zeros((7, 5, 3))}, "of the same prompts"),
        ({"samples": np.full((8, 5, 3), np.nan)}, "samples"),
        ({"groups": [0, 1]}, "with n prompt names"),
        ({"rejected": np.ones((40, 3))}, "nothing to learn from"),
    ],
)
def test_what_can_t_be_used_is_refused(change, said):
    good = {"chosen": np.ones((40, 3)), "rejected": np.zeros((40, 3)), "groups": list(range(40))}
    good |= {"samples": np.zeros((8, 5, 3)), "reference": np.zeros((8, 5, 3))}
    with pytest.raises(PrudentError, match=said):
        estimate_trained_risk(**{**good, **change})
