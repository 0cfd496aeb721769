"""Does a series of ``prudent align`` that is killed (kill -9) at a random moment always resume to the same numbers?

    python benchmarks/align_kills.py --kills 20 --folder runs/kills

One series runs to its end undisturbed. Then, once for each kill, the same command is started in a new folder, killed at
a moment drawn uniformly over the undisturbed run's time (start-up, sampling, steps, checkpoints, report), and given
again. What is left must be the same as undisturbed: every measurement of every run but the seconds, and the
trained weights bit for bit. The policy is a small transformer, in float32 on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from small_policy import build_policy

from prudent.files import hash_file
from prudent.seeding import numpy_generator


def command(policy: Path, out: Path) -> list[str]:
    options = {
        "--policy": policy,
        "--runs": 2,
        "--steps": 6,
        "--prompts-per-step": 4,
        "--completions": 4,
        "--max-new-tokens": 24,
        "--train-prompts": 8,
        "--eval-prompts": 8,
        "--reference-samples": 4,
        "--eval-samples": 2,
        "--save-every": 1,
        "--dtype": "float32",
        "--out": out,
    }
    flat = [str(part) for pair in options.items() for part in pair]
    return [
        sys.executable,
        "-m",
        "prudent.cli",
        "align",
        "--demo",
        "--objective",
        "vanilla",
        "--objective",
        "bregman",
        "--no-images",
        *flat,
    ]


def start(policy: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(policy, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=environment
    )


def outcome(folder: Path) -> dict[str, Any]:
    """Every number of the series but times, and the hash of each trained policy."""
    found = json.loads((folder / "results.json").read_text())
    runs = {path.name: json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))}
    weights = {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    return {"results": timeless(found), "runs": timeless(runs), "weights": weights}


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if "seconds" not in key}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    policy = given.folder / "policy"
    if not policy.is_dir():
        build_policy(policy, layers=[0, 29], epochs=0.05, seed=given.seed)
    began = time.perf_counter()
    _, errors = (whole := start(policy, given.folder / "whole")).communicate()
    if whole.returncode:
        raise SystemExit(errors.decode())
    took = time.perf_counter() - began
    wanted = outcome(given.folder / "whole")
    same = 0
    moments = iter(numpy_generator(given.seed).uniform(0, took, 20 * given.kills).tolist())
    for number in range(1, given.kills + 1):
        out = given.folder / f"killed-{number}"
        while not killed(policy, out, moment := next(moments)):  # done before its time came: draw another
            shutil.rmtree(out)
        done = len(list(out.glob("runs/*.json")))
        _, errors = (again := start(policy, out)).communicate()
        equal = again.returncode == 0 and outcome(out) == wanted
        same += equal
        print(
            f"killed at {moment:5.1f} of {took:.1f} s, {done} runs done: {'same' if equal else 'NOT SAME'}", flush=True
        )
        if again.returncode:
            print(errors.decode()[-2000:])
    print(f"{same} of {given.kills} killed series ended as the undisturbed one, bit for bit")
    if same < given.kills:
        raise SystemExit(1)


def killed(policy: Path, out: Path, moment: float) -> bool:
    """Start the series and kill it after so many seconds; False where it had ended by itself."""
    process = start(policy, out)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return not (out / "manifest.json").is_file()


if __name__ == "__main__":
    main()
