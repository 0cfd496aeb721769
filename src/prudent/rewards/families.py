"""Every family of reward model that ``prudent fit --family NAME`` trains, behind one function and one primitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prudent.data.failing import by_pair
from prudent.errors import PrudentError
from prudent.features.large import encode_held
from prudent.features.limits import SAME_TEMPLATE, shown
from prudent.rewards.artefact import family_class
from prudent.rewards.beside import PoolSampler, encode_meta, encode_rated, read_beside
from prudent.rewards.columns import pair_columns
from prudent.rewards.containers import PairFeatures
from prudent.rewards.model import RewardModel, encode_prompts
from prudent.rewards.uncertainty import finite_rows
from prudent.seeding import Seed

if TYPE_CHECKING:
    from datasets import Dataset


class Family(NamedTuple):
    """summary, options beside preferences, members and seed, and the usual number of members (0: it follows from the
    options)."""

    summary: str
    options: tuple[str, ...]
    members: int = 10


STOCHASTIC = ("epochs", "batch_size", "learning_rate")
EXTRA = ("contrastive", "contrastive_on", "contrastive_weight", "meta_pool", "meta_rate")
TRANSFORMER = (*STOCHASTIC, *EXTRA, "head_learning_rate", "layers", "diversity", "training", "checkpoints", "average")
LORA = (*TRANSFORMER, "rank", "alpha", "targets", "phase_one")
TWO_LAYERS = ("width", "dropout", "weight_decay")
RATED = ("ratings", "attributes", "levels", "monotone", *STOCHASTIC, "gate_hidden")
FAMILIES: dict[str, Family] = {
    "heads": Family("linear heads on frozen features", ("diversity", "ridge", *STOCHASTIC)),
    "laplace": Family(
        "one linear head and the closed-form posterior of its weights; members are drawn from it", ("ridge", "sandwich")
    ),
    "last-layer": Family(
        "Laplace posterior of a two-layer head's last layer", ("ridge", "sandwich", *STOCHASTIC, *TWO_LAYERS)
    ),
    "network-laplace": Family(
        "Laplace posterior of all weights of a two-layer head, linearised at them", ("prior", *STOCHASTIC, *TWO_LAYERS)
    ),
    "mlp": Family(
        "two-layer heads on frozen features, trained in one batch", (*STOCHASTIC, *EXTRA, "diversity", *TWO_LAYERS)
    ),
    "dropout": Family(
        "Monte-Carlo dropout of one two-layer head; members are fixed thinned networks",
        (*STOCHASTIC, *EXTRA, *TWO_LAYERS),
    ),
    "novelty": Family(
        "linear heads whose variance is widened by random network distillation",
        ("diversity", "ridge", *STOCHASTIC, "novelty_share"),
    ),
    "quantile": Family(
        "quantiles of rated attributes, mixed by a gate on the prompt; members are the quantile levels", RATED, 0
    ),
    "singles": Family("clones of the language model, each trained with its own head", TRANSFORMER, 3),
    "linear": Family("one trained language model with K heads", TRANSFORMER, 3),
    "lora": Family("one base, then a LoRA adapter and a head for each member", LORA, 3),
    "external": Family("reward models from elsewhere, standardised on the preference pairs", ("models",), 0),
}
ON_TEXT = ("singles", "linear", "lora", "external")
ON_FEATURES = tuple(name for name in FAMILIES if name not in (*ON_TEXT, "quantile"))  # of the pairs alone


def family(name: str) -> Family:
    """The entry of a family name, or PrudentError naming those that exist."""
    if name not in FAMILIES:
        raise PrudentError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given (not None); PrudentError for one that the family doesn't have."""
    given = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(family(name).options))
    if unknown:
        raise PrudentError(
            f"family {name!r} has no option {', '.join(unknown)}; its options: {', '.join(family(name).options)}"
        )
    return given


def encode_pairs(encoder: Any, preferences: Dataset | Mapping[str, list]) -> tuple[Any, Any]:
    """Features (n, d) of the chosen and of the rejected answers, in one pass: float32 tensors, or memory maps where
    they are too large to hold (``features.large``). RowsError names the pairs that can't be rendered."""
    prompts = list(preferences["prompt"])
    n = len(prompts)
    with by_pair(n):
        both = encode_held(encoder, prompts * 2, [*preferences["chosen"], *preferences["rejected"]])
    return both[:n], both[n:]


