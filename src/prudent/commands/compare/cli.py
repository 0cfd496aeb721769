"""``prudent compare``: families of reward models on the same pairs, in one table and one chart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    DtypeOption,
    JsonOption,
    MaxLengthOption,
    MaxPairsOption,
    MaxTestPairsOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    PoolingOption,
    SeedOption,
    guarded,
    print_json,
    say,
    yaml_value,
)

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prudent.rewards.trial import Trial

EPILOG = (
    "Example: prudent compare --preferences train.jsonl --test test.jsonl --families heads,mlp,laplace --out runs/c"
)
SHUFFLED = "the test pairs with the words of every answer shuffled"


def register(app: typer.Typer) -> None:
    app.command(name="compare", epilog=EPILOG)(compare)


@guarded
def compare(
    preferences: Annotated[list[str], typer.Option(help="Preference file or hub id to train on.")],
    out: OutOption,
    families: Annotated[str, typer.Option(help="Families, comma-separated.")] = "heads,laplace,mlp,dropout,novelty",
    test: Annotated[list[str] | None, typer.Option(help="Test pairs; by default a fifth of the prompts.")] = None,
    ood: Annotated[str | None, typer.Option(help="Pairs unlike these; by default shuffled words.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Column of true margins in the test file, for conformal intervals.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column to report the intervals' coverage by.")] = None,
    model: ModelOption = "smollm2",
    members: Annotated[int | None, typer.Option(min=2, help="Members K; by default each family's own.")] = None,
    max_pairs: MaxPairsOption = None,
    max_test_pairs: MaxTestPairsOption = None,
    pooling: PoolingOption = "last+mean",
    max_length: MaxLengthOption = 1024,
    dtype: DtypeOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of one family: lora.epochs=2; may be repeated.")
    ] = None,
    level: Annotated[float, typer.Option(help="Coverage wanted of the conformal intervals.")] = 0.9,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Fit each family on the same pairs, each in a process of its own, and compare what its spread is worth.

    Accuracy, calibration, whether the spread finds errors (AUROC, risk-coverage), the spread on unlike pairs,
    parameters, seconds and peak memory.
    """
    from prudent.data.preferences import data_hash, draw_pairs, read_preferences, split_by_prompt
    from prudent.errors import PrudentError
    from prudent.rewards.families import check_options, family
    from prudent.runs import new_run, refuse_used

    refuse_used(out, overwrite)
    names = [name.strip() for name in families.split(",") if name.strip()]
    options = family_options(set_ or [], names)
    for name in names:
        check_options(name, options[name])
    if not names:
        raise PrudentError("no family to compare; give --families heads,mlp,...")
    train = read_preferences(preferences)
    if test:
        held = read_preferences(test)
    else:
        held, train = split_by_prompt(train, 0.2, seed)
    train, held = draw_pairs(train, max_pairs, seed), draw_pairs(held, max_test_pairs, seed)
    unlike = read_preferences(ood) if ood else shuffled_words(held, seed)
    sets = {"test": held, "ood": unlike}
    encoder_options = {"pooling": pooling, "max_length": max_length, "dtype": dtype}
    timings: dict[str, float] = {}
    features = None
    if any(family(name).fit for name in names):  # on features
        say(f"encoding {2 * (len(train) + len(held) + len(unlike))} conversations once for all families on features")
        started = time.perf_counter()
        features = encode_sets({"train": train, **sets}, model, encoder_options)
        timings["encode"] = time.perf_counter() - started
    results: dict[str, Any] = {}
    for name in names:
        say(f"fitting {name}")
        results[name] = run_family(name, train, sets, model, members, seed, encoder_options, features, options[name])
        if not isinstance(results[name], str) and family(name).members != 0:
            timings[name] = results[name].fit_seconds
    wanted = true_margins(held, target)
    groups = [str(value) for value in held[group]] if group else None
    table = [measure(name, found, wanted, groups, level, seed) for name, found in results.items()]
    result = {
        "pairs": len(train),
        "test_pairs": len(held),
        "ood_pairs": len(unlike),
        "model": model,
        "ood": ood or SHUFFLED,
        "encode_seconds": timings.get("encode"),
        "families": table,
        "baseline": longer_answer(held),
    }
    given = {"preferences": preferences, "families": names, "test": test, "ood": ood, "model": model}
    with new_run(
        out, "compare", {**given, "max_pairs": max_pairs, **encoder_options, "set": set_}, seed, overwrite
    ) as run:
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
    if as_json:
        print_json({**result, "out": str(out)})
    else:
        print_table(result, out)


