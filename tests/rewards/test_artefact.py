import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from prudent import HeadEnsemble, PrudentError, RewardModel
from prudent.files import hash_file
from prudent.rewards.artefact import CARD, GOLDEN, WEIGHTS


@pytest.fixture
def ensemble():
    chosen, rejected = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    return HeadEnsemble.fit(chosen + 0.3, rejected, members=3)


@pytest.fixture
def folder(ensemble, tmp_path):
    ensemble.save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    card.update(changes)
    (folder / CARD).write_text(json.dumps(card))


def test_scores_before_and_after_are_equal(ensemble, folder):
    features = torch.randn(9, 6) * 10
    again = HeadEnsemble.load(folder)
    assert torch.equal(again.scores(features), ensemble.scores(features))
    assert again.info == json.loads(json.dumps(ensemble.info))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_an_existing_folder_is_not_overwritten(ensemble, folder):
    with pytest.raises(PrudentError, match="in use"):
        ensemble.save(folder)


def test_missing_weight_is_named(folder):
    save_file({"something.else": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(PrudentError, match=r"weights heads\.weight are missing"):
        HeadEnsemble.load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN, "manifest.json", CARD])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(PrudentError, match=name):
        HeadEnsemble.load(folder)


def test_changed_weights_fail_their_hash_and_their_golden_scores(folder):
    weights = load_file(folder / WEIGHTS)
    weights["heads.weight"][1] += 0.01
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(PrudentError, match="not the file that was saved"):
        HeadEnsemble.load(folder)
    edit(folder, hashes={WEIGHTS: hash_file(folder / WEIGHTS)})
    with pytest.raises(PrudentError, match="by member 2 when saved"):
        HeadEnsemble.load(folder)


def test_changed_statistics_fail_the_golden_scores(folder):
    card = json.loads((folder / CARD).read_text())
    card["config"]["offsets"][0] += 1
    edit(folder, config=card["config"])
    with pytest.raises(PrudentError, match="by member 1 when saved"):
        HeadEnsemble.load(folder)


@pytest.mark.parametrize(
    ("tensor", "message"), [(torch.zeros(2, 6), "shape"), (torch.full((3, 6), torch.nan), "not finite")]
)
def test_unusable_weights_are_named(folder, tensor, message):
    save_file({"heads.weight": tensor}, folder / WEIGHTS)
    with pytest.raises(PrudentError, match=f"heads.weight.*{message}"):
        HeadEnsemble.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "damaged"), (json.dumps({"format": 99}), "format 99"), (json.dumps({"format": 1, "family": "x"}), "family")],
)
def test_damaged_card_is_named(folder, content, message):
    (folder / CARD).write_text(content)
    with pytest.raises(PrudentError, match=message):
        HeadEnsemble.load(folder)


def test_truncated_weights_are_named(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(PrudentError, match="damaged"):
        HeadEnsemble.load(folder)


def test_another_family_points_to_the_reader_of_all(folder):
    from prudent.rewards.laplace import LaplacePosterior

    with pytest.raises(PrudentError, match=r"family 'heads'.*RewardModel\.load"):
        LaplacePosterior.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "head.pt", "model.pkl"])
def test_pickles_are_refused_with_a_hint(tmp_path, name):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / name).write_bytes(b"\x80\x04.")
    for source in (folder, folder / name):
        with pytest.raises(PrudentError, match=r"is a pickle.*save_file"):
            RewardModel.load(source)
    with pytest.raises(PrudentError, match="is a pickle"):
        HeadEnsemble.load(folder)


def test_weights_that_are_not_finite_are_not_saved(ensemble, tmp_path):
    ensemble.weights[0, 0] = torch.inf
    with pytest.raises(PrudentError, match="not saved"):
        ensemble.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_folders_move(ensemble, folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert torch.equal(HeadEnsemble.load(tmp_path / "elsewhere").weights, ensemble.weights)
