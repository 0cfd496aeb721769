"""One family fitted and scored in a process of its own, so that its time and peak memory are its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prudent.errors import PrudentError
from prudent.runs import peak_bytes

if TYPE_CHECKING:
    from datasets import Dataset


class Trial(NamedTuple):
    """margins (K, n) of each named set; fit_seconds, score_seconds by the clock and of the processor, which other work
    on the machine stretches far less; peak_bytes of the process; parameters, members."""

    margins: dict[str, torch.Tensor]
    fit_seconds: float
    score_seconds: float
    peak_bytes: int
    parameters: int
    members: int
    info: dict[str, Any]
    fit_processor: float
    score_processor: float


def trial(
    name: str,
    data: Mapping[str, Dataset],
    *,
    model: str,
    members: int | None,
    seed: int,
    encoder_options: Mapping[str, Any],
    features: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trial:
    """Fit family ``name`` on the data set "train" and give its margins on each other one, in this process.

    features: of every data set, made once for all families that work on them.
    """
    from prudent.rewards import families
    from prudent.rewards.model import RewardModel

    tests = {key: found for key, found in data.items() if key != "train"}
    given = families.check_options(name, options or {})
    started, began = time.perf_counter(), time.process_time()
    if features is not None and name in families.ON_FEATURES:
        count = families.family(name).members if members is None else members
        scorer = families.fit_on_features(data["train"], name, None, *features["train"], count, seed, given)
        middle, fitted = time.perf_counter(), time.process_time()
        margins = {key: scorer.scores(features[key][0]) - scorer.scores(features[key][1]) for key in tests}
        parameters = RewardModel(scorer).parameters()
    else:
        reward_model = families.fit_reward_model(
            data["train"],
            name,
            model=model,
            members=None if families.family(name).members == 0 else members,
            seed=seed,
            encoder_options=encoder_options,
            **given,
        )
        middle, fitted = time.perf_counter(), time.process_time()
        margins = {}
        for key, test in tests.items():
            chosen, rejected = families.pair_scores(reward_model, test)
            margins[key] = chosen - rejected
        scorer, parameters = reward_model.scorer, reward_model.parameters()
    ended, scored = time.perf_counter(), time.process_time()
    info = dict(getattr(scorer, "info", {}))
    return Trial(
        margins,
        middle - started,
        ended - middle,
        peak_bytes(),
        parameters,
        scorer.members,
        info,
        fitted - began,
        scored - fitted,
    )


def _child(pipe: Any, arguments: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        found = trial(**arguments)
        # numpy crosses as plain bytes; a tensor's shared memory would be gone with this process
        pipe.send((found._replace(margins={}), {key: value.numpy() for key, value in found.margins.items()}))
    except PrudentError as error:
        pipe.send(str(error))
    finally:
        pipe.close()


def trial_apart(**arguments: Any) -> Trial | str:
    """``trial`` in a fresh process; a text says why there is no result (an error to fix, or a process that died)."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, arguments, torch.get_num_threads()))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode} and no result (out of memory?)"
    finally:
        ours.close()
    process.join()
    if isinstance(found, str):
        return found
    rest, margins = found
    return rest._replace(margins={key: torch.from_numpy(value) for key, value in margins.items()})
