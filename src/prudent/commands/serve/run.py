"""Opens the reward model and runs the server, in this process or in several."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from prudent.commands.common import one_sum_order, say
from prudent.commands.options import build
from prudent.commands.serve.options import ServeOptions
from prudent.errors import PrudentError

OPTIONS = "PRUDENT_SERVE_OPTIONS"  # how worker processes get theirs
SWITCH = 5e-4  # seconds for which the thread that reads requests may hold up the one that scores


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises PrudentError where the extra is missing or the model can't be opened."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise PrudentError(f"{error.name} is not installed; run: pip install 'prudent[serve]'") from None
    one_sum_order()
    common: dict[str, Any] = {
        "host": options.host,
        "port": options.port,
        "log_level": "warning",
        "timeout_graceful_shutdown": 120,
        "timeout_worker_healthcheck": 120,  # a worker that imports and loads on a busy machine isn't dead
    }
    if options.workers > 1:
        open_scorer(options)  # an error is shown once, before any worker starts
        os.environ[OPTIONS] = json.dumps(dataclasses.asdict(options), default=str)
        say(f"serving {options.model} on http://{options.host}:{options.port} in {options.workers} processes")
        uvicorn.run("prudent.commands.serve.run:worker_app", factory=True, workers=options.workers, **common)
        return
    failures: list[BaseException] = []
    server: uvicorn.Server

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    server = uvicorn.Server(uvicorn.Config(make_app(options, failed), **common))
    say(f"serving {options.model} by rule {options.rule} on http://{options.host}:{options.port} (docs at /docs)")
    server.run()
    if failures:
        raise failures[0]
    if not server.started:
        raise PrudentError(f"can't listen on {options.host}:{options.port}; give another --port or --host")


def open_scorer(options: ServeOptions) -> Any:
    """The scorer, with weights loaded, golden scores compared and the reference scored."""
    from prudent.data.pools import read_pool
    from prudent.rewards.model import RewardModel
    from prudent.serving.scorer import RewardScorer

    model = RewardModel.load(options.model, model=options.language_model, dtype=options.dtype, keep_features=False)
    model.check()
    pool = None if options.reference is None else read_pool(options.reference, columns=options.columns)
    scorer = RewardScorer(model, options.rule, reference=pool, fallback=options.fallback)
    say(f"ready: {model.members} members ({model.family})")
    return scorer


def make_app(options: ServeOptions, failed: Any = lambda error: None) -> Any:
    """The ASGI application of these options."""
    sys.setswitchinterval(SWITCH)
    from prudent.serving.app import ServiceOptions, create_app
    from prudent.serving.batching import Limits

    service = ServiceOptions(
        Path(options.model).name,
        options.token,
        options.body_limit,
        limits=Limits(options.batch_tokens, options.wait / 1000, options.queue),
    )
    return create_app(lambda: open_scorer(options), service, failed)


def worker_app() -> Any:
    """The application of one of several processes, whose options come by the environment."""
    return make_app(build(ServeOptions, json.loads(os.environ[OPTIONS])))
