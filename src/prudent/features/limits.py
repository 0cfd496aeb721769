"""What a model is shown of texts: which ones its length limit cuts, and which differ for a reader but not for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prudent.features.outlines import outlines_of
from prudent.features.rendering import Prompt, Renderer, Response

if TYPE_CHECKING:
    from prudent.features.encoder import Encoder

CHUNK = 4096  # texts rendered at once: bounds memory whatever their number
SAME_CUT, SAME_TEMPLATE = "same after truncation", "same after the template"


@dataclass(frozen=True)
class Shown:
    """N texts as a model is shown them. keys (N, 2), or (N, 2 K) of K models: hash of the ids. cut, answerless (N,)
    bool: cut to ``limit``, and so far that nothing of the answer is left (for any of the models)."""

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
        """limit (tokens), texts, how many were cut and their share, and answers of which nothing is left."""
        return counts_of(self.limit, len(self.cut), int(self.cut.sum()), int(self.answerless.sum()))


def counts_of(limit: int | None, texts: int, cut: int, answers_cut_off: int) -> dict[str, Any]:
    """What results say of ``texts`` texts and a length limit; ``words`` puts it in words."""
    return {
        "limit": limit,
        "texts": texts,
        "cut": cut,
        "cut_share": cut / texts if texts else None,
        "answers_cut_off": answers_cut_off,
    }


def shown(by: Renderer | Encoder, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Shown:
    """How the model of a renderer or an encoder is shown N texts. Raises what rendering raises."""
    keys, cut, answerless = (
        np.zeros((len(prompts), 2), np.int64),
        np.zeros(len(prompts), bool),
        np.zeros(len(prompts), bool),
    )
    for start in range(0, len(prompts), CHUNK):
        part = slice(start, start + CHUNK)
        if isinstance(by, Renderer):
            found = outlines_of(by.conversations(prompts[part], responses[part]))
        else:
            found = by.outlines(prompts[part], responses[part])
        keys[part], cut[part] = found.keys, found.removed > 0
        answerless[part] = (found.removed > 0) & (found.response == 0)
    return Shown(by.max_length if isinstance(by, Renderer) else by.limit, keys, cut, answerless)


def joined(found: Sequence[Shown]) -> Shown:
    """The same texts as several models are shown them: cut by any of them, the same only where they are for all."""
    first = found[0]
    if len(found) == 1:
        return first
    limits = [one.limit for one in found if one.limit is not None]
    return Shown(
        min(limits, default=None),
        np.concatenate([one.keys for one in found], 1),
        np.any([one.cut for one in found], 0),
        np.any([one.answerless for one in found], 0),
    )


class Groups(NamedTuple):
    """counts: of ``words``, with how many groups can't be told apart, by reason. same: group -> the reason."""

    counts: dict[str, Any]
    same: dict[int, str]


def same_groups(found: Shown, groups: Iterable[tuple[Sequence[int], Sequence[int]]], what: str = "pairs") -> Groups:
    """Groups of which the model is shown some better and some worse text as one and the same.

    groups: indices of each group's better and of its worse texts; an index on both sides is one text and says nothing.
    what: name of the groups.
    """
    same: dict[int, str] = {}
    for group, (better, worse) in enumerate(groups):
        held = {found.keys[row].tobytes(): row for row in better}
        twin = next(((held[key], row) for row in worse if (key := found.keys[row].tobytes()) in held), None)
        if twin is not None and twin[0] != twin[1]:
            same[group] = str(found.same(*twin))
    return Groups({**found.counts(), "same": dict(Counter(same.values())), "same_of": what}, same)


def same_responses(found: Shown, owners: Sequence[int], responses: Sequence[Response]) -> dict[str, Any]:
    """Counts for ``words``: of N responses, how many the model is shown like an earlier one of their owner (a prompt)
    with another text. owners (N,): prompt of each."""
    first: dict[tuple[int, bytes], int] = {}
    same: Counter[str] = Counter()
    for row, owner in enumerate(owners):
        other = first.setdefault((owner, found.keys[row].tobytes()), row)
        if responses[other] != responses[row]:
            same[str(found.same(other, row))] += 1
    return {**found.counts(), "same": dict(same), "same_of": "responses"}


def words(counts: dict[str, Any]) -> str:
    """One sentence of ``Shown.counts`` (and ``same``, by reason, where pairs were compared); "" with nothing to say."""
    parts = []
    if counts.get("cut"):
        gone = f", {counts['answers_cut_off']} of them before the answer begins" if counts["answers_cut_off"] else ""
        parts.append(
            f"{counts['cut']} of {counts['texts']} texts are longer than {counts['limit']} tokens and were cut{gone}"
        )
    what = counts.get("same_of", "pairs")
    more = " as another of their prompt" if what == "responses" else ""
    parts += [f"{number} {what} are the {reason}{more}" for reason, number in counts.get("same", {}).items() if number]
    return "; ".join(parts)
