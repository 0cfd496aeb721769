"""Which prompt gets which constraints: a seeded design that balances every kind and pair of kinds with its opposite.

Ten opposed pairs of kinds are combined two at a time. Of the 45 combinations the five in ``LEFT_OUT`` don't occur (a
list of n points and a number of sentences contradict each other; the rest keep the numbers even), so each pair of
kinds meets eight others. With 320 prompts each combination occurs eight times, twice in each of its four senses:
every kind has 32 prompts, and whatever a combination pulls to, another with the opposite sense pulls away from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prudent import seeding
from prudent.demo.constraints import Constraint
from prudent.errors import PrudentError
from prudent.files import hash_text

PAIRS: dict[str, tuple[str, str]] = {
    "length": ("at_most_words", "at_least_words"),
    "commas": ("no_commas", "commas"),
    "person": ("no_first_person", "first_person"),
    "word": ("avoid_word", "use_word"),
    "list": ("prose", "bullets"),
    "question": ("no_question", "end_question"),
    "sentences": ("few_sentences", "many_sentences"),
    "exclamation": ("no_exclamation", "exclamation"),
    "digits": ("no_digits", "digits"),
    "opening": ("other_opening", "opening"),
}
LEFT_OUT = (
    ("list", "sentences"),
    ("question", "exclamation"),
    ("length", "digits"),
    ("commas", "opening"),
    ("person", "word"),
)
LIMITS = (14, 16, 18, 20)  # at most n words; the opposite asks for at least 2 n
FEW, MANY = (1, 2), (3, 4)
POINTS = (2, 3, 4)
OPENINGS = ("The", "A", "To", "I", "When", "One")
SPELLED = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
PHRASES: dict[str, tuple[str, ...]] = {
    "at_most_words": (
        "Use at most {n} words.",
        "Keep it to {n} words or fewer.",
        "Don't go over {n} words.",
        "Be brief: no more than {n} words.",
    ),
    "at_least_words": (
        "Use at least {n} words.",
        "Write {n} words or more.",
        "Don't stop before {n} words.",
        "Be generous: no fewer than {n} words.",
    ),
    "commas": (
        "Use at least three commas.",
        "Put three or more commas in your answer.",
        "Make it rich in commas: three or more.",
    ),
    "no_commas": ("Don't use any commas.", "Write it without a single comma.", "Avoid commas altogether."),
    "first_person": (
        "Write in the first person.",
        "Speak as yourself, with I and my.",
        "Tell it from your own point of view, with I or we.",
    ),
    "no_first_person": (
        "Don't write in the first person.",
        "Never say I, my, we or our.",
        "Leave yourself out of it: no I, me or we.",
    ),
    "use_word": ('Use the word "{w}".', 'The word "{w}" must appear.', 'Include the word "{w}" somewhere.'),
    "avoid_word": (
        'Don\'t use the word "{w}".',
        'The word "{w}" must not appear.',
        'Find a way around the word "{w}".',
    ),
    "bullets": (
        "Answer with a list of exactly {s} bullet points.",
        "Give exactly {s} bullet points.",
        "Write it as {s} bullet points.",
    ),
    "prose": (
        "Write running text, not a list.",
        "Don't use bullet points or numbered lists.",
        "No lists, please: plain prose only.",
    ),
    "end_question": (
        'End with a question, such as "What do you think?"',
        "Let the last sentence be a question. Would you?",
        'Close by asking the reader something, like "Have you tried it?"',
    ),
    "no_question": ("Don't ask any questions.", "Use no question marks.", "Make statements only, never a question."),
    "few_sentences": (
        "Write exactly {s} sentence{plural}.",
        "Answer in {s} sentence{plural}.",
        "Make it {s} sentence{plural}, no more and no less.",
    ),
    "many_sentences": (
        "Write exactly {s} sentences.",
        "Answer in {s} short sentences.",
        "Make it {s} sentences, no more and no less.",
    ),
    "exclamation": (
        "Use an exclamation mark!",
        "Sound excited, with at least one exclamation mark!",
        'Put an exclamation mark somewhere, as in "Wonderful!"',
    ),
    "no_exclamation": (
        "Don't use exclamation marks.",
        "Stay calm: no exclamation marks.",
        "Write it without any exclamation mark.",
    ),
    "digits": (
        "Include a number written in digits.",
        "Use at least one figure, such as 7 or 40.",
        "Put a number in it, in digits.",
    ),
    "no_digits": (
        "Don't use any digits.",
        "Write every number in letters, never in digits.",
        "No figures, please: not a single digit.",
    ),
    "opening": (
        'Start with the word "{w}".',
        'The first word must be "{w}".',
        'Begin your answer like this: "{w} ..."',
    ),
    "other_opening": (
        'Don\'t start with the word "{w}".',
        'The first word must not be "{w}".',
        'Begin with any word but "{w}".',
    ),
}


@dataclass(frozen=True)
class Designed:
    """One prompt of the design. ``prompt``: the task and its constraints in words, what the policy reads."""

    id: str
    topic: str
    task: str
    prompt: str
    constraints: tuple[Constraint, ...]


def combinations() -> list[tuple[str, str]]:
    """The combinations of two pairs of kinds that occur."""
    banned = {frozenset(pair) for pair in LEFT_OUT}
    return [pair for pair in itertools.combinations(PAIRS, 2) if frozenset(pair) not in banned]


def slots(count: int, generator: np.random.Generator) -> list[tuple[str, str]]:
    """``count`` pairs of kinds in random order, all combinations and senses as equally often as can be."""
    pairs = [(a, b) for first, second in combinations() for a in PAIRS[first] for b in PAIRS[second]]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        order = generator.permutation(len(pairs))
        chosen += [pairs[i] for i in order[: count - len(chosen)]]
    return [chosen[i] for i in generator.permutation(count)]


def make(kind: str, word: str, generator: np.random.Generator) -> Constraint:
    """Constraint of one kind, its number or opening word drawn; ``word`` is the task's own tempting word."""
    if kind == "at_most_words":
        return Constraint(kind, int(generator.choice(LIMITS)))
    if kind == "at_least_words":
        return Constraint(kind, 2 * int(generator.choice(LIMITS)))
    if kind in ("few_sentences", "many_sentences", "bullets"):
        numbers = {"few_sentences": FEW, "many_sentences": MANY, "bullets": POINTS}[kind]
        return Constraint(kind, int(generator.choice(numbers)))
    if kind in ("use_word", "avoid_word"):
        return Constraint(kind, word=word)
    if kind in ("opening", "other_opening"):
        return Constraint(kind, word=str(generator.choice(OPENINGS)))
    return Constraint(kind)


