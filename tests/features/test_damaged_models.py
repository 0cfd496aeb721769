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
from prudent.rewards.model import RewardModel

WEIGHTS = "model.safetensors"


def headed(folder, kind, labels):
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    kind(LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS = {
    "policy or judge": (tiny_causal_lm, load_language_model),
    "encoder": (tiny_causal_lm, Encoder),
    "reward model": (lambda folder: headed(folder, LlamaForSequenceClassification, 1), RewardModel.load),
    "process model": (
        lambda folder: headed(folder, LlamaForTokenClassification, 2),
        lambda name: token_classifier(name, Options()),
    ),
}


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
