"""Several depths of one model in one pass, and the choice among them by held-out log loss."""

from __future__ import annotations

import json

import pytest
import torch
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.depth import layer_of
from prudent.data.preferences import read_preferences
from prudent.errors import PrudentError
from prudent.features.depths import blocks_of, depths_of, encode_depths, encoder_at, final_norm
from prudent.features.encoder import Encoder
from prudent.rewards import depth as depth_module
from prudent.rewards.depth import Depth, choose_depth, difference_of, shallowest
from prudent.rewards.model import RewardModel

PROMPTS = ["Name a hat."] * 3 + ["Name a sea and say where it is."] * 2 + ["Hi", "Ho"]
RESPONSES = ["cap", "a beret", "none", "Red Sea", "The Black Sea lies there.", "Hello you", "x"]


def bert() -> tuple:
    tokenizer = tiny_tokenizer(template=False)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False).eval(), tokenizer


def gpt2() -> tuple:
    tokenizer = tiny_tokenizer()
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


@pytest.mark.parametrize("pooling", ["last", "mean", "last+mean"])
@pytest.mark.parametrize("made", [tiny_causal_lm, gpt2, bert])
def test_one_pass_gives_the_bits_of_every_depth(made, pooling: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(made(), pooling=pooling, cache=None, progress=False)
    depths = list(range(1, blocks_of(encoder) + 1))
    found = encode_depths(encoder, PROMPTS, RESPONSES, depths)
    assert encoder.stats.encoded == len(PROMPTS)
    for depth, features in zip(depths, found, strict=True):
        assert torch.equal(features, encoder_at(encoder, depth).encode(PROMPTS, RESPONSES))
    assert torch.equal(found[-1], encoder.encode(PROMPTS, RESPONSES)), "nothing stays changed"


def test_depths_are_eighths_with_all_of_the_model() -> None:
    assert depths_of(30) == [4, 8, 12, 15, 19, 23, 27, 30] and depths_of(3) == [1, 2, 3] and depths_of(1) == [1]


def test_a_model_that_does_more_behind_its_blocks_is_refused_by_name() -> None:
    model, tokenizer = tiny_causal_lm()
    model.model.register_forward_hook(lambda body, given, out: type(out)(last_hidden_state=2 * out.last_hidden_state))
    encoder = Encoder((model, tokenizer), cache=None, progress=False)
    assert final_norm(encoder.body, 0) is None
    with pytest.raises(PrudentError, match="LlamaModel can't be read at several depths at once; give --layer N"):
        encode_depths(encoder, PROMPTS, RESPONSES, [1])


def test_the_shallowest_that_cannot_be_told_from_the_best_is_taken() -> None:
    groups = [row // 2 for row in range(40)]
    noise = torch.linspace(-0.1, 0.1, 40, dtype=torch.float64).roll(7)
    best = torch.full((40,), 0.5, dtype=torch.float64)
    assert shallowest([best + 0.2, best + noise, best], groups) == 1
    assert shallowest([best + 0.2, best + 0.1 + noise, best], groups) == 2
    assert shallowest([best, best], groups) == 0


def test_pairs_of_a_prompt_count_together_in_the_standard_error() -> None:
    one = torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    mean, error = difference_of(one, torch.zeros(4, dtype=torch.float64), ["a", "a", "b", "b"])
    assert mean == 2.0 and error == pytest.approx(1.0)  # two prompts of mean 1 and 3: their standard error
    assert difference_of(one, torch.zeros(4, dtype=torch.float64), range(4))[1] == pytest.approx((4 / 3) ** 0.5 / 2)


@pytest.fixture
def data(tmp_path):
    rows = [
        {"prompt": f"ask {row // 2}", "chosen": f"good {row} " * (row % 3 + 1), "rejected": f"bad {row % 7} b"}
        for row in range(40)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_choice_is_kept_with_its_features(data, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_preferences(str(data))
    encoder = Encoder(tiny_causal_lm(), pooling="mean", progress=False)
    chosen, depth = choose_depth(encoder, [pairs.select(range(10)), pairs.select(range(10, 40))], seed=3, pairs=24)
    assert [row["layer"] for row in depth.table] == [1, 2, 3] and depth.pairs == 24 and depth.blocks == 3
    assert depth.at(depth.layer)["log_loss"] - depth.at(3)["log_loss"] == pytest.approx(depth.difference)
    assert chosen.layer == depth.layer
    texts = list(pairs["prompt"]) * 2, [*pairs["chosen"], *pairs["rejected"]]
    features = chosen.encode(*texts)
    assert chosen.stats.cached == 48, "what was read for the choice isn't read again"
    plain = Encoder(tiny_causal_lm(), pooling="mean", layer=depth.layer, cache=None, progress=False)
    torch.testing.assert_close(features, plain.encode(*texts), atol=1e-5, rtol=0)
    monkeypatch.setattr(depth_module, "encode_depths", lambda *_: pytest.fail("read again"))
    parts = [pairs.select(range(10)), pairs.select(range(10, 40))]
    assert choose_depth(encoder, parts, seed=3, pairs=24)[1] == depth


def test_where_nothing_can_be_chosen_all_blocks_are_read_and_the_reason_is_given(data) -> None:
    pairs = read_preferences(str(data)).select(range(2))  # one prompt: nothing to hold out
    encoder = Encoder(tiny_causal_lm(), cache=None, progress=False)
    same, depth = choose_depth(encoder, [pairs])
    assert same is encoder and depth.layer == 3 and "at least 2 prompts" in depth.words(4)


def test_the_share_counts_the_choices_own_reading() -> None:
    depth = Depth(12, 30, 100)
    assert depth.share(1000) == pytest.approx((200 + 800 * 0.4) / 1000)
    assert depth.share(100) == 1.0


@pytest.mark.parametrize("text", ["0", "-1", "deep", "1.5", "20000"])
def test_other_layers_are_refused(text: str) -> None:
    with pytest.raises(PrudentError, match="--layer"):
        layer_of(text)


def test_numbers_all_and_auto() -> None:
    assert layer_of("12") == layer_of(12) == 12 and layer_of("all") is layer_of("auto") is None
    with pytest.raises(PrudentError, match="--layer auto isn't for this command"):
        layer_of("auto", chooses=False)


def test_fit_chooses_says_what_it_bought_and_scores_at_that_depth(data, tiny_folder, tmp_path) -> None:
    words = ["fit", "--preferences", data, "--model", tiny_folder, "--layer", "auto", "--ridge", "1", "--members", 3]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "rm"), "--json"])
    assert done.exit_code == 0, done.output
    depth = json.loads(done.stdout)["depth"]
    assert depth["pairs"] == 40 and depth["layer"] in (1, 2, 3) and depth["encoding_share"] == 1.0
    assert f"read at {depth['layer']} of 3 blocks, chosen on 40 pairs" in depth["words"]
    assert depth["words"] in (tmp_path / "rm" / "report.html").read_text()
    assert RewardModel.load(tmp_path / "rm").encoder.layer == depth["layer"]


def test_families_that_train_the_model_refuse_a_layer(data, tmp_path) -> None:
    words = ["fit", "--preferences", str(data), "--family", "lora", "--layer", "2", "--out", str(tmp_path / "rm")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "--family lora trains the language model itself" in done.output
