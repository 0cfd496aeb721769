"""Equivalent answers: pluggable tests, groups, and self-consistent synthetic preferences (SPG, arXiv 2403.19279).

A test says whether answer a implies answer b; answers are equivalent when it holds both ways. Groups are made greedily:
an answer joins the first group whose first answer it is equivalent to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.seeding import Seed, numpy_generator

NO_ANSWER = -1
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
MARKED = re.compile(r"(?:^|\n)\s*(?:A|Answer|The answer is|####)\s*:?\s*([^\n]+)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_answer(text: str) -> str | None:
    """Answer that a solution ends with: the last boxed one, else the last one marked ``A:`` or ``Answer:``.

    A number is put in plain form (1,000.0 -> 1000); None where there is no marked answer.
    """
    found = BOXED.findall(text) or MARKED.findall(text)
    if not found:
        return None
    answer = found[-1].strip().rstrip(".")
    numbers = NUMBER.findall(answer)
    if numbers:
        try:
            value = Decimal(numbers[-1].replace(",", "").rstrip("."))
        except InvalidOperation:
            return answer.casefold() or None
        return format(value.normalize(), "f")
    return answer.casefold() or None


def greedy_groups(count: int, implies: Callable[[int, int], bool]) -> list[int]:
    """Group number of each of ``count`` answers. implies(a, b): whether a says what b says; both ways make a group."""
    firsts: list[int] = []
    labels = []
    for answer in range(count):
        home = next((g for g, first in enumerate(firsts) if implies(answer, first) and implies(first, answer)), None)
        if home is None:
            home = len(firsts)
            firsts.append(answer)
        labels.append(home)
    return labels


def groups_by_answer(texts: Sequence[str]) -> list[int]:
    """Groups by the final answer; a text without one is in no group (NO_ANSWER)."""
    known: dict[str, int] = {}
    return [
        NO_ANSWER if (answer := final_answer(text)) is None else known.setdefault(answer, len(known)) for text in texts
    ]


def groups_by_embedding(vectors: ArrayLike, threshold: float) -> list[int]:
    """Groups of vectors (N, d) whose cosine similarity is at least ``threshold``."""
    x = torch.nn.functional.normalize(as_tensor(vectors).float(), dim=-1)
    close = (x @ x.T >= threshold).tolist()
    return greedy_groups(len(close), lambda a, b: close[a][b])


def entailment_test(name: str, device: str | None = None) -> Callable[[Sequence[tuple[str, str]]], list[bool]]:
    """Test of pairs (premise, hypothesis) by a hub NLI model: whether its likeliest label is entailment."""
    from prudent.rewards.transformers.external import load_headed

    model, tokenizer = load_headed("AutoModelForSequenceClassification", "NLI model (--nli)", name, device=device)
    labels = {str(label).casefold(): int(number) for number, label in model.config.id2label.items()}
    entailment = next((number for label, number in labels.items() if label.startswith("entail")), None)
    if entailment is None:
        raise PrudentError(f"{name} has labels {', '.join(labels)} and none is entailment; give an NLI model")

    @torch.inference_mode()
    def test(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        decided: list[bool] = []
        for start in range(0, len(pairs), 32):
            batch = pairs[start : start + 32]
            ids = tokenizer(
                [a for a, _ in batch], [b for _, b in batch], padding=True, truncation=True, return_tensors="pt"
            ).to(model.device)
            decided += (model(**ids).logits.argmax(-1) == entailment).tolist()
        return decided

    return test


def groups_by_entailment(texts: Sequence[str], test: Callable[[Sequence[tuple[str, str]]], list[bool]]) -> list[int]:
    """Groups of texts that entail each other both ways; every ordered pair is asked once, in one batch."""
    pairs = [(a, b) for a in range(len(texts)) for b in range(len(texts)) if a != b]
    held = dict(zip(pairs, test([(texts[a], texts[b]) for a, b in pairs])))
    return greedy_groups(len(texts), lambda a, b: held[(a, b)])


@dataclass(frozen=True)
class Synthetic:
    """One prompt's synthetic preference. chosen, rejected: indices among its samples, None where there is none, with
    the reason. confidence: share of the samples in the largest group. size: of that group."""

    chosen: int | None
    rejected: int | None
    confidence: float
    size: int
    reason: str | None = None


def synthetic_pair(labels: Sequence[int], rewards: Sequence[float], gamma: float, seed: Seed) -> Synthetic:
    """SPG's pair from one prompt's samples. labels: group of each (NO_ANSWER: none). rewards: the reward model's.

    The largest group G (the earliest of equal ones) is kept when |G| / n >= gamma; chosen is its highest reward,
    rejected a random sample outside it. A unanimous prompt, one below gamma, or one without answers gives no pair.
    Source: arXiv 2403.19279, section 3.3.
    """
    if len(labels) != len(rewards) or not labels:
        raise PrudentError(f"{len(labels)} labels and {len(rewards)} rewards; give one of each a sample")
    values = np.asarray(labels)
    known = values[values != NO_ANSWER]
    if not len(known):
        return Synthetic(None, None, 0.0, 0, "no sample has an answer")
    names, first, counts = np.unique(known, return_index=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda g: (-counts[g], first[g]))
    best = int(names[order[0]])
    size = int(counts[order[0]])
    confidence = size / len(values)
    inside, outside = np.flatnonzero(values == best), np.flatnonzero(values != best)
    if confidence < gamma:
        return Synthetic(None, None, confidence, size, "below gamma")
    if not len(outside):
        return Synthetic(None, None, confidence, size, "unanimous")
    chosen = int(inside[np.argmax(np.asarray(rewards, dtype=np.float64)[inside])])
    rejected = int(outside[numpy_generator(seed).integers(len(outside))])
    return Synthetic(chosen, rejected, confidence, size)


def label_pool(
    responses: Sequence[Sequence[str]], how: str, vectors: Any = None, threshold: float = 0.9, nli: str | None = None
) -> list[list[int]]:
    """Groups of every prompt's candidates. how: "answer", "embedding" (vectors (N, d) a prompt) or "entailment"."""
    if how == "answer":
        return [groups_by_answer(texts) for texts in responses]
    if how == "embedding":
        return [groups_by_embedding(part, threshold) for part in vectors]
    if how == "entailment":
        if nli is None:
            raise PrudentError("grouping by entailment needs an NLI model; name one with --nli")
        test = entailment_test(nli)
        return [groups_by_entailment(texts, test) for texts in responses]
    raise PrudentError(f"grouping {how!r} is unknown; known: answer, embedding, entailment")