def phrase(constraint: Constraint, generator: np.random.Generator) -> str:
    """One of the kind's phrasings, filled in."""
    number = constraint.number or 0
    wording = str(generator.choice(PHRASES[constraint.kind]))
    plural = "" if number == 1 else "s"
    return wording.format(n=number, s=SPELLED.get(number, str(number)), w=constraint.word, plural=plural)


def assign(tasks: list[dict[str, Any]], seed: int) -> list[Designed]:
    """Prompts of the world: each task with two constraints by the design of this module, from one seed.

    tasks: rows with ``topic``, ``task`` and ``word`` (a word that an answer is tempted to use). PrudentError where two
    tasks have one text.
    """
    if len({row["task"] for row in tasks}) != len(tasks):
        raise PrudentError("two tasks have the same text; every task of the world must be distinct")
    streams = seeding.spawn(seed, 2)
    kinds = slots(len(tasks), seeding.numpy_generator(streams[0]))
    generator = seeding.numpy_generator(streams[1])
    counts: dict[str, int] = {}
    designed = []
    for row, pair in zip(tasks, kinds, strict=True):
        counts[row["topic"]] = counts.get(row["topic"], 0) + 1
        order = [pair[i] for i in generator.permutation(2)]
        constraints = tuple(make(kind, row["word"], generator) for kind in order)
        text = " ".join([row["task"], *(phrase(constraint, generator) for constraint in constraints)])
        name = f"{row['topic'].replace(' ', '-')}-{counts[row['topic']]:02d}"
        designed.append(Designed(name, row["topic"], row["task"], text, constraints))
    return designed


def cell(constraints: Sequence[Constraint]) -> tuple[tuple[str, ...], int]:
    """Place of a prompt in the design: its pairs of kinds, and 0 where its two kinds stand on the same side of their
    pairs ("at most" with "no commas"), 1 where they don't ("at most" with "commas"). Cells of one combination
    balance."""
    sides = sorted(
        (name, kinds.index(part.kind)) for part in constraints for name, kinds in PAIRS.items() if part.kind in kinds
    )
    return tuple(name for name, _ in sides), sum(side for _, side in sides) % 2


def blocks(prompts: Sequence[Sequence[Constraint]], keys: Sequence[str]) -> list[int]:
    """Block (from 0) of each prompt: a block holds each combination of kinds in two opposite senses, so that a block of
    80 prompts is balanced like the whole. keys: what decides which of equal prompts comes first."""
    seen: dict[tuple[str, ...], int] = {}
    found = [0] * len(prompts)
    for position in sorted(range(len(prompts)), key=lambda i: keys[i]):
        pairs, diagonal = cell(prompts[position])
        sense = (*pairs, *sorted(part.kind for part in prompts[position]))
        copy = seen.get(sense, 0)
        seen[sense] = copy + 1
        first = int(hash_text("first", *pairs)[:2], 16) % 2  # half of the combinations begin with each sort of sense
        found[position] = 2 * copy + (diagonal ^ first)
    return found