def fit_reward_model(
    preferences: Dataset,
    name: str = "heads",
    *,
    model: str | Path | None = None,
    members: int | None = None,
    seed: Seed = 0,
    encoder: Any = None,
    features: tuple[torch.Tensor, torch.Tensor] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> RewardModel:
    """Train a reward model of family ``name`` on preference pairs (``prudent.read_preferences``).

    model: language model (alias, folder or hub id; by default the embedded one). members: K, by default the family's
    own. encoder, features: made already, to be used again. encoder_options: pooling, max_length, dtype, device.
    on_error: "skip" leaves out rows of ``ratings`` and ``meta_pool`` that can't be used; ``info`` counts them. columns:
    {our name: the file's} of these two files.
    options: the family's (``FAMILIES[name].options``). Columns weight, soft_label and margin of the data set are used.
    """
    from prudent.features.models import DEFAULT_MODEL

    entry = family(name)
    given = check_options(name, options)
    if name == "quantile" and "ratings" not in given:
        raise PrudentError(
            "family 'quantile' learns from rated responses; give --ratings FILE (prompt, response, ratings)"
        )
    if members is not None and entry.members == 0:
        raise PrudentError(f"the members of family {name!r} follow from its options; don't give members")
    members = entry.members if members is None else members
    base = str(model or DEFAULT_MODEL)
    if name == "external":
        return _external(preferences, given)
    beside = read_beside(given, on_error, columns)
    given |= beside
    if name in ON_TEXT:
        found = _transformers(preferences, name, base, members, seed, encoder_options or {}, given)
        for one in beside.values():
            found.scorer.info.update(one.info())
        return found
    if encoder is None:
        from prudent.features.encoder import Encoder

        encoder = Encoder(base, **{key: value for key, value in (encoder_options or {}).items() if value is not None})
    chosen, rejected = features if features is not None else encode_pairs(encoder, preferences)
    counts = {"truncated": encoder.stats.truncated, "answerless": encoder.stats.answerless}
    if name == "quantile":
        scorer = _quantile(preferences, encoder, chosen, rejected, seed, given)
    else:
        scorer = fit_on_features(preferences, name, encoder, chosen, rejected, members, seed, given)
    if features is None:
        scorer.info.update(counts)  # in place: heads are frozen
    for one in beside.values():
        scorer.info.update(one.info())
    return RewardModel(scorer, encoder, model=base)


def fit_on_features(
    preferences: Dataset,
    name: str,
    encoder: Any,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    members: int,
    seed: Seed,
    given: dict[str, Any],
) -> Any:
    """Scorer of a feature family from features that are there already; encoder is needed for ``meta_pool`` alone."""
    from prudent.data.preferences import pair_groups, training_columns

    columns = pair_columns(len(preferences), **training_columns(preferences))
    pairs = PairFeatures(chosen, rejected, pair_groups(preferences), columns)
    rows = pairs.distinct()
    same = sorted(set(range(len(pairs))) - set(rows.tolist()))
    if len(rows) == 0:
        raise PrudentError(
            "chosen and rejected answers of every pair have equal features; give a larger --max-length, or a model "
            "whose template shows what they differ in"
        )
    if same:
        pairs = pairs.take(rows)
    pool = given.pop("meta_pool", None)
    if pool is not None:
        given["meta_features"] = encode_meta(encoder, pool)
    scorer = family_class(name).fit(**pairs.fit_arguments(), members=members, seed=seed, **given)
    scorer.info.update(trained_pairs=len(pairs), **why_same(preferences, same, encoder))
    return scorer


def why_same(preferences: Dataset, rows: Sequence[int], encoder: Any) -> dict[str, int]:
    """How many of the pairs whose sides have equal features are the same after truncation, and how many uncut: their
    template leaves out what they differ in. Without an encoder the cause isn't known, and truncation is the usual."""
    uncut = 0
    if encoder is not None and len(rows):
        part = preferences.select(rows)
        prompts = list(part["prompt"])
        found = shown(encoder, prompts * 2, [*part["chosen"], *part["rejected"]])
        uncut = sum(found.same(row, len(rows) + row) == SAME_TEMPLATE for row in range(len(rows)))
    return {"identical_after_truncation": len(rows) - uncut, "identical_after_template": uncut}


def _transformers(
    preferences: Dataset,
    name: str,
    base: str,
    members: int,
    seed: Seed,
    encoder_options: Mapping[str, Any],
    given: dict[str, Any],
) -> RewardModel:
    from prudent.rewards.transformers.ensembles import fit_transformers

    if encoder_options.get("pooling") not in (None, "last"):
        raise PrudentError(
            f"family {name!r} reads the last token's state; pooling {encoder_options['pooling']!r} has none"
        )
    average = given.pop("average", False)
    pool = given.pop("meta_pool", None)
    if pool is not None:
        given["sampler"] = PoolSampler(pool, 4, seed)
    own = {key: encoder_options[key] for key in ("max_length", "dtype") if encoder_options.get(key) is not None}
    scorer = fit_transformers(preferences, base, kind=name, members=members, seed=seed, **own, **given)
    return RewardModel(scorer.averaged() if average else scorer)


def _external(preferences: Dataset, given: dict[str, Any]) -> RewardModel:
    from prudent.rewards.transformers.external import ExternalModels

    scorer = ExternalModels.open(list(given.get("models") or []))
    prompts = list(preferences["prompt"])
    both = [*preferences["chosen"], *preferences["rejected"]]
    with by_pair(len(prompts)):
        scaled = scorer.standardised_on(prompts * 2, both, f"both answers of {len(prompts)} preference pairs")
    return RewardModel(scaled)


def _quantile(
    preferences: Dataset, encoder: Any, chosen: torch.Tensor, rejected: torch.Tensor, seed: Seed, given: dict[str, Any]
) -> Any:
    from prudent.data.preferences import training_columns
    from prudent.rewards.quantiles import QuantileModel

    given.pop("attributes", None)  # the columns that were read
    features, rated = encode_rated(encoder, given.pop("ratings"))
    names = [name for name in rated.column_names if name not in ("prompt", "response", "row")]
    values = [[float("nan") if value is None else value for value in rated[name]] for name in names]
    own = {"count": given.pop("levels")} if "levels" in given else {}
    gate = {"hidden": given.pop("gate_hidden")} if "gate_hidden" in given else {}
    heads = QuantileModel.fit(features, torch.tensor(values).T, attributes=names, seed=seed, **own, **given)
    prompts = encode_prompts(encoder, list(preferences["prompt"]))
    columns: dict[str, Any] = dict(training_columns(preferences))
    return heads.with_gate(prompts, chosen, rejected, seed=seed, **gate, **columns)


def pair_scores(reward_model: RewardModel, preferences: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (K, n) of the chosen and of the rejected answers. RowsError names the pairs that have none."""
    prompts: Sequence[Any] = list(preferences["prompt"])
    with by_pair(len(prompts)):
        both = finite_rows(reward_model.score([*prompts, *prompts], [*preferences["chosen"], *preferences["rejected"]]))
    return both[:, : len(prompts)], both[:, len(prompts) :]
