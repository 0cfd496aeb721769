"""The reward service: one handler for every body, health, readiness and metrics, on FastAPI.

Nothing here imports torch: a service that is started again listens within a second or two, before its weights are
there, and answers what arrives meanwhile once they are. Trainers give up sooner than a model loads (OpenRLHF: 5 s).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prudent.serving.batching import Batcher, Busy, Limits
from prudent.serving.bodies import BodyError, Sample, Score, Size, answer, form_of, samples_of

if TYPE_CHECKING:
    from prudent.serving.scorer import RewardScorer

EXAMPLES = {
    "prudent": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    "several": {"conversations": [{"prompt": "Hi", "response": "Hello!"}, {"prompt": "Hi", "response": "Go away."}]},
    "openrlhf": {"query": ["<rendered prompt and answer>"], "prompts": ["<rendered prompt>"], "labels": [""]},
    "slime": {"prompt": "Hi", "response": "Hello!", "label": ""},
    "llamafactory": {"model": "any", "messages": ["<rendered prompt and answer>"]},
    "nemo_gym": {
        "responses_create_params": {"input": [{"role": "user", "content": "Hi"}]},
        "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello!"}]}]},
    },
    "vllm": {"model": "any", "input": ["<rendered prompt and answer>"]},
    "tei": {"inputs": ["Hi", "Hello!"]},
}
PATHS = (
    "/score",
    "/",
    "/get_reward",
    "/classify",
    "/predict",
    "/v1/classify",
    "/v1/score",
    "/v1/embeddings",
    "/verify",
)


@dataclass(frozen=True)
class ServiceOptions:
    """name: of the model, in answers. token: bearer token that requests must carry, or nothing. body_limit: bytes.
    hold: seconds that a request waits for the weights to be loaded. patience: seconds in which a body must arrive."""

    name: str = "prudent"
    token: str = ""
    body_limit: int = 8 * 2**20
    hold: float = 60.0
    patience: float = 60.0
    limits: Limits | None = None


def create_app(
    open_scorer: Callable[[], RewardScorer],
    options: ServiceOptions | None = None,
    failed: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The ASGI application. open_scorer: called once, off the event loop, when the server starts; until it is done
    ``/readyz`` gets 503, and requests wait for up to ``options.hold``. failed: called with its error where it fails."""
    service = _Service(open_scorer, options or ServiceOptions(), failed)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(title="Prudent reward service", lifespan=lifespan, description=_DESCRIPTION)
    body = {"content": {"application/json": {"examples": {name: {"value": v} for name, v in EXAMPLES.items()}}}}
    for path in PATHS:
        app.add_api_route(
            path,
            service.handle,
            methods=["POST"],
            include_in_schema=path == PATHS[0],
            openapi_extra={"requestBody": body},
            summary="Score responses; the form is known by the body's keys",
            response_model=None,
        )
    app.add_api_route("/healthz", service.healthy, response_model=None, summary="The process answers")
    app.add_api_route("/readyz", service.ready, response_model=None, summary="Weights loaded, golden scores checked")
    app.add_api_route("/metrics", service.metrics.page, response_model=None, summary="Prometheus metrics")
    return app


_DESCRIPTION = (
    "Rewards with their uncertainty. Bodies of OpenRLHF, slime, LLaMA-Factory, NeMo Gym, vLLM and "
    "text-embeddings-inference are answered in their own shape; POST to any of " + ", ".join(PATHS) + ". "
    "An error is an HTTP error with a reason and the index of the sample; a reward is never made up."
)


