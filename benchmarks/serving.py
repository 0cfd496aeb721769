"""The reward service under load: are all requests answered correctly, and how much throughput does a service cost?

    python benchmarks/serving.py [--short] [--requests 2000] [--connections 64] [--parts load,kills]

Ten heads on the embedded model score the embedded responses, cut to 12 words so that the run takes minutes (the shorter
a text, the larger the service's own part). Single-sample requests in the body of OpenRLHF, the answers to a prompt one
after another as a trainer's rollouts come, go over many connections to a real ``prudent serve`` process; the same texts
are scored offline in this process, in turn with the service so that a slow spell of the machine hits both. Throughput
is given by the clock and by the processor's seconds, which other work on the machine hardly stretches. Then a server
process is killed with -9 in the middle, with OpenRLHF's own rule on the client's side (180 s, 5 tries, 1 s between),
once as one of two worker processes and once as the only one, which this script starts again at once. A client that
never finishes its request and one that sends rubbish stand beside in every run.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import results
import torch

from prudent import Encoder, HeadEnsemble, RewardModel
from prudent.commands.common import one_sum_order
from prudent.demo.world import load_world, pool
from prudent.features.rendering import prompt_text

Texts = tuple[list[Any], list[str]]  # prompts and responses
WORDS = 12
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
    port: int, bodies: list[dict[str, Any]], connections: int, answered: Callable[[int], None] = lambda done: None
) -> tuple[list[tuple[float | None, float, int]], float]:
    """Every answer, in the requests' order, and the seconds of all. answered: given their number as they come."""
    stop, count = threading.Event(), itertools.count(1)

    def one(body: dict[str, Any]) -> tuple[float | None, float, int]:
        found = ask(port, body)
        answered(next(count))
        return found

    other = threading.Thread(target=disturb, args=(port, stop), daemon=True)
    other.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        answers = list(threads.map(one, bodies))
    seconds = time.perf_counter() - began
    stop.set()
    return answers, seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def prepared(folder: Path, count: int, language_model: str) -> tuple[RewardModel, list[dict[str, Any]], Texts]:
    """A saved reward model of ten heads, and requests of so many embedded responses, prompt by prompt."""
    world = pool(load_world())
    pairs = [(prompt, text) for prompt, texts in zip(world.prompts, world.responses) for text in texts][:count]
    prompts, texts = [prompt for prompt, _ in pairs], [" ".join(text.split()[:WORDS]) for _, text in pairs]
    encoder = Encoder(language_model, dtype="float32", cache=False)
    rows = np.random.default_rng(0).permutation(len(texts))[:40]
    features = encoder.encode([prompts[i] for i in rows], [texts[i] for i in rows])
    heads = HeadEnsemble.fit(features[:20], features[20:], members=10, ridge=0.1)
    RewardModel(heads, encoder, model=language_model).save(folder)
    opened = [prompt_text(encoder.tokenizer, prompt) for prompt in prompts]
    bodies = [{"query": [h + t + "<|im_end|>"], "prompts": [h], "labels": [""]} for h, t in zip(opened, texts)]
    return RewardModel.load(folder, keep_features=False), bodies, (prompts, texts)


def one_slice(service: Service, model: RewardModel, bodies: Any, texts: Texts, connections: int) -> dict[str, Any]:
    """A row: the same texts offline and by the service, one after the other."""
    process = psutil.Process(service.process.pid)
    began, used = time.perf_counter(), time.process_time()
    offline = model.score(*texts).mean(0)
    offline_seconds, offline_processor = time.perf_counter() - began, time.process_time() - used
    used = sum(process.cpu_times()[:2])
    answers, seconds = load(service.port, bodies, connections)
    return {
        "requests": len(bodies),
        "not answered": sum(reward is None for reward, _, _ in answers),
        "tried again": sum(tries > 1 for _, _, tries in answers),
        "largest difference": max(
            (abs(got - want) for (got, _, _), want in zip(answers, offline.tolist()) if got is not None), default=0.0
        ),
        "standard deviation of the scores": float(offline.std()),
        "offline seconds": offline_seconds,
        "service seconds": seconds,
        "offline processor seconds": offline_processor,
        "service processor seconds": sum(process.cpu_times()[:2]) - used,
        "start to ready": service.start_seconds,
        "memory": process.memory_full_info().uss / 2**20,
        "times": [round(taken, 4) for _, taken, _ in answers],
    }


