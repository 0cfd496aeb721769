"""What does Ray cost, and what does it survive? ``prudent encode`` of 100,000 texts, here and by Ray's workers.

    python benchmarks/ray_encode.py [--short] [--texts 100000] [--block-rows 1024] [--folder SCRATCH] [--runs 1]

A tiny random encoder, so that what isn't the model's weighs most, encodes the same file in one process, by one worker
and by two; each run is a command of its own with an empty cache and one thread a process. The processor's seconds of
the command and of all processes that it started are counted every half second, and so is the memory of the command
itself, in which nothing may pile up. Ray's start and the workers' imports are counted apart: they are paid once.
Then a worker is killed with -9 in the middle, and in another run the command; that one is given again. At the end the
features of all runs are compared. With --folder a run is done once: the script, started again, goes on with those that
are left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import results

from prudent.features.shards import open_shard

ROOT = Path(__file__).parent.parent
WORDS = ["harbour", "lamp", "river", "answer", "quiet", "seven", "bread", "window", "clock", "red", "over", "green"]
SAMPLE_S = 0.5
WITH_RAY = (
    "one worker",
    "two workers",
    "a worker killed",
    "the command killed",
)  # the last one's cache is also the next's


def make(folder: Path, texts: int) -> None:
    """model/ and asked.jsonl: two responses of 5 to 25 words a prompt."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_causal_lm

    tiny_causal_lm(folder / "model", hidden=64, layers=2)
    choose = random.Random(0)
    with (folder / "asked.jsonl").open("w", encoding="utf-8") as file:
        for number in range(texts // 2):
            answers = [" ".join(choose.choices(WORDS, k=choose.randint(5, 25))) for _ in range(2)]
            file.write(json.dumps({"prompt": f"Say {number}.", "responses": answers}) + "\n")


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and everything that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def kind_of(process: psutil.Process, root: psutil.Process) -> str:
    """What a process is for: the command itself, a worker with a model, or Ray's own, the reading included."""
    if process.pid == root.pid:
        return "command"
    return "workers" if "MapWorker" in " ".join(process.cmdline() or [process.name()]) else "ray"


class Run:
    """One command. kill: "worker" or "command", at half of the texts."""

    def __init__(self, folder: Path, name: str, options: list[str], kill: str = "") -> None:
        self.cache, self.kill, self.killed = folder / name, kill, False
        environment = {**os.environ, "PRUDENT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "prudent.cli", "encode", "--data", str(folder / "asked.jsonl"), "--json"]
        command += ["--model", str(folder / "model"), "--dtype", "float32", *options]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.spent: dict[str, dict[int, float]] = {"workers": {}, "command": {}, "ray": {}}
        self.samples: list[dict[str, float]] = []

    def watch(self) -> dict[str, Any]:
        """Sample until it ends; what it printed and what it took."""
        root = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            family = tree(root)
            for one in family:
                with contextlib.suppress(psutil.Error):
                    self.spent[kind_of(one, root)][one.pid] = sum(one.cpu_times()[:2])
            with contextlib.suppress(psutil.Error):
                self.samples.append(
                    {
                        "s": time.perf_counter() - self.began,
                        **{f"{kind}_s": sum(spent.values()) for kind, spent in self.spent.items()},
                        "driver_mib": root.memory_info().rss / 2**20,
                        "written": sum(path.stat().st_size for path in self.cache.glob("features/*/*.parquet")),
                    }
                )
            if self.kill and not self.killed and len(list(self.cache.glob("features/*/*.parquet"))) > 20:
                self._kill(family)
            time.sleep(SAMPLE_S)
        printed = self.process.communicate()[0]
        result = json.loads(printed) if printed.strip() else {}
        result.pop("folder", None)
        if self.kill and not self.killed:
            raise SystemExit(f"the {self.kill} ended before it could be killed; give more --texts")
        return {"result": result, **self.taken()}

    def _kill(self, family: list[psutil.Process]) -> None:
        workers = [one for one in family[1:] if kind_of(one, family[0]) == "workers"]
        if self.kill == "command":
            self.process.send_signal(signal.SIGKILL)
            psutil.wait_procs(family[1:], timeout=60)
        elif not workers:
            return
        else:
            workers[0].kill()
        self.killed = True

    def taken(self) -> dict[str, Any]:
        """Seconds, of the clock and of the processor, in all and from the first written features on."""
        first = next((one for one in self.samples if one["written"]), self.samples[-1])
        steady = [one["driver_mib"] for one in self.samples if one["written"]] or [0.0]
        tenth = max(len(steady) // 10, 1)
        return {
            "s": self.samples[-1]["s"],
            "steady_s": self.samples[-1]["s"] - first["s"],
            **{f"start_{kind}_s": first[f"{kind}_s"] for kind in self.spent},
            **{f"steady_{kind}_s": self.samples[-1][f"{kind}_s"] - first[f"{kind}_s"] for kind in self.spent},
            "driver_mib_early": float(np.median(steady[:tenth])),
            "driver_mib_late": float(np.median(steady[-tenth:])),
            "driver_mib_peak": max(one["driver_mib"] for one in self.samples),
        }


def rows_of(cache: Path, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """(keys, features) of all shards, sorted by key, doubles included."""
    shards = [open_shard(path, width) for path in cache.glob("features/*/*.parquet")]
    keys = np.concatenate([shard.keys for shard in shards])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    return keys[order], np.concatenate([shard.features for shard in shards])[order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="10,000 texts")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--block-rows", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where files and finished runs are kept")
    parser.add_argument("--runs", type=int, help="do so many of the runs now, at most")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "ray_encode.json")
    given = parser.parse_args()
    texts = given.texts or (10_000 if given.short else 100_000)
    block = min(given.block_rows, texts // 40)
    ray = ["--engine", "ray", "--block-rows", str(block), "--concurrency"]
    sides: list[tuple[str, list[str], str]] = [
        ("plain", ["--block-rows", str(block)], ""),
        ("one worker", [*ray, "1"], ""),
        ("two workers", [*ray, "2"], ""),
        ("a worker killed", [*ray, "2"], "worker"),
        ("the command killed", [*ray, "2"], "command"),
        ("the command again", [*ray, "2"], ""),
    ]
    with contextlib.nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = finished(folder, sides, texts, given.runs)
        keys, plain = rows_of(folder / "plain")
        for side in comparable(rows):
            others, features = rows_of(folder / side)
            fresh = np.r_[True, (others[1:] != others[:-1]).any(1)]
            rows[side] |= {
                "lost": len(keys) - int(fresh.sum()) if np.array_equal(others[fresh], keys) else texts,
                "repeated": len(others) - int(fresh.sum()),
                "largest_difference": float(np.abs(features[fresh] - plain).max()),
            }
    figures = figures_of(rows, texts, block)
    kept = [{"run": side, **row} for side, row in rows.items()]
    results.write(given.out, "Ray: encoding by workers", figures, rows=kept, packages=("ray", "torch"))


def finished(
    folder: Path, sides: list[tuple[str, list[str], str]], texts: int, most: int | None
) -> dict[str, dict[str, Any]]:
    """What the runs took: those that ``folder`` holds already, and ``most`` of those that are left."""
    kept = folder / "runs.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, texts)
        kept.write_text("{}", encoding="utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    for side, options, kill in [one for one in sides if one[0] not in rows][:most]:
        cache = "the command killed" if side == "the command again" else side
        rows[side] = Run(folder, cache, options, kill).watch()
        print(side, {key: round(v, 1) for key, v in rows[side].items() if key != "result"}, flush=True)
        kept.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def comparable(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The runs by Ray whose cache holds all texts."""
    return [side for side in WITH_RAY if side in rows and (side != WITH_RAY[-1] or "the command again" in rows)]


def figures_of(rows: dict[str, dict[str, Any]], texts: int, block: int) -> list[dict[str, Any]]:
    """What is quoted of the runs."""
    plain = rows["plain"]
    alone = plain["steady_command_s"]
    name = f"encoding {texts:,} texts in one process, once started"
    figures = [results.figure(name, alone, unit="s of processor")]
    for side in [one for one in WITH_RAY[:2] if one in rows]:
        row = rows[side]
        rest = row["steady_command_s"] + row["steady_ray_s"]
        figures += [
            results.figure(
                f"{side}: start of Ray and the workers",
                sum(row[f"start_{kind}_s"] for kind in ("workers", "command", "ray")),
                unit="s of processor",
            ),
            results.figure(
                f"{side}: the workers once started, against one process", row["steady_workers_s"] / alone, at_most=1.1
            ),
            results.figure(
                f"{side}: all processes once started, against one process",
                (row["steady_workers_s"] + rest) / alone,
                at_most=1.1,
            ),
            results.figure(
                f"{side}: what isn't the workers', a second of the clock", rest / row["steady_s"], unit="s of processor"
            ),
            results.figure(f"{side}: clock, against one process", row["s"] / plain["s"]),
            results.figure(
                f"{side}: growth of the command's memory from its first tenth to its last",
                row["driver_mib_late"] - row["driver_mib_early"],
                unit="MiB",
                at_most=100,
            ),
        ]
    for side in comparable(rows):
        figures += [
            results.figure(f"{side}: texts lost", rows[side]["lost"], unit="texts", at_most=0),
            results.figure(
                f"{side}: largest difference from one process", rows[side]["largest_difference"], unit="", at_most=1e-5
            ),
        ]
    if "a worker killed" in rows:
        repeated = rows["a worker killed"]["repeated"]
        figures.append(results.figure("a worker killed: texts computed twice", repeated, unit="texts", at_most=block))
    if "the command again" in rows:
        again = rows["the command again"]["result"]
        figures += [
            results.figure(f"the command again: texts {what}", again[name], unit="texts")
            for name, what in (("cached", "found in the cache"), ("encoded", "encoded"))
        ]
    return figures


if __name__ == "__main__":
    main()
