"""What the recommend commands do: fit a recommender with uncertainty, recommend, judge it by tail and overall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prudent.commands.common import say
from prudent.commands.options import pairs
from prudent.commands.recommend.options import RecommendEvaluateOptions, RecommendFitOptions, RecommendTopOptions
from prudent.commands.recommend.page import answer, build
from prudent.errors import PrudentError
from prudent.files import hash_file
from prudent.recommend import pipeline
from prudent.recommend.artefact import COMMAND, load, save
from prudent.recommend.comparison import compare
from prudent.recommend.interactions import read_interactions
from prudent.recommend.lists import read_lists
from prudent.recommend.models import BackboneOptions
from prudent.recommend.outside import load_callable
from prudent.recommend.pipeline import SCHEDULES, Model
from prudent.recommend.splits import Data, assemble, sides, with_test
from prudent.recommend.training import Schedule
from prudent.recommend.uncertainty import UncertaintyOptions
from prudent.runs import new_run, read_manifest


def fit(given: RecommendFitOptions) -> dict[str, Any]:
    """Fit, choose the blend, save; what result.json holds, with ``out``."""
    settings = settings_of(given)
    reading = {"threshold": given.threshold, "columns": given.columns, "on_error": given.on_error}
    interactions, reports = _data(given, reading)
    model = pipeline.fit(interactions, settings, given.seed)
    result = {**pipeline.summary(model), "read": reports}
    shares = {"split": given.split, "valid_share": given.valid_share, "test_share": given.test_share}
    options = {**pipeline.describe(settings), **reading, **shares}
    with new_run(given.out, COMMAND, options, given.seed, given.overwrite) as run:
        scorer = Path(given.scorer) if given.scorer else None
        for name, path in {"data": given.data, "test": given.test, "valid": given.valid, "scorer": scorer}.items():
            if path is not None and path.is_file():
                run.manifest["hashes"][f"file {name}"] = hash_file(path)
        save(run, model)
        run.write_json("result.json", result)
    return {**result, "out": str(given.out)}


def settings_of(given: RecommendFitOptions) -> pipeline.Settings:
    """The pipeline's settings as the options say."""
    named = ("alpha", "beta", "gamma", "share", "activation", "user_embedding")
    stage = UncertaintyOptions(width=given.hidden, **{name: getattr(given, name) for name in named})
    timing = ("epochs", "learning_rate", "batch")
    trained = {name: getattr(given, name) for name in (*timing, "weight_decay", "warmup", "patience")}
    refined = {name: getattr(given, f"stage_{name}") for name in timing} | {"patience": given.patience}
    schedules = _schedule(given.backbone, **trained), _schedule("uncertainty", **refined)
    tail = {name: getattr(given, name) for name in ("tail_percentile", "tail_below", "blend_by")}
    return pipeline.Settings(given.backbone, given.scorer, _backbone_options(given), stage, *schedules, **tail)


def top(given: RecommendTopOptions) -> dict[str, Any]:
    """Recommend; counts, with the recommendations where no folder is written."""
    found = pipeline.top(_load(given.run, given.scorer), list(given.user) or None, k=given.k, rank=given.rank)
    rows = list(zip(found.users, found.items, found.scores, found.cold))
    if given.out is not None:
        chosen = {"run": str(given.run), "k": given.k, "rank": given.rank}
        with new_run(given.out, "recommend top", chosen, given.seed, given.overwrite) as written:
            flat = [
                (who, index + 1, item, score, cold)
                for who, items, scores, cold in rows
                for index, (item, score) in enumerate(zip(items, scores))
            ]
            columns = zip(*flat) if flat else ([] for _ in range(5))
            written.write_table("top.parquet", dict(zip(("user", "rank", "item", "score", "cold"), columns)))
            written.write_json("result.json", found.counts())
        say(f"{len(rows)} users, {sum(found.cold)} of them without history; written to {given.out}")
    listed = [{"user": who, "items": items, "scores": s, "cold": cold} for who, items, s, cold in rows]
    shown = listed if given.out is None else None
    return {"rank": given.rank, "k": given.k, **found.counts(), "recommendations": shown}


def evaluate(given: RecommendEvaluateOptions) -> dict[str, Any]:
    """Judge, write the run folder; what result.json holds, with ``out``."""
    model = _load(given.run, given.scorer)
    if given.test is not None:
        model = _with_test(model, given.test, read_manifest(given.run)["options"])
    chosen = [name.strip() for name in given.baselines.split(",") if name.strip() and name.strip() != "none"]
    ks = tuple(sorted({20, *(given.k or (50,))}))
    lists = {name: read_lists(Path(path)) for name, path in given.named_lists.items()}
    found = compare(model, baselines=chosen, lists=lists, ks=ks, rounds=given.rounds, seed=given.seed)
    result = {
        "answer": answer(model, found)[0].replace("**", ""),
        "backbone": model.backbone.name,
        "blend": {"weight": model.blend.weight, "by": model.blend.by, "validation": found.validation},
        "tail": {"popularity_below": model.tail_below, "items": int(model.tail.sum())},
        "rankings": found.table,
        "differences": found.paired,
        "blend_sweep": found.sweep,
        "counts": found.counts,
        "popularity_correlation": found.correlations,
        "seconds": found.seconds,
    }
    test = str(given.test) if given.test else None
    options = {"run": str(given.run), "test": test, "baselines": chosen, "k": ks, "rounds": given.rounds}
    with new_run(given.out, "recommend evaluate", options, given.seed, given.overwrite) as written:
        written.write_json("result.json", result)
        written.write_table("items.parquet", {"item": model.data.items, **found.items})
        build(model, found, given.seed).write(written)
    return {**result, "out": str(given.out)}


