"""What ``prudent compare`` does: fit each family on the same pairs and measure what it knows of its own errors."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.nn.functional import logsigmoid

from prudent.commands.common import say
from prudent.commands.compare.options import CompareOptions
from prudent.commands.compare.page import write_report
from prudent.commands.depth import at_depth
from prudent.data.failing import FILE_COLUMN, origins_of, picked, use_rows
from prudent.data.preferences import data_hash, draw_pairs, read_preferences, split_by_prompt
from prudent.errors import PrudentError
from prudent.evaluation.statistics import auroc, calibration, proportion, risk_coverage
from prudent.features.encoder import Encoder
from prudent.features.limits import Groups, same_groups, shown, words
from prudent.rewards.accuracy import credit
from prudent.rewards.conformal import MarginIntervals
from prudent.rewards.families import ON_FEATURES, ON_TEXT, by_pair, check_options, encode_pairs, family
from prudent.rewards.trial import trial_apart
from prudent.runs import new_run
from prudent.seeding import numpy_generator

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.rewards.depth import Depth
    from prudent.rewards.trial import Trial

SHUFFLED = "the test pairs with the words of every answer shuffled"
WRITTEN = ("preferences", "test", "ood", "model", "max_pairs", "pooling", "max_length", "dtype", "layer", "column")


def compare(given: CompareOptions) -> dict[str, Any]:
    """Fit, measure, write the run folder; what compare.json holds."""
    names, seed = given.names, given.seed
    own = family_options(given.set_, names)
    for name in names:
        check_options(name, own[name])
    train, sets = read_sets(given)
    timings: dict[str, float] = {}
    notes: list[str] = []
    features = depth = None
    if set(names) != {"external"}:  # all others read texts by this model's tokenizer
        options = {key: value for key, value in _encoder_options_of(given).items() if value is not None}
        encoder = Encoder(given.model, **options)
        (train, *rest), notes = usable({"train": train, **sets}, encoder, given.on_error)
        sets = dict(zip(sets, rest))
        for note in notes:
            say(f"warning: {note}")
    count = 2 * (len(train) + sum(map(len, sets.values())))
    if any(name in ON_FEATURES for name in names):  # on features
        encoder, depth = at_depth(encoder, given.layer, [train], seed)
        notes += [] if depth is None else [depth.words(count)]
        say(f"encoding {count} conversations once for all families on features")
        started = time.perf_counter()
        features = encode_sets({"train": train, **sets}, encoder)
        timings["encode"] = time.perf_counter() - started
    results: dict[str, Any] = {}
    for name in names:
        say(f"fitting {name}")
        results[name] = run_family(name, train, sets, features, given, own[name], depth)
        if not isinstance(results[name], str) and family(name).members != 0:
            timings[name] = results[name].fit_seconds
    held = sets["test"]
    wanted = [float(value) for value in column_of(held, "--target", given.target)] if given.target else None
    groups = [str(value) for value in column_of(held, "--group", given.group)] if given.group else None
    result = {
        "pairs": len(train),
        "test_pairs": len(held),
        "ood_pairs": len(sets["ood"]),
        "notes": notes,
        "model": given.model,
        "ood": given.ood or SHUFFLED,
        "encode_seconds": timings.get("encode"),
        "depth": None if depth is None else depth.as_dict(count),
        "families": [measure(name, found, wanted, groups, given.level, seed) for name, found in results.items()],
        "baseline": longer_answer(held),
    }
    chosen = {**{name: getattr(given, name) for name in WRITTEN}, "families": names, "set": given.set_}
    with new_run(given.out, "compare", chosen, seed, given.overwrite) as run:
        run.manifest["hashes"] |= {"train": data_hash(train), "test": data_hash(held)}
        run.manifest["timings_s"] |= timings
        run.write_json("compare.json", result)
        margins = {
            f"{name}.{key}": value
            for name, found in results.items()
            if not isinstance(found, str)
            for key, value in found.margins.items()
        }
        run.write_tensors("margins.safetensors", margins)
        write_report(run, result)
    return {**result, "out": str(given.out)}


def read_sets(given: CompareOptions) -> tuple[Dataset, dict[str, Dataset]]:
    """Training pairs, and by name those to test on and those unlike them."""
    reading: dict[str, Any] = {name: getattr(given, name) for name in ("on_error", "columns", "without_prompt")}
    train = read_preferences(given.preferences, **reading)
    if given.test:
        held = read_preferences(given.test, **reading)
    else:
        held, train = split_by_prompt(train, 0.2, given.seed)
    train = draw_pairs(train, given.max_pairs, given.seed)
    held = draw_pairs(held, given.max_test_pairs, given.seed)
    unlike = read_preferences(given.ood, **reading) if given.ood else shuffled_words(held, given.seed)
    return train, {"test": held, "ood": unlike}


def family_options(given: Iterable[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options by family from texts such as ``lora.epochs=2``; values are read as YAML (and 1e-4 as a number)."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in given:
        path, equals, value = text.partition("=")
        name, dot, option = path.partition(".")
        if not equals or not dot or name not in found:
            raise PrudentError(f"--set {text!r}: write FAMILY.OPTION=VALUE with one of {', '.join(names)}")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PrudentError(f"--set {text!r}: {value!r} can't be read as YAML") from error
        if isinstance(read, str):
            with contextlib.suppress(ValueError):
                read = float(read)
        found[name][option.replace("-", "_")] = read
    return found


def shuffled_words(data: Dataset, seed: int) -> Dataset:
    """The same pairs with the words of every answer in random order: texts that no training pair is like."""
    generator = numpy_generator(seed)

    def shuffle(messages: list[dict[str, str]]) -> list[dict[str, str]]:
        changed = []
        for message in messages:
            words = message["content"].split()
            generator.shuffle(words)
            changed.append({**message, "content": " ".join(words) or "."})
        return changed

    names = ("prompt", "chosen", "rejected", "row", "id", FILE_COLUMN)
    kept = data.select_columns([name for name in names if name in data.column_names])
    columns = {name: [shuffle(side) for side in kept[name]] for name in ("chosen", "rejected")}
    return (
        kept.remove_columns(["chosen", "rejected"])
        .add_column("chosen", columns["chosen"])
        .add_column("rejected", columns["rejected"])
    )


def usable(sets: dict[str, Dataset], encoder: Encoder, on_error: str) -> tuple[list[Dataset], list[str]]:
    """The sets without the pairs that can't be rendered (named, or left out with ``on_error="skip"``) or whose sides
    are the same for the model; and what was cut and left out, in words."""
    kept, notes = [], []
    for name, data in sets.items():

        def read(rows: list[int], data: Dataset = data) -> Groups:
            part, n = picked(data, rows), len(rows)
            prompts = list(part["prompt"])
            with by_pair(n):
                found = shown(encoder.renderer, prompts * 2, [*part["chosen"], *part["rejected"]])
            return same_groups(found, (([row], [n + row]) for row in range(n)))

        seen, rows, bad = use_rows(read, origins_of(data), name, on_error)
        if bad:
            notes.append(f"{name}: {len(bad)} pairs can't be rendered and were left out, the first: {bad[0]}")
        if said := words(seen.counts):
            notes.append(f"{name}: {said}" + (", left out" if seen.same else ""))
        rows = [row for index, row in enumerate(rows) if index not in seen.same]
        if not rows:
            raise PrudentError(f"{name}: both sides of every pair are the same for the model ({words(seen.counts)})")
        kept.append(picked(data, rows))
    return kept, notes


def encode_sets(sets: dict[str, Dataset], encoder: Encoder) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Features of both sides of every set, in one pass: answers to one prompt share its computation across sets."""
    columns = ("prompt", "chosen", "rejected")
    whole = {name: [row for data in sets.values() for row in data[name]] for name in columns}
    sizes = [len(data) for data in sets.values()]
    chosen, rejected = (side.split(sizes) for side in encode_pairs(encoder, whole))
    return dict(zip(sets, zip(chosen, rejected)))