class _Service:
    def __init__(
        self, open_scorer: Callable[[], RewardScorer], options: ServiceOptions, failed: Callable[[BaseException], None]
    ) -> None:
        self.open_scorer, self.options, self.failed = open_scorer, options, failed
        self.scorer: RewardScorer | None = None
        self.batcher: Batcher | None = None
        self.metrics = _Metrics()
        self.opened = asyncio.Event()

    def start(self) -> None:
        """Begin to load the reward model in the background."""
        self.loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            self.scorer = await asyncio.get_running_loop().run_in_executor(None, self.open_scorer)
        except Exception as error:
            self.failed(error)
            return
        self.batcher = Batcher(self.scorer.score, self.options.limits, self.metrics.batch)
        self.metrics.watch(self.batcher)
        self.batcher.start()
        self.opened.set()

    async def stop(self) -> None:
        if self.batcher is not None:
            await self.batcher.stop()

    async def healthy(self) -> dict[str, str]:
        return {"status": "ok"}

    async def ready(self) -> Any:
        if self.scorer is None:
            return JSONResponse({"status": "loading"}, 503)
        model = self.scorer.model
        return {"status": "ready", "model": self.options.name, "family": model.family, "members": model.members}

    async def handle(self, request: Request) -> Response:
        began = time.monotonic()
        status, content, headers, form = await self._answer(request)
        self.metrics.request(form, status, time.monotonic() - began)
        return JSONResponse(content, status, headers)

    async def _answer(self, request: Request) -> tuple[int, Any, dict[str, str], str]:
        form = "unknown"
        try:
            if self.options.token and not _authorised(request, self.options.token):
                return 401, _error("send the header Authorization: Bearer TOKEN"), {"WWW-Authenticate": "Bearer"}, form
            raw = await asyncio.wait_for(_read(request, self.options.body_limit), self.options.patience)
            if raw is None:
                return 413, _error(f"the body is over {self.options.body_limit} bytes (--body-limit)"), {}, form
            scorer = await self._opened()
            if scorer is None:
                return 503, _error("the reward model is still loading"), {"Retry-After": "1"}, form
            body = json.loads(raw, parse_constant=_refuse_constant)
            form = form_of(body)
            samples = samples_of(form, body, scorer.tokenizer)
            scores = await self._scores(samples, request)
            return 200, answer(form, body, scores, self.options.name), {}, form
        except Busy as busy:
            return 503, _error(f"{busy}; come back later"), {"Retry-After": "1"}, form
        except BodyError as error:
            return 422, _error(str(error), error.index), {}, form
        except (ValueError, RecursionError) as error:
            return 400, _error(f"the body is not JSON: {error}"), {}, form
        except TimeoutError:
            return 408, _error(f"the body did not arrive within {self.options.patience:g} seconds"), {}, form
        except asyncio.CancelledError:
            return 499, _error("the client has gone"), {}, form
        except Exception as error:  # a fault of ours: its reason is an answer too, and it is counted
            logging.getLogger(__name__).exception("a request failed")
            return 500, _error(f"{type(error).__name__}: {error}"), {}, form

    async def _opened(self) -> RewardScorer | None:
        """The scorer, once its weights are loaded; None where that takes too long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.opened.wait(), self.options.hold)
        return self.scorer if self.opened.is_set() else None

    async def _scores(self, samples: list[Sample], request: Request) -> list[Score | str]:
        """Scores of all samples; those that can't be read keep their reason. Gives up where the client has gone."""
        scorer, batcher = self.scorer, self.batcher
        assert scorer is not None and batcher is not None
        sizes = await asyncio.get_running_loop().run_in_executor(None, scorer.sizes, samples)
        found: list[Score | str] = [size if isinstance(size, str) else "" for size in sizes]
        good = [(row, size) for row, size in enumerate(sizes) if isinstance(size, Size)]
        waiting = batcher.submit([samples[row] for row, _ in good], [size for _, size in good])
        for (row, _), score in zip(good, await _unless_gone(waiting, request)):
            found[row] = score
        for score in found:
            self.metrics.score(score)
        return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


async def _read(request: Request, limit: int) -> bytes | None:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


async def _unless_gone(waiting: Coroutine[Any, Any, list[Score | str]], request: Request) -> list[Score | str]:
    """What is waited for; cancelled, and CancelledError raised, where the client goes before it is there."""
    work, gone = asyncio.create_task(waiting), asyncio.create_task(_disconnected(request))
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        work.cancel()
    gone.cancel()
    return await work


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _authorised(request: Request, token: str) -> bool:
    return hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode())


def _error(message: str, index: int | None = None) -> dict[str, Any]:
    return {"error": message, **({} if index is None else {"index": index})}


class _Metrics:
    """Prometheus metrics of one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("prudent_requests", "Requests", ["form", "status"], registry=registry)
        self.seconds = Histogram("prudent_request_seconds", "Seconds a request", registry=registry)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        self.batches = Histogram("prudent_batch_samples", "Samples a batch", buckets=sizes, registry=registry)
        self.scoring = Histogram("prudent_batch_seconds", "Seconds a batch", registry=registry)
        self.queue = Gauge("prudent_queue_samples", "Samples waiting", registry=registry)
        rewards = [-10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10]
        self.rewards = Histogram("prudent_reward", "Rewards given", buckets=rewards, registry=registry)
        variances = [10.0**power for power in range(-6, 4)]
        self.variances = Histogram("prudent_variance", "Members' variance", buckets=variances, registry=registry)
        self.samples = Counter("prudent_samples", "Samples by outcome", ["outcome"], registry=registry)
        self.truncated = Counter("prudent_truncated", "Samples cut to the length limit", registry=registry)

    def watch(self, batcher: Batcher) -> None:
        """Report the length of a batcher's queue."""
        self.queue.set_function(lambda: len(batcher.waiting))

    def batch(self, samples: int, seconds: float) -> None:
        """Count a scored batch."""
        self.batches.observe(samples)
        self.scoring.observe(seconds)

    def request(self, form: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(form, str(status)).inc()
        self.seconds.observe(seconds)

    def score(self, score: Score | str) -> None:
        """Count a score, or an error's text in its place."""
        self.samples.labels("error" if isinstance(score, str) else "scored").inc()
        if isinstance(score, str):
            return
        self.rewards.observe(score.reward)
        if score.variance is not None:
            self.variances.observe(score.variance)
        if score.truncated:
            self.truncated.inc()

    async def page(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
