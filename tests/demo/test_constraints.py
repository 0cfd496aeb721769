"""Gold: what each check counts, that opposites are complements, and that gold is in [0, 1] for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prudent.demo import design
from prudent.demo.constraints import CHECKS, Constraint, credit, first_word, gold, items, sentences, soundness, words
from prudent.errors import PrudentError

EVERY = [
    Constraint(kind, number=4 if kind in ("at_most_words", "at_least_words") else 2, word="sea") for kind in CHECKS
]
COMPLEMENTS = [
    (Constraint("at_most_words", 10), Constraint("at_least_words", 20)),
    (Constraint("commas"), Constraint("no_commas")),
    (Constraint("first_person"), Constraint("no_first_person")),
    (Constraint("use_word", word="sea"), Constraint("avoid_word", word="sea")),
    (Constraint("end_question"), Constraint("no_question")),
    (Constraint("exclamation"), Constraint("no_exclamation")),
    (Constraint("digits"), Constraint("no_digits")),
    (Constraint("opening", word="The"), Constraint("other_opening", word="The")),
]


@pytest.mark.parametrize(
    "kind, number, word, text, expected",
    [
        ("at_most_words", 3, None, "one two three", 1.0),
        ("at_most_words", 3, None, "one two three four five six", 0.0),
        ("at_most_words", 2, None, "one two three", 0.41503749927884376),  # 1 - log2(3 / 2)
        ("at_least_words", 4, None, "one two three four", 1.0),
        ("at_least_words", 4, None, "one two", 0.0),
        ("commas", None, None, "a, b and c", 1 / 3),
        ("commas", None, None, "a, b, c, d, e", 1.0),
        ("no_commas", None, None, "a, b and c", 2 / 3),
        ("first_person", None, None, "I'm glad that my dog came.", 1.0),
        ("first_person", None, None, "We came.", 0.5),
        ("no_first_person", None, None, "Iron and mice", 1.0),
        ("use_word", None, "sea", "Seas, everywhere", 1.0),
        ("use_word", None, "sea", "Seasons", 0.0),
        ("avoid_word", None, "sea", "The SEA's edge", 0.0),
        ("bullets", 3, None, "- a\n- b\n- c", 1.0),
        ("bullets", 3, None, "1. a\n2) b", 2 / 3),
        ("bullets", 2, None, "plain", 0.0),
        ("prose", None, None, "a - b\nc", 1.0),
        ("prose", None, None, "* a", 0.5),
        ("end_question", None, None, 'He asked: "Why?"', 1.0),
        ("end_question", None, None, "Why? Because.", 0.5),
        ("no_question", None, None, "Because.", 1.0),
        ("few_sentences", 1, None, "One. Two.", 0.5),
        ("many_sentences", 3, None, "One. Two! Three", 1.0),
        ("exclamation", None, None, "Oh!", 1.0),
        ("digits", None, None, "1. bread\n2. milk", 0.0),  # numbers of a list are marks, not figures
        ("digits", None, None, "7 days", 1.0),
        ("opening", None, "The", '"The sea', 1.0),
        ("other_opening", None, "The", "Then", 1.0),
    ],
)
def test_checks_by_hand(kind: str, number: int | None, word: str | None, text: str, expected: float) -> None:
    assert credit(Constraint(kind, number, word), text) == pytest.approx(expected, abs=1e-12)


def test_every_kind_has_a_worked_example() -> None:
    marks = test_checks_by_hand.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} >= set(CHECKS) - {"no_exclamation", "no_digits"}


def test_counts() -> None:
    assert words("It's a well-known 2nd try.") == ["It's", "a", "well-known", "2nd", "try"]
    assert words("1. bread\n2. milk") == ["bread", "milk"]
    assert sentences("Dr. Smith came. He left! Why? Nobody") == 4
    assert sentences("- bread\n- milk\n\n") == 2
    assert sentences("") == 0
    assert items("Text\n - a\n2) b\n-c\n3.5 km") == 2
    assert first_word("**I'm** here") == "i"
    assert first_word("...") == ""


@given(st.text(max_size=400), st.sampled_from(COMPLEMENTS))
def test_opposites_are_complements_for_any_text(text: str, pair: tuple[Constraint, Constraint]) -> None:
    assert credit(pair[0], text) + credit(pair[1], text) == pytest.approx(1.0, abs=1e-12)


@given(st.text(max_size=400), st.lists(st.sampled_from(EVERY), min_size=1, max_size=3))
def test_gold_is_a_share_for_any_text(text: str, constraints: list[Constraint]) -> None:
    reward = gold(constraints, text)
    assert 0.0 <= reward <= 1.0
    assert reward == gold(constraints, text)
    assert reward <= soundness(text)


def test_gold_is_the_mean_credit_of_a_sound_text() -> None:
    constraints = [Constraint("commas"), Constraint("end_question")]
    assert gold(constraints, "Salt, pepper and some oil?") == pytest.approx((1 / 3 + 1) / 2)
    assert gold([{"kind": "at_most_words", "number": 5}], "Salt, pepper and some oil?") == 1.0


def test_soundness_punishes_what_is_no_answer() -> None:
    assert soundness("") == 0.0
    assert soundness("?!") == 0.0
    assert soundness("Yes") == pytest.approx(1 / 3)
    assert soundness("A plain answer of a few words, nothing special.") == 1.0
    assert soundness("very good " * 30) < 0.1
    assert soundness("so !!!!!!!!!!!!!!!!!! it ????????? is") < 0.5


@pytest.mark.parametrize(
    "constraint, part",
    [
        (Constraint("rhyme"), "rhyme"),
        (Constraint("bullets"), "number None"),
        (Constraint("at_most_words", 0), "number 0"),
        (Constraint("use_word"), "no word"),
    ],
)
def test_a_constraint_that_cannot_be_checked_is_named(constraint: Constraint, part: str) -> None:
    with pytest.raises(PrudentError, match=part):
        credit(constraint, "text")


def test_gold_needs_a_constraint() -> None:
    with pytest.raises(PrudentError, match="at least one constraint"):
        gold([], "text")


def test_every_kind_is_in_one_pair_and_has_phrasings() -> None:
    paired = [kind for pair in design.PAIRS.values() for kind in pair]
    assert sorted(paired) == sorted(CHECKS) == sorted(design.PHRASES)
    assert all(len(set(phrases)) >= 3 for phrases in design.PHRASES.values())
