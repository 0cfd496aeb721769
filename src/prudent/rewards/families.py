"""Every family of reward model that ``prudent fit --family NAME`` trains, behind one function and one primitive."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prudent.errors import PrudentError
from prudent.rewards.model import RewardModel
from prudent.seeding import Seed

if TYPE_CHECKING:
    from datasets import Dataset


class Family(NamedTuple):
    """fit: where the class (features in) or function (text in) is. features: whether it works on an encoder's features.
    options: the names it takes beside preferences, members and seed."""

    fit: str
    features: bool
    options: tuple[str, ...]
    summary: str
    members: int = 10


STOCHASTIC = ("epochs", "batch_size", "learning_rate")
FAMILIES: dict[str, Family] = {
    "heads": Family(
        "prudent.rewards.heads.HeadEnsemble",
        True,
        ("diversity", "ridge", *STOCHASTIC),
        "linear heads on frozen features",
    ),
    "laplace": Family(
        "prudent.rewards.laplace.LaplacePosterior",
        True,
        ("ridge", "sandwich"),
        "one linear head and the closed-form posterior of its weights; members are drawn from it",
    ),
}


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


def encode_pairs(encoder: Any, preferences: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) of the chosen and of the rejected answers, in one pass."""
    prompts = list(preferences["prompt"])
    n = len(prompts)
    both = encoder.encode(prompts * 2, [*preferences["chosen"], *preferences["rejected"]])
    return both[:n], both[n:]


def prompt_groups(preferences: Dataset) -> list[str]:
    """Key of each pair's prompt: pairs of one prompt are resampled and split together."""
    from prudent.data.preferences import prompt_key

    return [prompt_key(prompt) for prompt in preferences["prompt"]]


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
    **options: Any,
) -> RewardModel:
    """Train a reward model of family ``name`` on preference pairs (``prudent.read_preferences``).

    model: language model (alias, folder or hub id; default the embedded one). members: K, by default the family's own.
    encoder, features: made already, to be used again. encoder_options: pooling, max_length, dtype, device.
    options: the family's (``FAMILIES[name].options``). Columns weight, soft_label and margin of the data set are used.
    """
    from prudent.data.preferences import training_columns
    from prudent.features.models import DEFAULT_MODEL

    entry = family(name)
    given = check_options(name, options)
    members = entry.members if members is None else members
    place, _, attribute = entry.fit.rpartition(".")
    target = getattr(importlib.import_module(place), attribute)
    if not entry.features:
        scorer = target(preferences, str(model or DEFAULT_MODEL), members=members, seed=seed, **given)
        return RewardModel(scorer)
    if encoder is None:
        from prudent.features.encoder import Encoder

        encoder = Encoder(model or DEFAULT_MODEL, **(encoder_options or {}))
    chosen, rejected = features if features is not None else encode_pairs(encoder, preferences)
    columns = training_columns(preferences)
    groups = prompt_groups(preferences)
    scorer = target.fit(chosen, rejected, members=members, seed=seed, groups=groups, **columns, **given)
    return RewardModel(scorer, encoder, model=str(model or DEFAULT_MODEL))


def pair_scores(reward_model: RewardModel, preferences: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (K, n) of the chosen and of the rejected answers."""
    prompts: Sequence[Any] = list(preferences["prompt"])
    both = reward_model.score([*prompts, *prompts], [*preferences["chosen"], *preferences["rejected"]])
    return both[:, : len(prompts)], both[:, len(prompts) :]
