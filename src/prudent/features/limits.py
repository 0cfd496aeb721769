"""What a model is shown of texts: which ones its length limit cuts, and which differ for a reader but not for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent.features.cache import row_key
from prudent.features.rendering import Prompt, Renderer, Response

CHUNK = 4096  # texts rendered at once: bounds memory whatever their number
SAME_CUT, SAME_TEMPLATE = "same after truncation", "same after the template"


@dataclass(frozen=True)
class Shown:
    """N texts as a model is shown them. keys (N, 2): hash of the ids. cut, answerless (N,) bool: cut to ``limit``, and
    so far that nothing of the answer is left."""

    limit: int | None
    keys: np.ndarray
    cut: np.ndarray
    answerless: np.ndarray

    def same(self, first: int, second: int) -> str | None:
        """Why two texts are the same for the model, or None where they aren't."""
        if (self.keys[first] != self.keys[second]).any():
            return None
        return SAME_CUT if self.cut[first] or self.cut[second] else SAME_TEMPLATE

    def counts(self) -> dict[str, Any]:
        """limit (tokens), texts, cut, and answers of which nothing is left."""
        return {
            "limit": self.limit,
            "texts": len(self.cut),
            "cut": int(self.cut.sum()),
            "answers_cut_off": int(self.answerless.sum()),
        }


def shown(renderer: Renderer, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Shown:
    """How the model of ``renderer`` is shown N texts. Raises what rendering raises."""
    keys, cut, answerless = (
        np.zeros((len(prompts), 2), np.int64),
        np.zeros(len(prompts), bool),
        np.zeros(len(prompts), bool),
    )
    for start in range(0, len(prompts), CHUNK):
        part = slice(start, start + CHUNK)
        for row, text in enumerate(renderer.conversations(prompts[part], responses[part]), start=start):
            keys[row], cut[row] = row_key(text.prompt, text.response), text.removed > 0
            answerless[row] = text.removed > 0 and not text.response
    return Shown(renderer.max_length, keys, cut, answerless)


def words(counts: dict[str, Any]) -> str:
    """One sentence of ``Shown.counts`` (and ``same``, by reason, where pairs were compared); "" with nothing to say."""
    parts = []
    if counts.get("cut"):
        gone = f", {counts['answers_cut_off']} of them before the answer begins" if counts["answers_cut_off"] else ""
        parts.append(
            f"{counts['cut']} of {counts['texts']} texts are longer than {counts['limit']} tokens and were cut{gone}"
        )
    parts += [f"{number} pairs are the {reason}" for reason, number in counts.get("same", {}).items() if number]
    return "; ".join(parts)
