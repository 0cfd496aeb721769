"""What does Ray cost, and what does it survive? ``prudent encode`` of 100,000 texts, here and by Ray's workers.

    python benchmarks/ray_encode.py [--short] [--texts 100000] [--block-rows 1024] [--folder SCRATCH] [--runs 1]

A tiny random encoder, so that what isn't the model's weighs most, encodes the same file in one process, by one worker
and by two; each run is a command of its own with an empty cache and one thread a process. The processor's seconds of
the command and of all processes that it started are counted every half second, and so is the memory of the command
itself, in which nothing may pile up. Ray's start and the workers' imports are counted apart: they are paid once.
Then a worker is killed with -9 in the middle of the first 10,000 texts, and in another run the command; that one is
given again. At the end the features of all runs are compared. On a quiet machine with two cores the first three runs
take about six minutes (--folder SCRATCH --runs 3), the others three. With --folder a run is done once: the script,
started again, goes on with those that are left.
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
from typing import Any, NamedTuple

import numpy as np
import psutil
import results

from prudent.features.shards import open_shard

ROOT = Path(__file__).parent.parent
WORDS = ["harbour", "lamp", "river", "answer", "quiet", "seven", "bread", "window", "clock", "red", "over", "green"]
SAMPLE_S = 0.5
KILLED_AT = 20  # shards that are there before something is killed
FEW = 10_000  # texts of the runs in which something is killed
WITH_RAY = (
    "one worker",
    "two workers",
    "a worker killed",
    "the command killed",
)  # the last one's cache is also the next's


def make(folder: Path, texts: int) -> None:
    """model/, asked.jsonl (two responses of 5 to 25 words a prompt) and few.jsonl, its beginning."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_causal_lm

    tiny_causal_lm(folder / "model", hidden=64, layers=2)
    choose = random.Random(0)
    rows = []
    for number in range(texts // 2):
        answers = [" ".join(choose.choices(WORDS, k=choose.randint(5, 25))) for _ in range(2)]
        rows.append(json.dumps({"prompt": f"Say {number}.", "responses": answers}) + "\n")
    (folder / "asked.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "few.jsonl").write_text("".join(rows[: FEW // 2]), encoding="utf-8")


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
    """One command. kill: "worker" or "command", when KILLED_AT shards are there."""

    def __init__(self, folder: Path, name: str, data: str, options: list[str], kill: str = "") -> None:
        self.cache, self.kill, self.killed = folder / name, kill, False
        environment = {**os.environ, "PRUDENT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "prudent.cli", "encode", "--data", str(folder / data), "--json"]
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
            if self.kill and not self.killed and len(list(self.cache.glob("features/*/*.parquet"))) > KILLED_AT:
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
    sides = sides_of(texts, given.block_rows)
    with contextlib.nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = finished(folder, sides, texts, given.runs)
        keys, plain = rows_of(folder / "plain")
        for side in comparable(rows):
            rows[side] |= compared(*rows_of(folder / side), keys, plain, sides[side].texts)
    figures = figures_of(rows, texts, sides["a worker killed"].block)
    kept = [{"run": side, **row} for side, row in rows.items()]
    results.write(given.out, "Ray: encoding by workers", figures, rows=kept, packages=("ray", "torch"))


class Side(NamedTuple):
    """A run: workers (0: no Ray), its file, its texts and those of a block, what is killed, whose cache it has."""

    workers: int
    data: str
    texts: int
    block: int
    kill: str = ""
    cache: str = ""

    def options(self) -> list[str]:
        """Of the command."""
        ray = ["--engine", "ray", "--concurrency", str(self.workers)] if self.workers else []
        return [*ray, "--block-rows", str(self.block)]


def sides_of(texts: int, block_rows: int) -> dict[str, Side]:
    """The runs, in order."""
    few = min(FEW, texts)
    whole = "asked.jsonl", texts, min(block_rows, texts // 40)
    part = "few.jsonl", few, min(block_rows, few // 40)
    return {
        "plain": Side(0, *whole),
        "one worker": Side(1, *whole),
        "two workers": Side(2, *whole),
        "a worker killed": Side(2, *part, "worker"),
        "the command killed": Side(2, *part, "command"),
        "the command again": Side(2, *part, cache="the command killed"),
    }


def compared(
    found: np.ndarray, features: np.ndarray, keys: np.ndarray, plain: np.ndarray, texts: int
) -> dict[str, float]:
    """A run's rows, sorted by key, held against one process's: how many of its texts are lost or there twice, and how
    far the features are apart."""
    fresh = np.r_[True, (found[1:] != found[:-1]).any(1)]
    place = {key.tobytes(): row for row, key in enumerate(keys)}
    rows = [place.get(key.tobytes(), -1) for key in found[fresh]]
    return {
        "lost": texts - int(fresh.sum()) if min(rows) >= 0 else texts,
        "repeated": len(found) - int(fresh.sum()),
        "largest_difference": float(np.abs(features[fresh] - plain[rows]).max()),
    }


def finished(folder: Path, sides: dict[str, Side], texts: int, most: int | None) -> dict[str, dict[str, Any]]:
    """What the runs took: those that ``folder`` holds already, and ``most`` of those that are left."""
    kept = folder / "runs.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, texts)
        kept.write_text("{}", encoding="utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    for name in [one for one in sides if one not in rows][:most]:
        side = sides[name]
        rows[name] = Run(folder, side.cache or name, side.data, side.options(), side.kill).watch()
        print(name, {key: round(v, 1) for key, v in rows[name].items() if key != "result"}, flush=True)
        kept.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def comparable(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The runs by Ray whose cache holds all texts."""
    return [side for side in WITH_RAY if side in rows and (side != WITH_RAY[-1] or "the command again" in rows)]


def figures_of(rows: dict[str, dict[str, Any]], texts: int, block: int) -> list[dict[str, Any]]:
    """What is quoted of the runs."""
    plain = rows["plain"]
    alone = plain["steady_command_s"]
    whole = alone + plain["start_command_s"]
    name = f"encoding {texts:,} texts in one process"
    figures = [
        results.figure(f"{name}: start", plain["start_command_s"], unit="s of processor"),
        results.figure(f"{name}, once started", alone, unit="s of processor"),
        results.figure(f"{name}: clock", plain["s"], unit="s"),
    ]
    for side in [one for one in WITH_RAY[:2] if one in rows]:
        row = rows[side]
        rest = row["steady_command_s"] + row["steady_ray_s"]
        start = sum(row[f"start_{kind}_s"] for kind in ("workers", "command", "ray"))
        every = row["steady_workers_s"] + rest
        figures += [
            results.figure(f"{side}: start of Ray and the workers", start, unit="s of processor"),
            results.figure(
                f"{side}: the workers once started, against one process", row["steady_workers_s"] / alone, at_most=1.1
            ),
            results.figure(f"{side}: all processes once started, against one process", every / alone, at_most=1.1),
            results.figure(f"{side}: all processes, start included, against one process", (start + every) / whole),
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
