"""``prudent recommend``: fit a recommender with uncertainty, recommend, and judge it by the tail as well as overall."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    guarded,
    print_json,
    say,
)

if TYPE_CHECKING:
    from prudent.recommend.models import BackboneOptions
    from prudent.recommend.pipeline import Model
    from prudent.recommend.splits import Data
    from prudent.recommend.training import Progress, Schedule

recommender = typer.Typer(
    name="recommend",
    help="Recommend by how uncertain a missing label is (AUR), and see what that does to the tail.",
    no_args_is_help=True,
)
READING, BACKBONE, STAGE = "Reading", "Backbone", "Uncertainty stage"
FIT_EXAMPLE = "Example: prudent recommend fit ratings.csv --threshold 4 --backbone mf --out runs/mf"
TOP_EXAMPLE = "Example: prudent recommend top runs/mf --user 42 --k 10 --rank blend"
EVALUATE_EXAMPLE = "Example: prudent recommend evaluate runs/mf --out runs/mf-report"

ThresholdOption = Annotated[
    float | None,
    typer.Option(help="A rating at or above it is a positive; without it, one above 0.", rich_help_panel=READING),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="OURS=THEIRS for user, item, rating, timestamp; e.g. item=movieId.", rich_help_panel=READING),
]
OnErrorOption = Annotated[
    str, typer.Option(help="Bad rows: raise (all of them listed) or drop (counted).", rich_help_panel=READING)
]
ScorerOption = Annotated[
    str | None, typer.Option(help="Outside scores instead: a file (user, item, score) or package.module:function.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(recommender, name="recommend")


@recommender.command(epilog=FIT_EXAMPLE)
@guarded
def fit(
    data: Annotated[Path, typer.Argument(help="Interactions: CSV, TSV, JSONL (.gz too) or Parquet.")],
    out: OutOption,
    test: Annotated[Path | None, typer.Option(help="Test interactions of their own.", rich_help_panel=READING)] = None,
    valid: Annotated[
        Path | None, typer.Option(help="Validation interactions of their own.", rich_help_panel=READING)
    ] = None,
    threshold: ThresholdOption = None,
    column: ColumnOption = None,
    on_error: OnErrorOption = "raise",
    split: Annotated[
        str, typer.Option(help="user (a share of each user's), time (one cut) or random.", rich_help_panel=READING)
    ] = "user",
    valid_share: Annotated[float, typer.Option(help="Share held out to validate.", rich_help_panel=READING)] = 0.1,
    test_share: Annotated[
        float, typer.Option(help="Share held out to test, where no --test is given.", rich_help_panel=READING)
    ] = 0.1,
    backbone: Annotated[str, typer.Option(help="mf, lightgcn, vae or als.", rich_help_panel=BACKBONE)] = "mf",
    scorer: ScorerOption = None,
    width: Annotated[int, typer.Option(help="Embedding width (mf, lightgcn).", rich_help_panel=BACKBONE)] = 128,
    layers: Annotated[int, typer.Option(help="Layers (lightgcn).", rich_help_panel=BACKBONE)] = 3,
    negatives: Annotated[
        float, typer.Option(help="Share of items whose missing pairs are drawn.", rich_help_panel=BACKBONE)
    ] = 0.1,
    epochs: Annotated[
        int | None, typer.Option(help="Longest training; 300, or 150 for vae.", rich_help_panel=BACKBONE)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam; 0.01 for lightgcn, else 0.001.", rich_help_panel=BACKBONE)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Users a step; 128.", rich_help_panel=BACKBONE)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2; 0.01 for mf, 0.001 for lightgcn, else 0.", rich_help_panel=BACKBONE)
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Steps before patience counts; 600 for mf, 300 for lightgcn, 0 for vae.", rich_help_panel=BACKBONE
        ),
    ] = None,
    backbone_option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE: alpha; hidden, latent, dropout, kl; factors, regularisation, confidence, iterations.",
            rich_help_panel=BACKBONE,
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Weight of positives.", rich_help_panel=STAGE)] = 1.0,
    beta: Annotated[float, typer.Option(help="Weight of s.", rich_help_panel=STAGE)] = 1e-2,
    gamma: Annotated[float, typer.Option(help="Weight of s squared.", rich_help_panel=STAGE)] = 1e-2,
    share: Annotated[float, typer.Option(help="Share of items in the loss.", rich_help_panel=STAGE)] = 1.0,
    hidden: Annotated[int, typer.Option(help="Width of the estimator.", rich_help_panel=STAGE)] = 1024,
    activation: Annotated[str, typer.Option(help="linear, tanh or relu.", rich_help_panel=STAGE)] = "linear",
    user_embedding: Annotated[
        bool, typer.Option("--user-embedding", help="Add one a user at the hidden layer.", rich_help_panel=STAGE)
    ] = False,
    stage_epochs: Annotated[int | None, typer.Option(help="Longest training; 300.", rich_help_panel=STAGE)] = None,
    stage_learning_rate: Annotated[float | None, typer.Option(help="Of Adam; 0.001.", rich_help_panel=STAGE)] = None,
    stage_batch: Annotated[int | None, typer.Option(help="Users a step; 128.", rich_help_panel=STAGE)] = None,
    patience: Annotated[int, typer.Option(help="Validations without gain before a stage ends.")] = 10,
    tail_percentile: Annotated[float, typer.Option(help="Tail: items under this percentile of popularity.")] = 80.0,
    tail_below: Annotated[int | None, typer.Option(help="Tail: items under this many positives instead.")] = None,
    blend_by: Annotated[str, typer.Option(help="Blend: best overall, or best tail not worse overall.")] = "overall",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Fit a backbone and the uncertainty stage, choose the blend, and save the recommender."""
    from prudent.recommend import pipeline
    from prudent.recommend.artefact import COMMAND, save
    from prudent.recommend.uncertainty import UncertaintyOptions
    from prudent.runs import hash_file, new_run, refuse_used

    refuse_used(out, overwrite)
    settings = pipeline.Settings(
        backbone,
        scorer,
        _backbone_options(backbone_option, width=width, layers=layers, share=negatives),
        UncertaintyOptions(alpha, beta, gamma, share, hidden, activation, user_embedding),
        _schedule(
            backbone,
            epochs=epochs,
            learning_rate=learning_rate,
            batch=batch,
            weight_decay=weight_decay,
            warmup=warmup,
            patience=patience,
        ),
        _schedule(
            "uncertainty", epochs=stage_epochs, learning_rate=stage_learning_rate, batch=stage_batch, patience=patience
        ),
        tail_percentile,
        tail_below,
        blend_by,
    )
    reading = {"threshold": threshold, "columns": _columns(column), "on_error": on_error}
    interactions, reports = _data(data, test, valid, reading, split, valid_share, test_share, seed)
    with _progress() as progress:
        model = pipeline.fit(interactions, settings, seed, progress)
    result = {**pipeline.summary(model), "read": reports}
    options = {
        **pipeline.describe(settings),
        **reading,
        "split": split,
        "valid_share": valid_share,
        "test_share": test_share,
    }
    with new_run(out, COMMAND, options, seed, overwrite) as run:
        sources = {"data": data, "test": test, "valid": valid, "scorer": Path(scorer) if scorer else None}
        for name, path in sources.items():
            if path is not None and path.is_file():
                run.manifest["hashes"][f"file {name}"] = hash_file(path)
        save(run, model)
        run.write_json("result.json", result)
    if as_json:
        print_json({**result, "out": str(out)})
    else:
        _say_fit(result, out)


