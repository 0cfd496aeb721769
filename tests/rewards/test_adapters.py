import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaAttention

from prudent import PrudentError, RewardModel
from prudent.features.models import load_language_model
from prudent.rewards.artefact import WEIGHTS
from prudent.rewards.beside import Beside, PoolSampler
from prudent.rewards.training import member_seeds
from prudent.rewards.transformers.ensembles import fit_transformers, parameter_counts
from prudent.rewards.transformers.external import padded
from prudent.rewards.transformers.finetuning import prepare
from prudent.rewards.transformers.network import EnsembleModel, decoder_layers, keep_lower
from prudent.rewards.transformers.trainer import explain_memory, last_checkpoint
from prudent.seeding import spawn

LORA = {"kind": "lora", "phase_one": 0.0, "layers": 1, "rank": 2, "dtype": "float32"}


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def preferences(n: int = 10):
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": turn("user", f"ask {row}"),
                "chosen": turn("assistant", "good " * (row % 3 + 1)),
                "rejected": turn("assistant", "bad " * (row % 2 + 1)),
                "row": row + 1,
                "weight": 1.0 + row % 2,
                "margin": 0.1 * (row % 3),
            }
            for row in range(n)
        ]
    )


def fit(folder, data=None, **options):
    options = {"kind": "linear", "members": 2, "batch_size": 4, "learning_rate": 1e-2, "dtype": "float32", **options}
    return fit_transformers(data if data is not None else preferences(), str(folder), **options)


def score(ensemble, data=None):
    data = data if data is not None else preferences()
    return ensemble.score(data["prompt"], data["chosen"])


@pytest.mark.parametrize("options", [{"kind": "singles"}, {"kind": "linear"}, {**LORA, "phase_one": 0.5}])
def test_each_architecture_learns_and_comes_back_from_disk(tiny_folder, tmp_path, options):
    data = preferences()
    ensemble = fit(tiny_folder, epochs=8, **options)
    chosen, rejected = score(ensemble), ensemble.score(data["prompt"], data["rejected"])
    assert float((chosen > rejected).float().mean()) > 0.8
    assert float((torch.stack([chosen, rejected]).mean((0, 2))).abs().max()) < 1e-4  # every member's origin
    RewardModel(ensemble).save(tmp_path / "model")
    again = RewardModel.load(tmp_path / "model").score(list(data["prompt"]), list(data["chosen"]))
    assert torch.allclose(again, chosen, atol=1e-6)


def test_a_new_process_gives_the_same_scores_whatever_its_seed(tiny_folder, tmp_path):
    """R14: nothing is drawn afresh when a model is loaded."""
    ensemble = fit(tiny_folder, **LORA)
    RewardModel(ensemble).save(tmp_path / "model")
    code = (
        "import json, sys, torch; from prudent import RewardModel\n"
        "for seed in (1, 2):\n"
        "    torch.manual_seed(seed)\n"
        "    print(json.dumps(RewardModel.load(sys.argv[1]).score(*json.loads(sys.argv[2])).tolist()))"
    )
    data = preferences(4)
    rows = json.dumps([list(data["prompt"]), list(data["chosen"])])
    command = [sys.executable, "-c", code, str(tmp_path / "model"), rows]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        assert torch.allclose(torch.tensor(json.loads(line)), score(ensemble, data), atol=1e-6)


def test_missing_head_stops_the_load_by_name(tiny_folder, tmp_path):
    RewardModel(fit(tiny_folder, **LORA)).save(tmp_path / "model")
    weights = load_file(tmp_path / "model" / WEIGHTS)
    for name in ("heads", next(name for name in weights if "member1" in name)):
        save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model" / WEIGHTS)
        with pytest.raises(PrudentError, match=name.replace(".", r"\.")):
            RewardModel.load(tmp_path / "model")


def test_adapters_trained_together_equal_each_alone(tiny_folder):
    seeds = member_seeds(3, 3)
    joint = score(fit(tiny_folder, members=3, seed=seeds, epochs=2, **LORA))
    for member in (1, 2):
        alone = score(fit(tiny_folder, members=2, seed=[seeds[0], seeds[member]], epochs=2, **LORA))
        assert float((alone[1] - joint[member]).abs().max()) < 1e-5
    assert float(joint.var(0).min()) > 0