def family_options(given: list[str], names: list[str]) -> dict[str, dict[str, Any]]:
    """Options by family from texts such as ``lora.epochs=2``; values are read as YAML."""
    import yaml

    from prudent.errors import PrudentError

    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in given:
        place, equals, value = text.partition("=")
        name, dot, option = place.partition(".")
        if not equals or not dot or name not in found:
            raise PrudentError(f"--set {text!r}: write FAMILY.OPTION=VALUE with one of {', '.join(names)}")
        found[name][option.replace("-", "_")] = yaml_value(yaml.safe_load(value))
    return found


def shuffled_words(data: Dataset, seed: int) -> Dataset:
    """The same pairs with the words of every answer in random order: texts that no training pair is like."""
    from prudent.seeding import numpy_generator

    generator = numpy_generator(seed)

    def shuffle(messages: list[dict[str, str]]) -> list[dict[str, str]]:
        changed = []
        for message in messages:
            words = message["content"].split()
            generator.shuffle(words)
            changed.append({**message, "content": " ".join(words) or "."})
        return changed

    kept = data.select_columns(["prompt", "chosen", "rejected"])
    columns = {name: [shuffle(side) for side in kept[name]] for name in ("chosen", "rejected")}
    return (
        kept.remove_columns(["chosen", "rejected"])
        .add_column("chosen", columns["chosen"])
        .add_column("rejected", columns["rejected"])
    )


