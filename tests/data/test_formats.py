"""Shapes of single rows, beyond the field cases."""

from __future__ import annotations

import pytest

from prudent.data.formats import Choices, pair_of_sides
from prudent.data.messages import Reject, parse_transcript


def no_note(*_: str) -> None:
    pass


def messages(*turns: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def pair(**row: object):
    return pair_of_sides(row, Choices(), no_note)


def test_implicit_prompt_is_the_shared_beginning() -> None:
    found = pair(chosen=messages("s:S", "u:Q", "a:one"), rejected=messages("s:S", "u:Q", "a:two"))
    assert found.prompt == messages("s:S", "u:Q")
    assert (found.chosen, found.rejected) == (messages("a:one"), messages("a:two"))
    assert found.shape == "implicit-prompt"


def test_prompt_messages_before_answers_or_whole_conversations() -> None:
    prompt = messages("u:Q", "a:A", "u:Q2")
    answers = pair(prompt=prompt, chosen=messages("a:one"), rejected=messages("a:two"))
    whole = pair(prompt=prompt, chosen=[*prompt, *messages("a:one")], rejected=[*prompt, *messages("a:two")])
    mixed = pair(prompt=prompt, chosen="one", rejected=[*prompt, *messages("a:two")])
    for found in (answers, whole, mixed):
        assert (found.prompt, found.chosen, found.rejected) == (prompt, messages("a:one"), messages("a:two"))


def test_sharegpt_names_and_text_parts() -> None:
    found = pair(
        chosen=[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "one"}],
        rejected=[{"from": "human", "value": "Q"}, {"role": "assistant", "content": [{"type": "text", "text": "two"}]}],
    )
    assert (found.prompt, found.rejected) == (messages("u:Q"), messages("a:two"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no-prompt"),
        ({"prompt": "Q", "chosen": messages("u:Q", "a:x"), "rejected": messages("u:Q")}, "empty"),
        ({"prompt": "Q", "chosen": messages("u:Q", "a:x"), "rejected": messages("u:Q", "a:x")}, "identical-sides"),
        ({"prompt": "other", "chosen": messages("u:Q", "a:x"), "rejected": messages("u:Q", "a:y")}, "prompt-mismatch"),
        ({"prompt": "Q", "chosen": [{"role": "narrator", "content": "x"}], "rejected": "y"}, "unknown-role"),
        ({"prompt": "Q", "chosen": [], "rejected": "y"}, "empty"),
        ({"prompt": "  ", "chosen": "x", "rejected": "y"}, "blank"),
        ({"prompt": "Q", "chosen": [{"from": "gpt", "content": [{"image": 1}]}], "rejected": "y"}, "image-part"),
    ],
)
def test_rows_that_give_no_pair(row: dict, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        pair(**row)
    assert [problem.reason for problem in caught.value.problems] == [reason]


def test_every_fault_of_a_row_is_named() -> None:
    with pytest.raises(Reject) as caught:
        pair(prompt=3, chosen=None, rejected="")
    assert [(p.field, p.reason) for p in caught.value.problems] == [
        ("prompt", "not-text"),
        ("chosen", "null"),
        ("rejected", "empty"),
    ]


def test_transcript_prompt_column() -> None:
    found = pair(prompt="\n\nHuman: Q\n\nAssistant:", chosen=" one", rejected=" two")
    assert found.prompt == messages("u:Q")
    whole = pair(
        prompt="\n\nHuman: Q\n\nAssistant:",
        chosen="\n\nHuman: Q\n\nAssistant: one",
        rejected="\n\nHuman: Q\n\nAssistant: two",
    )
    assert (whole.prompt, whole.chosen) == (messages("u:Q"), messages("a:one"))


def turn(content: object, role: str = "assistant", **more: object) -> list[dict]:
    return [{"role": role, "content": content, **more}]


def test_shared_prefix_of_plain_texts_on_request() -> None:
    row = {"chosen": "The sky is blue today", "rejected": "The sky is blurred"}
    found = pair_of_sides(row, Choices(without_prompt="shared"), no_note)
    assert found.prompt == messages("u:The sky is ")
    assert found.chosen[0]["content"] == "blue today" and found.rejected[0]["content"] == "blurred"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Yes, it is.", "rejected": "No."},
        {"chosen": turn("Yes, it is."), "rejected": turn("No.")},
        {"prompt": None, "chosen": "Yes, it is.", "rejected": "No."},
        {"prompt": " ", "chosen": "Yes, it is.", "rejected": "No."},
        {"prompt": turn("", "user"), "chosen": "Yes, it is.", "rejected": "No."},
    ],
)
def test_a_pair_without_a_prompt_is_refused_or_kept_with_an_empty_one(row: dict) -> None:
    with pytest.raises(Reject) as raised:
        pair_of_sides(row, Choices(), no_note)
    [problem] = raised.value.problems
    assert problem.field == "prompt" and "--without-prompt empty" in problem.detail
    noted: list[str] = []
    found = pair_of_sides(
        row, Choices(without_prompt="empty"), lambda name, reason, _: noted.append(f"{name} {reason}")
    )
    assert noted == ["prompt empty-prompt"] and not found.prompt[0]["content"].strip()
    assert [side[0]["content"] for side in (found.chosen, found.rejected)] == ["Yes, it is.", "No."]
    if isinstance(row["chosen"], str):  # they differ from the first character: shared leaves the prompt empty, too
        assert pair_of_sides(row, Choices(without_prompt="shared"), no_note).prompt[0]["content"].strip() == ""


