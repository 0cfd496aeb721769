"""Constraints that a program can check, in opposed pairs, and the gold reward that they define.

Every kind has an opposite that gives the complement: for one text, "at most 20 words" and "at least 40 words" earn
credits that add up to 1, and so do "no commas" and "at least three commas". A rule that doesn't read the prompt
("shorter", "fewer commas", "less disputed") therefore gains on one side what it loses on the other, as far as the
responses don't themselves follow the prompt. Sentence counts and lists are the exception: exactly k is two-sided by
itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prudent.errors import PrudentError

WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e)\.", re.IGNORECASE)
ITEM = re.compile(r"^[ \t]*(?:[-*•–+]|\d{1,2}[.)])[ \t]+\S", re.MULTILINE)
ITEM_MARK = re.compile(r"^[ \t]*(?:[-*•–+]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
FIRST_PERSON = frozenset({"i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"})
COMMAS = 3  # the number that "with commas" asks for and that "no commas" takes away its whole credit at
QUOTES = "\"'“”‘’`*_#([{ \t\n"


@dataclass(frozen=True)
class Constraint:
    """One checkable demand. ``number``: its limit or count, ``word``: its word, where the kind has one."""

    kind: str
    number: int | None = None
    word: str | None = None


def words(text: str) -> list[str]:
    """Words of a text: runs of letters and digits, with apostrophes and hyphens inside; list numbers are not words."""
    return WORD.findall(ITEM_MARK.sub("", text))


def sentences(text: str) -> int:
    """Sentences of a text; a list item counts as one, and so does an unfinished last sentence."""
    count = 0
    for line in text.splitlines():
        line = ABBREVIATION.sub(lambda match: match.group().replace(".", ""), ITEM_MARK.sub("", line)).strip()
        if WORD.search(line):
            parts = [part for part in SENTENCE_END.split(line) if WORD.search(part)]
            count += len(parts)
    return count


def items(text: str) -> int:
    """List items of a text: lines that begin with a bullet or a number."""
    return len(ITEM.findall(text))


def first_word(text: str) -> str:
    """First word, in lower case; opening quotes and marks are passed over."""
    match = WORD.search(text.lstrip(QUOTES))
    return match.group().lower().split("'")[0].split("’")[0] if match else ""


def few(text: str, limit: int) -> float:
    """1 up to ``limit`` words, falling with the logarithm of the length to 0 at twice as many."""
    count = len(words(text))
    return 1.0 if count <= limit else max(0.0, 1.0 - math.log2(count / limit))


def first_person_share(text: str) -> float:
    """0 without a first-person word, a half with one, 1 with two or more."""
    found = sum(part.lower().replace("’", "'").split("'")[0] in FIRST_PERSON for part in words(text))
    return min(1.0, found / 2)


def question_share(text: str) -> float:
    """1 where the text ends with a question mark, a half where there is one elsewhere only, else 0."""
    if text.rstrip().rstrip("\"'”’)*_").endswith("?"):
        return 1.0
    return 0.5 if "?" in text else 0.0


def has_word(text: str, word: str) -> bool:
    """Whether ``word`` or its plural with -s is among the words."""
    return any(part.lower().split("'")[0].split("’")[0] in (word.lower(), word.lower() + "s") for part in words(text))


def near(count: int, target: int, reach: int) -> float:
    """1 at ``target``, falling evenly to 0 at a distance of ``reach``."""
    return max(0.0, 1.0 - abs(count - target) / reach)


CHECKS: dict[str, Callable[[str, int, str], float]] = {
    "at_most_words": lambda text, number, word: few(text, number),
    "at_least_words": lambda text, number, word: 1.0 - few(text, max(1, number // 2)),
    "commas": lambda text, number, word: min(1.0, text.count(",") / COMMAS),
    "no_commas": lambda text, number, word: 1.0 - min(1.0, text.count(",") / COMMAS),
    "first_person": lambda text, number, word: first_person_share(text),
    "no_first_person": lambda text, number, word: 1.0 - first_person_share(text),
    "use_word": lambda text, number, word: float(has_word(text, word)),
    "avoid_word": lambda text, number, word: 1.0 - float(has_word(text, word)),
    "bullets": lambda text, number, word: near(items(text), number, number),
    "prose": lambda text, number, word: 1.0 - min(1.0, items(text) / 2),
    "end_question": lambda text, number, word: question_share(text),
    "no_question": lambda text, number, word: 1.0 - question_share(text),
    "few_sentences": lambda text, number, word: near(sentences(text), number, 2),
    "many_sentences": lambda text, number, word: near(sentences(text), number, 2),
    "exclamation": lambda text, number, word: float("!" in text),
    "no_exclamation": lambda text, number, word: float("!" not in text),
    "digits": lambda text, number, word: float(any(c.isdigit() for c in ITEM_MARK.sub("", text))),
    "no_digits": lambda text, number, word: float(not any(c.isdigit() for c in ITEM_MARK.sub("", text))),
    "opening": lambda text, number, word: float(first_word(text) == word.lower()),
    "other_opening": lambda text, number, word: float(first_word(text) != word.lower()),
}
NUMBERED = frozenset({"at_most_words", "at_least_words", "bullets", "few_sentences", "many_sentences"})
WORDED = frozenset({"use_word", "avoid_word", "opening", "other_opening"})


def credit(constraint: Constraint | Mapping[str, Any], text: str) -> float:
    """How far ``text`` meets one constraint, in [0, 1]; 1 is met. PrudentError: unknown kind, missing number or
    word."""
    if not isinstance(constraint, Constraint):
        constraint = Constraint(**constraint)
    kind, number, word = constraint.kind, constraint.number, constraint.word
    if kind not in CHECKS:
        raise PrudentError(f"constraint kind {kind!r} is unknown; known: {', '.join(CHECKS)}")
    if kind in NUMBERED and (number is None or number < 1):
        raise PrudentError(f"constraint {kind!r} has number {number!r}; give a whole number of at least 1")
    if kind in WORDED and not word:
        raise PrudentError(f"constraint {kind!r} has no word; give one")
    return CHECKS[kind](text, number or 0, word or "")


def soundness(text: str) -> float:
    """1 for an ordinary text, less for endless repetition, for a text of one or two words and for one without letters.

    The product of three factors: words / 3 up to 1; distinct word triples over all triples, doubled, up to 1; letters
    over visible characters, doubled, up to 1. It keeps a fine-tuned policy from earning "no commas" with an empty
    answer.
    """
    found = [part.lower() for part in words(text)]
    if not found:
        return 0.0
    triples = list(zip(found, found[1:], found[2:], strict=False))
    variety = min(1.0, 2 * len(set(triples)) / len(triples)) if triples else 1.0
    visible = [character for character in text if not character.isspace()]
    lettered = min(1.0, 2 * sum(character.isalnum() for character in visible) / len(visible))
    return min(1.0, len(found) / 3) * variety * lettered


def gold(constraints: Sequence[Constraint | Mapping[str, Any]], text: str) -> float:
    """Gold reward of ``text`` in [0, 1]: the mean credit of its prompt's constraints times :func:`soundness`.

    A pure function of the constraints and the text, defined for any text. PrudentError where there is no constraint.
    """
    if not constraints:
        raise PrudentError("gold needs at least one constraint; the prompt has none")
    met = sum(credit(constraint, text) for constraint in constraints) / len(constraints)
    return soundness(text) * min(1.0, met)  # a mean of ones may round to just above 1
