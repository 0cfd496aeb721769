"""A progress bar on stderr with tokens per second, a note, and the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

FEW = 32  # rows: done before a bar would be read, and many such calls would fill the screen


def _ignore(done: int, tokens: int, note: str) -> None:
    """Progress that nobody looks at."""


@contextlib.contextmanager
def token_progress(title: str, total: int, show: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yields ``advance(done, tokens, note)``: so many more of ``total`` are done, by computing so many tokens."""
    if not show or total < FEW:
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task(title, total=total, speed="", note="")
        start, tokens_done = time.monotonic(), 0

        def advance(done: int, tokens: int, note: str = "") -> None:
            nonlocal tokens_done
            tokens_done += tokens
            speed = tokens_done / max(time.monotonic() - start, 1e-9)
            progress.update(task, advance=done, speed=f"{speed:,.0f} tokens/s", note=note)

        yield advance