def load_figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the slices so far come to."""
    times = sorted(taken for row in rows for taken in row["times"])
    column = {name: [row[name] for row in rows] for name in rows[0]}
    processor = column["offline processor seconds"], column["service processor seconds"]
    return [
        results.figure("requests", len(times), unit="requests"),
        results.figure("requests not answered", sum(column["not answered"]), unit="requests", at_most=0),
        results.figure("largest difference from offline", max(column["largest difference"]), unit="", at_most=1e-5),
        results.ratio(
            "throughput, share of offline", column["offline seconds"], column["service seconds"], unit="", at_least=0.9
        ),
        results.ratio("throughput, share of offline by processor seconds", *processor, unit="", at_least=0.9),
        results.figure("requests a second", len(times) / sum(column["service seconds"]), unit="requests"),
        results.figure("median seconds a request", statistics.median(times), unit="s"),
        results.figure("99th percentile", times[int(0.99 * (len(times) - 1))], unit="s"),
        results.figure("start to ready", column["start to ready"][-1], unit="s"),
        results.figure("memory of the server, not shared with others", max(column["memory"]), unit="MiB"),
    ]


def killed(folder: Path, bodies: list[dict[str, Any]], wanted: Any, connections: int, workers: int) -> dict[str, Any]:
    """Answers when a server process is killed after a third of them. One worker alone is started again by hand."""
    port = free_port()
    services = [Service(folder, port, "--workers", str(workers))]
    third = threading.Event()

    def kill() -> None:
        third.wait()
        process = services[0].process
        children = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        os.kill(children[0].pid if workers > 1 else process.pid, signal.SIGKILL)
        if workers == 1:
            process.wait()
            services[0] = Service(folder, port)

    killer = threading.Thread(target=kill)
    killer.start()
    answers, seconds = load(port, bodies, connections, lambda done: third.set() if done > len(bodies) // 3 else None)
    killer.join()
    services[0].stop()
    rewards = torch.tensor([float("nan") if reward is None else reward for reward, _, _ in answers])
    row = {
        "workers": workers,
        "requests": len(bodies),
        "unanswered": sum(reward is None for reward, _, _ in answers),
        "tried again": sum(tries > 1 for _, _, tries in answers),
        "most tries": max(tries for _, _, tries in answers),
        "start to ready, seconds": services[0].start_seconds,
        "seconds": seconds,
        "largest difference": float((rewards - wanted).abs().nan_to_num(0).max()),
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--slices", type=int, default=8, help="turns that the service and offline scoring take")
    parser.add_argument("--short", action="store_true", help="200 requests")
    parser.add_argument("--parts", default="load,kills", help="parts to run; what --out holds already is not run again")
    parser.add_argument("--model", default="smollm2", help="language model of the features")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "serving.json")
    options = parser.parse_args()
    one_sum_order()  # as score does
    count = 200 if options.short else options.requests
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}  # an unfinished run's
    slices, kills = kept.get("slices", []), kept.get("rows", [])
    if len(slices) == options.slices and len(kills) == 2:
        slices, kills = [], []  # it was finished

    def keep() -> None:
        question = f"A reward service: {count} single-sample requests over {options.connections} connections"
        figures = load_figures(slices) if slices else []
        figures += [
            results.figure(
                f"not answered after kill -9, {row['workers']} workers", row["unanswered"], unit="requests", at_most=0
            )
            for row in kills
        ]
        results.write(options.out, question, figures, rows=kills, packages=("uvicorn", "fastapi"), slices=slices)

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "rm"
        model, bodies, texts = prepared(folder, count, options.model)
        parts = np.array_split(np.arange(count), options.slices)[len(slices) :]
        if parts and "load" in options.parts:
            service = Service(folder, free_port())
            for rows in parts:
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                taken = (texts[0][part], texts[1][part])
                slices.append(one_slice(service, model, bodies[part], taken, options.connections))
                keep()
            service.stop()
        some = bodies[: max(100, count // 10)]
        for workers in (2, 1)[len(kills) :] if "kills" in options.parts else ():
            wanted = model.score(texts[0][: len(some)], texts[1][: len(some)]).mean(0)
            kills.append(killed(folder, some, wanted, options.connections, workers))
            keep()


if __name__ == "__main__":
    main()
