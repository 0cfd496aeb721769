"""Saved reward models that read text (trained transformers, outside models): whatever is changed is one clear error."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.rewards.test_tampered import changed_cards
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from prudent import PrudentError, RewardModel, read_preferences
from prudent.files import hash_file
from prudent.rewards.artefact import CARD, WEIGHTS
from prudent.rewards.families import fit_reward_model

FAMILIES = {"singles": {"layers": 1}, "linear": {"layers": 1}, "lora": {"layers": 1, "rank": 2}, "external": {}}
KINDS = ("without", "= None", "= -1", "= 'x'", "= [['a']]")  # of the changes that are tried


def scores(folder):
    return RewardModel.load(folder).score(["ask", "name"], ["yes", "no"])


def outside(folder, seed):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=3, initializer_range=0.2, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """(family, folder of a saved model, folder of the model beneath, scores)."""
    root = tmp_path_factory.mktemp(request.param)
    rows = [{"prompt": f"ask {i}", "chosen": f"yes {i}", "rejected": f"no {i * 7 % 5}"} for i in range(6)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data, beneath = read_preferences(root / "pairs.jsonl"), root / "beneath"
    if request.param == "external":
        options = {"models": (outside(beneath, 0), outside(root / "other", 1))}
    else:
        tiny_causal_lm(beneath, layers=2)
        options = {"model": str(beneath), "members": 2, "epochs": 1}
    fit_reward_model(data, request.param, **options, **FAMILIES[request.param]).save(root / "model")
    return request.param, root / "model", beneath, scores(root / "model")


@pytest.fixture
def copied(saved, tmp_path):
    """As ``saved``, of a copy that may be changed; the model beneath is put back at the end."""
    family, folder, beneath, wanted = saved
    shutil.copytree(folder, tmp_path / "model")
    shutil.copytree(beneath, tmp_path / "kept")
    yield family, tmp_path / "model", beneath, wanted
    shutil.rmtree(beneath)
    shutil.copytree(tmp_path / "kept", beneath)


def named(folder):
    with pytest.raises(PrudentError) as caught:
        scores(folder)
    text = str(caught.value)
    assert text.strip() and len(text) < 3000
    return text


def test_every_changed_card_is_named(copied):
    _, folder, _, wanted = copied
    card = json.loads((folder / CARD).read_text())
    counts = {"named": 0, "harmless": 0}
    for what, changed, strict in changed_cards(card):
        if "'info'" in what or not any(kind in what for kind in KINDS):
            continue  # what a report says of the training; other values of the same kinds
        (folder / CARD).write_text(json.dumps(changed))
        try:
            found = scores(folder)
        except PrudentError as error:
            assert str(error).strip(), what
            counts["named"] += 1
        else:
            assert not strict and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5), what
            counts["harmless"] += 1
    assert counts["named"] > 40, counts


@pytest.mark.parametrize("how", ["gone", "other"])
def test_a_proof_cannot_be_stripped(copied, how):
    _, folder, _, _ = copied
    card = json.loads((folder / CARD).read_text())
    if how == "gone":
        del card["golden_texts"]
    else:
        card["golden_texts"] = [[value + 1 for value in row] for row in card["golden_texts"]]
    (folder / CARD).write_text(json.dumps(card))
    assert ("lacks 'golden_texts'" if how == "gone" else "probe text") in named(folder)


@pytest.mark.parametrize("how", ["gone", "empty", "half", "missing", "wider", "nan", "doubled"])
def test_changed_weights_are_named(copied, how):
    family, folder, _, _ = copied
    path = folder / WEIGHTS
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how in ("empty", "half"):
        path.write_bytes(data[: len(data) // 2] if how == "half" else b"")
    elif family == "external":
        save_file({"more": torch.zeros(1)}, path)  # such a model has no weights of its own
    else:
        tensors = load_file(path)
        name = max(tensors, key=lambda key: tensors[key].numel())
        changed = {
            "missing": {},
            "wider": {name: torch.cat([tensors[name]] * 2, -1)},
            "nan": {name: torch.full_like(tensors[name], torch.nan)},
            "doubled": {key: tensor * 2 + 0.1 for key, tensor in tensors.items()},
        }[how]
        tensors = {key: tensor for key, tensor in tensors.items() if key != name or changed} | changed
        save_file(tensors, path)
        card = json.loads((folder / CARD).read_text())  # someone who changes weights changes the card with them
        card["hashes"] = {WEIGHTS: hash_file(path)}
        card["tensors"] |= {key: list(tensor.shape) for key, tensor in tensors.items()}
        (folder / CARD).write_text(json.dumps(card))
    named(folder)


@pytest.mark.parametrize("how", ["gone", "half", "nan", "other", "pickle", "code"])
def test_a_changed_model_beneath_is_named(copied, capfd, how):
    family, folder, beneath, wanted = copied
    path = beneath / "model.safetensors"
    tensors = load_file(path)
    if how == "gone":
        shutil.rmtree(beneath)
        beneath.mkdir()
    elif how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "pickle":
        torch.save(tensors, beneath / "pytorch_model.bin")
        path.unlink()
    elif how == "code":
        (beneath / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        config = json.loads((beneath / "config.json").read_text())
        own = dict.fromkeys(("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "own.Model")
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", **own}}
        (beneath / "config.json").write_text(json.dumps(config))
    else:
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.mul_(torch.nan if how == "nan" else -1.5)
        save_file(tensors, path, metadata={"format": "pt"})
    capfd.readouterr()
    if how == "other" and family == "lora":  # phase one trained its base, which is saved whole: nothing beneath is read
        assert torch.allclose(scores(folder), wanted, rtol=1e-4, atol=1e-5)
        return
    text = named(folder)
    assert how != "pickle" or "is a pickle" in text
    assert how != "nan" or "not finite" in text
    assert capfd.readouterr().out == "" and not (folder / "ran").exists()
