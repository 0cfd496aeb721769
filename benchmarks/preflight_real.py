"""What does ``prudent preflight`` say about real preference data with the embedded policy, and what does it cost?

    python benchmarks/preflight_real.py DATA [--only hh_harmless ...] [--out runs/preflight] [--keep]

DATA is a folder with preference files (hh_harmless.train.jsonl.gz, hh_harmless.test.jsonl.gz, ...). Each data set goes
through the command itself; the figures come from its results.json: accuracy on the test file, risks at three betas for
vanilla and each variance-aware form, seconds by stage, peak memory. Encoding dominates a first run; later runs read
features from the cache. --keep reports on runs that are already in --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BETAS = ("0.1", "0.3", "1")
METHODS = ("vanilla", "proportional", "bregman", "exact", "mean", "variance-only", "permuted")
# Encoding on two cores costs about a second a thousand tokens: of the two files with long texts a random part is used.
STUDIES: dict[str, tuple[str, ...]] = {
    "hh_harmless": (),
    "qa_feedback": ("--max-pairs", "800", "--max-test-pairs", "200"),
    "alpacaeval_gpt4": ("--max-pairs", "1000", "--max-test-pairs", "200"),
}


def run(name: str, data: Path, out: Path) -> None:
    files = {part: data / f"{name}.{part}.jsonl.gz" for part in ("train", "test")}
    command = [
        sys.executable,
        "-m",
        "prudent.cli",
        "preflight",
        "--preferences",
        str(files["train"]),
        "--test",
        str(files["test"]),
        "--betas",
        *BETAS,
        "--out",
        str(out),
        "--overwrite",
        *STUDIES[name],
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def show(name: str, found: dict[str, Any]) -> None:
    study, facts = found["study"][0], found["facts"]
    members, mean, longer = study["facts"], study["ensemble"], study["longer_answer"]
    print(f"\n{name}: {found['verdict']['headline']}")
    print(
        f"  test accuracy {mean['accuracy']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] on {mean['pairs']} pairs; "
        f"members {members['member_accuracy_lowest']:.3f} to {members['member_accuracy_highest']:.3f}; longer answer "
        f"{longer['accuracy']:.3f}; median spread/|margin| {members['median_ratio']:.2f}"
    )
    print(
        f"  {facts['pairs']} pairs; probability of no signal {facts['probability_of_no_signal']:.3f}; inequality "
        f"{facts['inequality']:.2f}"
    )
    for comparison in ("equal_beta", "equal_kl"):
        print(f"  {comparison.replace('_', ' ')}: risk [95 %] gain at KL")
        for row in found[comparison]:
            if row["method"] in METHODS and row.get("risk") is not None:
                interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
                print(
                    f"    {row['method']:14s} {row['setting']:<5g} {row['risk']:.3f} {interval} "
                    f"{row['gain']:+.3f} at {row['kl']:.3f}"
                )
    times = ", ".join(
        f"{stage} {seconds:.0f} ({found['cpu_s'][stage]:.0f})" for stage, seconds in found["timings_s"].items()
    )
    print(f"  seconds (of processor): {times}; peak memory {found['peak_memory_mib']:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", choices=sorted(STUDIES), default=list(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("runs/preflight"))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    for name in options.only:
        out = options.out / name
        if not (options.keep and (out / "results.json").is_file()):
            run(name, options.data, out)
        show(name, json.loads((out / "results.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
