"""Where hidden positives are known, ranking by uncertainty finds more of them: acceptance check (d)."""

import numpy as np
import pytest

from prudent.errors import PrudentError
from prudent.recommend.metrics import evaluate
from prudent.recommend.models import BackboneOptions, fit_mf
from prudent.recommend.planted import plant, planted_data
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import UncertaintyOptions, fit_uncertainty


def test_world_hides_the_stated_share_of_the_tail_and_nothing_else():
    world = plant(density=0.3, skew=0.5, seed=0)
    truth = world.truth
    assert truth.shape == (500, 300)
    assert truth.mean() == pytest.approx(0.3, abs=0.001)
    assert np.linalg.matrix_rank(truth.astype(float)) > 8  # low-rank tastes, thresholded
    hidden = np.zeros_like(truth)
    hidden[world.hidden.user, world.hidden.item] = True
    assert not (hidden & ~truth).any()
    assert not hidden[:, ~world.tail].any()
    assert hidden.sum() / (truth & world.tail).sum() == pytest.approx(0.3, abs=0.01)
    observed = np.zeros_like(truth)
    observed[world.observed.user, world.observed.item] = True
    assert (observed ^ hidden == truth).all()
    with pytest.raises(PrudentError, match="density"):
        plant(density=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_d_uncertainty_finds_hidden_tail_positives_that_the_score_does_not(seed):
    world, hidden, tail = planted_data(plant(density=0.3, skew=0.5, seed=seed), seed)
    plan = Schedule(learning_rate=2e-3, batch=64, epochs=60, every=4, warmup=40, patience=3, weight_decay=1e-3)
    backbone = fit_mf(world, BackboneOptions(width=64, share=1.0), plan, seed)
    stage = Schedule(learning_rate=2e-3, batch=64, epochs=30, every=4, patience=3)
    estimator = fit_uncertainty(world, backbone, UncertaintyOptions(gamma=1e-2, width=256), stage, seed)
    seen = world.seen_with_valid()
    by_score, by_uncertainty = (
        [
            evaluate(scorer, truth, seen, tail, ks=(20,), views=("overall",)).mean("recall@20 overall")
            for truth in (hidden, world.test)
        ]
        for scorer in (backbone.scores, estimator.scores)
    )
    assert by_uncertainty[0] - by_score[0] > 0.03
    assert by_uncertainty[1] / by_score[1] > 0.95
