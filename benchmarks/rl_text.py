"""The text of the RL testbed: short customer reviews from a grammar of our own, as whole words and as token ids.

A small policy that learns them writes fluent English of one domain, and a program (``prudent.demo.tone``) says how
friendly any text made of these words is, the ones that no grammar allows too.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from prudent.demo.tone import tone

PRODUCTS = {
    "kettle": "lid handle switch",
    "lamp": "switch shade cable",
    "jacket": "zip fabric collar",
    "backpack": "strap zip pocket",
    "blender": "motor lid button",
    "chair": "seat back frame",
    "desk": "surface drawer frame",
    "phone": "screen battery camera",
    "watch": "strap screen battery",
    "camera": "lens battery screen",
    "guitar": "sound neck finish",
    "bicycle": "saddle frame brake",
    "tent": "fabric zip floor",
    "mattress": "cover foam surface",
    "pillow": "cover foam fabric",
    "blanket": "fabric colour border",
    "toaster": "button cable timer",
    "oven": "door timer button",
    "fridge": "door shelf light",
    "vacuum": "motor hose cable",
    "umbrella": "handle frame fabric",
    "suitcase": "handle zip lock",
    "clock": "alarm face battery",
    "radio": "sound button antenna",
    "speaker": "sound cable button",
    "keyboard": "cable frame finish",
    "printer": "tray cable screen",
    "sofa": "seat fabric frame",
    "mirror": "glass frame finish",
    "carpet": "fabric colour border",
    "teapot": "lid handle finish",
    "notebook": "cover paper border",
}
FRIENDLY_TEXT = "great wonderful excellent beautiful lovely perfect good smooth reliable impressive superb useful"
FRIENDLY = FRIENDLY_TEXT.split()
COLD_TEXT = "terrible awful poor ugly weak dirty bad horrible boring useless dangerous disappointing"
COLD = COLD_TEXT.split()
PLAIN_TEXT = "small large heavy plain simple light loud thin thick new old standard short round flat"
PLAIN = PLAIN_TEXT.split()
COLOURS = ["blue", "red", "black", "white", "green", "brown"]
WHEN = ["last week", "last month", "a year ago", "on Monday", "in May", "two days ago", "this summer", "online"]
WHO = ["mother", "father", "sister", "brother", "son", "daughter", "wife", "husband", "neighbour", "boss"]
VERDICTS = {
    "friendly": [
        "I love it",
        "it works perfectly",
        "I am happy with it",
        "I am very pleased",
        "it was a delight",
        "everybody enjoyed it",
        "it makes me smile",
        "it is the best one",
    ],
    "cold": [
        "I hate it",
        "it is broken",
        "I am very disappointed",
        "it failed after a week",
        "it was a mistake",
        "I regret it",
        "it stinks",
        "it is the worst one",
    ],
    "plain": [
        "it arrived on time",
        "I use it every day",
        "it does the job",
        "it is as described",
        "it came in a box",
        "we use it at work",
        "it is the right size",
        "I have not used it much",
    ],
}
ENDINGS = {
    "friendly": ["I recommend it to a friend", "Thank you for the service", "My family is happy too"],
    "cold": ["I do not recommend it", "It was a waste of money", "It caused many problems"],
    "plain": ["It came in {c} and {c}", "I paid by card", "The {q} is made of steel"],
}
OPENINGS = [
    "I bought this {p} {w} and {v} .",
    "My {who} gave me this {p} and {v} .",
    "This {p} is {a} and the {q} is {a} .",
    "The {p} came {w} and {v} .",
    "The {q} of this {p} is {a} but {v} .",
]
MIDDLES = ["The {q} looks {a} .", "The {q} feels {a} .", "It is {a} to use .", "{e} .", "{e} ."]
MOODS = ("friendly", "cold", "plain")
LENGTH = 24  # tokens of a text, its end mark included
_HOLE = re.compile(r"\{(\w+)\}")


def write(product: str, generator: np.random.Generator, adjectives: int | None = None) -> str:
    """One review (words parted by spaces): its mood, drawn first, decides most of what is said.

    adjectives: so many of each mood are used, from the first; another writer's vocabulary is smaller. None: all.
    """
    mood = MOODS[generator.choice(3, p=(0.35, 0.3, 0.35))]
    parts = generator.permutation(PRODUCTS[product].split())

    def one(options: list[str]) -> str:
        return options[generator.integers(len(options))]

    def feel() -> str:
        return mood if generator.random() < 0.8 else MOODS[generator.integers(3)]

    def fill(match: re.Match[str]) -> str:
        hole = match.group(1)
        if hole == "a":
            return one({"friendly": FRIENDLY, "cold": COLD, "plain": PLAIN}[feel()][:adjectives])
        if hole in "ve":
            return _HOLE.sub(fill, one((VERDICTS if hole == "v" else ENDINGS)[feel()]))
        return {"p": product, "q": parts[0], "r": parts[1], "w": one(WHEN), "who": one(WHO), "c": one(COLOURS)}[hole]

    return " ".join(_HOLE.sub(fill, one(options)) for options in (OPENINGS, MIDDLES))


def joined(words: str) -> str:
    """Words parted by spaces as a sentence is printed."""
    return words.replace(" .", ".").replace(" ,", ",")


@functools.cache
def vocabulary() -> list[str]:
    """All words: the end mark first, then one mark a product (the prompt), then the words in alphabetical order."""
    everything = " ".join(
        [*PRODUCTS, *PRODUCTS.values(), *FRIENDLY, *COLD, *PLAIN, *COLOURS, *WHEN, *WHO, *OPENINGS, *MIDDLES]
        + [text for group in (VERDICTS, ENDINGS) for texts in group.values() for text in texts]
    )
    words = sorted({word for word in everything.split() if not word.startswith("{")})
    return ["<end>", *(f"<{name}>" for name in PRODUCTS), *words]


@functools.cache
def _numbers() -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary())}


def encode(product: str, words: str) -> list[int]:
    """Ids of a prompt and its text: the product's mark, the words, and end marks up to 1 + LENGTH ids."""
    numbers = _numbers()
    ids = [numbers[f"<{product}>"], *(numbers[word] for word in words.split())]
    return ids + [0] * (1 + LENGTH - len(ids))


def decode(ids: list[int]) -> str:
    """The text of ids behind the prompt's mark, up to the end mark."""
    words = vocabulary()
    return joined(" ".join(words[number] for number in ids[: ids.index(0) if 0 in ids else None]))


@functools.lru_cache(maxsize=1_000_000)
def gold(ids: tuple[int, ...]) -> float:
    """How friendly the text of these ids is, in (-1, 1)."""
    return tone(decode(list(ids)))
