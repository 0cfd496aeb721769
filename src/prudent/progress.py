"""Progress on stderr, the same for every long loop: a bar on a terminal; elsewhere a plain line every 15 seconds.

A loop that is over within a second shows nothing. Of loops inside one another the outermost shows itself.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Advance = Callable[..., None]  # advance(done=1, tokens=0, note="")

EVERY = 15.0  # seconds between lines where stderr is no terminal
LATEST = 60.0  # seconds that the rate is taken over: what came from a cache says nothing of what is left
FIRST, FRAME = 1.0, 0.2  # seconds before a bar appears and between its frames
_open: list[_Meter] = []


def duration(seconds: float) -> str:
    """A time as a person says it: 45 s, 2 min 10 s, 1 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


class _Meter:
    """How much of ``total`` is done, and how fast. Calling it says that so much more is done."""

    def __init__(self, title: str, total: int | None, gathers: bool = False) -> None:
        self.title, self.total, self.gathers = title, total, gathers
        self.done = self.tokens = 0
        self.note = ""
        self.start = time.monotonic()
        self._seen: deque[tuple[float, int, int]] = deque([(self.start, 0, 0)])

    def __call__(self, done: int = 1, tokens: int = 0, note: str = "") -> None:
        self.done += done
        self.tokens += tokens
        self.note = note or self.note

    def rates(self) -> tuple[float, float]:
        """Items and tokens a second, over the latest minute."""
        now = time.monotonic()
        self._seen.append((now, self.done, self.tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > LATEST:
            self._seen.popleft()
        then, done, tokens = self._seen[0]
        span = max(now - then, 1e-9)
        return (self.done - done) / span, (self.tokens - tokens) / span

    def amount(self) -> str:
        """What is done, in words."""
        return f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"

    def pace(self) -> str:
        """Rate and time left, in words."""
        items, tokens = self.rates()
        parts = [f"{items:.3g} a second"]
        if tokens:
            parts.append(f"{tokens:,.0f} tokens a second")
        if items and self.total is not None:
            parts.append(f"about {duration((self.total - self.done) / items)} left")
        else:
            parts.append("time left unknown")
        return ", ".join(parts)


@contextlib.contextmanager
def meter(
    title: str, total: int | None, show: bool = True, *, gathers: bool = False, counts: bool = True
) -> Iterator[Advance]:
    """Yields ``advance(done=1, tokens=0, note="")``: so many more of ``total`` are done, by computing so many tokens.

    total: None where nobody knows it. gathers: what loops inside do counts as done here; otherwise they are silent and
    count nothing. counts: False where this loop never counts in one around it, whose items are others.
    """
    if not show or (_open and not (_open[-1].gathers and counts)):
        yield _ignore
        return
    if _open:
        outer = _open[-1]
        yield lambda done=1, tokens=0, note="": outer(done, tokens, title)
        return
    found, over = _Meter(title, total, gathers), threading.Event()
    display = _bar if sys.stderr.isatty() else _lines
    shown = threading.Thread(target=display, args=(found, over), daemon=True)
    _open.append(found)
    shown.start()
    try:
        yield found
    finally:
        _open.remove(found)
        over.set()
        shown.join()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Inside, no loop shows itself or counts."""
    nobody = _Meter("", 0)
    _open.append(nobody)
    try:
        yield
    finally:
        _open.remove(nobody)


def _ignore(done: int = 1, tokens: int = 0, note: str = "") -> None:
    """Progress that nobody looks at."""


def track(items: Sequence[T] | Iterable[T], title: str, total: int | None = None, show: bool = True) -> Iterator[T]:
    """The items, one done whenever the next is asked for. total: their number, where they have no length."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with meter(title, count, show) as advance:
        for item in items:
            yield item
            advance()


def _lines(counted: _Meter, over: threading.Event) -> None:
    said = False
    while not over.wait(EVERY):
        print(f"{counted.title}: {counted.amount()}, {counted.pace()}", file=sys.stderr, flush=True)
        said = True
    if said:
        spent = duration(time.monotonic() - counted.start)
        print(f"{counted.title}: {counted.amount()} in {spent}", file=sys.stderr, flush=True)


def _bar(counted: _Meter, over: threading.Event) -> None:
    if over.wait(FIRST):
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[left]}"), TextColumn("{task.fields[note]}")]
    # stdout is left alone: it may be a file that holds results.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, auto_refresh=False) as bar:
        task = bar.add_task(counted.title, total=counted.total, left="", note="")
        while not over.wait(FRAME):
            bar.update(task, completed=counted.done, left=counted.pace(), note=counted.note)
            bar.refresh()
        bar.update(task, completed=counted.done, left=f"in {duration(time.monotonic() - counted.start)}", note="")
        bar.refresh()