def run_family(
    name: str,
    train: Dataset,
    sets: dict[str, Dataset],
    features: Any,
    given: CompareOptions,
    own: dict[str, Any],
    depth: Depth | None,
) -> Trial | str:
    """One family's trial in a process of its own, or why it could not be fitted."""
    how: dict[str, Any] = {key: getattr(given, key) for key in ("model", "members", "seed")}
    how["encoder_options"] = _encoder_options_of(given) | ({"pooling": "last"} if name in ON_TEXT else {})
    if depth is not None:
        how["encoder_options"]["layer"] = depth.layer
    data, features = {"train": train, **sets}, features if name in ON_FEATURES else None
    return trial_apart(name=name, data=data, features=features, options=own, **how)


def _encoder_options_of(given: CompareOptions) -> dict[str, Any]:
    return {"pooling": given.pooling, "max_length": given.max_length, "dtype": given.dtype, "layer": given.blocks}


def column_of(data: Dataset, flag: str, name: str) -> list[Any]:
    """A column of the test pairs; PrudentError names those that are there."""
    if name not in data.column_names:
        raise PrudentError(f"{flag}: the test pairs have no column {name!r}; found {', '.join(data.column_names)}")
    return list(data[name])


def longer_answer(data: Dataset) -> Any:
    """Accuracy of picking the longer answer, with its interval."""
    sides = [
        [sum(len(message["content"]) for message in side) for side in data[name]] for name in ("chosen", "rejected")
    ]
    return proportion([0.5 if a == b else float(a > b) for a, b in zip(*sides)])


