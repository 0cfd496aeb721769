"""From pieces to verdicts: a rough one early, finer ones later, until all is done, the time is up or Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from prudent.commands.common import Say
from prudent.commands.preflight.pieces import CANDIDATES, TRAIN, Piece, Work, seconds, speeds
from prudent.commands.preflight.verdict import Verdict, with_interval
from prudent.progress import duration, meter, silent
from prudent.runs import Run

FIRST = 90.0  # seconds until the first rough verdict; each further one after twice the time
WORTH_WAITING = 30.0  # seconds: where no more than that is left, the whole answer comes as soon as another rough one
REPORT = 15.0  # seconds of --budget that answer and report get
GO_ON = "Run it to its end before you decide: what was sampled and encoded is kept for that."
RATIO = 10.0  # rough verdicts take at most a tenth of the time


def forecast(work: Work, speed: tuple[float, float]) -> str:
    """What there is to do and how long it takes, in one line."""
    left = work.left()
    sampled, read, known = (sum(values) for values in zip(*((p.sampled, p.left, p.read - p.left) for p in left)))
    if not sampled and not read:
        return "all texts are on disk already: nothing to sample or to encode"
    parts = []
    if sampled:
        parts.append(f"at most {sampled:,} tokens to sample ({speed[0]:,.0f} a second)")
    if read:
        parts.append(f"{read:,} to read ({speed[1]:,.0f} a second)")
    text = f"forecast: about {duration(seconds(left, speed))}: {', '.join(parts)}"
    return f"{text}; {known:,} tokens are on disk already" if known else text


def refine(
    work: Work, run: Run, began: float, limit: float | None, say: Say, rough: Callable[[], Verdict]
) -> str | None:
    """Do pieces until everything is done: None. Or until ``limit`` seconds after ``began``, or Ctrl-C: what stopped it.

    rough: the verdict on what there is. KeyboardInterrupt before there is enough for any answer passes through.
    """
    speed = speeds(work)
    if seconds(work.left(), speed) <= FIRST + WORTH_WAITING:  # no rough verdict comes before the whole one
        speed = settled(work, run, say, speed)
    say(forecast(work, speed))
    if limit is None and seconds(work.left(), speed) > FIRST + WORTH_WAITING:
        say(f"a rough verdict comes after about {duration(FIRST)}; Ctrl-C ends with a report of what there is by then")
    due, pace = FIRST, _Pace(speed)
    try:
        with meter("sampling and encoding", work.texts, gathers=True):
            while not work.complete or work.whole is not None:
                if work.complete:  # sooner than any rough verdict
                    speed = settled(work, run, say, speed)
                    continue
                now = time.monotonic() - began
                if limit is not None and work.ready and now + pace.expects([work.next_piece()]) > limit - REPORT:
                    return "--budget"
                if work.ready and now >= due and pace.expects(work.left()) > WORTH_WAITING:
                    with silent():
                        say(_rough_line(work, now, rough()))
                    spent = time.monotonic() - began - now
                    if work.whole is not None:
                        speed = settled(work, run, say, speed)
                        pace = _Pace(speed)
                    due = max(2 * now, now + RATIO * spent)
                    continue
                piece, start = work.next_piece(), time.monotonic()
                work.step(run)
                pace.learn(piece, time.monotonic() - start)
    except KeyboardInterrupt:
        if not work.ready:
            raise
        say("Ctrl-C: the report of what there is follows (Ctrl-C again ends without one)")
        return "Ctrl-C"
    return None


def settled(work: Work, run: Run, say: Say, speed: tuple[float, float]) -> tuple[float, float]:
    """The speed when the depth is chosen, where --layer auto hasn't chosen one yet."""
    if work.whole is None:
        return speed
    work.settle(run)
    if work.depth is not None:
        say(work.depth.words(work.encodings))
    return speeds(work)


class _Pace:
    """The forecast of pieces, held to what pieces took so far."""

    def __init__(self, speed: tuple[float, float]) -> None:
        self.speed, self.forecast, self.spent = speed, 0.0, 0.0

    def learn(self, piece: Piece, spent: float) -> None:
        """Take in how long a piece took (seconds)."""
        self.forecast += seconds([piece], self.speed)
        self.spent += spent

    def expects(self, pieces: Sequence[Piece]) -> float:
        """Seconds that pieces will take, at the pace so far."""
        factor = self.spent / self.forecast if self.forecast > 1.0 else 1.0
        return factor * seconds(pieces, self.speed)


def coverage(work: Work) -> str:
    """How much the answer rests on."""
    pairs, prompts = (f"{len(work.rows(kind))} of {work.total(kind)}" for kind in (TRAIN, CANDIDATES))
    return f"{pairs} pairs, candidates of {prompts} prompts"


def labelled(verdict: Verdict, work: Work, stopped: str | None) -> Verdict:
    """The verdict of a run that was stopped, which says so first."""
    if stopped is None:
        return verdict
    note = (
        f"**Rough**, since {stopped} ended it early: it rests on {coverage(work)}. More would narrow the intervals, "
        "and more pairs usually lower the risk."
    )
    return replace(verdict, headline=f"Rough: {verdict.headline}", todo=GO_ON, rough=note)


def _rough_line(work: Work, now: float, verdict: Verdict) -> str:
    known = verdict.vanilla
    beside = (
        "" if known.get("risk") is None else f"; vanilla's risk at beta {known['setting']:g}: {with_interval(known)}"
    )
    return f"rough verdict after {duration(now)} ({coverage(work)}): {verdict.headline}{beside}"
