"""Single-sample requests from many connections, gathered into batches by a token budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prudent.serving.bodies import Sample, Score, Size


class Busy(Exception):
    """The queue is full: the client should come back later."""


@dataclass
class Limits:
    """batch_tokens: positions scored at once. wait: seconds that a batch is held open for others. queue: samples
    waiting at most."""

    batch_tokens: int = 16384
    wait: float = 0.01
    queue: int = 4096


@dataclass
class _Job:
    sample: Sample
    size: Size
    future: asyncio.Future[Score | str]
    waiting: int = 1
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Scores samples in batches on one thread. Identical samples that wait or run at once are scored once; one whose
    clients have all gone before its batch began is left out. Each is answered as soon as its own score is there, so
    that its client's next request comes while others are still scored.

    score: (samples, truncated) -> pairs (row, score) as they are computed, called off the event loop. observe: gets
    (samples, seconds) of each batch.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Sample], Sequence[bool]], Iterable[tuple[int, Score | str]]],
        limits: Limits | None = None,
        observe: Callable[[int, float], None] = lambda samples, seconds: None,
    ) -> None:
        self.score, self.limits, self.observe = score, limits or Limits(), observe
        self.waiting: dict[Sample, _Job] = {}
        self.running: dict[Sample, _Job] = {}
        self.wake = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; call it on the event loop."""
        self.task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        while self.waiting or self.running:
            await asyncio.sleep(0.01)
        if self.task is not None:
            self.task.cancel()
        self.thread.shutdown()

    async def submit(self, samples: Sequence[Sample], sizes: Sequence[Size]) -> list[Score | str]:
        """Scores of the samples, in their order. Raises Busy where the queue can't hold the new ones."""
        keys = [Sample(_hashable(s.prompt), s.response) for s in samples]
        new = {key for key in keys if key not in self.waiting and key not in self.running}
        if len(self.waiting) + len(new) > self.limits.queue:
            raise Busy(f"{len(self.waiting)} samples wait; the queue holds {self.limits.queue}")
        jobs = []
        for key, sample, size in zip(keys, samples, sizes):
            job = self.waiting.get(key) or self.running.get(key)
            if job is None:
                job = self.waiting[key] = _Job(sample, size, asyncio.get_running_loop().create_future())
            else:
                job.waiting += 1
            jobs.append((key, job))
        self.wake.set()
        try:
            return [await asyncio.shield(job.future) for _, job in jobs]
        except asyncio.CancelledError:
            for key, job in jobs:
                job.waiting -= 1
                if job.waiting <= 0 and self.waiting.get(key) is job:
                    del self.waiting[key]
                    job.future.cancel()
            raise

    def _take(self) -> dict[Sample, _Job]:
        """The next batch: those that have waited longest, while their tokens fit the budget (at least one)."""
        batch: dict[Sample, _Job] = {}
        tokens = 0
        for key, job in list(self.waiting.items()):
            tokens += job.size.tokens
            if batch and tokens > self.limits.batch_tokens:
                break
            batch[key] = self.waiting.pop(key)
        return batch

    def _full(self) -> bool:
        return sum(job.size.tokens for job in self.waiting.values()) >= self.limits.batch_tokens

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.wake.clear()
            if not self.waiting:
                await self.wake.wait()
            oldest = next(iter(self.waiting.values()), None)
            while oldest and not self._full() and (left := oldest.since + self.limits.wait - time.monotonic()) > 0:
                await asyncio.sleep(min(left, 0.002))
            self.running = self._take()
            if not self.running:
                continue
            jobs, began = dict(self.running), time.monotonic()
            reason = "it got no score"
            try:
                await loop.run_in_executor(self.thread, self._score, jobs, loop)
            except Exception as error:  # a fault of ours is an answer too: a client must not wait for ever
                reason = f"{type(error).__name__}: {error}"
            self.observe(len(jobs), time.monotonic() - began)
            for key in list(self.running):
                self._answer(key, reason)

    def _score(self, jobs: dict[Sample, _Job], loop: asyncio.AbstractEventLoop) -> None:
        keys = list(jobs)
        parts = [job.sample for job in jobs.values()], [job.size.truncated for job in jobs.values()]
        for row, score in self.score(*parts):
            loop.call_soon_threadsafe(self._answer, keys[row], score)

    def _answer(self, key: Sample, score: Score | str) -> None:
        job = self.running.pop(key)
        if not job.future.done():
            job.future.set_result(score)


def _hashable(prompt: object) -> str:
    return prompt if type(prompt) is str else repr(prompt)
