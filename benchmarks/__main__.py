"""Run the short benchmarks and make the table of benchmarks/NOTES-performance.md from benchmarks/results/*.json.

    python benchmarks                      # what `make bench` does: about ten minutes on two idle cores
    python benchmarks --only heads growth  # some of them
    python benchmarks --table              # nothing is run: the table of what is there

Each benchmark runs in a process of its own, one after the other. One that fails is named at the end and keeps its last
result. RewardUQ needs an environment of its own (see rewarduq.py) and is left out where that is missing. Times belong
to the machine they were taken on, so nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import results

HERE = Path(__file__).parent
PAGE = HERE / "NOTES-performance.md"
PEER = HERE.parent / ".venv-rewarduq" / "bin" / "python"
SHORT: dict[str, list[str]] = {
    "heads": ["--short"],
    "rewarduq": ["--short", "--peer-python", str(PEER)],
    "features": ["--short"],
    "scoring": ["--short"],
    "align_step": ["--short"],
    "waiting": [],
    "finite": ["--short"],
    "growth": ["--short"],
    "variances": ["--short"],
    "families": ["--short", "--out", str(results.FOLDER / "families_short.json")],
    "clean": ["--pairs", "10000", "--out", str(results.FOLDER / "clean_short.json")],
    "evaluate": ["--pairs", "100000"],
    "overoptimize": ["--prompts", "200", "--samples", "64", "--draws", "50"],
}


def section(result: dict[str, Any]) -> str:
    """One result as a heading, a table of its figures, and a line on where it was measured."""
    lines = [f"### {result['question']}", "", "| | median | range | aim |", "| --- | --- | --- | --- |"]
    for one in result["figures"]:
        spread = f"{results.amount(one['low'])} to {results.amount(one['high'])} ({one['repetitions']})"
        note = f" ({one['note']})" if one.get("note") else ""
        lines.append(
            f"| {one['name']}{note} | {results.amount(one['median'])} {one['unit']} | "
            f"{spread if one['repetitions'] > 1 else 'once'} | {results.aim(one).removeprefix('aim ')} |"
        )
    machine = result["machine"]
    names = ("torch", "transformers", "trl", "scikit-learn", "sentence-transformers")
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in names if name in result["versions"])
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    where = f"{machine['processor']}{gpu}, {machine['threads']} of {machine['cores']} cores, load {machine['load']:g}"
    return "\n".join([*lines, "", f"`{result['command']}`; {where}; {versions}.", ""])


def make_table(folder: Path, page: Path) -> None:
    """Put a section for each result into the page, between its marks."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    made = "\n".join(section(result) for result in found if "figures" in result)
    results.fill(page, "table", made.rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--table", action="store_true", help="only make the table from the results that are there")
    given = parser.parse_args()
    failed = []
    for name in [] if given.table else given.only:
        if name == "rewarduq" and not PEER.is_file():
            print(f"rewarduq: left out, {PEER} is not there (see benchmarks/rewarduq.py)")
            continue
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *SHORT[name]], env={**os.environ})
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        failed += [name] if done.returncode else []
    make_table(results.FOLDER, PAGE)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
