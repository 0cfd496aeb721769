"""R25: exactly one begin mark, in training, scoring and sampling alike."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_causal_lm, tiny_tokenizer

from prudent.features.encoder import Encoder
from prudent.features.rendering import Renderer, count_begin_marks, render, render_parts, render_prompt, show_ids

PROMPT = [{"role": "user", "content": "Name a colour."}]


def test_template_and_encoder_both_write_the_mark_yet_there_is_one() -> None:
    tokenizer = tiny_tokenizer(template=True, begin=True)
    naive = tokenizer(tokenizer.apply_chat_template(PROMPT, tokenize=False))["input_ids"]
    assert naive[:2] == [tokenizer.bos_token_id] * 2, "the tokenizer must be the one that goes wrong"
    ids = render(tokenizer, PROMPT, "Blue.")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("begin", [True, False])
def test_training_scoring_and_sampling_agree(template: bool, begin: bool) -> None:
    tokenizer = tiny_tokenizer(template=template, begin=begin)
    ids = render(tokenizer, PROMPT, "Blue.")
    parts = render_parts(tokenizer, PROMPT, "Blue.")
    assert parts.prompt + parts.response == ids
    assert render_prompt(tokenizer, PROMPT) == parts.prompt == ids[: len(parts.prompt)]
    # Without a template the tokenizer keeps the mark it writes by itself, and gets none that it doesn't write.
    assert count_begin_marks(tokenizer, ids) == int(template or begin)


def test_joint_ids_are_those_of_the_template() -> None:
    tokenizer = tiny_tokenizer()
    turns = [*PROMPT, {"role": "assistant", "content": "Blue."}]
    expected = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    assert render(tokenizer, PROMPT, "Blue.") == expected


def test_template_without_the_mark_gets_the_encoders_own() -> None:
    tokenizer = tiny_tokenizer(template=True, begin=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    assert count_begin_marks(tokenizer, render(tokenizer, PROMPT, "Blue.")) == 1


def test_a_string_and_its_messages_are_one_conversation() -> None:
    tokenizer = tiny_tokenizer()
    as_text = render(tokenizer, "Name a colour.", "Blue.")
    assert as_text == render(tokenizer, PROMPT, [{"role": "assistant", "content": "Blue."}])


def test_encoder_reads_the_same_ids() -> None:
    model, tokenizer = tiny_causal_lm()
    encoder = Encoder((model, tokenizer), cache=None, progress=False)
    assert encoder.renderer.conversations([PROMPT], ["Blue."])[0].ids == render(tokenizer, PROMPT, "Blue.")
    assert Renderer(tokenizer).prompts([PROMPT])[0] == render_prompt(tokenizer, PROMPT)


def test_ids_can_be_shown() -> None:
    shown = show_ids(tiny_tokenizer(), PROMPT, "Blue.")
    assert "begin marks at the start: 1" in shown
    assert shown.count("response") > 5
    assert "'<|im_end|>'" in shown
