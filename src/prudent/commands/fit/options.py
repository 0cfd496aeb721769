"""Options of ``prudent fit``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

from prudent.commands.depth import DepthOptions
from prudent.commands.engine import EngineOptions, Split
from prudent.commands.options import (
    ABOVE_ZERO,
    DEFAULT_MODEL,
    MANY,
    SOURCE,
    Dtype,
    MaxLength,
    MaxPairs,
    ModelName,
    OnError,
    PairOptions,
    RunOptions,
    command,
    option,
)

PANEL = "Options of some families (the others refuse them)"
NAMES = "heads, laplace, last-layer, network-laplace, mlp, dropout, novelty, quantile, singles, linear, lora, external"

TRAINED = ("singles", "linear", "lora")  # the language model itself

_panel = functools.partial(option, panel=PANEL)


@command("fit", run="fit.run:fit", show="fit.page:show")
class FitOptions(DepthOptions, EngineOptions, PairOptions, RunOptions):
    """Train K members on preference pairs and write a reward-model folder: weights, golden scores, fit.json.

    Example: prudent fit --preferences train.jsonl --test test.jsonl --members 10 --out runs/rm
    """

    preferences: Annotated[tuple[str, ...], option("Preference file or hub id; may be given several times."), SOURCE]
    family: Annotated[str, option(f"Family: {NAMES}; see docs/reward-models.md.")] = "heads"
    model: ModelName = DEFAULT_MODEL
    members: Annotated[int | None, option("Members K; by default the family's own (10 or 3).", min=1, max=MANY)] = None
    test: Annotated[tuple[str, ...], option("Preference file to report accuracy on."), SOURCE] = ()
    on_error: OnError = "raise"
    split: Split = None
    stream: Annotated[bool, option("Read piece by piece onto disk: for data larger than memory.", "--stream")] = False
    max_pairs: MaxPairs = None
    pooling: Annotated[str | None, option("Features: last, mean or last+mean token states (by default both).")] = None
    max_length: MaxLength = 1024
    dtype: Dtype = None
    diversity: Annotated[str | None, _panel("What members differ in: bootstrap, shuffle, init, init+shuffle.")] = None
    ridge: Annotated[str | None, _panel('Ridge of linear heads: a number, or "cv" (the default).')] = None
    epochs: Annotated[int | None, _panel("Passes over the pairs, in stochastic training.", min=1, max=1_000_000)] = None
    batch_size: Annotated[int | None, _panel("Pairs a step.", min=1, max=1_000_000)] = None
    learning_rate: Annotated[
        float | None, _panel("Step size (of the backbone or adapters where they train)."), ABOVE_ZERO
    ] = None
    head_learning_rate: Annotated[float | None, _panel("Step size of heads on a trained transformer."), ABOVE_ZERO] = (
        None
    )
    weight_decay: Annotated[float | None, _panel("AdamW's, of two-layer heads.", min=0)] = None
    prior: Annotated[str | None, _panel('Network-laplace: prior variance of a margin, or "cv" (the default).')] = None
    sandwich: Annotated[bool, _panel("Laplace: covariance from residuals, as a bootstrap measures it.")] = False
    width: Annotated[int | None, _panel("Hidden units of two-layer heads.", min=1, max=100_000)] = None
    dropout: Annotated[float | None, _panel("Dropout of hidden units.", min=0, max=0.99)] = None
    novelty_share: Annotated[float | None, _panel("How much novelty adds to the variance.", min=0)] = None
    layers: Annotated[int | None, _panel("Top blocks that are trained or adapted.", min=1, max=MANY)] = None
    rank: Annotated[int | None, _panel("LoRA rank.", min=1, max=MANY)] = None
    alpha: Annotated[int | None, _panel("LoRA alpha.", min=1, max=1_000_000)] = None
    targets: Annotated[tuple[str, ...], _panel("Linear maps to adapt, such as q_proj; by default all.")] = ()
    phase_one: Annotated[
        float | None, _panel("Share of pairs that LoRA's shared base is trained on first.", min=0, max=0.99)
    ] = None
    average: Annotated[bool, _panel("WARM: average the members' weights into one scorer (singles, lora).")] = False
    training_args: Annotated[
        Path | None, _panel("YAML of transformers TrainingArguments (DeepSpeed, bf16).", exists=True)
    ] = None
    checkpoints: Annotated[Path | None, _panel("Folder of checkpoints; a half-trained run resumes from it.")] = None
    contrastive: Annotated[str | None, _panel("Contrastive term: simcse or swav.")] = None
    contrastive_on: Annotated[str | None, _panel("feature, or difference (of the pair).")] = None
    contrastive_weight: Annotated[float | None, _panel("Weight of the contrastive term.", min=0)] = None
    meta_pool: Annotated[Path | None, _panel("Pool sampled from the policy, for MetaRM.", exists=True)] = None
    meta_rate: Annotated[float | None, _panel("MetaRM's ascent rate (0: ordinary training).", min=0)] = None
    ratings: Annotated[
        Path | None, _panel("Quantile: file of rated responses (prompt, response, ratings).", exists=True)
    ] = None
    attributes: Annotated[tuple[str, ...], _panel("Quantile: rating columns; by default all numeric ones.")] = ()
    levels: Annotated[int | None, _panel("Quantile: number of levels.", min=2, max=MANY)] = None
    crossing: Annotated[bool, _panel("Quantile: leave levels as fitted, though they may cross.")] = False
    gate_hidden: Annotated[int | None, _panel("Quantile: hidden width of the gate.", min=1, max=100_000)] = None
    models: Annotated[tuple[str, ...], _panel("External: folders or hub ids of the members.")] = ()

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if self.engine == "ray" and self.family in (*TRAINED, "external"):
            problems.append(
                f"--family {self.family} trains or reads whole models, which --engine ray doesn't; launch it with "
                "accelerate, or leave --engine out"
            )
        if self.family == "external":
            flags = ("--model", "--pooling", "--max-length", "--dtype", "--layer", "--members")
            problems += self.unusable(flags, "--family external reads its own --models and")
        elif self.family in TRAINED:
            problems += self.unusable(("--layer",), f"--family {self.family} trains the language model itself and")
        return problems
