"""Saved reward models that someone changed: whatever is missing, of another kind or cut short is one clear error.

Every change is tried on every family below. A change that alters nothing that scores depend on (a note in ``info``) may
load, and must then give the very scores that were saved.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from prudent import PrudentError, RewardModel
from prudent.files import hash_file
from prudent.rewards import artefact
from prudent.rewards.artefact import CARD, GOLDEN, WEIGHTS
from prudent.rewards.quantiles import QuantileModel

FAMILIES = ("heads", "laplace", "last-layer", "network-laplace", "mlp", "dropout", "novelty", "quantile")
WRONG = (None, True, -1, 1.5, "x", [], {}, [[]], [["a"]], {"a": None}, [1e400])
ENCODER = {
    "model": "smollm2",
    "pooling": "last",
    "max_length": 64,
    "dtype": "float32",
    "layer": None,
    "fingerprint": "0" * 64,
}


def fitted(family):
    chosen, rejected = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    if family == "quantile":
        return QuantileModel.fit(chosen, chosen[:, :2], epochs=2, count=3)
    kind = artefact.family_class(family)
    options = {"epochs": 2, "width": 4} if family in ("mlp", "dropout", "last-layer", "network-laplace") else {}
    return kind.fit(chosen + 0.3, rejected, members=3, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """(folder of a saved model, its scores of the probes)."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    scorer = fitted(request.param)
    artefact.save(folder, scorer, encoder=ENCODER, texts=torch.zeros(scorer.members, 8) + 1)
    return folder, scorer.scores(**scorer.probes())


def outcome(folder, wanted):
    """ "named", or "harmless" where the model loads and scores as it did; any other end fails the test."""
    try:
        found = RewardModel.load(folder).scorer
    except PrudentError as error:
        assert str(folder) in str(error)
        return "named"
    assert torch.allclose(found.scores(**load_file(folder / GOLDEN)), wanted, rtol=1e-4, atol=1e-5)
    return "harmless"


def changed_cards(card):
    """(what, card, whether it must be refused) for every field of a card missing and of every wrong kind."""
    places = [
        (),
        ("encoder",),
        ("config",),
        *((("config", k)) for k, v in card["config"].items() if isinstance(v, dict)),
    ]
    for place in places:
        inside = card
        for key in place:
            inside = inside[key]
        for name in inside or ():  # a family that reads text names no encoder
            strict = place in ((), ("encoder",)) and name not in ("layer",)
            copy = json.loads(json.dumps(card))
            target = copy
            for key in place:
                target = target[key]
            del target[name]
            yield f"without {place} {name}", copy, strict or place == ("encoder",)
            for value in WRONG:
                copy = json.loads(json.dumps(card))
                target = copy
                for key in place:
                    target = target[key]
                if target[name] == value and type(target[name]) is type(value):
                    continue
                target[name] = value
                allowed = (place == ("encoder",) and isinstance(value, str)) or (name == "encoder" and value is None)
                yield f"{place} {name} = {value!r}", copy, strict and not allowed


def test_every_changed_card_is_named(saved, tmp_path):
    folder, wanted = saved
    card = json.loads((folder / CARD).read_text())
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    counts = {"named": 0, "harmless": 0}
    for what, changed, strict in changed_cards(card):
        (copy / CARD).write_text(json.dumps(changed))
        found = outcome(copy, wanted)
        assert found == "named" or not strict, what
        counts[found] += 1
    assert counts["named"] > 150, counts


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '"x"', "{}", "[" * 100_000, '{"format": 1', "\x00"])
@pytest.mark.parametrize("name", [CARD, "manifest.json"])
def test_files_that_hold_something_else_are_named(saved, tmp_path, name, text):
    folder, wanted = saved
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / name).write_text(text)
    harmless = name == "manifest.json" and text == "{}"
    assert outcome(copy, wanted) == ("harmless" if harmless else "named")


@pytest.mark.parametrize("name", [CARD, "manifest.json", WEIGHTS, GOLDEN])
@pytest.mark.parametrize("how", ["gone", "empty", "half", "a byte less", "folder", "not text"])
def test_files_that_are_cut_or_gone_are_named(saved, tmp_path, name, how):
    folder, wanted = saved
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    data = (copy / name).read_bytes().rstrip()
    (copy / name).unlink()
    if how == "folder":
        (copy / name).mkdir()
    elif how != "gone":
        kept = {"empty": b"", "half": data[: len(data) // 2], "a byte less": data[:-1], "not text": b"\xff\xfe" + data}
        (copy / name).write_bytes(kept[how])
    assert outcome(copy, wanted) == "named"


@pytest.mark.parametrize("file", [WEIGHTS, GOLDEN])
@pytest.mark.parametrize("how", ["missing", "wider", "flat", "empty", "nan", "int64", "bfloat16", "float16", "doubled"])
def test_other_tensors_are_named_even_with_a_matching_hash(saved, tmp_path, file, how):
    folder, wanted = saved
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / file)
    changes = {
        "wider": lambda t: torch.cat([t, t], -1),
        "flat": lambda t: t.reshape(-1)[None],
        "empty": lambda t: t[:0],
        "nan": lambda t: torch.full_like(t, torch.nan),
        "int64": lambda t: (t * 10).long(),
        "bfloat16": lambda t: t.bfloat16(),
        "float16": lambda t: t.half(),
        "doubled": lambda t: t * 2,
    }
    for name in tensors:
        changed = dict(tensors)
        if how == "missing":
            del changed[name]
        else:
            changed[name] = changes[how](tensors[name]).contiguous()
        save_file(changed, copy / file)
        card = json.loads((folder / CARD).read_text())
        card["hashes"] = {WEIGHTS: hash_file(copy / WEIGHTS)}
        if file == WEIGHTS:
            card["tensors"] = {key: list(tensor.shape) for key, tensor in changed.items()}
        (copy / CARD).write_text(json.dumps(card))
        try:
            RewardModel.load(copy)
        except PrudentError as error:
            assert str(error).strip()
        else:  # what loads gives the scores that were saved
            scorer = RewardModel.load(copy).scorer
            assert torch.allclose(scorer.scores(**load_file(folder / GOLDEN)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["golden", "golden_texts"])
def test_a_proof_cannot_be_stripped(saved, tmp_path, name):
    folder, _ = saved
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    card = json.loads((copy / CARD).read_text())
    del card[name]
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(PrudentError, match=f"lacks '{name}'"):
        RewardModel.load(copy)