def _schedule(name: str, **given: Any) -> Schedule:
    """The stage's default schedule with what the command line changes."""
    return replace(SCHEDULES.get(name, Schedule()), **{key: value for key, value in given.items() if value is not None})


def _backbone_options(given: RecommendFitOptions) -> BackboneOptions:
    """Options of the backbone; NAME=VALUE entries must be among those that have no option of their own."""
    values: dict[str, Any] = {"width": given.width, "layers": given.layers, "share": given.negatives}
    kinds = {name: type(value) for name, value in vars(BackboneOptions()).items() if name not in values}
    for name, value in pairs("--backbone-option", given.backbone_option, "NAME=VALUE").items():
        if name not in kinds:
            raise PrudentError(f"--backbone-option {name!r} is unknown; choose from {', '.join(kinds)}")
        try:
            values[name] = kinds[name](value)
        except ValueError as error:
            raise PrudentError(f"--backbone-option {name}={value}: give a number ({kinds[name].__name__})") from error
    return BackboneOptions(**values)


def _data(given: RecommendFitOptions, reading: dict[str, Any]) -> tuple[Data, dict[str, Any]]:
    """Data from one file or from files of their own, and what reading each found."""
    options = {"threshold": reading["threshold"], "on_error": reading["on_error"], **reading["columns"]}
    test, valid = given.test, given.valid
    found, report = read_interactions(given.data, **options)
    reports = {"data": report.summary()}
    side = np.zeros(len(found), dtype=np.int8)
    if test is None or valid is None:
        shares = (0.0 if valid else given.valid_share, 0.0 if test else given.test_share)
        side = sides(found, given.split, *shares, given.seed)
    held = {"valid": found.keep(side == 1), "test": found.keep(side == 2)}
    for name, path in (("valid", valid), ("test", test)):
        if path is not None:
            held[name], report = read_interactions(path, **options)
            reports[name] = report.summary()
    data = assemble(found.keep(side == 0), held["valid"], str(given.data))
    data.notes.update(split=given.split)
    return (with_test(data, held["test"]) if test is not None or given.test_share else data), reports


def _with_test(model: Model, test: Path, options: dict[str, Any]) -> Model:
    """``model`` with a test file, read by the rules that the fit was read by."""
    found, report = read_interactions(
        test, threshold=options["threshold"], on_error=options["on_error"], **options["columns"]
    )
    say(f"{test}: {report.counts['positive-pairs']} positive pairs (positive when {report.rule})")
    return pipeline.with_truth(model, with_test(model.data, found))


def _load(folder: Path, scorer: str | None) -> Model:
    return load(folder, load_callable(scorer) if scorer and ":" in scorer else None)


def show_fit(result: dict[str, Any], options: RecommendFitOptions) -> None:
    """Counts, stages and the blend, for a person."""
    for read in result["read"].values():
        counts = ", ".join(f"{count} {name}" for name, count in read["counts"].items() if count)
        say(f"{read['source']} (positive when {read['positive_when']}): {counts}")
    data = result["data"]
    for name in ("validation", "test"):
        counts = ", ".join(f"{count} {what}" for what, count in (data[name] or {}).items() if count)
        say(f"{name}: {counts or 'none'}")
    say(f"{data['users']} users, {data['items']} items, {data['training_positives']} training positives")
    for name in ("backbone", "uncertainty"):
        stage = result[name]
        label = name if name == stage["name"] else f"{name} {stage['name']}"
        say(f"{label}: {stage['seconds']:.1f} s, best epoch {stage.get('best_epoch', '-')}")
    score, uncertainty = (result["blend"]["validation"][index]["recall@20 overall"] for index in (0, -1))
    say(f"validation Recall@20: by score {score:.4f}, by uncertainty {uncertainty:.4f}")
    say(f"blend weight {result['blend']['weight']:g} (rule: {result['blend']['by']}); written to {options.out}")


def show_top(result: dict[str, Any], options: RecommendTopOptions) -> None:
    """A line a user."""
    for row in result["recommendations"] or []:
        print(f"{row['user']}{' (no history: popular items)' if row['cold'] else ''}: {', '.join(row['items'])}")


def show_evaluate(result: dict[str, Any], options: RecommendEvaluateOptions) -> None:
    """Recall of every ranking and the answer, for a person."""
    for row in result["rankings"]:
        cells = [row.get(f"recall@20 {view}") for view in ("overall", "tail absolute", "tail relative")]
        shown = ["-" if cell is None or cell["mean"] is None else f"{cell['mean']:.4f}" for cell in cells]
        say(f"{row['ranking']:<28} Recall@20 overall {shown[0]}, tail absolute {shown[1]}, tail relative {shown[2]}")
    say(result["answer"])
    say(f"report: {options.out / 'report.html'}")
