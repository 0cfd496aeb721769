"""Models from elsewhere that are cut short, of another width or hold NaN are named on load, whatever they are for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from prudent.errors import PrudentError
from prudent.evaluation.benchmarks.scorers import Options, token_classifier
from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.policies.answer_groups import entailment_test
from prudent.rewards.model import RewardModel

WEIGHTS = "model.safetensors"


ENTAILS = {0: "contradiction", 1: "entailment"}
HEADED = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


def headed(folder, kind, labels, names=None):
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    named = {"num_labels": labels} if names is None else {"id2label": names}
    kind(LlamaConfig(vocab_size=len(tokenizer), **named, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS = {
    "policy or judge": (tiny_causal_lm, load_language_model),
    "encoder": (tiny_causal_lm, Encoder),
    "reward model": (lambda folder: headed(folder, LlamaForSequenceClassification, 1), RewardModel.load),
    "process model": (
        lambda folder: headed(folder, LlamaForTokenClassification, 2),
        lambda name: token_classifier(name, Options()),
    ),
    "NLI model": (lambda folder: headed(folder, LlamaForSequenceClassification, 2, ENTAILS), entailment_test),
}


def spoilt(what, folder, how):
    """A folder of such a model with this done to it, and its loader."""
    make, load = MAKERS[what]
    make(folder)
    config = json.loads((folder / "config.json").read_text())
    if how == "code of its own":
        (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        own = {"AutoConfig": "own.Own", **dict.fromkeys(("AutoModelForCausalLM", *HEADED), "own.OwnModel")}
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    elif how == "a tokenizer's own code":
        file = folder / "tokenizer_config.json"
        (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
        settings = json.loads(file.read_text()) | {
            "tokenizer_class": "Own",
            "auto_map": {"AutoTokenizer": ["own.Own", None]},
        }
        file.write_text(json.dumps(settings))
    elif how == "pickle":
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
    else:
        tensors = load_file(folder / WEIGHTS)
        del tensors[next(key for key in tensors if "mlp" in key)]
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return load


@pytest.mark.parametrize("how", ["code of its own", "a tokenizer's own code", "pickle", "missing"])
@pytest.mark.parametrize("what", MAKERS)
def test_no_loader_runs_code_reads_pickles_or_draws_weights(tmp_path, capfd, monkeypatch, what, how):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    folder = tmp_path / "model"
    load = spoilt(what, folder, how)
    with pytest.raises(PrudentError) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (folder / "ran").exists() and capfd.readouterr().out == ""
    assert {"pickle": "is a pickle", "missing": "are missing"}.get(how, "") in str(caught.value)


@pytest.mark.parametrize("how", ["truncated", "empty", "wider", "nan", "infinite"])
@pytest.mark.parametrize("what", MAKERS)
def test_damaged_weights_are_named_on_load(tmp_path, what, how):
    make, load = MAKERS[what]
    folder = tmp_path / "model"
    make(folder)
    load(str(folder))  # whole, it loads
    data = (folder / WEIGHTS).read_bytes()
    if how in ("truncated", "empty"):
        (folder / WEIGHTS).write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    elif how == "wider":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    else:
        tensors = load_file(folder / WEIGHTS)
        name = next(key for key in tensors if "mlp" in key)
        tensors[name][0, 0] = torch.nan if how == "nan" else torch.inf
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PrudentError, match=str(folder)) as caught:
        load(str(folder))
    assert how in ("truncated", "empty", "wider") or "not finite" in str(caught.value)
