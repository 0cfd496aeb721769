"""Models from elsewhere: adapter folders, pad ids that an embedding doesn't hold, ids with the hub unreachable."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.field.test_items import classifier_with, last_json, pairs, run, write
from tests.tiny import TEMPLATE, tiny_causal_lm, tiny_tokenizer

from prudent import hub
from prudent.errors import PrudentError
from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.features.sampling import sample
from prudent.rewards.model import RewardModel

TEXTS = (["ask one", "ask two", "ask three"], ["yes", "a longer answer of more words", "no"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_with(TEMPLATE, tmp_path_factory.mktemp("base"))


def adapter_of(folder: Path, base: Path, task: str, head: bool = True) -> torch.nn.Module:
    """Save a LoRA adapter whose weights are not zero; the model with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(1)
    if task == "SEQ_CLS":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    model.config.pad_token_id = 3
    placed = get_peft_model(model, LoraConfig(task_type=task, r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in placed.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.normal_(std=0.3)
    placed.save_pretrained(folder)
    if not head:
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        save_file({name: w for name, w in load_file(file).items() if "score" not in name}, file)
    return placed.eval()


def test_an_adapter_folder_is_a_reward_model_with_its_own_head(tmp_path: Path, base: Path) -> None:
    placed = adapter_of(tmp_path / "rm", base, "SEQ_CLS")
    model = RewardModel.load(tmp_path / "rm")
    found = model.score(*TEXTS)[0]
    renderer = model.renderer()
    for text, score in zip(renderer.conversations(*TEXTS), found):
        with torch.no_grad():
            wanted = placed(input_ids=torch.tensor([text.ids])).logits[0, 0]
        assert float(score) == pytest.approx(float(wanted), rel=1e-4)
    assert float((found - RewardModel.load(base).score(*TEXTS)[0]).abs().max()) > 0.01
    data = write(tmp_path / "pairs.jsonl", pairs(6))
    done = last_json(run("evaluate", "preferences", "--model", tmp_path / "rm", "--data", data, "--json"))
    assert done["models"][0]["items"] == 6


def test_an_adapter_whose_head_was_not_saved_is_refused_by_that_name(tmp_path: Path, base: Path) -> None:
    adapter_of(tmp_path / "rm", base, "SEQ_CLS", head=False)
    adapter_of(tmp_path / "lm", base, "CAUSAL_LM")
    for name in ("rm", "lm"):
        with pytest.raises(PrudentError, match="was saved without its reward head"):
            RewardModel.load(tmp_path / name)


def test_faults_of_adapter_folders_are_named(tmp_path: Path, base: Path) -> None:
    adapter_of(tmp_path / "rm", base, "SEQ_CLS")
    with pytest.raises(PrudentError, match="is of a classifier"):
        load_language_model(tmp_path / "rm")
    config = tmp_path / "rm" / "adapter_config.json"
    given = json.loads(config.read_text())
    for change, said in (
        ({"base_model_name_or_path": "/nowhere/base"}, "is not there; correct base_model_name_or_path"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
    ):
        config.write_text(json.dumps({**given, **change}))
        with pytest.raises(PrudentError, match=said):
            RewardModel.load(tmp_path / "rm")
    config.write_text(json.dumps(given))
    (tmp_path / "rm" / "adapter_model.safetensors").rename(tmp_path / "rm" / "adapter_model.bin")
    with pytest.raises(PrudentError, match="is a pickle"):
        RewardModel.load(tmp_path / "rm")
    (tmp_path / "rm" / "adapter_model.bin").unlink()
    with pytest.raises(PrudentError, match=r"holds no adapter_model\.safetensors"):
        RewardModel.load(tmp_path / "rm")


def test_an_adapter_that_lost_some_of_its_tensors_is_refused(tmp_path: Path, base: Path) -> None:
    """PEFT begins them anew and only warns: as a reward model and as a policy it would be another one."""
    from safetensors.torch import load_file, save_file

    tiny_causal_lm(tmp_path / "lm-base")
    adapter_of(tmp_path / "rm", base, "SEQ_CLS")
    adapter_of(tmp_path / "lm", tmp_path / "lm-base", "CAUSAL_LM")
    for name, load in (("rm", RewardModel.load), ("lm", load_language_model)):
        load(tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        tensors = load_file(file)
        del tensors[next(key for key in tensors if "lora_B" in key)]
        save_file(tensors, file)
        with pytest.raises(PrudentError, match=r"of LoRA's tensors.*missing: .*lora_B.*copy both files again"):
            load(tmp_path / name)


def test_an_adapter_is_a_policy(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "base")
    adapter_of(tmp_path / "policy", tmp_path / "base", "CAUSAL_LM")
    texts = []
    for name in ("base", "policy"):
        model, tokenizer = load_language_model(tmp_path / name, dtype="float32")
        texts.append(sample(model, tokenizer, ["ask"], samples=4, max_new_tokens=8, seed=0, progress=False))
    assert texts[0] != texts[1]


def with_late_pad(folder: Path) -> None:
    """Give a saved model's tokenizer a pad token that was added after training: its embedding doesn't hold it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 260
    tokenizer.save_pretrained(folder)


def test_a_pad_id_beyond_the_embedding_changes_nothing(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "lm")
    rm = classifier_with(TEMPLATE, tmp_path / "rm")
    found: list[list[Any]] = []
    for late in (False, True):
        if late:
            with_late_pad(tmp_path / "lm")
            with_late_pad(rm)
        features = Encoder(tmp_path / "lm", dtype="float32", cache=False, progress=False).encode(*TEXTS)
        model, tokenizer = load_language_model(tmp_path / "lm", dtype="float32")
        texts = sample(model, tokenizer, ["a", "much longer"], samples=3, max_new_tokens=8, seed=0, progress=False)
        found.append([features, RewardModel.load(rm).score(*TEXTS), texts])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
    data = write(tmp_path / "pairs.jsonl", pairs(6))
    for spec in (f"dpo:{tmp_path / 'lm'},{tmp_path / 'lm'}", f"judge:{tmp_path / 'lm'}", str(rm)):
        assert run("evaluate", "preferences", "--model", spec, "--data", data, "--json").exit_code == 0
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "see [PAD]"}])
    refused = run("score", "--model", rm, "--data", rows, "--output", tmp_path / "s.jsonl")
    assert refused.exit_code == 2 and "line 2: not-scored: token '[PAD]' (260) isn't in the model's" in refused.output


def test_a_text_longer_than_an_encoder_s_context_is_cut_there(tmp_path: Path) -> None:
    model, tokenizer = tiny_causal_lm()
    encoder = Encoder((model, tokenizer), max_length=4096, cache=False, progress=False)
    encoder.encode(["a" * 3000], ["b"])
    assert encoder.stats.truncated == 1 and encoder.renderer.max_length == 2048


@pytest.mark.parametrize(
    "words",
    [
        ["score", "--model", "nobody/nothing", "--data", "ROWS", "--output", "OUT"],
        ["fit", "--preferences", "nobody/nothing", "--out", "OUT"],
        ["fit", "--preferences", "PAIRS", "--model", "nobody/nothing", "--out", "OUT"],
        ["evaluate", "preferences", "--data", "PAIRS", "--model", "prm:nobody/nothing"],
        ["evaluate", "preferences", "--data", "PAIRS", "--model", "judge:nobody/nothing"],
    ],
)
def test_an_id_that_is_not_there_ends_at_once_where_the_hub_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from huggingface_hub import constants

    def refuse(*given: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub, "_answers", {})
    files = {
        "ROWS": write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}]),
        "PAIRS": write(tmp_path / "pairs.jsonl", pairs(4)),
        "OUT": str(tmp_path / "out"),
    }
    began, processor = time.monotonic(), time.process_time()
    done = run(*(files.get(word, word) for word in words))
    assert done.exit_code == 2 and "nobody/nothing" in done.output
    assert "it can't be reached from here" in done.output and "hub id" in done.output
    assert time.monotonic() - began < 20 and time.process_time() - processor < 10  # 1 to 3 s alone
    assert constants.HF_HUB_OFFLINE is False
