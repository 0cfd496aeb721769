"""Sampling: draws from the model itself, the same whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from prudent.errors import PrudentError
from prudent.features.attention_cache import RoomyLayer, is_roomy, new_cache
from prudent.features.rendering import Renderer
from prudent.features.sampling import Samples, pick, sample, sample_ids, stop_tokens
from prudent.seeding import torch_generator

PROMPTS = ["hi", "tell me a long story about the sea please", "what", "hello there friend", "hi", "a b c"]


def draw(model, tokenizer, prompts=PROMPTS, **options) -> Samples:
    settings = {"samples": 3, "max_new_tokens": 30, "seed": 1, "batch_size": 7, **options}
    return sample_ids(
        model,
        Renderer(tokenizer).prompts(prompts),
        stop=stop_tokens(model, tokenizer),
        pad=tokenizer.pad_token_id,
        **settings,
    )


@pytest.fixture(scope="module")
def talkative() -> tuple:
    """A model that ends its turn about one time in fifteen, so that rows leave the batch at different times."""
    model, tokenizer = tiny_causal_lm(seed=3)
    head = torch.nn.Linear(32, len(tokenizer), bias=True)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight * 0.5)
        head.bias.zero_()
        head.bias[tokenizer.eos_token_id] = 1.5
    model.lm_head = head
    return model, tokenizer


def test_logprobs_are_the_models_own(talkative) -> None:
    model, tokenizer = talkative
    drawn = draw(model, tokenizer, temperature=1.0)
    ids = Renderer(tokenizer).prompts(PROMPTS)
    assert 0.1 < drawn.stopped.float().mean() < 1.0
    assert drawn.lengths.unique().numel() > 5
    for prompt in range(len(PROMPTS)):
        for number in range(3):
            length = int(drawn.lengths[prompt, number])
            answer = drawn.tokens[prompt, number, :length]
            whole = torch.tensor([ids[prompt] + answer.tolist()])
            logprob = model(whole).logits[0].log_softmax(-1)[len(ids[prompt]) - 1 : -1].gather(1, answer[:, None])
            torch.testing.assert_close(
                drawn.logprobs[prompt, number, :length], logprob.squeeze(1).detach(), atol=1e-4, rtol=0
            )
            assert (drawn.tokens[prompt, number, length:] == tokenizer.pad_token_id).all()
            assert (drawn.logprobs[prompt, number, length:] == 0).all()
            assert bool(answer[-1] == tokenizer.eos_token_id) == bool(drawn.stopped[prompt, number])
            assert tokenizer.eos_token_id not in answer[:-1]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16, 64])
def test_batch_size_changes_nothing(talkative, batch_size: int) -> None:
    expected = draw(*talkative, batch_size=7)
    found = draw(*talkative, batch_size=batch_size)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-4, rtol=0)


def test_other_prompts_and_their_order_change_nothing(talkative) -> None:
    expected = draw(*talkative)
    order = [5, 3, 1]
    found = draw(*talkative, prompts=[PROMPTS[row] for row in order])
    width = found.tokens.shape[-1]
    assert torch.equal(found.tokens, expected.tokens[order][..., :width])


def test_samples_differ_among_themselves_among_seeds_and_for_a_prompt_given_twice(talkative) -> None:
    drawn = draw(*talkative)
    texts = {tuple(row.tolist()) for row in drawn.tokens.flatten(0, 1)}
    assert len(texts) == 3 * len(PROMPTS)
    assert not torch.equal(drawn.tokens[0], drawn.tokens[4]), "prompt 4 repeats prompt 0"
    assert not torch.equal(draw(*talkative, seed=2).tokens[0, 0, :5], drawn.tokens[0, 0, :5])
    assert torch.equal(draw(*talkative).tokens, drawn.tokens)


def test_more_samples_keep_the_first_ones(talkative) -> None:
    few, many = draw(*talkative, samples=2), draw(*talkative, samples=5)
    width = min(few.tokens.shape[-1], many.tokens.shape[-1])
    assert torch.equal(few.tokens[..., :width], many.tokens[:, :2, :width])


def test_draws_follow_the_distribution() -> None:
    generator = torch_generator(0)
    logits = torch.randn(1, 700, generator=generator) * 2
    logits[0, 300:600] = float("-inf")
    uniform = torch.rand(30_000, generator=generator, dtype=torch.float64)
    tokens, logprobs = pick(logits.expand(30_000, -1).clone(), uniform)
    expected = logits[0].softmax(-1)
    found = torch.bincount(tokens, minlength=700) / 30_000
    error = (expected * (1 - expected) / 30_000).sqrt()
    assert ((found - expected).abs() <= 5 * error).all()
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens], atol=1e-4, rtol=0)


def test_extreme_random_numbers_pick_tokens_that_can_be() -> None:
    logits = torch.full((4, 1000), float("-inf"))
    logits[:, 10], logits[:, 500] = 0.0, 0.0
    uniform = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert pick(logits, uniform)[0].tolist() == [10, 10, 500, 500]


def test_temperature_zero_takes_the_likeliest_and_ignores_the_seed(talkative) -> None:
    model, tokenizer = talkative
    drawn = draw(model, tokenizer, temperature=0.0, samples=2, max_new_tokens=8)
    assert torch.equal(drawn.tokens[:, 0], drawn.tokens[:, 1])
    ids = torch.tensor([Renderer(tokenizer).prompts(PROMPTS)[1]])
    assert int(drawn.tokens[1, 0, 0]) == int(model(ids).logits[0, -1].argmax())


def test_temperature_scales_the_logits(talkative) -> None:
    model, tokenizer = talkative
    drawn = draw(model, tokenizer, temperature=2.0, max_new_tokens=1)
    ids = torch.tensor([Renderer(tokenizer).prompts(PROMPTS)[1]])
    logprob = (model(ids).logits[0, -1] / 2).log_softmax(-1)
    torch.testing.assert_close(drawn.logprobs[1, 0, 0], logprob[drawn.tokens[1, 0, 0]].detach(), atol=1e-4, rtol=0)


def test_each_prompt_is_read_once(talkative, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = talkative
    read = []
    embed = model.model.embed_tokens.forward

    def counted(ids):
        read.append(tuple(ids.shape))
        return embed(ids)

    monkeypatch.setattr(model.model.embed_tokens, "forward", counted)
    draw(model, tokenizer, samples=3, batch_size=100)
    prefill = [shape for shape in read if shape[1] > 1]
    assert len(prefill) == 1
    assert prefill[0][0] == len(PROMPTS)
    steps = [shape[0] for shape in read if shape[1] == 1]
    assert steps == sorted(steps, reverse=True), "finished rows leave the batch"
    assert steps[-1] < steps[0]


def test_a_model_with_sliding_windows_uses_the_stock_cache() -> None:
    tokenizer = tiny_tokenizer()
    settings = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=12,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(settings).eval()
    assert not is_roomy(new_cache(model))
    one, many = (draw(model, tokenizer, batch_size=size, max_new_tokens=12) for size in (1, 50))
    assert torch.equal(one.tokens, many.tokens)
    ids = Renderer(tokenizer).prompts(PROMPTS)[1]
    whole = torch.tensor([ids + one.tokens[1, 0, : one.lengths[1, 0]].tolist()])
    logprob = model(whole).logits[0].log_softmax(-1)[len(ids) - 1 : -1].gather(1, whole[0, len(ids) :, None])
    torch.testing.assert_close(one.logprobs[1, 0, : one.lengths[1, 0]], logprob.squeeze(1).detach(), atol=1e-4, rtol=0)


def test_roomy_layer_equals_the_stock_one_through_growth_moves_and_joins() -> None:
    generator = torch_generator(1)

    def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))

    layer = RoomyLayer(room=2)
    first = states(3, 5)
    layer.update(*first)
    kept = [first[0]]
    for _ in range(6):
        step = states(3, 1)
        kept.append(step[0])
        keys, _ = layer.update(*step)
        assert torch.equal(keys, torch.cat(kept, 2))
    layer.keep(2, torch.tensor([2]), torch.tensor([0]), start=3)
    assert torch.equal(layer.keys, torch.cat(kept, 2)[[2, 1], :, 3:])
    other = RoomyLayer(room=0)
    longer = states(1, 20)
    other.update(*longer)
    before = layer.keys.clone()
    layer.append(other, torch.tensor([0, 0]))
    assert torch.equal(layer.keys[:2, :, -before.shape[2] :], before)
    assert torch.equal(layer.keys[2:, :, -20:], longer[0].expand(2, -1, -1, -1))
    assert torch.isfinite(layer.keys).all()


def test_texts_without_marks_one_list_a_prompt(talkative) -> None:
    texts = sample(*talkative, PROMPTS, samples=2, max_new_tokens=6, seed=0, progress=False)
    assert [len(row) for row in texts] == [2] * len(PROMPTS)
    assert not any("<|im_end|>" in text or "<pad>" in text for row in texts for text in row)
    assert sample(*talkative, [], samples=2, max_new_tokens=6, seed=0, progress=False) == []


def test_results_can_be_trained_on(talkative) -> None:
    model, tokenizer = talkative
    drawn = draw(model, tokenizer, max_new_tokens=3)
    loss = model(drawn.tokens[0]).logits.mean() * drawn.logprobs.mean()
    loss.backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_options_out_of_range(tiny_model, options: dict, said: str) -> None:
    with pytest.raises(PrudentError, match=said):
        draw(*tiny_model, **options)
