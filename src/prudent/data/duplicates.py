"""Repeats, contradictions, near duplicates, and the ceiling that contradictions put on any reward model."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent.data.lengths import answer_text
from prudent.data.messages import Message, squeeze

SHINGLE = 3  # words
PERMUTATIONS = 64


@dataclass(frozen=True)
class Groups:
    """Pairs that compare the same two answers to the same prompt. member: group of each row; forward: whether the row's
    chosen answer is the group's first one; counts: (forward, backward) rows of each group."""

    member: list[int]
    forward: list[bool]
    counts: list[tuple[int, int]]
    first: list[int]


def exact_text(messages: Sequence[Message]) -> str:
    """Messages as one text; two are equal where role and content of every turn are."""
    return json.dumps(messages, sort_keys=True)


def squeezed_text(messages: Sequence[Message]) -> str:
    """Messages as one text in which white space and case don't count."""
    return json.dumps([[message["role"], squeeze(message["content"])] for message in messages])


def group_pairs(rows: Sequence[Mapping[str, Any]], text: Callable[[Sequence[Message]], str] = exact_text) -> Groups:
    """Groups of rows with equal prompt and equal two answers, in either order. text: what counts as equal
    (``squeezed_text`` sets white space aside)."""
    known: dict[tuple[str, str, str], int] = {}
    member, forward, first = [], [], []
    counts: list[list[int]] = []
    for position, row in enumerate(rows):
        prompt, chosen, rejected = (text(row[name]) for name in ("prompt", "chosen", "rejected"))
        ahead = chosen <= rejected
        key = (prompt, chosen, rejected) if ahead else (prompt, rejected, chosen)
        group = known.setdefault(key, len(known))
        if group == len(counts):
            counts.append([0, 0])
            first.append(position)
        counts[group][0 if ahead else 1] += 1
        member.append(group)
        forward.append(ahead)
    return Groups(member, forward, [(a, b) for a, b in counts], first)


def noise_ceiling(rows: Sequence[Mapping[str, Any]], text: Callable = exact_text) -> dict[str, Any]:
    """Best accuracy and lowest mean Bradley-Terry loss that any scorer can reach, given contradictory labels.

    A group labelled a times one way and b times the other allows max(a, b) right, and at margin ln(a/b) the loss
    -(a ln p + b ln(1 - p)) with p = a/(a + b). Pairs whose sides are identical are left out.
    """
    usable = [row for row in rows if text(row["chosen"]) != text(row["rejected"])]
    groups = group_pairs(usable, text)
    right, loss = 0, 0.0
    contested: list[dict[str, Any]] = []
    contested_pairs = 0
    for number, (a, b) in enumerate(groups.counts):
        right += max(a, b)
        total = a + b
        loss -= sum(count * math.log(count / total) for count in (a, b) if count)
        if a and b:
            contested_pairs += total
            contested.append({"first_row": groups.first[number], "votes": [a, b], "agreement": max(a, b) / total})
    n = len(usable)
    return {
        "pairs": n,
        "best_accuracy": right / n if n else None,
        "lowest_loss": loss / n if n else None,
        "contested_groups": len(contested),
        "contested_pairs": contested_pairs,
        "examples": contested[:20],
    }


def shingles(text: str, size: int = SHINGLE) -> frozenset[int]:
    """Hashes of the text's runs of ``size`` words, case and white space set aside (single words in shorter texts)."""
    words = text.lower().split()
    if len(words) < size:
        return frozenset(zlib.crc32(word.encode()) for word in words)
    return frozenset(zlib.crc32(" ".join(words[i : i + size]).encode()) for i in range(len(words) - size + 1))


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared share of two sets; 1 for two empty ones."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def side_similarity(row: Mapping[str, Any]) -> float:
    """Similarity of a pair's two answers: 1 when only case and white space differ, else Jaccard of word shingles times
    the ratio of their lengths in words (a set of shingles does not see repetition)."""
    chosen, rejected = answer_text(row["chosen"]), answer_text(row["rejected"])
    if squeeze(chosen).lower() == squeeze(rejected).lower():
        return 1.0
    short, long = sorted((len(chosen.split()), len(rejected.split())))
    return jaccard(shingles(chosen), shingles(rejected)) * short / max(long, 1)


@dataclass(frozen=True)
class Near:
    """Row ``row`` is nearly row ``earlier``; opposite: its label points the other way. similarity: of the weakest part
    (prompt, and both answers in the better matching order)."""

    row: int
    earlier: int
    similarity: float
    opposite: bool


def near_duplicates(rows: Sequence[Mapping[str, Any]], threshold: float = 0.9) -> Iterator[Near]:
    """Rows whose prompt and both answers are nearly those of an earlier row, exact repeats included.

    Candidates by MinHash with locality-sensitive hashing over the answers' word shingles (datasketch, 64 permutations),
    each checked by exact Jaccard similarity of prompt and answers; the best earlier match of a row is given. Few true
    matches near the threshold are missed, none is invented. Rows with too little text to judge (fewer than three words
    in both answers) are compared by their words.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    base = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    for position, row in enumerate(rows):
        chosen, rejected = _parts(row)
        union = chosen | rejected
        if not union:
            continue
        sketch = base.copy()
        sketch.update_batch(list(union))
        found = [_compare(row, rows[earlier], position, earlier) for earlier in index.query(sketch)[:50]]
        best = max((near for near in found if near.similarity >= threshold), key=lambda n: n.similarity, default=None)
        if best is not None:
            yield best
        else:
            index.insert(position, sketch, check_duplication=False)


def _parts(row: Mapping[str, Any]) -> tuple[frozenset[int], frozenset[int]]:
    return shingles(answer_text(row["chosen"])), shingles(answer_text(row["rejected"]))


def prompt_text(prompt: Sequence[Message]) -> str:
    """Content of a prompt's turns, joined."""
    return "\n\n".join(message["content"] for message in prompt)


def _compare(row: Mapping[str, Any], other: Mapping[str, Any], position: int, earlier: int) -> Near:
    prompts = jaccard(shingles(prompt_text(row["prompt"])), shingles(prompt_text(other["prompt"])))
    (a, b), (c, d) = _parts(row), _parts(other)
    same, crossed = min(jaccard(a, c), jaccard(b, d)), min(jaccard(a, d), jaccard(b, c))
    return Near(position, earlier, min(prompts, max(same, crossed)), crossed > same)


def repeated_prompts(keys: Sequence[str]) -> dict[str, int]:
    """How the prompts repeat: rows, different prompts, and rows of the most frequent one."""
    counts = Counter(keys)
    return {"rows": len(keys), "prompts": len(counts), "most_frequent": int(np.max(list(counts.values()), initial=0))}