def encode_sets(
    sets: dict[str, Dataset], model: str, encoder_options: dict[str, Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Features of both sides of every set, in one pass: answers to one prompt share its computation across sets."""
    from prudent.features.encoder import Encoder
    from prudent.rewards.families import encode_pairs

    encoder = Encoder(model, **{key: value for key, value in encoder_options.items() if value is not None})
    columns = ("prompt", "chosen", "rejected")
    whole = {name: [row for data in sets.values() for row in data[name]] for name in columns}
    sizes = [len(data) for data in sets.values()]
    chosen, rejected = (side.split(sizes) for side in encode_pairs(encoder, whole))
    return dict(zip(sets, zip(chosen, rejected)))


def run_family(
    name: str,
    train: Dataset,
    sets: dict[str, Dataset],
    model: str,
    members: int | None,
    seed: int,
    encoder_options: dict[str, Any],
    features: Any,
    options: dict[str, Any],
) -> Trial | str:
    from prudent.rewards.families import ON_TEXT, family
    from prudent.rewards.trial import trial_apart

    own = {**encoder_options, "pooling": "last"} if name in ON_TEXT else encoder_options
    return trial_apart(
        name=name,
        train=train,
        tests=sets,
        model=model,
        members=members,
        seed=seed,
        encoder_options=own,
        features=features if family(name).fit else None,
        options=options,
    )


def true_margins(data: Dataset, column: str | None) -> list[float] | None:
    from prudent.errors import PrudentError

    if column is None:
        return None
    if column not in data.column_names:
        raise PrudentError(f"the test pairs have no column {column!r}; found {', '.join(data.column_names)}")
    return [float(value) for value in data[column]]


def longer_answer(data: Dataset) -> Any:
    """Accuracy of picking the longer answer, with its interval."""
    from prudent.evaluation.statistics import proportion

    sides = [
        [sum(len(message["content"]) for message in side) for side in data[name]] for name in ("chosen", "rejected")
    ]
    return proportion([0.5 if a == b else float(a > b) for a, b in zip(*sides)])


def measure(
    name: str, found: Trial | str, target: list[float] | None, groups: list[str] | None, level: float, seed: int
) -> dict[str, Any]:
    """One row of the table: everything that is said about a family, null with a reason where it can't be."""
    import torch

    from prudent.evaluation.statistics import auroc, calibration, proportion, risk_coverage
    from prudent.rewards.accuracy import credit

    if isinstance(found, str):
        return {"family": name, "reason": found}
    margin = found.margins["test"].double()
    mean = margin.mean(0)
    wrong = (mean < 0).double()
    chance = torch.sigmoid(margin).mean(0)
    fit = calibration(chance, seed=seed)
    row: dict[str, Any] = {
        "family": name,
        "members": found.members,
        "parameters": found.parameters,
        "fit_seconds": found.fit_seconds,
        "score_seconds": found.score_seconds,
        "fit_processor_seconds": found.fit_processor,
        "score_processor_seconds": found.score_processor,
        "peak_mib": found.peak_bytes / 2**20,
        "accuracy": proportion(credit(mean)),
        "member_accuracy": credit(margin).mean(1).tolist(),
        "log_loss": float(-torch.log(chance.clamp_min(1e-12)).mean()),
        "brier": fit.brier,
        "ece": fit.ece,
        "error_auroc_margin": auroc(-mean.abs(), wrong),
        "error_auroc_sigma": None,
        "risk_coverage_gain": None,
        "ood_ratio": None,
        "conformal": None,
        "info": found.info,
    }
    if found.members < 2:
        row["reason"] = "the spread of one member is undefined"
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
    import torch

    from prudent.rewards.conformal import MarginIntervals
    from prudent.seeding import numpy_generator

    order = torch.from_numpy(numpy_generator(seed).permutation(len(mean)))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    intervals = MarginIntervals.calibrate(mean[first], sigma[first], target[first], level)
    own = [groups[place] for place in second.tolist()] if groups else None
    return intervals.coverage(mean[second], sigma[second], target[second], own)


def write_report(run: Any, result: dict[str, Any]) -> None:
    """report.html: the table and the chart."""
    from prudent.reporting.charts import dot_intervals
    from prudent.reporting.report import Report

    report = Report(
        "Families of reward models",
        f"{result['pairs']} training pairs, {result['test_pairs']} test pairs, {result['model']}",
    )
    report.text(
        "Every family was fitted on the same pairs in a process of its own. The spread is the members' sample standard "
        "deviation (ddof=1) of a pair's margin; log loss and calibration are of the mean over members of the "
        f"probability that the chosen answer is better. Unlike pairs: {result['ood']}."
    )
    report.table(COLUMNS, [table_row(row) for row in result["families"]], caption="Families side by side.")
    points = []
    for row in result["families"]:
        for key, label in (("accuracy", "accuracy"), ("error_auroc_sigma", "spread finds errors (AUROC)")):
            one = row.get(key)
            if one is not None and one.value is not None:
                points.append(
                    {"family": row["family"], "measure": label, "value": one.value, "low": one.low, "high": one.high}
                )
    chart = dot_intervals(
        points,
        "family",
        "value",
        "low",
        "high",
        group="measure",
        x_title="share, with 95 % interval",
        reference=0.5,
        reference_label="chance",
    )
    report.chart(chart, "families", "Accuracy of the mean, and how well the spread ranks its errors.")
    report.write(run)


COLUMNS = (
    "family",
    "K",
    "accuracy",
    "low",
    "high",
    "log loss",
    "Brier",
    "ECE",
    "AUROC sigma",
    "AUROC |margin|",
    "risk-coverage gain",
    "unlike/test spread",
    "parameters",
    "fit s",
    "score s",
    "peak MiB",
    "note",
)


def table_row(row: dict[str, Any]) -> list[Any]:
    def value(key: str, part: str = "value") -> Any:
        found = row.get(key)
        return getattr(found, part, found)

    return [
        row["family"],
        row.get("members"),
        value("accuracy"),
        value("accuracy", "low"),
        value("accuracy", "high"),
        row.get("log_loss"),
        value("brier"),
        value("ece"),
        value("error_auroc_sigma"),
        value("error_auroc_margin"),
        row.get("risk_coverage_gain"),
        row.get("ood_ratio"),
        row.get("parameters"),
        row.get("fit_seconds"),
        row.get("score_seconds"),
        row.get("peak_mib"),
        row.get("reason", ""),
    ]


def print_table(result: dict[str, Any], out: Path) -> None:
    """The table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['pairs']} pairs, tested on {result['test_pairs']}; longer answer {result['baseline'].value:.3f}"
    )
    shown = [0, 1, 2, 5, 7, 8, 9, 10, 11, 13, 15, 16]
    for place in shown:
        table.add_column(COLUMNS[place])
    for row in result["families"]:
        cells = table_row(row)
        table.add_row(
            *(
                f"{cell:.3g}" if isinstance(cell, float) else str("" if cell is None else cell)
                for cell in (cells[place] for place in shown)
            )
        )
    Console(width=140).print(table)
    print(f"wrote {out}")
