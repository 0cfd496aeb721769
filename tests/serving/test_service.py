"""The reward service: every client's own body, one path of scores, no made-up reward."""

import asyncio
import concurrent.futures
import json
import subprocess
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from prudent import PrudentError
from prudent.data.pools import Pool
from prudent.errors import RowsError
from prudent.features.rendering import prompt_text, template_marks
from prudent.serving.app import ServiceOptions, create_app
from prudent.serving.batching import Batcher, Limits
from prudent.serving.bodies import Sample, Size
from prudent.serving.scorer import RewardScorer

PROMPTS = ["ask 1", "What is a river?"]
ANSWERS = ["good good", "water that moves"]


def opened(model, **options):
    client = TestClient(create_app(lambda: RewardScorer(model, **options)))
    client.__enter__()
    wait_ready(client)
    return client


def wait_ready(client):
    until = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def client(reward_model):
    client = opened(reward_model)
    yield client
    client.__exit__(None, None, None)


@pytest.fixture
def offline(reward_model):
    return reward_model.score(PROMPTS, ANSWERS).double()


def rendered(model, prompt, answer, begin_marks=1, end="<|im_end|>"):
    tokenizer = model.renderer().tokenizer
    text = prompt_text(tokenizer, prompt).removeprefix(tokenizer.bos_token)
    return tokenizer.bos_token * begin_marks + text, tokenizer.bos_token * begin_marks + text + answer + end


@pytest.mark.parametrize("begin_marks", [0, 1, 2])
@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n"])
def test_openrlhf_texts_with_special_tokens_score_as_the_conversation_does(
    client, reward_model, offline, begin_marks, end
):
    texts = [rendered(reward_model, *pair, begin_marks, end) for pair in zip(PROMPTS, ANSWERS)]
    body = {"query": [q for _, q in texts], "prompts": [p for p, _ in texts], "labels": ["", ""]}
    found = client.post("/get_reward", json=body).json()
    assert found["rewards"] == found["scores"]
    torch.testing.assert_close(torch.tensor(found["rewards"]).double(), offline.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor(found["extra_logs"]["variance"]).double(), offline.var(0), atol=1e-5, rtol=1e-4
    )
    assert all(isinstance(v, float) for values in found["extra_logs"].values() for v in values)
    without = client.post("/get_reward", json={"query": body["query"]}).json()  # split at the last assistant turn
    assert without["rewards"] == pytest.approx(found["rewards"], abs=1e-5)


def test_openrlhf_empty_list_gets_an_empty_list(client):
    answer = client.post("/", json={"query": [], "prompts": [], "labels": []}).json()
    assert answer == {"rewards": [], "scores": [], "extra_logs": {}}


def test_every_form_gives_the_same_number_in_its_own_shape(client, reward_model, offline):
    want = float(offline.mean(0)[0])
    _, text = rendered(reward_model, PROMPTS[0], ANSWERS[0])
    turns = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": ANSWERS[0]}]
    slime = client.post("/", json={"prompt": PROMPTS[0], "response": ANSWERS[0], "label": None}).json()
    factory = client.post("/", json={"model": "m", "messages": [text]}).json()
    vllm = client.post("/classify", json={"model": "m", "input": [text]}).json()
    one = client.post("/predict", json={"inputs": [PROMPTS[0], ANSWERS[0]]}).json()
    many = client.post("/predict", json={"inputs": [[text], [PROMPTS[0], ANSWERS[0]]]}).json()
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWERS[0]}]}
    rollout = {"responses_create_params": {"input": turns[:1]}, "response": {"output": [message]}, "extra": 1}
    verified = client.post("/verify", json=rollout).json()
    assert verified["extra"] == 1 and verified["response"] == rollout["response"]
    own = client.post("/score", json={"messages": turns}).json()["results"][0]
    numbers = [slime["reward"], slime["score"], factory["scores"][0], vllm["data"][0]["probs"][-1], one[0]["score"]]
    numbers += [row[0]["score"] for row in many] + [own["reward"], verified["reward"]]
    assert numbers == pytest.approx([want] * len(numbers), abs=1e-5)
    assert own["members"] == pytest.approx(offline[:, 0].tolist(), abs=1e-5)
    assert own["rule"] == "mean" and own["centred"] is False and own["truncated"] is False
    assert own["standard_deviation"] ** 2 == pytest.approx(own["variance"])


