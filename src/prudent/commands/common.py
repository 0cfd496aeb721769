"""What every command prints: results on stdout, progress and the time of its stages on stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prudent.runs import Run

Say = Callable[[str], None]


def say(message: str) -> None:
    """A line for a person, on stderr, so that stdout holds results alone."""
    print(message, file=sys.stderr, flush=True)


def one_sum_order() -> None:
    """Have MKL, by which PyTorch multiplies on Intel, sum in one order whatever a product's shape and the number of
    threads, so that a text's score doesn't hang on its batch. It is heeded before the first product. For commands that
    only score: products with few columns, of which fitting heads is made, take up to twice as long."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def result_console(width: int = 120) -> Any:
    """Console for tables on stdout; into a file or a pipe it is ``width`` wide, so that no cell is cut or wrapped."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def print_json(value: Any) -> None:
    """One strict JSON object on stdout."""
    from prudent.files import dumps

    print(dumps(value), flush=True)


@contextlib.contextmanager
def clocked(run: Run, name: str) -> Iterator[None]:
    """Adds the seconds spent inside (clock and processor) to those of stage ``name`` in the manifest."""
    start, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        for kept, spent in (
            (run.manifest["timings_s"], time.perf_counter() - start),
            (run.manifest.setdefault("cpu_s", {}), time.process_time() - processor),
        ):
            kept[name] = round(kept.get(name, 0.0) + spent, 3)


@contextlib.contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Ctrl-C inside is never lost: where code in C swallows it, as imports do, it is raised at the end."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


def timer(run: Run, say: Say) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """Context manager by stage name: says what begins, keeps its seconds (clock and processor) in the manifest."""

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        say(f"{name} ...")
        start = time.perf_counter()
        with clocked(run, name), keeping_interrupts():
            yield
        say(f"{name}: {time.perf_counter() - start:.1f} s")

    return stage