def measure(
    name: str, found: Trial | str, target: list[float] | None, groups: list[str] | None, level: float, seed: int
) -> dict[str, Any]:
    """One row of the table: everything that is said about a family, null with a reason where it can't be."""
    if isinstance(found, str):
        return {"family": name, "reason": found}
    margin = found.margins["test"].double()
    mean = margin.mean(0)
    wrong = (mean < 0).double()
    chance = torch.sigmoid(margin).mean(0)
    fit = calibration(chance, seed=seed)
    row: dict[str, Any] = {
        "family": name,
        **{key: getattr(found, key) for key in ("members", "parameters", "fit_seconds", "score_seconds")},
        "fit_processor_seconds": found.fit_processor,
        "score_processor_seconds": found.score_processor,
        "peak_mib": found.peak_bytes / 2**20,
        "accuracy": proportion(credit(mean)),
        "member_accuracy": credit(margin).mean(1).tolist(),
        "log_loss": float((math.log(len(margin)) - logsigmoid(margin).logsumexp(0)).mean()),
        "brier": fit.brier,
        "ece": fit.ece,
        "error_auroc_margin": auroc(-mean.abs(), wrong),
        **dict.fromkeys(("error_auroc_sigma", "risk_coverage_gain", "ood_ratio", "conformal")),
        "info": found.info,
    }
    if found.members < 2:
        row["reason"] = "the standard deviation of one member is undefined"
        return row
    sigma = margin.std(0)
    row["sigma_over_margin"] = float((sigma / mean.abs()).median())
    row["error_auroc_sigma"] = auroc(sigma, wrong)
    row["error_auroc_both"] = auroc(sigma / mean.abs().clamp_min(1e-12), wrong)
    row["risk_coverage_gain"] = risk_coverage(sigma, wrong).gain
    row["ood_ratio"] = float(found.margins["ood"].double().std(0).median() / sigma.median())
    if target is not None:
        row["conformal"] = conformal_coverage(mean, sigma, torch.tensor(target), groups, level, seed)
    return row


def conformal_coverage(
    mean: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor, groups: list[str] | None, level: float, seed: int
) -> Any:
    """Coverage on one half of the test pairs of intervals that are calibrated on the other half."""
    order = torch.from_numpy(numpy_generator(seed).permutation(len(mean)))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    intervals = MarginIntervals.calibrate(mean[first], sigma[first], target[first], level)
    own = [groups[index] for index in second.tolist()] if groups else None
    return intervals.coverage(mean[second], sigma[second], target[second], own)
