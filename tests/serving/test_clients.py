"""A real server process: adapters against it, a stop that answers what is in flight, an export without Prudent."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request

import pytest
import torch
from typer.testing import CliRunner

from prudent import PrudentError, RewardModel
from prudent.cli import app

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from prudent.serving.client import RewardClient


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serving(folder):
    port = free_port()
    arguments = ["serve", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "prudent.cli", *arguments], stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    for _ in range(2400):
        try:
            if urllib.request.urlopen(url + "/readyz").status == 200:
                break
        except OSError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    yield types.SimpleNamespace(url=url, process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def server(heads_folder):
    with serving(heads_folder) as found:
        os.environ["PRUDENT_SERVE_URL"] = found.url
        yield found
        os.environ.pop("PRUDENT_SERVE_URL")


def test_every_adapter_gives_the_offline_score(server, heads_folder):
    from prudent.serving.adapters import openrlhf, slime, trl, verl

    want = RewardModel.load(heads_folder, keep_features=False).score(["ask 1"], ["good"])
    mean, variance = float(want.mean()), float(want.var(0))
    turns = [{"role": "user", "content": "ask 1"}]
    head = "<s><|im_start|>user\nask 1<|im_end|>\n<|im_start|>assistant\n"
    logged = {}
    found = openrlhf.reward_func([head + "good<|im_end|>"], [head], [""])
    assert float(found["rewards"][0]) == pytest.approx(mean, abs=1e-5)
    assert float(found["extra_logs"]["variance"][0]) == pytest.approx(variance, rel=1e-4)
    scored = asyncio.run(verl.compute_score("mine", "good", None, {"prompt": turns}))
    assert scored["score"] == pytest.approx(mean, abs=1e-5)
    sample = types.SimpleNamespace(prompt="ask 1", response="good")
    group = asyncio.run(slime.reward(types.SimpleNamespace(rm_url=server.url), [sample, sample]))
    assert [one["score"] for one in group] == pytest.approx([mean] * 2, abs=1e-5)
    answers = [[{"role": "assistant", "content": "good"}]]
    rewards = asyncio.run(trl.reward([turns], answers, log_metric=lambda name, value: logged.update({name: value})))
    assert rewards == pytest.approx([mean], abs=1e-5)
    assert logged["reward_model/variance"] == pytest.approx(variance, rel=1e-4)


def test_errors_stay_errors(server):
    with pytest.raises(PrudentError, match="response 1 has no reward"):
        RewardClient().score(["ask", ""], ["a", "b"])
    with pytest.raises(PrudentError, match="no rewards from"):
        RewardClient("http://127.0.0.1:9", tries=2, timeout=1).score(["a"], ["b"])
    from prudent.serving.adapters import verl

    with pytest.raises(PrudentError, match=r"extra_info\.prompt"):
        asyncio.run(verl.compute_score("mine", "x"))


def test_an_answer_that_breaks_off_is_asked_for_again():
    whole = json.dumps({"results": [{"reward": 0.0}]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(whole)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for sent in (whole[:9], whole):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(head + sent)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = RewardClient(f"http://127.0.0.1:{server.getsockname()[1]}", tries=3, timeout=5)
        assert client.score(["a"], ["b"]) == [{"reward": 0.0}]
        thread.join(5)


def test_sigterm_answers_what_is_in_flight(heads_folder):
    with serving(heads_folder) as one, socket.create_connection(("127.0.0.1", int(one.url.rpartition(":")[2]))) as line:
        body = json.dumps({"prompt": "ask 1", "response": "good"}).encode()
        line.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
        time.sleep(0.5)  # the request has begun
        one.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):
            urllib.request.urlopen(one.url + "/healthz", timeout=5)  # nothing new is taken
        line.sendall(body[5:])
        line.settimeout(60)
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        assert one.process.wait(60) in (0, -signal.SIGTERM)


def test_serve_names_a_model_that_is_not_there(tmp_path):
    ended = CliRunner().invoke(app, ["serve", "--model", str(tmp_path / "no"), "--port", str(free_port())])
    assert ended.exit_code == 2 and str(tmp_path / "no") in ended.stderr and "Traceback" not in ended.stderr


PLAIN = """
import sys, json, torch
from transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T
for folder in sys.argv[1:]:
    m, t = A.from_pretrained(folder).eval(), T.from_pretrained(folder)
    c = [{'role': 'user', 'content': 'ask 1'}, {'role': 'assistant', 'content': 'good'}]
    ids = t(t.apply_chat_template(c, tokenize=False), add_special_tokens=False, return_tensors='pt')
    print(json.dumps(m(input_ids=ids['input_ids']).logits[0].tolist()))
assert 'prudent' not in sys.modules
"""


def test_an_export_needs_no_prudent_and_scores_the_same(heads_folder, tmp_path):
    cards = []
    folders = [str(tmp_path / labels) for labels in ("members", "rule")]
    for folder, labels in zip(folders, ("members", "rule")):
        words = ["export", "--model", str(heads_folder), "--labels", labels, "--out", folder, "--json"]
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, ended.stderr
        cards.append(json.loads(ended.stdout))
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, *folders], capture_output=True, text=True, timeout=240, check=True
    )
    want = RewardModel.load(heads_folder, keep_features=False).score(["ask 1"], ["good"])[:, 0].double()
    want = torch.cat([want, want.mean(0, keepdim=True)])
    for card, line, count in zip(cards, plain.stdout.splitlines()[-2:], (len(want), 1), strict=True):
        logits = torch.tensor(json.loads(line)).double() + torch.tensor(card["constants"])
        torch.testing.assert_close(logits, want[-count:], atol=1e-4, rtol=0)
        assert card["labels"][-1] == "mean"


def test_behind_a_layer_norm_the_exported_logits_are_the_very_scores(tmp_path):
    from tests.tiny import tiny_tokenizer
    from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

    from prudent import Encoder, HeadEnsemble
    from prudent.serving.export import export_classifier

    tokenizer = tiny_tokenizer()
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, **marks
    )
    torch.manual_seed(0)
    network = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(network.transformer.ln_f.weight)
    torch.nn.init.normal_(network.transformer.ln_f.bias)
    network.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    encoder = Encoder(str(tmp_path / "lm"), dtype="float32", cache=False, progress=False, pooling="last")
    prompts, answers = [f"ask {row}" for row in range(24)], [f"good {'a' * (row % 7)}" for row in range(24)]
    features = encoder.encode(prompts, answers)
    model = RewardModel(HeadEnsemble.fit(features[:12], features[12:], members=3, ridge=0.1), encoder)
    card = export_classifier(model, tmp_path / "out")
    assert card["constants"] == [0.0] * 4
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    rows = model.renderer().conversations(prompts, answers)
    with torch.inference_mode():
        logits = torch.cat([loaded(input_ids=torch.tensor([row.ids])).logits for row in rows]).T
    torch.testing.assert_close(logits[:3], model.score(prompts, answers).float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[3], logits[:3].mean(0), atol=1e-5, rtol=0)


def test_a_family_or_pooling_that_no_head_equals_is_refused(heads_folder, tmp_path, reward_model):
    from prudent.serving.export import export_classifier

    reward_model.encoder.pooling = "mean"
    with pytest.raises(PrudentError, match="--pooling last"):
        export_classifier(reward_model, tmp_path / "out")
    reward_model.scorer = types.SimpleNamespace(family="mlp")
    with pytest.raises(PrudentError, match="mlp"):
        export_classifier(reward_model, tmp_path / "out")
