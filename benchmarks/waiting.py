"""What should a thread do that waits for the others: spin, sleep, or spin a little and then sleep?

    python benchmarks/waiting.py [--steps 2]

A step of align on all cores (see ``align_step.py``), alone and beside a second copy of itself, under each
setting of the OpenMP runtime. ``prudent`` commands take the third unless ``OMP_WAIT_POLICY`` is set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import align_step
import results
import torch

SETTINGS = {
    "spinning on (the runtime's default)": {},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "asleep after 1,000 turns": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
}


def steps_beside(copies: int, setting: dict[str, str], steps: int) -> list[float]:
    """Seconds a step in each of so many copies, started together."""
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--one", "--steps", str(steps)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**plain, **setting}) for _ in range(copies)
    ]
    return [float(process.communicate()[0].split()[-1]) for process in running]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="the first is a warm-up")
    parser.add_argument("--one", action="store_true", help="time one copy and print its seconds a step")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "waiting.json")
    given = parser.parse_args()
    if given.one:
        print(sum(align_step.median(align_step.own(torch.bfloat16, given.steps, None, True)).values()))
        return
    figures = [
        results.figure(
            f"a step of align, {'alone' if copies == 1 else 'two at once'}, threads that wait {name}",
            steps_beside(copies, setting, given.steps),
            unit="s",
        )
        for copies in (1, 2)
        for name, setting in SETTINGS.items()
    ]
    results.write(given.out, "Threads that wait", figures)


if __name__ == "__main__":
    main()