def test_texts_that_share_a_beginning_stay_whole_with_an_empty_prompt() -> None:
    found = pair_of_sides({"chosen": "I do.", "rejected": "I don't."}, Choices(without_prompt="empty"), no_note)
    assert found.prompt[0]["content"] == "" and found.chosen[0]["content"] == "I do."


def test_transcript_marks_need_an_empty_line_before_them() -> None:
    found = parse_transcript("Human: a\nAssistant: b\n\nAssistant: c", "x", no_note)
    assert found == messages("u:a\nAssistant: b", "a:c")


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        (
            {"prompt": turn([{"type": "image", "image": "a.png"}, {"type": "text", "text": "b"}], "user")},
            "image-part",
            "image part",
        ),
        ({"prompt": turn([{"type": "image_url", "image_url": {"url": "a"}}], "user")}, "image-part", "image part"),
        ({"prompt": turn([{"type": "input_audio", "data": "a"}], "user")}, "input_audio-part", "audio part"),
        ({"chosen": turn(None, tool_calls=CALL)}, "tool-calls", "message 1 (assistant) makes a tool call"),
        ({"chosen": turn("I look.", tool_calls=CALL)}, "tool-calls", "tool_calls"),
        ({"prompt": [*turn("q", "user"), *turn("", tool_calls=CALL), *turn("12", "tool")]}, "tool-calls", "message 2"),
        (
            {"chosen": turn("x", reasoning_content="a"), "rejected": turn("x", reasoning_content="b")},
            "differs-unread",
            "differ in reasoning_content only",
        ),
    ],
)
def test_what_is_not_read_is_named_for_what_it_is(row: dict, reason: str, said: str) -> None:
    base = {"prompt": "q", "chosen": turn("a"), "rejected": turn("b")}
    with pytest.raises(Reject) as caught:
        pair_of_sides({**base, **row}, Choices(allow=frozenset({"identical-sides"})), lambda *_: None)
    [problem] = caught.value.problems
    assert problem.reason == reason and said in problem.detail


def test_text_parts_are_joined_and_an_empty_list_of_calls_is_none() -> None:
    parts = [{"type": "text", "text": "Name a"}, {"type": "text", "text": " river."}]
    row = {"prompt": turn(parts, "user"), "chosen": turn("Elbe", tool_calls=[]), "rejected": turn("hill")}
    pair = pair_of_sides(row, Choices(), lambda *_: None)
    assert pair.prompt == turn("Name a river.", "user") and pair.chosen == turn("Elbe")


def test_sharegpt_pairs_with_one_message_a_side() -> None:
    row = {
        "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Name a bird."}],
        "chosen": {"from": "gpt", "value": "A wren."},
        "rejected": {"from": "gpt", "value": "A wasp."},
    }
    pair = pair_of_sides(row, Choices(), lambda *_: None)
    assert pair.prompt == [*turn("Be brief.", "system"), *turn("Name a bird.", "user")]
    assert (pair.chosen, pair.rejected, pair.extra) == (turn("A wren."), turn("A wasp."), {})


@pytest.mark.parametrize("sides", [("yes", "no"), (turn("yes"), turn("no"))])
def test_a_pair_without_a_prompt_is_refused_by_that_name_with_the_columns(sides: tuple) -> None:
    row = {"chosen": sides[0], "rejected": sides[1], "question": "q"}
    with pytest.raises(Reject) as caught:
        pair_of_sides(row, Choices(), lambda *_: None)
    [problem] = caught.value.problems
    assert problem.reason == "no-prompt" and "question" in problem.detail
