"""What the smoke tests need: a tiny random policy, a reward model fitted on it, prompts, samples, and a service."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = ["harbour", "lamp", "river", "answer", "quiet", "seven", "bread", "window", "clock", "red"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables of a child process that finds this checkout and keeps its cache in ``folder``."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PRUDENT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path) -> None:
    """policy/ (a language model), rm/ (three heads on it), prompts.jsonl, reference.jsonl (four samples a prompt)."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_causal_lm

    tiny_causal_lm(folder / "policy")
    prompts = [f"Say {word}." for word in WORDS[:8]]
    pairs = [
        {"prompt": prompts[i % 8], "chosen": f"{WORDS[i % 10]} yes {i}", "rejected": f"no {i} {WORDS[(3 * i) % 10]}"}
        for i in range(40)
    ]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    samples = [
        {"prompt": prompt, "responses": [f"{word} {i}" for i, word in enumerate(WORDS[:4])]} for prompt in prompts
    ]
    write_lines(folder / "reference.jsonl", samples)
    command = ["fit", "--preferences", str(folder / "pairs.jsonl"), "--model", str(folder / "policy"), "--members", "3"]
    prudent(folder, *command, "--dtype", "float32", "--pooling", "last", "--out", str(folder / "rm"))


def prudent(folder: Path, *arguments: str) -> None:
    """Run a command of Prudent; fails with it."""
    subprocess.run([sys.executable, "-m", "prudent.cli", *arguments], check=True, env=environment(folder))


@contextlib.contextmanager
def service(folder: Path, *options: str) -> Iterator[str]:
    """URL of ``prudent serve`` on the folder's reward model, while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "prudent.cli",
        "serve",
        "--model",
        str(folder / "rm"),
        "--port",
        str(port),
        *options,
    ]
    process = subprocess.Popen(command, env=environment(folder))
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
                break
            if process.poll() is not None:
                raise SystemExit("the service ended before it was ready")
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait()
