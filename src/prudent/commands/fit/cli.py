"""``prudent fit``: train a reward model of any family on preference pairs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prudent.commands.common import (
    ConfigOption,
    DtypeOption,
    JsonOption,
    MaxLengthOption,
    MaxPairsOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    guarded,
    number_or_cv,
    print_json,
    say,
    yaml_value,
)

EPILOG = "Example: prudent fit --preferences train.jsonl --test test.jsonl --members 10 --out runs/rm"
PANEL = "Options of some families (the others refuse them)"
NAMES = (
    "heads",
    "laplace",
    "last-layer",
    "network-laplace",
    "mlp",
    "dropout",
    "novelty",
    "quantile",
    "singles",
    "linear",
    "lora",
    "external",
)


def register(app: typer.Typer) -> None:
    app.command(name="fit", epilog=EPILOG)(fit)


def _panel(text: str, **options: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=PANEL, **options)


@guarded
def fit(
    preferences: Annotated[list[str], typer.Option(help="Preference file or hub id; may be given several times.")],
    out: OutOption,
    family: Annotated[str, typer.Option(help=f"Family: {', '.join(NAMES)}; see docs/reward-models.md.")] = "heads",
    model: ModelOption = "smollm2",
    members: Annotated[
        int | None, typer.Option(min=1, help="Members K; by default the family's own (10 or 3).")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Preference file to report accuracy on.")] = None,
    on_error: Annotated[str, typer.Option(help="Bad rows: raise (list all, stop) or skip (drop, count).")] = "raise",
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read piece by piece onto disk: for data larger than memory.")
    ] = False,
    max_pairs: MaxPairsOption = None,
    pooling: Annotated[
        str | None, typer.Option(help="Features: last, mean or last+mean token states (by default both).")
    ] = None,
    max_length: MaxLengthOption = 1024,
    dtype: DtypeOption = None,
    feature_layer: Annotated[int | None, typer.Option(min=1, help="Features: use the first so many blocks.")] = None,
    diversity: Annotated[str | None, _panel("What members differ in: bootstrap, shuffle, init, init+shuffle.")] = None,
    ridge: Annotated[str | None, _panel('Ridge of linear heads: a number, or "cv" (the default).')] = None,
    epochs: Annotated[int | None, _panel("Passes over the pairs, in stochastic training.", min=1)] = None,
    batch_size: Annotated[int | None, _panel("Pairs a step.", min=1)] = None,
    learning_rate: Annotated[float | None, _panel("Step size (of the backbone or adapters where they train).")] = None,
    head_learning_rate: Annotated[float | None, _panel("Step size of heads on a trained transformer.")] = None,
    weight_decay: Annotated[float | None, _panel("AdamW's, of two-layer heads.")] = None,
    prior: Annotated[str | None, _panel('Network-laplace: prior variance of a margin, or "cv" (the default).')] = None,
    sandwich: Annotated[bool, _panel("Laplace: covariance from residuals, as a bootstrap measures it.")] = False,
    width: Annotated[int | None, _panel("Hidden units of two-layer heads.", min=1)] = None,
    dropout: Annotated[float | None, _panel("Dropout of hidden units.")] = None,
    novelty_share: Annotated[float | None, _panel("How much novelty adds to the variance.")] = None,
    layers: Annotated[int | None, _panel("Top blocks that are trained or adapted.", min=1)] = None,
    rank: Annotated[int | None, _panel("LoRA rank.", min=1)] = None,
    alpha: Annotated[int | None, _panel("LoRA alpha.", min=1)] = None,
    targets: Annotated[list[str] | None, _panel("Linear maps to adapt, such as q_proj; by default all.")] = None,
    phase_one: Annotated[float | None, _panel("Share of pairs that LoRA's shared base is trained on first.")] = None,
    average: Annotated[bool, _panel("WARM: average the members' weights into one scorer (singles, lora).")] = False,
    training_args: Annotated[Path | None, _panel("YAML of transformers TrainingArguments (DeepSpeed, bf16).")] = None,
    checkpoints: Annotated[Path | None, _panel("Folder of checkpoints; a half-trained run resumes from it.")] = None,
    contrastive: Annotated[str | None, _panel("Contrastive term: simcse or swav.")] = None,
    contrastive_on: Annotated[str | None, _panel("feature, or difference (of the pair).")] = None,
    contrastive_weight: Annotated[float | None, _panel("Weight of the contrastive term.")] = None,
    meta_pool: Annotated[Path | None, _panel("Pool sampled from the policy, for MetaRM.")] = None,
    meta_rate: Annotated[float | None, _panel("MetaRM's ascent rate (0: ordinary training).")] = None,
    ratings: Annotated[Path | None, _panel("Quantile: file of rated responses (prompt, response, ratings).")] = None,
    attributes: Annotated[list[str] | None, _panel("Quantile: rating columns; by default all numeric ones.")] = None,
    levels: Annotated[int | None, _panel("Quantile: number of levels.", min=2)] = None,
    crossing: Annotated[bool, _panel("Quantile: leave levels as fitted, though they may cross.")] = False,
    gate_hidden: Annotated[int | None, _panel("Quantile: hidden width of the gate.", min=1)] = None,
    models: Annotated[list[str] | None, _panel("External: folders or hub ids of the members.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Train K members on preference pairs and write a reward-model folder: weights, golden scores, fit.json."""
    asked = dict(locals())  # the families' options, by name
    from prudent.commands.fit.page import describe_fit, write_page
    from prudent.data.preferences import data_hash, draw_pairs, read_preferences_with_report
    from prudent.features.processes import Processes
    from prudent.rewards.families import FAMILIES, ON_TEXT, check_options, fill_cache, fit_reward_model
    from prudent.runs import new_run, refuse_used

    refuse_used(out, overwrite)
    asked |= {
        "ridge": number_or_cv(ridge),
        "prior": number_or_cv(prior, "prior"),
        "training": _training(training_args),
        "monotone": False if crossing else None,
        **{name: asked[name] or None for name in ("sandwich", "average")},
    }
    known = {option for entry in FAMILIES.values() for option in entry.options}
    given = check_options(family, {name: asked[name] for name in sorted(known) if asked[name] != []})
    pooling = pooling or ("last" if family in ON_TEXT else "last+mean")
    encoder_options = {"pooling": pooling, "max_length": max_length, "dtype": dtype, "layer": feature_layer}
    data, report = read_preferences_with_report(preferences, split=split, on_error=on_error, stream=stream)
    data = draw_pairs(data, max_pairs, seed)
    held = read_preferences_with_report(test, on_error=on_error)[0] if test else None
    processes = Processes()
    if processes.first:
        say(f"{len(data)} pairs; family {family} on {model}")
    started = time.perf_counter()
    encoder = None
    if processes.size > 1 and family not in ON_TEXT:
        encoder = fill_cache(model, encoder_options, [data, held], processes)
    if encoder is None or processes.first:
        reward_model = fit_reward_model(
            data,
            family,
            model=model,
            members=members,
            seed=seed,
            encoder=encoder,
            encoder_options=encoder_options,
            **given,
        )
    if not processes.first:
        return  # under accelerate launch all processes encode, or train together, and the first one writes
    seconds = time.perf_counter() - started
    result = describe_fit(reward_model, data, held, seconds)
    result["reading"] = {"read": report.read, "kept": report.kept, **report.counts()}
    wanted = {"preferences": preferences, "family": family, "model": model, "members": members, **encoder_options}
    with new_run(out, "fit", {**wanted, **given, "max_pairs": max_pairs, "test": test}, seed, overwrite) as run:
        run.manifest["hashes"]["preferences"] = data_hash(data)
        run.manifest["timings_s"]["fit"] = seconds
        reward_model.write(run)
        run.write_json("fit.json", result)
        write_page(run, result)
    if as_json:
        print_json({**result, "out": str(out)})
    else:
        print_summary(result, out)


def _training(path: Path | None) -> dict[str, Any] | None:
    """A user's own TrainingArguments from YAML."""
    if path is None:
        return None
    import yaml

    from prudent.errors import PrudentError

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PrudentError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise PrudentError(f"{path} must hold names and values of TrainingArguments, found {type(values).__name__}")
    return {name: yaml_value(value) for name, value in values.items()}


def print_summary(result: dict[str, Any], out: Path) -> None:
    """The few lines that a person reads."""
    print(f"{result['family']}: {result['members']} members on {result['pairs']} pairs in {result['seconds']:.1f} s")
    for name in ("train", "test"):
        found = result[name]
        if found is None:
            continue
        mean, longer = found["accuracy"], found["longer_answer_accuracy"]
        members = sorted(one.value for one in found["member_accuracy"])
        print(
            f"{name}: accuracy {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}] on {found['pairs']} pairs; members "
            f"{members[0]:.3f} to {members[-1]:.3f}; longer answer {longer.value:.3f}"
        )
    print(f"wrote {out}")