def test_shared_lower_layers_change_nothing(tiny_folder):
    language_model, _ = load_language_model(tiny_folder, dtype="float32")
    model = EnsembleModel(language_model.base_model, spawn(0, 3))
    model.add_adapters(spawn(0, 3), rank=2, alpha=4, layers=1, targets=["q_proj", "down_proj"])
    for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
        torch.nn.init.normal_(parameter)
    ids, mask = padded([[5, 6, 7, 8], [9, 10]], 0)
    gradients, scores = [], []
    for share in (True, False):
        model.share_lower = share
        model.zero_grad()
        found = model.scores(ids, mask)
        found.sin().sum().backward()
        scores.append(found.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients))
    calls = []
    decoder_layers(model.backbone)[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.share_lower = True
    model.scores(ids, mask)
    assert len(calls) == 1


def test_untrained_blocks_are_computed_once_for_all_members_and_epochs(tiny_folder, monkeypatch):
    options = {"kind": "singles", "layers": 1, "epochs": 2}
    calls = []
    forward = LlamaAttention.forward
    monkeypatch.setattr(
        LlamaAttention, "forward", lambda self, *a, **b: (calls.append(self.layer_idx), forward(self, *a, **b))[1]
    )
    seeds = member_seeds(5, 2)
    joint = score(fit(tiny_folder, members=2, seed=seeds, **options))
    lower, trained = calls.count(0), calls.count(2)
    assert calls.count(1) == lower < trained / 4  # of three blocks the last is trained
    for place in ("finetuning", "ensembles"):
        monkeypatch.setattr(f"prudent.rewards.transformers.{place}.keep_lower", lambda *given: None)
    alone = score(fit(tiny_folder, members=1, seed=seeds[1:], **options))
    assert calls.count(0) - lower == calls.count(2) - trained
    assert torch.allclose(alone[0], joint[1], atol=1e-6)


def test_kept_states_stay_within_their_room_and_out_of_dropout(tiny_folder):
    model = EnsembleModel(load_language_model(tiny_folder, dtype="float32")[0].base_model, spawn(0, 1))
    model.train_layers(1)
    texts = [[5, 6, 7, 8], [9, 10], [11, 12]]
    keep_lower(model, texts, room=0)
    assert not model.kept
    model.backbone.config.attention_dropout = 0.1
    keep_lower(model, texts)
    assert not model.kept
    model.backbone.config.attention_dropout = 0.0
    plain = model.scores(*padded(texts, 0))
    keep_lower(model, texts)
    assert sorted(len(states) for states in model.kept.values()) == [2, 2, 4]
    assert torch.allclose(model.scores(*padded(texts, 0)), plain, atol=1e-6)
    for states in model.kept.values():
        states.zero_()
    assert not torch.allclose(model.scores(*padded(texts, 0)), plain, atol=1e-3)  # they are what is used


def test_fresh_adapters_give_the_base_and_leave_it_as_it_is(tiny_folder):
    """Section 7 (c)."""
    language_model, _ = load_language_model(tiny_folder, dtype="float32")
    before = {name: tensor.clone() for name, tensor in language_model.base_model.named_parameters()}
    plain = EnsembleModel(language_model.base_model, spawn(0, 2))
    ids, mask = padded([[5, 6, 7, 8], [9, 10]], 0)
    wanted = plain.represent(ids, mask)
    plain.add_adapters(spawn(0, 2), rank=2, alpha=4, layers=2, targets=None)
    assert torch.equal(plain.represent(ids, mask), wanted.expand(2, -1, -1))
    ensemble = fit(tiny_folder, epochs=2, **LORA)
    assert not any(name.startswith("backbone.") and "lora_" not in name for name in ensemble.tensors)
    model, _ = ensemble._open()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.backbone.named_parameters()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_parameter_counts(tiny_folder):
    """Section 7 (a), and the same arithmetic on a real model."""
    assert [parameter_counts(kind, 1000, 11, 40, 3) for kind in ("singles", "linear", "lora")] == [3033, 1033, 1153]
    counts = fit(tiny_folder, **LORA).info["parameters"]
    assert counts["total"] == counts["backbone"] + 2 * (counts["head"] + counts["adapter"])


class Stop(Exception):
    """What a killed process looks like to the code that runs in it."""


def test_a_stopped_run_goes_on_where_it_was(tiny_folder, tmp_path):
    def sampler(stop_at):
        def sample(step):
            if step == stop_at:
                raise Stop
            return [turn("user", "ask")], [["one", "two"]]

        return sample

    options = {**LORA, "epochs": 4, "meta_rate": 0.1}
    whole = score(fit(tiny_folder, sampler=sampler(None), **options))
    with pytest.raises(Stop):
        fit(tiny_folder, sampler=sampler(8), checkpoints=tmp_path / "kept", **options)
    checkpoint = last_checkpoint(tmp_path / "kept" / "phase-two")
    assert checkpoint is not None and checkpoint.endswith("-6")
    kept = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert all(name.endswith((".json", ".safetensors")) for name in kept)
    again = fit(tiny_folder, sampler=sampler(None), checkpoints=tmp_path / "kept", **options)
    assert torch.equal(score(again), whole)
    (tmp_path / "kept" / "phase-two" / "checkpoint-99").mkdir()  # half written: no last file
    assert "99" not in str(last_checkpoint(tmp_path / "kept" / "phase-two"))


def test_no_meta_rate_is_ordinary_training(tiny_folder):
    def sample(step):
        return [turn("user", "ask")], [["one", "two", "three"]]

    plain, still, moved = (
        score(fit(tiny_folder, sampler=sampler, meta_rate=rate, **LORA))
        for sampler, rate in ((None, 0.0), (sample, 0.0), (sample, 5.0))
    )
    assert torch.equal(plain, still) and not torch.equal(plain, moved)


@pytest.mark.parametrize("options", [{"kind": "singles"}, LORA])
def test_averaged_weights_are_one_member(tiny_folder, tmp_path, options):
    ensemble = fit(tiny_folder, epochs=4, **options)
    average = ensemble.averaged()
    found = score(average)
    assert found.shape[0] == 1
    # the same from merged weights: base plus the mean change of every map
    _, tokenizer = ensemble._open()
    language_model, _ = load_language_model(tiny_folder, dtype="float32")
    plain = EnsembleModel(language_model.base_model, spawn(0, 1))
    with torch.no_grad():
        if options["kind"] == "singles":
            for name, parameter in plain.named_parameters():
                parameter.copy_(sum(ensemble.tensors[f"member{k}.{name}"] for k in range(2)) / 2)
        else:
            plain.heads.copy_(ensemble.tensors["heads"].mean(0, keepdim=True))
            for name, parameter in plain.backbone.named_parameters():
                stem = f"backbone.{name.removesuffix('.weight')}"
                if f"{stem}.lora_A.member0.weight" in ensemble.tensors:
                    for k in range(2):
                        down, up = (ensemble.tensors[f"{stem}.lora_{side}.member{k}.weight"] for side in "AB")
                        parameter += (16.0 / 2) * (up @ down) / 2
    data = preferences()
    examples, _ = prepare(data, tokenizer, 512)
    ids, mask = padded([example["chosen"] for example in examples], 0)
    assert torch.allclose(plain.scores(ids, mask)[0], found[0], atol=1e-5)
    RewardModel(average).save(tmp_path / "average")
    assert torch.allclose(
        RewardModel.load(tmp_path / "average").score(data["prompt"], data["chosen"]), found, atol=1e-6
    )


def test_linear_heads_on_one_backbone_can_not_be_averaged(tiny_folder):
    with pytest.raises(PrudentError, match="singles or lora"):
        fit(tiny_folder).averaged()


@pytest.mark.parametrize("kind", ["simcse", "swav"])
def test_contrastive_terms_and_bootstrap_rows_change_training(tiny_folder, kind):
    plain = score(fit(tiny_folder))
    assert not torch.equal(score(fit(tiny_folder, contrastive=kind, contrastive_on="difference")), plain)
    assert not torch.equal(score(fit(tiny_folder, diversity="bootstrap")), plain)
    assert not any("prototypes" in name for name in fit(tiny_folder, contrastive=kind, **LORA).tensors)


def test_top_layers_alone_are_trained_and_kept(tiny_folder):
    ensemble = fit(tiny_folder, layers=1)
    assert {name.split(".")[2] for name in ensemble.tensors if ".layers." in name} == {"2"}


def test_pairs_equal_after_truncation_are_left_out_and_counted(tiny_folder):
    from datasets import Dataset

    same = "the same beginning " * 10
    late = [
        {
            "prompt": turn("user", "q"),
            "chosen": turn("assistant", same + "a"),
            "rejected": turn("assistant", same + "b"),
        }
    ]
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in preferences(6)]
    data = Dataset.from_list(rows + late)
    assert fit(tiny_folder, data, max_length=100).info["identical_after_truncation"] == 1
    assert fit(tiny_folder, data, max_length=512).info["identical_after_truncation"] == 0
    with pytest.raises(PrudentError, match="identical after truncation at 100"):
        fit(tiny_folder, Dataset.from_list(late), max_length=100)


def test_pool_sampler_repeats_by_step(tmp_path):
    from prudent.data.pools import Pool

    pool = Pool(
        [turn("user", str(i)) for i in range(9)], [[f"{i}a", f"{i}b"] for i in range(9)], None, list("abcdefghi")
    )
    sample = PoolSampler(Beside("meta_pool", "pool.jsonl", pool, "raise", []), 3, seed=1)
    assert sample(4) == sample(4) and sample(4) != sample(5) and len(sample(0)[0]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_learning_rate": 1e38, "epochs": 3}, r"the loss is (nan|inf) at step \d"),
        ({"kind": "pairs"}, "singles, linear, lora"),
        ({**LORA, "phase_one": 1.0}, "phase_one"),
        ({**LORA, "layers": 9}, "3 blocks"),
        ({**LORA, "targets": ["w_proj"]}, "no linear map named w_proj"),
    ],
)
def test_bad_options_are_named(tiny_folder, options, message):
    with pytest.raises(PrudentError, match=message):
        fit(tiny_folder, **options)


def test_out_of_memory_says_what_to_lower():
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert "lower --batch-size" in str(explain_memory(error, 8, 512, 3))
    assert explain_memory(RuntimeError("shape mismatch"), 8, 512, 3) is None
