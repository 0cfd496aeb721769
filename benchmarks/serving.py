"""The reward service under load: are all requests answered rightly, and how much throughput does a service cost?

    python benchmarks/serving.py [--short] [--requests 2000] [--connections 64]

Ten heads on the embedded model score the embedded responses. Single-sample requests in the body of OpenRLHF go over
many connections to a real ``prudent serve`` process; the same texts are scored offline in this process. Then a server
process is killed with -9 in the middle, with OpenRLHF's own rule on the client's side (180 s, 5 tries, 1 s between),
once as one of two worker processes and once as the only one, which this script starts again. A client that never
finishes its request and one that sends rubbish stand beside in every run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import results
import torch

from prudent import Encoder, HeadEnsemble, RewardModel
from prudent.demo.world import load_world, pool
from prudent.features.rendering import prompt_text

TRIES, PAUSE, TIMEOUT = 5, 1.0, 180.0  # OpenRLHF 0.11.2, openrlhf/utils/agent.py


class Service:
    """A ``prudent serve`` process. start_seconds: from its start to readiness."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        command = [sys.executable, "-m", "prudent.cli", "serve", "--model", str(folder), "--port", str(port), *options]
        began = time.perf_counter()
        self.port = port
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.1)
        self.start_seconds = time.perf_counter() - began

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(150)


def ask(port: int, body: dict[str, Any]) -> tuple[float | None, float, int]:
    """(reward, seconds, tries) of one request by OpenRLHF's rule; None where its tries are used up."""
    began = time.perf_counter()
    for attempt in range(TRIES):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
            connection.request("POST", "/get_reward", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            connection.close()
            if answer.status == 200:
                return content["rewards"][0], time.perf_counter() - began, attempt + 1
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(PAUSE)
    return None, time.perf_counter() - began, TRIES


def disturb(port: int, stop: threading.Event) -> None:
    """A client that never finishes its request, and one that sends rubbish again and again."""
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
    bodies = [b"\xff\xfe" * 50, b"[" * 20_000, b'{"query": {"a": 1}}', b'{"query": [' + b'"x",' * 50_000 + b"1]}"]
    for number in range(10**6):
        if stop.wait(0.5):
            break
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("POST", "/score", bodies[number % len(bodies)])
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
    slow.close()


def load(
    port: int, bodies: list[dict[str, Any]], connections: int
) -> tuple[list[tuple[float | None, float, int]], float]:
    """Every answer, in the requests' order, and the seconds of all."""
    stop = threading.Event()
    other = threading.Thread(target=disturb, args=(port, stop), daemon=True)
    other.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        answers = list(threads.map(lambda body: ask(port, body), bodies))
    seconds = time.perf_counter() - began
    stop.set()
    return answers, seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def prepared(
    folder: Path, count: int, language_model: str
) -> tuple[RewardModel, list[dict[str, Any]], list[Any], list[str]]:
    """A saved reward model of ten heads, and requests of so many embedded responses in a random order."""
    world = pool(load_world())
    pairs = [(prompt, text) for prompt, texts in zip(world.prompts, world.responses) for text in texts]
    order = np.random.default_rng(0).permutation(len(pairs))[:count]
    prompts, texts = [pairs[i][0] for i in order], [pairs[i][1] for i in order]
    encoder = Encoder(language_model, dtype="float32", cache=False)
    chosen = encoder.encode(prompts[:60], texts[:60])
    rejected = encoder.encode(prompts[:60], texts[60:120])
    RewardModel(HeadEnsemble.fit(chosen, rejected, members=10, ridge=0.1), encoder, model=language_model).save(folder)
    heads = [prompt_text(encoder.tokenizer, prompt) for prompt in prompts]
    bodies = [{"query": [h + t + "<|im_end|>"], "prompts": [h], "labels": [""]} for h, t in zip(heads, texts)]
    return RewardModel.load(folder, keep_features=False), bodies, prompts, texts


def killed(folder: Path, bodies: list[dict[str, Any]], connections: int, workers: int) -> dict[str, Any]:
    """Answers when a server process is killed after a third of a run. One worker alone is started again by hand."""
    port = free_port()
    services = [Service(folder, port, "--workers", str(workers))]

    def kill() -> None:
        time.sleep(8)
        process = services[0].process
        children = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        os.kill(children[0].pid if workers > 1 else process.pid, signal.SIGKILL)
        if workers == 1:
            process.wait()
            services[0] = Service(folder, port)

    killer = threading.Thread(target=kill)
    killer.start()
    answers, seconds = load(port, bodies, connections)
    killer.join()
    services[0].stop()
    return {
        "workers": workers,
        "requests": len(bodies),
        "unanswered": sum(reward is None for reward, _, _ in answers),
        "tried again": sum(tries > 1 for _, _, tries in answers),
        "restart seconds": services[0].start_seconds,
        "rewards": [reward for reward, _, _ in answers],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--short", action="store_true", help="200 requests")
    parser.add_argument("--model", default="smollm2", help="language model of the features")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "serving.json")
    options = parser.parse_args()
    count = 200 if options.short else options.requests
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "rm"
        model, bodies, prompts, texts = prepared(folder, count, options.model)
        model.check()
        began = time.perf_counter()
        offline = model.score(prompts, texts).mean(0)
        offline_seconds = time.perf_counter() - began
        port = free_port()
        service = Service(folder, port)
        answers, seconds = load(port, bodies, options.connections)
        memory = psutil.Process(service.process.pid).memory_info().rss / 2**20
        service.stop()
        kills = [killed(folder, bodies[: max(100, count // 4)], options.connections, workers) for workers in (2, 1)]
    differences = [abs(reward - want) for (reward, _, _), want in zip(answers, offline.tolist()) if reward is not None]
    times = sorted(taken for _, taken, _ in answers)
    for row in kills:
        rewards = torch.tensor([float("nan") if r is None else r for r in row.pop("rewards")])
        row["largest difference"] = float((rewards - offline[: len(rewards)]).abs().nan_to_num(0).max())
    lost = sum(reward is None for reward, _, _ in answers)
    figures = [
        results.figure("requests not answered", lost, unit="requests", at_most=0),
        results.figure("largest difference from offline", max(differences), unit="", at_most=1e-5),
        results.figure("throughput, share of offline", offline_seconds / seconds, unit="", at_least=0.9),
        results.figure("median seconds a request", statistics.median(times), unit="s"),
        results.figure("99th percentile", times[int(0.99 * (len(times) - 1))], unit="s"),
        results.figure("start to ready", service.start_seconds, unit="s"),
        results.figure("memory of the server", memory, unit="MiB"),
        *(
            results.figure(f"not answered after kill -9, {row['workers']} workers", row["unanswered"], unit="requests")
            for row in kills
        ),
    ]
    question = f"A reward service: {count} single-sample requests over {options.connections} connections"
    results.write(options.out, question, figures, rows=kills, packages=("uvicorn", "fastapi"))


if __name__ == "__main__":
    main()
