"""Rendering: parts and whole, truncation, multi-turn answers, templates that misbehave."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tests.tiny import tiny_tokenizer
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prudent.errors import PrudentError, RowsError
from prudent.features import rendering
from prudent.features.rendering import RenderedText, Renderer, prompt_text, render, render_parts

HISTORY = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Name a hat."},
]


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids)


def test_several_turns_in_prompt_and_answer() -> None:
    tokenizer = tiny_tokenizer()
    answer = [
        {"role": "assistant", "content": "A cap."},
        {"role": "user", "content": "Another."},
        {"role": "assistant", "content": "A beret."},
    ]
    parts = render_parts(tokenizer, HISTORY, answer)
    assert text_of(tokenizer, parts.prompt).endswith("Name a hat.<|im_end|>\n<|im_start|>assistant\n")
    assert text_of(tokenizer, parts.response) == (
        "A cap.<|im_end|>\n<|im_start|>user\nAnother.<|im_end|>\n<|im_start|>assistant\nA beret.<|im_end|>\n"
    )


def test_cut_on_the_right_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    whole = render_parts(tokenizer, "Hi", "Hello there")
    limit = len(whole.prompt) + 3
    cut = render_parts(tokenizer, "Hi", "Hello there", limit)
    assert (cut.prompt, cut.response) == (whole.prompt, whole.response[:3])
    assert cut.removed == len(whole.ids) - limit
    tiny = render_parts(tokenizer, "Hi", "Hello there", 4)
    assert (tiny.prompt, tiny.response, tiny.removed) == (whole.prompt[:4], [], len(whole.ids) - 4)
    assert render_parts(tokenizer, "Hi", "Hello there", len(whole.ids)).removed == 0


def test_two_answers_that_differ_past_the_limit_have_equal_ids() -> None:
    tokenizer = tiny_tokenizer()
    limit = len(render_parts(tokenizer, "Hi", "").prompt) + 6
    texts = Renderer(tokenizer, limit).conversations(["Hi"] * 3, ["the same start", "the same end", "other"])
    assert texts[0].ids == texts[1].ids != texts[2].ids
    assert [text.removed > 0 for text in texts] == [True, True, True]


def test_many_at_once_equal_one_by_one() -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["Hi", HISTORY, "Hi", "Éé 😀", HISTORY]
    responses = ["a", "b", "a", "ü\n\n", [{"role": "assistant", "content": "b"}]]
    together = Renderer(tokenizer, 60).conversations(prompts, responses)
    assert together == [render_parts(tokenizer, p, r, 60) for p, r in zip(prompts, responses)]


def test_each_text_is_templated_and_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    counts = {"templates": 0, "texts": 0}
    template, encode = type(tokenizer).apply_chat_template, type(tokenizer).__call__

    def counted_template(self, *args, **kwargs):
        counts["templates"] += 1
        return template(self, *args, **kwargs)

    def counted_encode(self, text, *args, **kwargs):
        counts["texts"] += len(text) if isinstance(text, list) else 1
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counted_template)
    monkeypatch.setattr(type(tokenizer), "__call__", counted_encode)
    renderer.conversations(["a", "a", "b", "b"], ["1", "2", "1", "1"])
    assert counts == {"templates": 2 + 4, "texts": 2 + 2}


def test_a_text_that_was_rendered_is_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, applied = tiny_tokenizer(), []
    renderer, apply = Renderer(tokenizer), rendering._apply
    monkeypatch.setattr(rendering, "_apply", lambda *given: applied.append(given) or apply(*given))
    turns = [{"role": "user", "content": "Hi"}]
    prompts: list = ["Hi", turns, RenderedText("Hi"), str(turns)]
    first = renderer.conversations(prompts, ["x"] * 4)
    assert first[0] == first[1] and len({tuple(text.ids) for text in first}) == 3
    applied.clear()
    assert renderer.conversations([*prompts, "Hi"], ["x"] * 4 + ["y"])[:4] == first
    assert len(applied) == 2, "the new answer and its prompt alone"
    with pytest.raises(RowsError) as error:
        renderer.conversations(["Hi", "Hi", "Hi"], ["x", [], "y"])
    assert list(error.value.rows) == [1]
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_end|>!")
    assert renderer.conversations(["Hi"], ["x"])[0] != first[0], "another template"


def test_no_more_rendered_texts_are_held_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "KEPT", 400)
    renderer, fresh = Renderer(tiny_tokenizer()), Renderer(tiny_tokenizer())
    for number in range(20):
        prompts = [f"{number}", "a" * (500 if number == 7 else 5), f"{number - 1}"]
        fresh._kept = {}
        assert renderer.conversations(prompts, ["x"] * 3) == fresh.conversations(prompts, ["x"] * 3)
        assert sum(len(text.ids) for text in renderer._kept.values()) <= renderer._kept_size <= 400
    assert renderer._kept


def test_a_template_that_refuses_the_turns_is_a_clear_error() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}x"
    )
    with pytest.raises(PrudentError, match=r"row 1.*system, user.*no system turn here"):
        Renderer(tokenizer).conversations(["fine", HISTORY], ["a", "b"])


def test_a_template_with_the_date_gives_the_same_ids_every_day() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert prompt_text(tokenizer, "Hi").startswith("26 Jul 2024")


def test_a_template_that_rewrites_the_opening_is_cut_where_the_texts_part() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    parts = render_parts(tokenizer, "Hi", "Yes")
    assert text_of(tokenizer, parts.ids) == "<s>[user]Hi[assistant]Yes"
    assert text_of(tokenizer, parts.response) == "Yes"


def test_a_tokenizer_that_puts_a_space_before_each_text_puts_none_before_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    parts = render_parts(tokenizer, "Hi", "Yes")
    assert tokenizer.decode(tokenizer("Yes", add_special_tokens=False)["input_ids"]) == " Yes"
    assert text_of(tokenizer, parts.response).startswith("Yes<|im_end|>")


def test_without_a_template_turns_are_labelled_and_the_answer_ends_with_the_end_mark() -> None:
    tokenizer = tiny_tokenizer(template=False)
    assert text_of(tokenizer, render(tokenizer, HISTORY, "A cap.")) == (
        "<s>System: Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Name a hat.\n\nAssistant: A cap.<|im_end|>"
    )


def test_half_an_emoji_costs_nothing_but_itself() -> None:
    assert render(tiny_tokenizer(), "Hi", "nice \ud83d") == render(tiny_tokenizer(), "Hi", "nice \ufffd")


@pytest.mark.parametrize(
    ("prompt", "response", "said"),
    [([], "a", "row 0: the prompt has no message"), ("a", [], "row 0: the response has no message")],
)
def test_nothing_to_render_is_an_error(prompt, response, said: str) -> None:
    with pytest.raises(PrudentError, match=said):
        render(tiny_tokenizer(), prompt, response)


def test_unequal_numbers_and_impossible_lengths() -> None:
    with pytest.raises(PrudentError, match="2 prompts but 1 responses"):
        Renderer(tiny_tokenizer()).conversations(["a", "b"], ["c"])
    with pytest.raises(PrudentError, match="max_length is 0"):
        Renderer(tiny_tokenizer(), 0)


def trained_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Small tokenizers of the common kinds, with merges, and a special token that takes the white space before it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

    kinds = {
        "bytes": (models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "no pieces": (models.BPE(), trainers.BpeTrainer, None),
        "metaspace": (models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace()),
        "words": (models.WordPiece(unk_token="[U]"), trainers.WordPieceTrainer, pre_tokenizers.BertPreTokenizer()),
    }
    corpus = ["abab abba baab aab  bb\n\nab", "a b ab ba bab", "aaaa bbbb abababab  \t ba"] * 20
    found = {}
    for name, (model, trainer, pieces) in kinds.items():
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.NFC()
        if pieces is not None:
            tokenizer.pre_tokenizer = pieces
        options = {"unk_token": "[U]"} if name == "metaspace" else {}
        tokenizer.train_from_iterator(
            corpus, trainer(vocab_size=60, special_tokens=["[U]", "[E]"], show_progress=False, **options)
        )
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
        found[name] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[U]", eos_token="[E]")
    return found


@pytest.mark.parametrize("kind", ["bytes", "no pieces", "metaspace", "words", "tiny"])
def test_a_long_text_is_encoded_from_its_start_with_the_same_ids(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer() if kind == "tiny" else trained_tokenizers()[kind]
    generator = np.random.default_rng(0)
    pieces = ["a", "b", "ab", "ba", " ", "  ", "\n", " " * 40, "a" * 30, "ab" * 20, "<mask>", "e\u0301", "abba baab "]
    texts = ["".join(generator.choice(pieces, size=generator.integers(20, 400))) for _ in range(60)]
    texts += [
        "a" + " " * 3000 + "<mask>",
        "ab" * 2000,
        "a" * 4001,
        " " * 4000,
        "a b" + " " * 300 + "<mask>" + "b" * 900,
    ]
    for limit in (3, 16):
        whole = Renderer(tokenizer, limit).conversations(texts, texts[::-1])
        monkeypatch.setattr(rendering, "LONG", 256)
        begun = Renderer(tokenizer, limit).conversations(texts, texts[::-1])
        monkeypatch.undo()
        for one, other in zip(whole, begun):
            assert (one.prompt, one.response, one.removed > 0) == (other.prompt, other.response, other.removed > 0)


def test_a_field_of_ten_megabytes_costs_what_is_kept_of_it() -> None:
    text, renderer = "the cat sat on the mat. " * 420_000, Renderer(tiny_tokenizer(), 1024)
    began = time.process_time()
    found = renderer.conversations([text, "short"], ["short", text])
    assert time.process_time() - began < 3  # 0.4 s; encoded whole it takes 25
    assert [len(one.ids) for one in found] == [1024, 1024] and min(one.removed for one in found) > 0
