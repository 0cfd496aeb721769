"""From a conversation to token ids: the one rendering that training, scoring and sampling share.

A conversation is a prompt (messages, or a string: one user turn) and an answer (a string: one assistant turn, or
messages). Its ids are the prompt's ids followed by the answer's ids, each encoded by itself. So the ids of a prompt
are the same whatever answer follows: what a policy is shown when it samples is what a reward model reads when it
scores, and answers to one prompt share its computation.

With a chat template, the prompt's text is the template's with the generation prompt, the answer's text is what the
template adds for the answer turns (its end-of-turn mark included). Without one, turns are written ``User: ...`` and
``Assistant: ...``, a blank line between, and the answer ends with the tokenizer's end mark where it has one. Either
way the ids hold exactly one begin mark where the tokenizer has a begin mark: the template's, or the encoder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jinja2

from prudent.errors import PrudentError, RowsError
from prudent.files import clean_text

Messages: TypeAlias = list[dict[str, Any]]
Prompt: TypeAlias = "str | Messages"
Response: TypeAlias = "str | Messages"
T = TypeVar("T")

LONG = 2**16  # characters from which on a text that is to be cut is encoded no further than is needed
KEPT = 2**21  # characters and ids of rendered texts that are held to be given again: 30 MB at most
ROLES = {"user": "User", "assistant": "Assistant", "system": "System"}
# Some templates print today's date. Scores must not change overnight, so they always get the same day.
ONE_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


class RenderedText(str):
    """A prompt that is already rendered: the text that a policy was shown, special tokens and all.

    Trainers send such texts to a reward service. The template isn't applied again, the ids hold one begin mark however
    many the text brings, and the answer ends as the template ends one, so that the same conversation gets the same ids
    whether it arrives as messages or as text.
    """

    def __repr__(self) -> str:
        return f"RenderedText({super().__repr__()})"


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation in two parts, cut on the right to the length limit.

    prompt: ids up to where the answer begins. response: ids of the answer, its end mark included; empty where the
    prompt alone fills the limit. removed: how many ids the limit cut off (of texts so long that they aren't encoded to
    their end, at least so many).
    """

    prompt: list[int]
    response: list[int]
    removed: int = 0

    @property
    def ids(self) -> list[int]:
        """Token ids of the prompt, then of the response."""
        return self.prompt + self.response


def as_messages(turns: Prompt, role: str) -> Messages:
    """Messages of ``turns``; a string is one turn of ``role``."""
    if isinstance(turns, str):
        return [{"role": role, "content": clean_text(turns)}]
    return [
        {**turn, "content": clean_text(turn["content"])} if isinstance(turn.get("content"), str) else turn
        for turn in turns
    ]


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The text that a policy continues: the prompt and whatever opens the assistant's turn."""
    if isinstance(prompt, RenderedText):
        begin = template_marks(tokenizer, tokenizer.chat_template).begin
        text = str(prompt)
        while (mark := tokenizer.bos_token) and text.startswith(mark + (mark if mark == begin else "")):
            text = text.removeprefix(mark)
        return text if text.startswith(begin) else begin + text
    messages = as_messages(prompt, "user")
    if not messages:
        raise PrudentError("the prompt has no message; give at least one turn")
    if has_template(tokenizer):
        return _apply(tokenizer, messages, True)
    return _plain(messages) + "\n\nAssistant:"


def answer_text(tokenizer: Any, prompt: Prompt, response: Response, opened: str) -> tuple[str, str]:
    """(prompt text, answer text) of one conversation; ``opened`` is ``prompt_text`` of its prompt.

    The prompt's text is ``opened``, unless the template rewrites earlier turns once an answer follows.
    """
    if isinstance(prompt, RenderedText):
        return opened, _closed_answer(tokenizer, response)
    answer = as_messages(response, "assistant")
    if not answer:
        raise PrudentError("the response has no message; give at least one turn")
    if not has_template(tokenizer):
        return opened, " " + _content(answer[0]) + "".join("\n\n" + _plain([turn]) for turn in answer[1:])
    whole = _apply(tokenizer, [*as_messages(prompt, "user"), *answer], False)
    if not whole.startswith(opened):
        same = (index for index, (a, b) in enumerate(zip(whole, opened)) if a != b)
        opened = opened[: next(same, min(len(whole), len(opened)))]
    return opened, whole[len(opened) :]


class TemplateMarks(NamedTuple):
    """begin: the begin mark that the template writes first, or nothing. opening: what opens the assistant's turn.
    closing: what ends it."""

    begin: str
    opening: str
    closing: str


@lru_cache(maxsize=8)
def template_marks(tokenizer: Any, template: str | None) -> TemplateMarks:
    """What surrounds an answer in a rendered conversation. template: the tokenizer's own; a change of it is noticed."""
    if not template:
        return TemplateMarks("", "\n\nAssistant:", "")
    question: Messages = [{"role": "user", "content": "question"}]
    bare, opened = (_apply(tokenizer, question, generation) for generation in (False, True))
    whole = _apply(tokenizer, [*question, {"role": "assistant", "content": "prudent-answer"}], False)
    begin = tokenizer.bos_token or ""
    return TemplateMarks(
        begin if begin and opened.startswith(begin) else "",
        opened.removeprefix(bare) if opened.startswith(bare) else "",
        whole.rpartition("prudent-answer")[2],
    )


def _closed_answer(tokenizer: Any, response: Response) -> str:
    """A rendered answer, ended once as the template ends an assistant's turn.

    It may come with that ending, with its end mark alone (where generation stops), or cut without one.
    """
    if not isinstance(response, str):
        raise PrudentError(f"the response to a rendered prompt is {type(response).__name__}, expected text")
    closing = template_marks(tokenizer, tokenizer.chat_template).closing
    for ending in (closing, closing.rstrip(), tokenizer.eos_token):
        if ending and response.endswith(ending):
            return response.removesuffix(ending) + closing
    return response + closing


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def template_of(tokenizer: Any) -> str:
    """A tokenizer's chat template, "None" where it has none."""
    return str(getattr(tokenizer, "chat_template", None))


def _content(turn: dict[str, Any]) -> str:
    content = turn.get("content")
    if not isinstance(content, str):
        raise PrudentError(f"a message's content is {type(content).__name__}, expected text")
    return content


def _plain(messages: Messages) -> str:
    return "\n\n".join(f"{ROLES.get(turn['role'], turn['role'])}: {_content(turn)}" for turn in messages)


def _apply(tokenizer: Any, messages: Messages, generation: bool) -> str:
    options = {}
    if "strftime_now" in str(tokenizer.chat_template):
        options["chat_template"] = ONE_DAY + tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, **options)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        roles = ", ".join(str(turn.get("role")) for turn in messages)
        raise PrudentError(
            f"the model's chat template refuses turns with roles {roles}: {error}; change the turns, or give the "
            "tokenizer another chat_template"
        ) from error


