import pytest
import torch

from prudent import PrudentError, moments
from prudent.rewards import artefact
from prudent.rewards.mlp import DIVERSITIES, DropoutEnsemble, MLPEnsemble
from prudent.rewards.training import member_seeds


def world(pairs: int, width: int = 6, seed: int = 0, bend: bool = True):
    """Bradley-Terry labels from a truth that is not linear: |x_0| counts."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, pairs, width, generator=generator)
    gap = 3 * (first[:, 0].abs() - second[:, 0].abs()) if bend else 2 * (first[:, 0] - second[:, 0])
    better = torch.rand(pairs, generator=generator) < torch.sigmoid(gap)
    return torch.where(better[:, None], first, second), torch.where(better[:, None], second, first)


@pytest.mark.parametrize("diversity", DIVERSITIES)
@pytest.mark.parametrize(
    "terms", [{}, {"contrastive": "simcse"}, {"contrastive": "swav", "contrastive_on": "difference"}]
)
def test_members_trained_together_equal_each_alone(diversity, terms):
    chosen, rejected = world(40)
    meta = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(2))
    options = {"diversity": diversity, "epochs": 2, "width": 8, "batch_size": 16, "meta_features": meta, **terms}
    options |= {"weight": torch.rand(40) + 0.1, "soft_label": torch.rand(40), "margin": torch.randn(40)}
    seeds = member_seeds(1, 4)
    joint = MLPEnsemble.fit(chosen, rejected, members=4, seed=seeds, meta_rate=0.01, **options)
    pool = torch.randn(30, 6)
    for member in (1, 3):
        alone = MLPEnsemble.fit(chosen, rejected, members=2, seed=[seeds[0], seeds[member]], meta_rate=0.01, **options)
        assert float((alone.scores(pool)[1] - joint.scores(pool)[member]).abs().max()) < 1e-6
    assert float(moments(joint.scores(pool))[1].min()) > 0


def test_two_layers_learn_what_a_line_can_not():
    chosen, rejected = world(600)
    test_chosen, test_rejected = world(600, seed=1)
    ensemble = MLPEnsemble.fit(chosen, rejected, epochs=20, learning_rate=3e-3, members=4)
    margin = (ensemble.scores(test_chosen) - ensemble.scores(test_rejected)).mean(0)
    assert float((margin > 0).float().mean()) > 0.75


def test_dropout_members_are_fixed_thinned_networks():
    chosen, rejected = world(100)
    ensemble = DropoutEnsemble.fit(chosen, rejected, members=6, width=32, seed=5)
    pool = torch.randn(8, 6)
    scores = ensemble.scores(pool)
    assert scores.shape == (6, 8) and torch.equal(scores, ensemble.scores(pool))
    assert torch.allclose(ensemble.scores(pool[3:5]), scores[:, 3:5], atol=1e-6)  # no mask depends on the batch
    assert float(moments(scores)[1].min()) > 0
    assert ensemble.tensors["inner.weight"].shape[0] == 1
    assert ensemble.tensors["mask"].unique().tolist() == pytest.approx([0.0, 1.25])
    assert ensemble.parameters() == 32 * 6 + 32 + 32


@pytest.mark.parametrize("kind", [MLPEnsemble, DropoutEnsemble])
def test_saved_heads_score_the_same_and_are_centred(tmp_path, kind):
    chosen, rejected = world(50)
    ensemble = kind.fit(chosen, rejected, members=3, epochs=1)
    responses = torch.cat([chosen, rejected])
    assert float(ensemble.scores(responses).mean(1).abs().max()) < 1e-5
    artefact.save(tmp_path / "model", ensemble)
    again = artefact.load(tmp_path / "model")
    assert type(again) is kind and torch.equal(again.scores(responses), ensemble.scores(responses))


def test_no_meta_rate_is_ordinary_training():
    chosen, rejected = world(40)
    pool = torch.randn(5, 3, 6)
    options = {"members": 2, "epochs": 1, "width": 8}
    plain = MLPEnsemble.fit(chosen, rejected, **options)
    still = MLPEnsemble.fit(chosen, rejected, **options, meta_features=pool, meta_rate=0.0)
    moved = MLPEnsemble.fit(chosen, rejected, **options, meta_features=pool, meta_rate=0.5)
    assert torch.equal(plain.tensors["inner.weight"], still.tensors["inner.weight"])
    assert not torch.equal(plain.tensors["inner.weight"], moved.tensors["inner.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": "none"}, "unknown diversity"),
        ({"contrastive": "triplet"}, "known: simcse"),
        ({"contrastive": "simcse", "dropout": 0.0}, "two dropout passes"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"meta_features": torch.randn(2, 1, 6)}, "meta_features"),
        ({"learning_rate": 1e30, "epochs": 9}, "the loss of member"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(PrudentError, match=message):
        MLPEnsemble.fit(*world(20), members=2, **options)
    if "dropout" in options:
        with pytest.raises(PrudentError, match="dropout"):
            DropoutEnsemble.fit(*world(20), dropout=0.0)