@pytest.mark.parametrize(
    "body, status, index",
    [
        ({"foo": 1}, 422, None),
        ([1], 422, None),
        ({"query": ["<s>no turn opens here"]}, 422, 0),
        ({"query": [3]}, 422, 0),
        ({"query": ["a", "b"], "prompts": ["a"]}, 422, None),
        ({"prompt": "ask", "response": 3}, 422, 0),
        ({"inputs": [["a", "b", "c"]]}, 422, 0),
        ({"conversations": 3}, 422, None),
        ({"responses_create_params": {"input": "ask"}, "response": {"output": []}}, 422, 0),
        ({"messages": [{"role": "user", "content": "no answer"}]}, 422, 0),
        ({"conversations": [{"prompt": ""}, 5]}, 422, 0),
    ],
)
def test_an_error_is_an_http_error_with_a_reason_and_the_index(client, body, status, index):
    answer = client.post("/score", json=body)
    assert answer.status_code == status
    assert answer.json()["error"] and answer.json().get("index") == index


@pytest.mark.parametrize("name", ["query", "input", "messages"])
def test_half_a_character_in_a_rendered_text_is_a_text_like_any_other(client, reward_model, name):
    _, text = rendered(reward_model, PROMPTS[0], "good \ud800")
    answer = client.post("/score", content=json.dumps({"model": "m", name: [text]}))
    assert answer.status_code == 200


def test_a_fault_of_the_service_is_an_answer_with_a_reason(reward_model):
    scorer = RewardScorer(reward_model)
    scorer.sizes = lambda samples: 1 / 0
    with TestClient(create_app(lambda: scorer)) as client:
        wait_ready(client)
        answer = client.post("/score", json={"prompt": "a", "response": "b"})
        assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]
        assert 'status="500"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    "name, key", [("input", "data"), ("messages", "scores"), ("conversations", "results"), ("inputs", None)]
)
def test_an_empty_list_gets_an_empty_list_in_every_form(client, name, key):
    answer = client.post("/", json={name: []}).json()
    assert (answer if key is None else answer[key]) == []


def test_a_body_that_is_not_json_or_too_large(client, reward_model):
    assert client.post("/score", content=b"{").status_code == 400
    assert client.post("/score", content=b'{"query": [NaN]}').status_code == 400
    assert client.post("/score", content=b"[" * 100_000).status_code in (400, 422)
    small = TestClient(create_app(lambda: RewardScorer(reward_model), ServiceOptions(body_limit=100)))
    with small:
        wait_ready(small)
        assert small.post("/score", json={"prompt": "x" * 200, "response": "y"}).status_code == 413


def test_one_bad_conversation_costs_the_others_nothing(client, offline):
    body = {"conversations": [{"prompt": PROMPTS[0], "response": ANSWERS[0]}, {"prompt": "", "response": "x"}]}
    good, bad = client.post("/score", json=body).json()["results"]
    assert good["reward"] == pytest.approx(float(offline.mean(0)[0]), abs=1e-5)
    assert bad["index"] == 1 and "prompt" in bad["error"]


