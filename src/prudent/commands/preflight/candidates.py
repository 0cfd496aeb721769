"""Responses sampled from the policy, kept on disk by all that they depend on: a stopped run goes on from them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prudent.commands.preflight.options import PreflightOptions
from prudent.features.backbone import token_bytes
from prudent.features.known import hash_tokenizer, hash_weights
from prudent.features.models import load_language_model, padding_id
from prudent.features.rendering import Renderer
from prudent.features.sampling import sample
from prudent.files import cache_folder, dumps, hash_text, write_copy

FORMAT = "1"  # of kept responses: changes whenever the same prompts would get others
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampler:
    """The policy and how its responses are drawn: at temperature 1, nothing truncated."""

    model: Any
    tokenizer: Any
    samples: int
    longest: int
    seed: int

    @classmethod
    def load(cls, settings: PreflightOptions) -> Sampler:
        """Raises PrudentError for a model that can't be loaded."""
        model, tokenizer = load_language_model(settings.policy, dtype=settings.dtype)
        return cls(model, tokenizer, settings.samples, settings.max_new_tokens, settings.seed)

    @cached_property
    def mark(self) -> str:
        """Fingerprint of the weights in use and of the tokenizer."""
        return hash_text(FORMAT, hash_weights(self.model), hash_tokenizer(self.tokenizer))

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return token_bytes(self.model, padding_id(self.model, self.tokenizer))

    def file(self, prompts: list[Messages]) -> Path:
        """Where the responses to these prompts are kept."""
        ids = repr(Renderer(self.tokenizer).prompts(prompts))
        name = hash_text(self.mark, ids, str(self.samples), str(self.longest), str(self.seed))
        return cache_folder() / "samples" / f"{name[:32]}.json"

    def draw(self, prompts: list[Messages]) -> list[list[str]]:
        """``samples`` responses to each prompt: those on disk, or fresh ones, which are then kept."""
        file = self.file(prompts)
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(file.read_text(encoding="utf-8"))
            if [len(texts) for texts in kept] == [self.samples] * len(prompts):
                return kept
        drawn = self.fresh(prompts, self.longest)
        write_copy(file, dumps(drawn, indent=None))
        return drawn

    def fresh(self, prompts: list[Messages], longest: int) -> list[list[str]]:
        """Responses of at most ``longest`` tokens, sampled now."""
        return sample(
            self.model,
            self.tokenizer,
            prompts,
            samples=self.samples,
            max_new_tokens=longest,
            temperature=1.0,
            seed=self.seed,
        )
