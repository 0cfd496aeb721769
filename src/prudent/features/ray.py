"""Encoding and scoring by Ray: on all cores and GPUs of a machine, or of a cluster.

Ray Data reads blocks of texts as they are needed, and a pool of actors, each with a model of its own, works on them.
Features go into the feature cache, which all nodes must see; what travels back is a key of 16 bytes a text. An actor
that dies is started again, and its block is given to another one: what it had written is found in the cache. Started
again after a kill, a run encodes what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prudent.errors import PrudentError, RowsError
from prudent.features.blocks import EncodeBlocks, Result, texts_folder, unpacked, write_texts
from prudent.features.stats import add_stats, tokens_read
from prudent.progress import meter

if TYPE_CHECKING:
    import pyarrow as pa

    from prudent.features.encoder import Encoder

OBJECT_STORE = 300 * 2**20  # bytes of a local Ray's; what travels are texts and keys, never features
POLL_SECONDS = 0.5  # between two looks of Ray's scheduler, 10 ms of Python each; its 0.1 take a tenth of a core
IN_FLIGHT = 4  # blocks given to a worker at once, so that it computes on between two looks
TRIES = 8  # of a block whose worker dies, before the run ends: a text may kill whoever reads it
Read = Callable[[], "Iterator[pa.Table]"]


@dataclass(frozen=True)
class RayEngine:
    """address: of a running cluster ("auto": this machine's); None starts Ray on this machine, unless $RAY_ADDRESS
    names one. concurrency: workers, by default one a GPU, or one a core where there is no GPU. num_gpus: GPUs of a
    worker (a fraction lets several share one), by default 1 where the cluster has any. rows: texts of a block.
    """

    address: str | None = None
    concurrency: int | None = None
    num_gpus: float | None = None
    rows: int = 1024

    def map(self, reads: Sequence[Read], worker: type, arguments: tuple[Any, ...]) -> Iterator[Result]:
        """What ``worker(*arguments)`` makes of the blocks of all ``reads``, in the order in which they are done."""
        ray = self.connect()
        from ray.data import ActorPoolStrategy
        from ray.util.annotations import RayDeprecationWarning

        workers, gpus = self.workers(ray.cluster_resources())
        texts = ray.data.read_datasource(
            _source(reads),
            num_cpus=0,  # the workers may have every core
            concurrency=min(workers + 1, len(reads)),
            override_num_blocks=len(reads),  # else Ray would divide the blocks further
        )
        with warnings.catch_warnings():  # Ray has no parameter of its own for the tries of a block
            warnings.simplefilter("ignore", RayDeprecationWarning)
            results = texts.map_batches(
                worker,
                fn_constructor_args=arguments,
                batch_size=1,  # a block is one row
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=IN_FLIGHT
                ),
                num_cpus=1,
                num_gpus=gpus or None,
                max_task_retries=TRIES,
            )
        try:
            for row in results.iter_rows():
                yield unpacked(row)
        except ray.exceptions.RayError as error:
            raise cause_of(error) from error

    def workers(self, resources: dict[str, float]) -> tuple[int, float]:
        """(number of workers, GPUs of each) among a cluster's resources. PrudentError where a local Ray has too few."""
        all_gpus, cores = resources.get("GPU", 0.0), int(resources.get("CPU", 1))
        gpus = (1.0 if all_gpus else 0.0) if self.num_gpus is None else self.num_gpus
        room = int(all_gpus / gpus) if gpus else cores
        if room < 1 and not (self.address or os.environ.get("RAY_ADDRESS")):
            raise PrudentError(f"--num-gpus is {gpus:g}, but this machine has {all_gpus:g}; give --num-gpus 0")
        return self.concurrency or max(room, 1), gpus

    def connect(self) -> Any:
        """The module ray, connected. PrudentError where it isn't installed or no cluster is at the address."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # telemetry is off unless a person turns it on
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_niceness", "0")  # else everything else on this machine goes before
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise PrudentError("--engine ray needs Ray, which is not installed: pip install 'prudent[ray]'") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # byte: else Ray joins small blocks, and one worker gets a whole file
        with contextlib.suppress(ImportError):  # a constant of Ray's own, for which it has no parameter
            from ray.data._internal.execution import streaming_executor_state

            streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = POLL_SECONDS
        if ray.is_initialized():
            return ray
        address = self.address or os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    "local",
                    num_cpus=self.concurrency,
                    object_store_memory=OBJECT_STORE,
                    include_dashboard=False,
                    **quiet,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PrudentError(
                f"Ray can't be reached at {address or 'this machine'}: {error}; start a cluster with ray start --head, "
                "or leave --address out"
            ) from error
        return ray

    def fill(self, encoder: Encoder, prompts: Sequence[Any], responses: Sequence[Any]) -> np.ndarray:
        """Keys (N, 2) under which the encoder's cache then holds the features of N texts; ``encoder.stats`` counts what
        the workers did. RowsError names every text that can't be encoded, when all others are."""
        from prudent.features.large import together
        from prudent.features.models import dtype_name

        assert encoder.cache is not None
        root = encoder.cache.folder.parent
        options = {
            "pooling": encoder.pooling,
            "max_length": encoder.max_length,
            "layer": encoder.layer,
            "dtype": dtype_name(encoder.dtype),
            "cache": str(root.resolve()),
        }
        keys = np.empty((len(prompts), 2), np.int64)
        bad: dict[int, str] = {}
        with texts_folder(root) as folder, meter("encoding", len(prompts), encoder.progress) as advance:
            reads = write_texts(folder, prompts, responses, together(prompts), self.rows)
            for result in self.map(reads, EncodeBlocks, (everywhere(encoder.name), options, encoder.fingerprint)):
                if len(result.lines):
                    keys[result.lines] = result.values
                bad |= {row.line: row.detail for _, row in result.bad}
                add_stats(encoder.stats, {**result.stats, "rows": 0})
                advance(result.done, tokens_read(result.stats))
        if bad:
            raise RowsError(dict(sorted(bad.items())))
        return keys


def everywhere(model: str) -> str:
    """A model's name as another process, in another folder, understands it."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _source(reads: Sequence[Read]) -> Any:
    """The reads as Ray Data takes them: a task each."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Blocks(Datasource):
        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None)) for read in reads]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Blocks()


def cause_of(error: BaseException) -> PrudentError:
    """The PrudentError that a worker raised; else what Ray says, in one line."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, PrudentError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    text = str(error).strip()
    if len(parts := re.split(r"prudent\.errors\.\w+: ", text)) > 1:  # Ray keeps no more of an actor
        return PrudentError(parts[-1].strip())
    return PrudentError(f"Ray's workers failed: {text.splitlines()[-1] if text else type(error).__name__}")
