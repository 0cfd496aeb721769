"""How long until preflight's first rough verdict, with nothing cached, and how much memory until then?

    python benchmarks/first_verdict.py ../shared/data [--pairs 300]

The verdict is asked for as soon as there is enough for one; the command itself prints it after a minute and a half or
then, whichever is later. Seconds of the processor count what other work on the machine doesn't stretch; on two quiet
cores the clock shows between a half and all of them. The embedded model is converted already.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

FILE = "preference/hh_harmless.train.jsonl.gz"


def one(data: Path, pairs: int, began: float) -> None:
    """Run preflight until its first verdict; one JSON line on stdout."""
    from prudent.commands.preflight import refine
    from prudent.commands.preflight.options import PreflightOptions
    from prudent.commands.preflight.run import preflight
    from prudent.runs import peak_bytes

    refine.FIRST, refine.WORTH_WAITING = 0.0, -1.0

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if line.startswith("rough verdict"):
            found = {"processor": time.process_time(), "clock": time.time() - began, "memory": peak_bytes() / 2**20}
            print(json.dumps({**found, "line": line}), flush=True)
            os._exit(0)  # nothing of the run is wanted

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        preflight(PreflightOptions(preferences=(str(data / FILE),), max_pairs=pairs, out=out), say=say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--began", type=float, help="run until the first verdict, begun at this time")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "first_verdict.json")
    given = parser.parse_args()
    if given.began:
        one(given.data, given.pairs, given.began)
        return
    from prudent.features.models import converted_default

    models = converted_default().parent
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "models").symlink_to(models, target_is_directory=True)
        command = [sys.executable, __file__, str(given.data), "--pairs", str(given.pairs), "--began", str(time.time())]
        waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # as the command has it
        surroundings = {**waiting, **os.environ, "PRUDENT_CACHE": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=surroundings)
    found = json.loads(done.stdout.splitlines()[-1])
    results.write(
        given.out,
        f"First rough verdict of preflight on {given.pairs} pairs of hh_harmless, nothing cached",
        [
            results.figure("processor until the first verdict", found["processor"], unit="s", at_most=360.0),
            results.figure("clock until the first verdict", found["clock"], unit="s", at_most=180.0),
            results.figure("peak memory until then", found["memory"], unit="MiB", at_most=2048.0),
        ],
        rows=[found],
    )


if __name__ == "__main__":
    main()
