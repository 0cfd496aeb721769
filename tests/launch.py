"""One command in two processes that join each other, as torchrun starts them but without its own process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def in_two_processes(*arguments: str, **environment: str) -> list[str]:
    """What each of two processes of ``python ARGUMENTS`` printed, by rank; fails with their errors if one failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **joined, "OMP_NUM_THREADS": "1", **environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    told = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], [errors for _, errors in told]
    return [printed for printed, _ in told]
