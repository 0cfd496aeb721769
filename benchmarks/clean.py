"""How long does ``prudent clean`` take on 100,000 pairs once features are there, and in how much memory?

    python benchmarks/clean.py [--pairs 100000] [--width 576] [--holdout 0.25]

Pairs are synthetic: random words, features and labels drawn by Bradley-Terry from a linear truth, with planted repeats,
contradictions and empties. Prints seconds by stage and the peak of resident memory of the cleaning process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def write_pairs(folder: Path, pairs: int, width: int) -> None:
    """pairs.jsonl and features.safetensors of synthetic pairs, two a prompt, 1 % each of repeats and contradictions."""
    from safetensors.torch import save_file

    generator, chance = torch.Generator().manual_seed(0), random.Random(0)
    truth = 2 * torch.randn(width, generator=generator) / width**0.5
    one, other = torch.randn(2, pairs, width, generator=generator)
    first = torch.rand(pairs, generator=generator) < torch.sigmoid((one - other) @ truth)
    features = {"chosen": torch.where(first[:, None], one, other), "rejected": torch.where(first[:, None], other, one)}
    save_file({name: value.contiguous() for name, value in features.items()}, folder / "features.safetensors")
    words = [f"word{number}" for number in range(5000)]

    def text(low: int, high: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(low, high)))

    rows: list[dict[str, str]] = []
    for number in range(pairs):
        row = {"prompt": f"question {number // 2} " + text(10, 30), "chosen": text(40, 160), "rejected": text(40, 160)}
        if number % 100 == 50:
            row = dict(rows[-10])
        elif number % 100 == 60:
            row = {**rows[-15], "chosen": rows[-15]["rejected"], "rejected": rows[-15]["chosen"]}
        elif number % 1000 == 70:
            row["rejected"] = ""
        rows.append(row)
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--holdout", default="0.25", help="0 leaves out the proof")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder, options.pairs, options.width)
        print(f"{options.pairs} pairs, {(folder / 'pairs.jsonl').stat().st_size / 1e6:.0f} MB, width {options.width}")
        command = [
            sys.executable, "-c", "from prudent.cli.main import main; main()", "clean", str(folder / "pairs.jsonl"),
            "--features", str(folder / "features.safetensors"), "--flip", "0.1", "--soften", "all",
            "--holdout", options.holdout, "--out", str(folder / "run"), "--json",
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"exit status {done.returncode}\n{done.stderr}")
        result = json.loads(done.stdout)
        for stage, spent in result["timings_s"].items():
            print(f"  {stage:10s} {spent:7.1f} s")
        print(f"  {'total':10s} {seconds:7.1f} s (with start and writing)")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        user = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        print(f"  processor  {user:7.1f} s")
        print(f"peak memory {peak / 2**30:.2f} GiB")
        print("changes:", {row["rule"]: row["found"] for row in result["changes"]})


if __name__ == "__main__":
    main()
