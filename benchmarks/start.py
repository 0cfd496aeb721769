"""What do commands cost whose features are all on disk: seconds of the processor, and the most memory they hold?

    python benchmarks/start.py ../shared/data [--pairs 300] [--repeats 3] [--cache DIR] [--whole]

``fit`` from a full cache, ``score`` of ten texts that were scored before and of ten new ones, ``preflight`` without
data, and ``import torch`` alone, which all but the last but one need, in turn. --whole: also a whole preflight with
nothing cached (300 pairs, 16 prompts x 8 samples of 48 tokens), three minutes of the processor. Each runs in a process
of its own, from the interpreter's start to the command's end. The embedded model is converted already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results

FILE = "preference/hh_harmless.train.jsonl.gz"
AIMS = {  # seconds of the processor, MiB
    "preflight, nothing cached": (300.0, 2048.0),
    "fit from a full cache": (5.0, None),
    "score of ten new texts": (4.0, None),
    "score of ten texts scored before": (4.0, None),
    "preflight without data": (0.5, None),
}
SAMPLING = ["--prompts", "16", "--samples", "8", "--max-new-tokens", "48"]


def one(arguments: list[str]) -> None:
    """Run a command in this process; one JSON line on stdout."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        if arguments == ["torch"]:
            import torch  # noqa: F401
        else:
            from prudent.cli import main

            sys.argv = ["prudent", *arguments]
            main()
    print(json.dumps({"processor": time.process_time(), "memory": results.peak_gib() * 1024}))


def measured(arguments: list[str], cache: Path) -> dict[str, float]:
    """Processor seconds and peak memory (MiB) of a command in a process of its own."""
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # as the command has it
    done = subprocess.run(
        [sys.executable, __file__, "--one", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env={**waiting, **os.environ, "PRUDENT_CACHE": str(cache)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def ten_texts(path: Path, run: int) -> Path:
    """A file of ten texts; other ones in each run."""
    rows = [{"prompt": f"What is {i} plus {run}?", "response": f"{i} plus {run} is {i + run}."} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def figures_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Processor seconds and peak memory of each command."""
    figures = []
    for name in dict.fromkeys(row["command"] for row in rows):
        aims = AIMS.get(name, (None, None))
        for kind, unit, aim in zip(("processor", "memory"), ("s", "MiB"), aims):
            values = [row[kind] for row in rows if row["command"] == name]
            figures.append(results.figure(f"{name}, {kind}", values, unit=unit, at_most=aim))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="feature cache to use and keep; by default one that is filled first")
    parser.add_argument("--whole", action="store_true", help="also a whole preflight with nothing cached")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "start.json")
    given = parser.parse_args()
    from prudent.features.models import converted_default

    pairs = ["--preferences", str(given.data / FILE), "--max-pairs", str(given.pairs)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fresh, cache = work / "cache", given.cache or work / "cache"
        fresh.mkdir()
        (fresh / "models").symlink_to(converted_default().parent, target_is_directory=True)

        def run(name: str, *arguments: str, cache: Path = cache) -> None:
            found = {"command": name, **measured(list(arguments), cache)}
            print(f"{name}: {found['processor']:.2f} s, {found['memory']:.0f} MiB", flush=True)
            rows.append(found)

        if given.whole:
            whole = ["preflight", *pairs, *SAMPLING, "--out", str(work / "preflight")]
            run("preflight, nothing cached", *whole, cache=fresh)
        fit = ["fit", *pairs, "--out", str(work / "model"), "--overwrite"]
        measured(fit, cache)  # fills the cache
        output = ["--output", str(work / "scored.jsonl"), "--overwrite"]
        score = ["score", "--model", str(work / "model"), *output, "--data"]
        for number in range(given.repeats):
            new = str(ten_texts(work / "ten.jsonl", number))
            run("import torch", "torch")
            run("preflight without data", "preflight", "--out", str(work / "none"))
            run("fit from a full cache", *fit)
            run("score of ten new texts", *score, new)
            run("score of ten texts scored before", *score, new)
    results.write(given.out, f"What commands cost on {given.pairs} pairs of hh_harmless", figures_of(rows), rows=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
    else:
        main()