@recommender.command(epilog=TOP_EXAMPLE)
@guarded
def top(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.")],
    user: Annotated[list[str] | None, typer.Option(help="User id; again for more. Without it, all users.")] = None,
    k: Annotated[int, typer.Option(help="Items a user.")] = 20,
    rank: Annotated[str, typer.Option(help="score, uncertainty or blend.")] = "blend",
    scorer: ScorerOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write top.parquet to; without it, print.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Recommend unseen items; a user without history gets the popular ones, and that is said."""
    from prudent.recommend.pipeline import top as recommend_top
    from prudent.runs import new_run, refuse_used

    if out is not None:
        refuse_used(out, overwrite)
    found = recommend_top(_load(run, scorer), user or None, k=k, rank=rank)
    rows = list(zip(found.users, found.items, found.scores, found.cold))
    if out is not None:
        with new_run(out, "recommend top", {"run": str(run), "k": k, "rank": rank}, seed, overwrite) as written:
            flat = [
                (who, place + 1, item, score, cold)
                for who, items, scores, cold in rows
                for place, (item, score) in enumerate(zip(items, scores))
            ]
            columns = zip(*flat) if flat else ([] for _ in range(5))
            written.write_table("top.parquet", dict(zip(("user", "rank", "item", "score", "cold"), columns)))
            written.write_json("result.json", found.counts())
    if as_json:
        listed = [{"user": who, "items": items, "scores": s, "cold": cold} for who, items, s, cold in rows]
        print_json({"rank": rank, "k": k, **found.counts(), "recommendations": listed if out is None else None})
        return
    if out is None:
        for who, items, _, cold in rows:
            print(f"{who}{' (no history: popular items)' if cold else ''}: {', '.join(items)}")
    else:
        say(f"{len(rows)} users, {sum(found.cold)} of them without history; written to {out}")


@recommender.command(epilog=EVALUATE_EXAMPLE)
@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of prudent recommend fit.")],
    out: OutOption,
    test: Annotated[Path | None, typer.Option(help="Test interactions; without it, those held out by fit.")] = None,
    baselines: Annotated[
        str, typer.Option(help="Of popularity,knn,als,ipw; none for none.")
    ] = "popularity,knn,als,ipw",
    lists: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE of recommendations from elsewhere (user, item[, rank]).")
    ] = None,
    k: Annotated[list[int] | None, typer.Option(help="List lengths to judge; again for more.")] = None,
    rounds: Annotated[int, typer.Option(min=100, help="Bootstrap rounds over users.")] = 1000,
    scorer: ScorerOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Judge score, uncertainty, blend and baselines on the test side; table, intervals and report."""
    from prudent.commands.recommend.page import build
    from prudent.recommend.comparison import compare
    from prudent.recommend.lists import read_lists
    from prudent.runs import new_run, read_manifest, refuse_used

    refuse_used(out, overwrite)
    model = _load(run, scorer)
    if test is not None:
        model = _with_test(model, test, read_manifest(run)["options"])
    chosen = [name.strip() for name in baselines.split(",") if name.strip() and name.strip() != "none"]
    named = dict(_pair(entry, "lists", "NAME=FILE") for entry in lists or [])
    ks = tuple(sorted({20, *(k or (50,))}))
    with _progress() as progress:
        given = {name: read_lists(path) for name, path in named.items()}
        found = compare(model, baselines=chosen, lists=given, ks=ks, rounds=rounds, seed=seed, progress=progress)
    result = {
        "backbone": model.backbone.name,
        "blend": {"weight": model.blend.weight, "by": model.blend.by},
        "tail": {"popularity_below": model.tail_below, "items": int(model.tail.sum())},
        "rankings": found.table,
        "differences": found.paired,
        "blend_sweep": found.sweep,
        "counts": found.counts,
        "popularity_correlation": found.correlations,
        "seconds": found.seconds,
    }
    options = {"run": str(run), "test": str(test) if test else None, "baselines": chosen, "k": ks, "rounds": rounds}
    with new_run(out, "recommend evaluate", options, seed, overwrite) as written:
        written.write_json("result.json", result)
        written.write_table("items.parquet", {"item": model.data.items, **found.items})
        build(model, found, seed).write(written)
    if as_json:
        print_json({**result, "out": str(out)})
    else:
        _say_evaluate(result, out)


def _schedule(name: str, **given: Any) -> Schedule:
    """The stage's default schedule with what the command line changes."""
    from dataclasses import replace

    from prudent.recommend.pipeline import SCHEDULES
    from prudent.recommend.training import Schedule

    return replace(SCHEDULES.get(name, Schedule()), **{key: value for key, value in given.items() if value is not None})


def _backbone_options(entries: list[str] | None, **given: Any) -> BackboneOptions:
    """Options of the backbone; NAME=VALUE entries must be among those that have no option of their own."""
    from prudent.errors import PrudentError
    from prudent.recommend.models import BackboneOptions

    kinds = {name: type(value) for name, value in vars(BackboneOptions()).items() if name not in given}
    for name, value in (_pair(entry, "backbone-option", "NAME=VALUE") for entry in entries or []):
        if name not in kinds:
            raise PrudentError(f"--backbone-option {name!r} is unknown; choose from {', '.join(kinds)}")
        try:
            given[name] = kinds[name](value)
        except ValueError as error:
            raise PrudentError(f"--backbone-option {name}={value}: give a number ({kinds[name].__name__})") from error
    return BackboneOptions(**given)


def _pair(entry: str, option: str, form: str) -> tuple[str, str]:
    from prudent.errors import PrudentError

    left, sign, right = entry.partition("=")
    if not sign or not left or not right:
        raise PrudentError(f"--{option} {entry!r}: give {form}")
    return left, right


def _columns(column: list[str] | None) -> dict[str, str]:
    from prudent.errors import PrudentError

    found = dict(_pair(entry, "column", "OURS=THEIRS") for entry in column or [])
    unknown = sorted(set(found) - {"user", "item", "rating", "timestamp"})
    if unknown:
        raise PrudentError(f"--column {', '.join(unknown)}: choose from user, item, rating, timestamp")
    return found


def _data(
    path: Path,
    test: Path | None,
    valid: Path | None,
    reading: dict[str, Any],
    how: str,
    valid_share: float,
    test_share: float,
    seed: int,
) -> tuple[Data, dict[str, Any]]:
    """Data from one file or from files of their own, and what reading each found."""
    import numpy as np

    from prudent.recommend.interactions import read_interactions
    from prudent.recommend.splits import assemble, sides, with_test

    options = {"threshold": reading["threshold"], "on_error": reading["on_error"], **reading["columns"]}
    found, report = read_interactions(path, **options)
    reports = {"data": report.summary()}
    side = np.zeros(len(found), dtype=np.int8)
    if test is None or valid is None:
        side = sides(found, how, 0.0 if valid else valid_share, 0.0 if test else test_share, seed)
    held = {"valid": found.keep(side == 1), "test": found.keep(side == 2)}
    for name, given in (("valid", valid), ("test", test)):
        if given is not None:
            held[name], report = read_interactions(given, **options)
            reports[name] = report.summary()
    data = assemble(found.keep(side == 0), held["valid"], str(path))
    data.notes.update(split=how)
    return (with_test(data, held["test"]) if test is not None or test_share else data), reports


def _with_test(model: Model, test: Path, options: dict[str, Any]) -> Model:
    """``model`` with a test file, read by the rules that the fit was read by."""
    from prudent.recommend.interactions import read_interactions
    from prudent.recommend.pipeline import with_truth
    from prudent.recommend.splits import with_test

    found, report = read_interactions(
        test, threshold=options["threshold"], on_error=options["on_error"], **options["columns"]
    )
    say(f"{test}: {report.counts['positive-pairs']} positive pairs (positive when {report.rule})")
    return with_truth(model, with_test(model.data, found))


def _load(folder: Path, scorer: str | None) -> Model:
    from prudent.recommend.artefact import load
    from prudent.recommend.outside import load_callable

    return load(folder, load_callable(scorer) if scorer and ":" in scorer else None)


def _progress() -> Any:
    """A line on stderr that says which stage is at which epoch."""
    import contextlib
    from collections.abc import Iterator

    from rich.console import Console

    @contextlib.contextmanager
    def shown() -> Iterator[Progress]:
        with Console(stderr=True).status("reading") as status:
            yield lambda stage, epoch, loss, recall: status.update(
                f"{stage}: epoch {epoch}, loss {loss:.4g}, validation Recall@20 {recall:.4f}"
            )

    return shown()


def _say_fit(result: dict[str, Any], out: Path) -> None:
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
    score, uncertainty = (result["blend"]["validation"][place]["recall@20 overall"] for place in (0, -1))
    say(f"validation Recall@20: by score {score:.4f}, by uncertainty {uncertainty:.4f}")
    say(f"blend weight {result['blend']['weight']:g} (rule: {result['blend']['by']}); written to {out}")


def _say_evaluate(result: dict[str, Any], out: Path) -> None:
    for row in result["rankings"]:
        cells = [row.get(f"recall@20 {view}") for view in ("overall", "tail absolute", "tail relative")]
        shown = ["-" if cell is None or cell["mean"] is None else f"{cell['mean']:.4f}" for cell in cells]
        say(f"{row['ranking']:<28} Recall@20 overall {shown[0]}, tail absolute {shown[1]}, tail relative {shown[2]}")
    say(f"report: {out / 'report.html'}")
