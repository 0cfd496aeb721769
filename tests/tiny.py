"""Tiny random language models and a byte-level tokenizer, built in place: no test needs a download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, TURN, END, PAD = "<s>", "<|im_start|>", "<|im_end|>", "<pad>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: bool = True, begin: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte. ``template``: has a chat template, which writes the begin mark. ``begin``: encoding a text adds
    the begin mark too (so template and encoder together would write two). ``pad``: has a pad token."""
    specials = [BEGIN, TURN, END, PAD]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, vocabulary[BEGIN])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[TURN],
        model_max_length=2048,
        **({"pad_token": PAD} if pad else {}),
    )
    if template:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_causal_lm(
    folder: str | Path | None = None, seed: int = 0, hidden: int = 32, layers: int = 3, **tokenizer_options: bool
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Random Llama-style model and its tokenizer; saved to ``folder`` where one is given.

    ``hidden`` must be divisible by 8 (four heads of an even width).
    """
    tokenizer = tiny_tokenizer(**tokenizer_options)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # large enough that different texts get clearly different states
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer
