"""Request bodies of trainers and servers, distinguished by their keys, and the answers in each one's own shape.

============  =================================  ==================================================================
form          keys                               answer
============  =================================  ==================================================================
openrlhf      query, prompts, labels             rewards, scores, extra_logs: numbers, one a query
slime         prompt, response, label            reward, mean, variance, ... of one sample
llamafactory  model, messages (texts)            scores and rules, one a text
vllm          input (texts)                      data[i].probs (SGLang: .embedding): members, the reward last
nemo_gym      responses_create_params, response  the body, with reward, mean, variance, standard deviation
tei           inputs (a text or [[text], ...])   label and score, one a text
prudent       messages (turns), or               results[i]: reward, rule, mean, variance, standard_deviation, members
              conversations [{messages} or
              {prompt, response}, ...]
============  =================================  ==================================================================

Bodies were read from OpenRLHF 0.11 (utils/agent.py, cli/serve_rm.py), slime 0.3 (rollout/rm_hub), LLaMA-Factory
(train/ppo/ppo_utils.py), NeMo Gym's /verify (nemo_gym/base_resources_server.py, of the Responses API), vLLM's
/classify and text-embeddings-inference's /predict (router/src/http/types.rs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from prudent.errors import PrudentError
from prudent.features.rendering import RenderedText, template_marks
from prudent.files import clean_text

FORMS = ("openrlhf", "slime", "llamafactory", "nemo_gym", "vllm", "tei", "prudent")


class Sample(NamedTuple):
    """One response to score. prompt: a text, messages or a RenderedText. error: why it can't be scored, or nothing."""

    prompt: Any
    response: Any
    error: str = ""


class Size(NamedTuple):
    """tokens: positions that a sample takes. truncated: whether it was cut to the model's limit."""

    tokens: int
    truncated: bool


class Score(NamedTuple):
    """What one response got. reward: by ``rule``. members: K scores. variance: of the members, ddof=1, None for one.
    centred: whether members were centred on samples of the reference. truncated: the text was cut to the limit."""

    reward: float
    rule: str
    members: tuple[float, ...]
    mean: float
    variance: float | None
    centred: bool
    truncated: bool

    @property
    def standard_deviation(self) -> float | None:
        """Square root of the variance over members; None where there is none."""
        return None if self.variance is None else self.variance**0.5


class BodyError(PrudentError):
    """A body that no form fits. index: which sample of the request, None for the body as a whole."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


def form_of(body: Any) -> str:
    """Name of the form whose keys ``body`` has. BodyError, naming the keys that are known, where none fits."""
    if not isinstance(body, dict):
        raise BodyError(f"the body is a {type(body).__name__}; send one JSON object")
    if "query" in body:
        return "openrlhf"
    if "responses_create_params" in body:
        return "nemo_gym"
    if "inputs" in body:
        return "tei"
    if "input" in body:
        return "vllm"
    messages = body.get("messages")
    if "conversations" in body or (isinstance(messages, list) and messages and isinstance(messages[0], dict)):
        return "prudent"
    if "messages" in body:
        return "llamafactory"
    if "prompt" in body and "response" in body:
        return "slime"
    raise BodyError(
        f"no form has the keys {sorted(body)[:10]}; send query (OpenRLHF), prompt and response (slime), messages, "
        "conversations, input (vLLM) or inputs (text-embeddings-inference)"
    )


def samples_of(form: str, body: dict[str, Any], tokenizer: Any) -> list[Sample]:
    """The samples of a body. One that can't be read becomes a Sample with an error where the form's answer can say so;
    elsewhere the first such one raises BodyError at once, before the others are read."""
    samples = []
    for index, sample in enumerate(_READERS[form](body, tokenizer)):
        if sample.error and form != "prudent":
            raise BodyError(sample.error, index)
        samples.append(sample)
    return samples


def answer(form: str, body: dict[str, Any], scores: Sequence[Score | str], model: str) -> dict[str, Any] | list[Any]:
    """The response body in the form's own shape. A text in ``scores`` is the reason why that sample has no score.

    Raises BodyError for the first such sample where the form can't carry it, or where no sample has a score: a trainer
    must never read it as a reward.
    """
    if form == "prudent" and not (scores and all(isinstance(score, str) for score in scores)):
        results = [{"index": i, "error": s} if isinstance(s, str) else _full(s) for i, s in enumerate(scores)]
        return {"model": model, "results": results}
    for index, score in enumerate(scores):
        if isinstance(score, str):
            raise BodyError(score, index)
    return _WRITERS[form](body, [score for score in scores if isinstance(score, Score)], model)


def split_rendered(text: str, tokenizer: Any, prompt: str | None = None) -> Sample:
    """A rendered conversation as prompt and answer.

    prompt: the rendered prompt where the client sends it too (a begin mark that only one of them has is no
    difference); else the text is split where its last assistant turn opens.
    """
    begin = tokenizer.bos_token or ""
    if prompt is not None:
        bare, opened = _without(text, begin), _without(prompt, begin)
        if bare.startswith(opened):
            return Sample(RenderedText(opened), bare[len(opened) :])
    opening = template_marks(tokenizer, tokenizer.chat_template).opening
    head, found, tail = text.rpartition(opening) if opening else ("", "", text)
    if not found:
        shown = opening.strip() or "an assistant's turn"
        return Sample("", "", f"the text holds no {shown!r}, so where its answer begins is unknown; send messages")
    return Sample(RenderedText(head + found), tail)


def _without(text: str, begin: str) -> str:
    while begin and text.startswith(begin):
        text = text.removeprefix(begin)
    return text


def _texts(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise BodyError(f"{name} is a {type(value).__name__}; send a text or a list of texts")
    return value


def _rendered(value: Any, tokenizer: Any, prompt: Any = None) -> Sample:
    if not isinstance(value, str):
        return Sample("", "", f"the text is a {type(value).__name__}, expected a string")
    return split_rendered(clean_text(value), tokenizer, clean_text(prompt) if isinstance(prompt, str) else None)


def _read_openrlhf(body: dict[str, Any], tokenizer: Any) -> Iterable[Sample]:
    queries, prompts = _texts(body["query"], "query"), body.get("prompts") or []
    if prompts and len(_texts(prompts, "prompts")) != len(queries):
        raise BodyError(f"{len(queries)} in query and {len(prompts)} in prompts; send one prompt a query")
    prompts = _texts(prompts, "prompts") or [None] * len(queries)
    return (_rendered(query, tokenizer, prompt) for query, prompt in zip(queries, prompts))


def _read_texts(name: str) -> Callable[[dict[str, Any], Any], Iterable[Sample]]:
    def read(body: dict[str, Any], tokenizer: Any) -> Iterable[Sample]:
        return (_rendered(text, tokenizer) for text in _texts(body[name], name))

    return read


def _read_tei(body: dict[str, Any], tokenizer: Any) -> Iterable[Sample]:
    inputs = body["inputs"]
    if isinstance(inputs, list) and inputs and all(isinstance(one, str) for one in inputs):
        inputs = [inputs]  # a flat list is one text, or one pair, as in that server
    items = [inputs] if isinstance(inputs, str) else _texts(inputs, "inputs")
    for item in items:
        parts = [item] if isinstance(item, str) else item
        if not isinstance(parts, list) or len(parts) not in (1, 2) or not all(isinstance(p, str) for p in parts):
            yield Sample("", "", "an input is a text, [text] or the pair [prompt, response]")
        else:
            yield _rendered(parts[0], tokenizer) if len(parts) == 1 else Sample(parts[0], parts[1])


def _read_nemo_gym(body: dict[str, Any], tokenizer: Any) -> list[Sample]:
    """One rollout of the Responses API: the answer is the text of the last assistant message of its output."""
    asked, answered = body["responses_create_params"], body.get("response")
    turns = asked.get("input") if isinstance(asked, dict) else None
    output = answered.get("output") if isinstance(answered, dict) else None
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if isinstance(turns, list):
        turns = [t if not isinstance(t, dict) else {**t, "content": _joined(t.get("content"))} for t in turns]
    spoken = [m for m in output or [] if isinstance(m, dict) and m.get("type", "message") == "message"]
    text = _joined(spoken[-1].get("content")) if spoken else None
    if not _are_turns(turns) or not isinstance(text, str):
        return [
            Sample("", "", "give responses_create_params.input (a text or turns) and response.output with a message")
        ]
    return [Sample([{"role": t["role"], "content": t["content"]} for t in turns or []], text)]


def _joined(content: Any) -> Any:
    """The text of a message's parts; other contents as they are."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]


def _read_slime(body: dict[str, Any], tokenizer: Any) -> list[Sample]:
    return [_conversation(body, tokenizer)]


def _read_own(body: dict[str, Any], tokenizer: Any) -> list[Sample]:
    items = body.get("conversations", [body])
    if not isinstance(items, list):
        raise BodyError(f"conversations is a {type(items).__name__}; send a list")
    return [_conversation(item, tokenizer) for item in items]


def _conversation(item: Any, tokenizer: Any) -> Sample:
    """{messages} or {prompt, response}; a prompt text that ends where an assistant's turn opens is a rendered one."""
    if not isinstance(item, dict):
        return Sample("", "", f"a conversation is a {type(item).__name__}, expected an object")
    if "messages" in item:
        turns = item["messages"]
        if not _are_turns(turns) or turns[-1]["role"] != "assistant" or len(turns) < 2:
            return Sample("", "", "messages must be turns {role, content} of text, the assistant's answer last")
        return Sample(turns[:-1], turns[-1]["content"])
    prompt, response = item.get("prompt"), item.get("response")
    if not isinstance(response, str) or not (_are_turns(prompt) or (isinstance(prompt, str) and prompt)):
        return Sample("", "", "give a prompt (a text or turns) and a response (a text)")
    opening = template_marks(tokenizer, tokenizer.chat_template).opening
    if isinstance(prompt, str) and opening and prompt.endswith(opening):
        return Sample(RenderedText(clean_text(prompt)), clean_text(response))
    return Sample(prompt, response)


def _are_turns(turns: Any) -> bool:
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns
        )
    )


def _full(score: Score) -> dict[str, Any]:
    return {**score._asdict(), "members": list(score.members), "standard_deviation": score.standard_deviation}


def _write_openrlhf(body: dict[str, Any], scores: list[Score], model: str) -> dict[str, Any]:
    rewards = [score.reward for score in scores]
    logs: dict[str, list[float]] = {"reward_model_mean": [score.mean for score in scores]}
    if scores and scores[0].variance is not None:
        logs["variance"] = [float(score.variance or 0.0) for score in scores]
        logs["standard_deviation"] = [float(score.standard_deviation or 0.0) for score in scores]
    for member in range(len(scores[0].members) if scores else 0):
        logs[f"member_{member}"] = [score.members[member] for score in scores]
    logs["centred"] = [float(score.centred) for score in scores]  # numbers only: 0 where --fallback's rule answered
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs if scores else {}}


def _write_slime(body: dict[str, Any], scores: list[Score], model: str) -> dict[str, Any]:
    return {**_full(scores[0]), "score": scores[0].reward}


def _write_nemo_gym(body: dict[str, Any], scores: list[Score], model: str) -> dict[str, Any]:
    found = _full(scores[0])
    beside = {f"reward_model_{name}": found[name] for name in ("mean", "variance", "standard_deviation")}
    return {**body, "reward": scores[0].reward, "reward_model_rule": scores[0].rule, **beside}


def _write_llamafactory(body: dict[str, Any], scores: list[Score], model: str) -> dict[str, Any]:
    return {"model": model, "scores": [score.reward for score in scores], "rules": [score.rule for score in scores]}


def _write_vllm(body: dict[str, Any], scores: list[Score], model: str) -> dict[str, Any]:
    data = [
        {
            "index": index,
            "label": "reward",
            "rule": score.rule,
            "probs": [*score.members, score.reward],
            "embedding": [*score.members, score.reward],  # SGLang's name of the same
            "num_classes": len(score.members) + 1,
        }
        for index, score in enumerate(scores)
    ]
    return {"object": "list", "model": model, "data": data}


def _write_tei(body: dict[str, Any], scores: list[Score], model: str) -> list[Any]:
    labelled = [[{"label": "reward", "score": score.reward}] for score in scores]
    inputs = body["inputs"]
    single = isinstance(inputs, str) or (bool(inputs) and all(isinstance(one, str) for one in inputs))
    return labelled[0] if single else labelled


_READERS: dict[str, Callable[[dict[str, Any], Any], Iterable[Sample]]] = {
    "openrlhf": _read_openrlhf,
    "slime": _read_slime,
    "nemo_gym": _read_nemo_gym,
    "llamafactory": _read_texts("messages"),
    "vllm": _read_texts("input"),
    "tei": _read_tei,
    "prudent": _read_own,
}
_WRITERS: dict[str, Callable[[dict[str, Any], list[Score], str], Any]] = {
    "openrlhf": _write_openrlhf,
    "slime": _write_slime,
    "nemo_gym": _write_nemo_gym,
    "llamafactory": _write_llamafactory,
    "vllm": _write_vllm,
    "tei": _write_tei,
}
