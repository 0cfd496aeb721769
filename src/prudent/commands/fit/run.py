"""What ``prudent fit`` does: read pairs, train a family, write the reward-model folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from prudent.commands.common import say
from prudent.commands.depth import AUTO
from prudent.commands.fit.options import FitOptions
from prudent.commands.fit.page import describe_fit, write_page
from prudent.commands.fit.training_arguments import training_arguments
from prudent.commands.options import fields_of, number_or_cv
from prudent.data.failing import counted, origins_of, picked, use_rows
from prudent.data.preferences import ReadReport, data_hash, draw_pairs, read_preferences_with_report
from prudent.errors import PrudentError
from prudent.features.encoder import Encoder
from prudent.features.processes import Processes
from prudent.rewards.depth import choose_depth
from prudent.rewards.families import FAMILIES, ON_TEXT, family, fit_reward_model
from prudent.rewards.model import RewardModel
from prudent.runs import new_run

if TYPE_CHECKING:
    from datasets import Dataset

RENAMED = {"training_args": "training", "crossing": "monotone"}  # options by the families' own names
WRITTEN = ("preferences", "family", "model", "members", "max_pairs", "test")
STOCHASTIC = ("--epochs", "--batch-size", "--learning-rate")


def fit(options: FitOptions) -> dict[str, Any] | None:
    """Train K members and write the folder; what fit.json holds (None in a process that another one writes for)."""
    given = family_options(options)
    on_text = options.family in ON_TEXT
    encoder_options = {
        "pooling": options.pooling or ("last" if on_text else "last+mean"),
        "max_length": options.max_length,
        "dtype": options.dtype,
        "layer": options.blocks,
    }
    features: dict[str, Any] = {"encoder_options": {**encoder_options, "engine": options.ray_engine()}}
    data, report, held = read_pairs(options, given)
    processes = Processes()
    if processes.size > 1 and not on_text:
        raise PrudentError(
            f"--family {options.family} isn't trained by several processes: start one, with --engine ray where the "
            "features take long"
        )
    if processes.first:
        say(f"{len(data)} pairs; family {options.family} on {options.model}")
    started = time.perf_counter()
    depth = None
    if options.layer == AUTO and not on_text:
        encoder = Encoder(options.model, **features["encoder_options"])
        features["encoder"], depth = choose_depth(encoder, [data], options.seed)
        say(depth.words(2 * len(data)))
    alone = options.on_error if processes.size == 1 else "raise"  # those that train together need the same rows

    def train(rows: list[int]) -> RewardModel:
        return fit_reward_model(
            picked(data, rows),
            options.family,
            model=options.model,
            members=options.members,
            seed=options.seed,
            **features,
            on_error=alone,
            columns=options.columns,
            **given,
        )

    reward_model, kept, failing = use_rows(train, origins_of(data), report.source, alone)
    data = picked(data, kept)
    if not processes.first:
        return None  # under accelerate launch all processes train together, and the first one writes
    seconds = time.perf_counter() - started
    result = describe_fit(reward_model, data, held, seconds, options.on_error)
    result["reading"] = {"read": report.read, "kept": report.kept, **report.counts(), **counted(failing)}
    result["depth"] = None if depth is None else depth.as_dict(2 * len(data))
    say("\n".join([report.summary(), *map(str, failing[:20])]))
    wanted = {name: getattr(options, name) for name in WRITTEN}
    with new_run(options.out, "fit", {**wanted, **encoder_options, **given}, options.seed, options.overwrite) as run:
        run.manifest["hashes"]["preferences"] = data_hash(data)
        run.manifest["timings_s"]["fit"] = seconds
        reward_model.write(run)
        run.write_json("fit.json", result)
        write_page(run, result)
    return {**result, "out": str(options.out)}


def read_pairs(options: FitOptions, given: Mapping[str, Any]) -> tuple[Dataset, ReadReport, Dataset | None]:
    """The pairs to train on, the report of their reading, and those to report accuracy on. given: what the family was
    given; --column also names columns of files among it, which pairs don't have."""
    beside = (("response",) if "ratings" in given else ()) + (("responses", "id") if "meta_pool" in given else ())
    columns = {ours: theirs for ours, theirs in options.columns.items() if ours not in beside}
    reading: dict[str, Any] = {"on_error": options.on_error, "columns": columns}
    reading["without_prompt"] = options.without_prompt
    data, report = read_preferences_with_report(
        options.preferences, split=options.split, stream=options.stream, **reading
    )
    held = read_preferences_with_report(options.test, **reading)[0] if options.test else None
    return draw_pairs(data, options.max_pairs, options.seed), report, held


def family_options(options: FitOptions) -> dict[str, Any]:
    """The options of the family that were given, by its own names; PrudentError names those that it doesn't have."""
    takes = family(options.family).options
    known = {option for entry in FAMILIES.values() for option in entry.options}
    flags = {RENAMED.get(field.name, field.name): field.flag for field in fields_of(FitOptions)}
    changed = options.changed()
    asked = {
        name: getattr(options, field.name)
        for field in fields(FitOptions)
        if (name := RENAMED.get(field.name, field.name)) in known and flags[name] in changed
    }
    unknown = [flags[name] for name in asked if name not in takes]
    if unknown:
        raise PrudentError(
            f"--family {options.family} has no {', '.join(unknown)}; it has {', '.join(flags[name] for name in takes)}"
        )
    unused = [flag for flag in STOCHASTIC if flag in changed]
    if unused and options.family == "heads" and options.diversity in (None, "bootstrap"):
        raise PrudentError(
            f"heads on bootstrap resamples are solved exactly, without {', '.join(unused)}; leave it out, or give "
            "--diversity shuffle, init or init+shuffle"
        )
    readers: dict[str, Callable[[Any], Any]] = {
        "ridge": lambda value: number_or_cv("--ridge", value),
        "prior": lambda value: number_or_cv("--prior", value),
        "training": training_arguments,
        "monotone": lambda crossing: not crossing,
        "targets": list,
        "attributes": list,
        "models": list,
    }
    return {name: readers[name](value) if name in readers else value for name, value in asked.items()}