def each_row(function: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
    """``function`` of every row; one RowsError with all rows for which it raises a PrudentError."""
    found: list[T] = []
    bad: dict[int, str] = {}
    for row, values in enumerate(zip(*columns)):
        try:
            found.append(function(*values))
        except PrudentError as error:
            bad[row] = str(error)
    if bad:
        raise RowsError(bad)
    return found


def require_pairs(prompts: Sequence[Prompt], responses: Sequence[Response]) -> None:
    """PrudentError unless there is one response a prompt."""
    if len(prompts) != len(responses):
        raise PrudentError(f"{len(prompts)} prompts but {len(responses)} responses; give one response a prompt")


def require_length(max_length: int | None) -> None:
    """PrudentError unless a length limit (None: no limit) leaves at least one token."""
    if max_length is not None and max_length < 1:
        raise PrudentError(f"max_length is {max_length}; it must be at least 1 token")


class Renderer:
    """A tokenizer's rendering of many conversations: each text is templated once and all are encoded in one call.

    max_length: ids kept of a conversation, cut on the right (None keeps all).
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        require_length(max_length)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.begin, self.end = added_marks(tokenizer)
        if has_template(tokenizer):
            self.end = []  # the template closes the turn itself
        elif not self.end and tokenizer.eos_token_id is not None:
            self.end = [tokenizer.eos_token_id]
        self.anchor = _anchor(tokenizer)
        self._kept: dict[Any, Rendered] = {}
        self._kept_size = 0

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of each prompt as a policy is shown it, one begin mark first; uncut."""
        texts = each_row(lambda prompt: prompt_text(self.tokenizer, prompt), prompts)
        return self._prompt_ids(texts)

    def conversations(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Rendered]:
        """Ids of each (prompt, response), in two parts. RowsError names all that the template refuses.

        A text that is asked for again soon is not rendered again (``KEPT``).
        """
        require_pairs(prompts, responses)
        template = template_of(self.tokenizer)
        keys = [(template, identity(prompt), identity(response)) for prompt, response in zip(prompts, responses)]
        kept = self._kept
        new = [row for row, key in enumerate(keys) if key not in kept]
        try:
            texts = self._conversations([prompts[row] for row in new], [responses[row] for row in new])
        except RowsError as error:
            raise error.moved(new) from error
        fresh = {keys[row]: text for row, text in zip(new, texts)}
        found = [fresh[key] if key in fresh else kept[key] for key in keys]
        size = sum(len(text.ids) + sum(len(turns[-1]) for turns in key[1:]) for key, text in fresh.items())
        if size + self._kept_size > KEPT:
            self._kept, self._kept_size = {}, 0
        if size <= KEPT:
            self._kept.update(fresh)
            self._kept_size += size
        return found

    def _conversations(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Rendered]:
        opened: dict[Any, str] = {}

        def texts(prompt: Prompt, response: Response) -> tuple[str, str]:
            key = identity(prompt)
            if key not in opened:
                opened[key] = prompt_text(self.tokenizer, prompt)
            return answer_text(self.tokenizer, prompt, response, opened[key])

        pairs = each_row(texts, prompts, responses)
        heads = list(dict.fromkeys(head for head, _ in pairs))
        tails = list(dict.fromkeys(tail for _, tail in pairs))
        keep = None if self.max_length is None else self.max_length + 1  # one more, which is then seen to be cut
        head_ids = dict(zip(heads, self._prompt_ids(heads, keep)))
        tail_ids = dict(zip(tails, self._response_ids(tails, keep)))
        return [self._cut(head_ids[head], tail_ids[tail]) for head, tail in pairs]

    def _cut(self, prompt: list[int], response: list[int]) -> Rendered:
        limit = self.max_length
        if limit is None or len(prompt) + len(response) <= limit:
            return Rendered(prompt, response)
        kept = prompt[:limit], response[: max(0, limit - len(prompt))]
        return Rendered(*kept, removed=len(prompt) + len(response) - len(kept[0]) - len(kept[1]))

    def _encode(self, texts: list[str], keep: int | None = None) -> list[list[int]]:
        """Ids of each text, its first ``keep`` at least where that is given."""
        whole = [text for text in texts if keep is None or len(text) < LONG]
        encoded = iter(self.tokenizer(whole, add_special_tokens=False)["input_ids"] if whole else [])
        return [next(encoded) if keep is None or len(text) < LONG else self._begin_of(text, keep) for text in texts]

    def _begin_of(self, text: str, keep: int) -> list[int]:
        """The first ``keep`` ids of a long text, without encoding all of it.

        A part of the text and one twice as long must begin with the same ids. What the second holds beyond the first
        must be more than white space, which a special token behind it could take away (``AddedToken.lstrip``), and long
        enough to show such a token whole.
        """
        longest = max(map(len, self.tokenizer.get_added_vocab()), default=0)
        size = max(LONG // 2, 4 * keep)
        while 2 * size < len(text):
            short, ids = self.tokenizer([text[:size], text[: 2 * size]], add_special_tokens=False)["input_ids"]
            if len(short) >= keep and short[:keep] == ids[:keep] and text[size : 2 * size - longest].strip():
                return ids[:keep]
            size *= 4
        return self.tokenizer([text], add_special_tokens=False)["input_ids"][0]

    def _prompt_ids(self, texts: list[str], keep: int | None = None) -> list[list[int]]:
        begin = self.begin
        return [ids if ids[: len(begin)] == begin else begin + ids for ids in self._encode(texts, keep)]

    def _response_ids(self, texts: list[str], keep: int | None = None) -> list[list[int]]:
        anchor, end, ids = self.anchor, self.end, []
        if not anchor:
            return [encoded + end for encoded in self._encode(texts, keep)]
        more = None if keep is None else keep + len(anchor)
        for text, encoded in zip(texts, self._encode(["\n" + text for text in texts], more)):
            whole = encoded[: len(anchor)] == anchor
            ids.append((encoded[len(anchor) :] if whole else self._encode([text], keep)[0]) + end)
        return ids


def identity(turns: Prompt | Response) -> tuple[str, str]:
    """What tells texts apart: a text, and messages or a rendered text of the same words, are two."""
    return type(turns).__name__, turns if isinstance(turns, str) else repr(turns)


def added_marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(ids that encoding puts before a text, ids that it puts after): a begin mark, a class mark, an end mark."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start]), list(full[start + len(bare) :])
    return [], []


def _anchor(tokenizer: Any) -> list[int]:
    """Ids of a line break, for tokenizers that put a space before every text they are given; else nothing.

    Such a tokenizer would begin an answer, encoded by itself, with a space that the conversation doesn't have. There
    the answer is encoded behind a line break, whose ids are then taken off.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode("\n") if encode("\na") != encode("\n") + encode("a") else []


def render(tokenizer: Any, prompt: Prompt, response: Response, max_length: int | None = None) -> list[int]:
    """Token ids of one conversation, with exactly one begin mark, cut on the right to ``max_length``."""
    return Renderer(tokenizer, max_length).conversations([prompt], [response])[0].ids


def render_parts(tokenizer: Any, prompt: Prompt, response: Response, max_length: int | None = None) -> Rendered:
    """Ids of the prompt and of the response apart; joined, they are what ``render`` gives."""
    return Renderer(tokenizer, max_length).conversations([prompt], [response])[0]


def render_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Ids that a policy is shown before it answers."""
    return Renderer(tokenizer).prompts([prompt])[0]


def count_begin_marks(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many begin marks stand at the start of ``ids`` (some models use the same token inside, to open turns)."""
    begin = tokenizer.bos_token_id
    count = 0
    while count < len(ids) and ids[count] == begin and begin is not None:
        count += 1
    return count


def show_ids(tokenizer: Any, prompt: Prompt, response: Response, max_length: int | None = None) -> str:
    """One line a token: index, id, token, and where the answer begins; for a person who checks the assembly."""
    parts = render_parts(tokenizer, prompt, response, max_length)
    names = tokenizer.convert_ids_to_tokens(parts.ids)
    lines = [
        f"{index:5d} {token:7d} {'response' if index >= len(parts.prompt) else 'prompt  '} {name!r}"
        for index, (token, name) in enumerate(zip(parts.ids, names))
    ]
    begin = count_begin_marks(tokenizer, parts.ids)
    lines.append(
        f"{len(parts.ids)} ids, {len(parts.response)} of them the response's; begin marks at the start: {begin}; "
        f"cut off: {parts.removed}"
    )
    return "\n".join(lines)
