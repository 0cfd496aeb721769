"""Progress: plain lines where stderr is no terminal, a bar where it is one, and silence for short and inner loops."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from prudent import progress
from prudent.progress import duration, meter, silent, track

LINE = re.compile(r"^encoding: (\d+) of 10, \S+ a second, \S+ tokens a second, about .+ left$")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (45, "45 s"), (60, "1 min"), (130, "2 min 10 s"), (3600, "1 h"), (3900.4, "1 h 5 min")],
)
def test_times_are_said_in_words(seconds, text) -> None:
    assert duration(seconds) == text


def test_a_plain_line_now_and_then_with_done_total_rate_and_time_left(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with meter("encoding", 10) as advance:
        advance(4, 100)
        time.sleep(0.2)
        advance(6, 100)
    lines = capsys.readouterr().err.splitlines()
    assert LINE.match(lines[0]) and LINE.match(lines[0]).group(1) == "4"
    assert lines[-1].startswith("encoding: 10 of 10 in")


def test_loops_that_are_over_soon_say_nothing(capsys) -> None:
    assert list(track(range(5), "short")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_inner_loops_are_silent_or_counted(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    for gathers, done in ((False, "0"), (True, "3")):
        with meter("outer", 9, gathers=gathers), meter("inner", 3) as advance:
            advance(3)
            time.sleep(0.1)
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("outer: " + done) for line in lines)
    with silent(), meter("quiet", 3):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar() -> None:
    code = (
        "import time; from prudent import progress; progress.FIRST = 0.1\n"
        "with progress.meter('encoding', 10) as advance:\n"
        "    for _ in range(10): time.sleep(0.15); advance(1, 50, 'a note')\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "140", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0 and process.stdout.read() == b""
    text = shown.decode("utf-8", "replace")
    assert "encoding" in text and "10/10" in text and "a second" in text and "\x1b[" in text


def test_loops_of_the_statistics_say_how_far_they_are(monkeypatch, capsys):
    import numpy as np
    import torch

    from prudent.acquisition.greedy import lazy_greedy
    from prudent.recommend.batches import chunks
    from prudent.rewards.convex import fit_heads

    monkeypatch.setattr(progress, "EVERY", 0.001)
    generator = torch.Generator().manual_seed(0)
    fit_heads(torch.randn(2000, 100, generator=generator), torch.ones(40, 2000), ridge=1e-3)
    factor = np.random.default_rng(0).standard_normal((5000, 20))
    lazy_greedy(factor, np.ones(5000), lambda variance, index: variance, 200)
    for _ in chunks(np.arange(9), 3):
        time.sleep(0.01)
    said = capsys.readouterr().err
    for title, total in (("fitting heads", 40), ("choosing pairs", 200), ("batches of users", 3)):
        assert re.search(rf"{title}: \d+ of {total}, \S+ a second, ", said), title
        assert re.search(rf"{title}: {total} of {total} in ", said), title


def test_a_loop_of_other_items_never_counts_in_the_one_around_it(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    with meter("outer", 4, gathers=True) as advance:
        with meter("inner", 2) as counted:
            counted(2)
        with meter("other", 9, counts=False) as apart:
            apart(9)
        time.sleep(0.01)
        advance(2)
    said = capsys.readouterr().err
    assert "outer: 4 of 4" in said and "other" not in said
