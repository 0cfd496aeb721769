"""How long does ``prudent clean`` take on 100,000 pairs once features are there, and in how much memory?

    python benchmarks/clean.py [--pairs 100000] [--width 576] [--holdout 0.25] [--out benchmarks/results/clean.json]

Pairs are synthetic: random words, features and labels drawn by Bradley-Terry from a linear truth, with planted repeats,
contradictions and empties. Gives seconds by stage and the peak of resident memory of the cleaning process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results
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
    parser.add_argument("--out", type=Path, default=results.FOLDER / "clean.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: a child's peak memory counts what its parent held when it was started
        maker = multiprocessing.get_context("spawn").Process(
            target=write_pairs, args=(folder, options.pairs, options.width)
        )
        maker.start()
        maker.join()
        print(f"{options.pairs} pairs, {(folder / 'pairs.jsonl').stat().st_size / 1e6:.0f} MB, width {options.width}")
        command = [
            sys.executable,
            "-c",
            "from prudent.cli import main; main()",
            "clean",
            str(folder / "pairs.jsonl"),
            "--features",
            str(folder / "features.safetensors"),
            "--flip",
            "0.1",
            "--soften",
            "all",
            "--holdout",
            options.holdout,
            "--out",
            str(folder / "run"),
            "--json",
        ]
        started = time.perf_counter()
        with (folder / "answer.json").open("w", encoding="utf-8") as answer:
            process = subprocess.Popen(command, stdout=answer)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit(f"exit status {os.waitstatus_to_exitcode(status)}")
        result = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    note = f"{options.pairs:,} pairs x {options.width} features, holdout {options.holdout}"
    figures = [
        results.figure("cleaning, start and writing included", seconds, unit="s", note=note),
        results.figure("processor time of all of it", used.ru_utime + used.ru_stime, unit="s"),
        results.figure("peak memory", used.ru_maxrss / 2**20, unit="GiB"),
        *(results.figure(f"of it {stage}", spent, unit="s") for stage, spent in result["timings_s"].items()),
    ]
    changes = {row["rule"]: row["found"] for row in result["changes"]}
    results.write(options.out, "Cleaning preference data", figures, rows=[changes])


if __name__ == "__main__":
    main()