def test_texts_that_fail_in_the_model_are_left_out_together(reward_model):
    scorer, calls, inner = RewardScorer(reward_model), [], reward_model.as_computed

    def as_computed(prompts, responses):
        calls.append(len(responses))
        bad = {row: "no text" for row, text in enumerate(responses) if text == "bad"}
        if bad:
            raise RowsError(bad)
        return inner(prompts, responses)

    reward_model.as_computed = as_computed
    texts = ["good", "bad", "fine", "bad", "well"]
    found = [score for _, score in sorted(scorer.score([Sample("ask", text) for text in texts]))]
    assert [isinstance(one, str) for one in found] == [False, True, False, True, False]
    assert found[1] == "no text" and calls == [5, 3]
    want = reward_model.score(["ask"] * 3, ["good", "fine", "well"]).mean(0)
    assert [found[row].reward for row in (0, 2, 4)] == pytest.approx(want.tolist(), abs=1e-5)


def test_a_token_is_asked_for(reward_model):
    with TestClient(create_app(lambda: RewardScorer(reward_model), ServiceOptions(token="secret"))) as client:
        wait_ready(client)
        body = {"prompt": "a", "response": "b"}
        assert client.post("/score", json=body).status_code == 401
        assert client.post("/score", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_many_single_requests_are_batched_none_lost_none_mixed_up(reward_model):
    texts = [f"good {number % 8}" for number in range(200)]
    want = reward_model.score(["ask"] * 200, texts).mean(0)
    sizes = []
    scorer = RewardScorer(reward_model)
    inner = scorer.score
    scorer.score = lambda samples, cut: (sizes.append(len(samples)), inner(samples, cut))[1]
    with TestClient(create_app(lambda: scorer, ServiceOptions(limits=Limits(wait=0.05)))) as client:
        wait_ready(client)
        with concurrent.futures.ThreadPoolExecutor(32) as threads:
            post = lambda text: client.post("/score", json={"prompt": "ask", "response": text}).json()  # noqa: E731
            found = [answer["reward"] for answer in threads.map(post, texts)]
        metrics = client.get("/metrics").text
    torch.testing.assert_close(torch.tensor(found), want, atol=1e-5, rtol=0)
    assert sum(sizes) < 200 and max(sizes) > 1  # identical ones that waited together were scored once
    assert 'prudent_requests_total{form="slime",status="200"} 200.0' in metrics


def test_a_request_that_comes_while_the_model_loads_is_answered_once_it_has(reward_model, offline):
    def slow():
        time.sleep(0.3)
        return RewardScorer(reward_model)

    body = {"prompt": PROMPTS[0], "response": ANSWERS[0]}
    with TestClient(create_app(slow)) as client:
        assert client.get("/readyz").status_code == 503
        assert client.post("/score", json=body).json()["reward"] == pytest.approx(float(offline.mean(0)[0]), abs=1e-5)
    with TestClient(create_app(slow, ServiceOptions(hold=0.02))) as client:
        early = client.post("/score", json=body)
        assert early.status_code == 503 and early.headers["retry-after"] == "1"


def test_a_body_that_never_comes_is_given_up(reward_model):
    app = create_app(lambda: RewardScorer(reward_model), ServiceOptions(patience=0.05))
    sent = []

    async def ask():
        scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
        await app(scope, lambda: asyncio.sleep(60), lambda message: asyncio.sleep(0, sent.append(message)))

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert sent[0]["status"] == 408


def test_the_service_listens_before_torch_is_there():
    code = "import sys, prudent.commands.serve.run, prudent.serving.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_its_client_no_longer_waits_for_is_not_scored():
    scored = []

    def score(samples, cut):
        scored.extend(sample.response for sample in samples)
        return enumerate(["no score"] * len(samples))

    async def run():
        batcher = Batcher(score, Limits(wait=0.1))
        batcher.start()
        kept, gone = (
            asyncio.create_task(batcher.submit([Sample("ask", text)], [Size(1, False)])) for text in ("kept", "gone")
        )
        await asyncio.sleep(0.01)
        gone.cancel()
        await kept
        await batcher.stop()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert scored == ["kept"]


def test_a_sample_is_answered_as_soon_as_its_own_score_is_there():
    """... and what comes for it meanwhile is scored anew; one that gets no score gets a reason."""
    go = threading.Event()

    def score(samples, cut):
        yield 0, "first"
        go.wait(10)
        raise OSError("it burns")

    async def run():
        batcher = Batcher(score, Limits(wait=0.02))
        batcher.start()
        first, second = (
            asyncio.create_task(batcher.submit([Sample("ask", text)], [Size(1, False)])) for text in ("one", "two")
        )
        early = await asyncio.wait_for(first, 5)
        waits = not second.done()
        go.set()
        late = await second
        await batcher.stop()
        return early, waits, late

    assert asyncio.run(asyncio.wait_for(run(), 10)) == (["first"], True, ["OSError: it burns"])


def test_a_full_queue_is_503_with_a_time_to_come_back(reward_model):
    scorer = RewardScorer(reward_model)
    inner = scorer.score
    scorer.score = lambda samples, cut: (time.sleep(0.3), inner(samples, cut))[1]
    with TestClient(create_app(lambda: scorer, ServiceOptions(limits=Limits(wait=0, queue=2)))) as client:
        wait_ready(client)
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            bodies = [{"prompt": "ask", "response": f"r{number}"} for number in range(12)]
            answers = list(threads.map(lambda body: client.post("/score", json=body), bodies))
    busy = [answer for answer in answers if answer.status_code == 503]
    assert busy and all(answer.headers["retry-after"] == "1" for answer in busy)
    assert {answer.status_code for answer in answers} == {200, 503}


def test_reference_samples_centre_and_unknown_prompts_are_not_guessed(reward_model):
    samples = [["good", "bad bad", "x"], ["y", "zz", "good bad"]]
    pool = Pool([[{"role": "user", "content": text}] for text in PROMPTS], samples, None, ["a", "b"])
    client = opened(reward_model, rule="proportional", reference=pool)
    known = client.post("/score", json={"prompt": PROMPTS[0], "response": ANSWERS[0]}).json()
    unknown = client.post("/score", json={"prompt": "new", "response": "x"})
    client.__exit__(None, None, None)
    assert known["rule"] == "proportional" and known["centred"]
    function = reward_model.as_reward_function("proportional", reference=pool)
    assert known["reward"] == pytest.approx(function([PROMPTS[0]], [ANSWERS[0]])[0], abs=1e-4)
    assert unknown.status_code == 422 and "--fallback" in unknown.json()["error"]
    client = opened(reward_model, rule="proportional", reference=pool, fallback="lcb")
    answer = client.post("/score", json={"prompt": "new", "response": "x"}).json()
    _, text = rendered(reward_model, "new", "x")
    forms = {name: client.post("/", json={name: [text]}).json() for name in ("query", "messages", "input")}
    client.__exit__(None, None, None)
    assert answer["rule"] == "lcb" and answer["centred"] is False
    assert forms["query"]["extra_logs"]["centred"] == [0.0] and forms["messages"]["rules"] == ["lcb"]
    assert forms["input"]["data"][0]["rule"] == "lcb"


def test_rules_that_need_what_is_missing_are_refused(reward_model):
    with pytest.raises(PrudentError, match="--reference"):
        RewardScorer(reward_model, "proportional")
    with pytest.raises(PrudentError, match="one of"):
        RewardScorer(reward_model, "best")


def test_template_marks_of_the_embedded_form(reward_model):
    tokenizer = reward_model.renderer().tokenizer
    marks = template_marks(tokenizer, tokenizer.chat_template)
    assert marks == ("<s>", "<|im_start|>assistant\n", "<|im_end|>\n")


def test_openapi_describes_every_form(client):
    examples = client.get("/openapi.json").json()["paths"]["/score"]["post"]["requestBody"]["content"]
    assert {"openrlhf", "slime", "llamafactory", "vllm", "tei"} <= set(examples["application/json"]["examples"])
