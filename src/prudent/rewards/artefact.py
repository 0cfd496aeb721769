"""The one format of every reward model on disk: a folder of safetensors and JSON that proves itself when it is read.

``reward_model.json``   family, config with all statistics as plain numbers, names and shapes of the tensors, the
                        encoder, hashes, golden scores
``weights.safetensors`` the tensors of the members
``golden.safetensors``  eight probe inputs; their scores are computed again at load and compared
``manifest.json``       written last: a folder without it is unfinished and never read

A weight that is missing stops the load and is named; nothing is ever drawn afresh. No pickle is read or written.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from prudent.errors import PrudentError
from prudent.files import damage_named, hash_file, refuse_pickle
from prudent.rewards.uncertainty import warn_if_identical
from prudent.runs import Run, new_run, read_manifest

FORMAT = 1
CARD, WEIGHTS, GOLDEN = "reward_model.json", "weights.safetensors", "golden.safetensors"
REMEDY = "copy the folder again or fit the reward model again"
TOLERANCE = 1e-5  # of golden scores, relative to their largest size

FAMILIES = {
    "heads": "prudent.rewards.heads.HeadEnsemble",
    "laplace": "prudent.rewards.laplace.LaplacePosterior",
    "last-layer": "prudent.rewards.last_layer.LastLayerPosterior",
    "network-laplace": "prudent.rewards.network_posterior.NetworkPosterior",
    "mlp": "prudent.rewards.mlp.MLPEnsemble",
    "dropout": "prudent.rewards.mlp.DropoutEnsemble",
    "novelty": "prudent.rewards.novelty.NoveltyEnsemble",
    "quantile": "prudent.rewards.quantiles.QuantileModel",
    "singles": "prudent.rewards.transformers.ensembles.TransformerEnsemble",
    "linear": "prudent.rewards.transformers.ensembles.TransformerEnsemble",
    "lora": "prudent.rewards.transformers.ensembles.TransformerEnsemble",
    "external": "prudent.rewards.transformers.external.ExternalModels",
}

# Short neutral texts of our own; a reward model's scores of them show at first use whether encoder, template and
# precision are still what they were.
PROBE_PROMPTS = [
    "Name a river in Europe.",
    "How do I keep bread fresh?",
    "Write one sentence about the sea.",
    "What is 17 plus 25?",
    "Explain what a lighthouse is for.",
    "Is it safe to eat raw potatoes?",
    "Suggest a name for a grey cat.",
    "Say nothing.",
]
PROBE_RESPONSES = [
    "The Danube.",
    "Keep it in a linen bag or a bread box, and freeze what you won't eat within three days.",
    "The sea breathed slowly under the fog, as if it were asleep.",
    "42",
    "A lighthouse warns ships of rocks and helps them find the harbour at night.\n\nIts light can be seen for miles.",
    "No idea!!! just try it",
    "- Ash\n- Pebble\n- Mister Smoke",
    "Okay.",
]


def family_class(name: str) -> Any:
    """Class that a family name stands for."""
    if name not in FAMILIES:
        raise PrudentError(f"unknown reward-model family {name!r}; known: {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def write(run: Run, scorer: Any, *, encoder: dict[str, Any] | None = None, texts: torch.Tensor | None = None) -> None:
    """Write a scorer into a run folder that is being made.

    scorer: has ``family``, ``state() -> (config, tensors)`` and, where it works on features, ``probes()`` and
    ``scores(**probes)``. encoder: what makes its features. texts: its scores (K, 8) of the probe texts.
    """
    config, tensors = scorer.state()
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PrudentError(f"weight {name!r} holds values that are not finite; it is not saved")
    card: dict[str, Any] = {
        "format": FORMAT,
        "family": scorer.family,
        "members": scorer.members,
        "config": config,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "encoder": encoder,
    }
    run.write_tensors(WEIGHTS, tensors)
    card["hashes"] = {WEIGHTS: hash_file(run.folder / WEIGHTS)}
    if hasattr(scorer, "probes"):
        probes = scorer.probes()
        run.write_tensors(GOLDEN, probes)
        card["golden"] = scorer.scores(**probes).tolist()
    if texts is not None:
        card["golden_texts"] = texts.tolist()
    run.write_json(CARD, card)


def save(
    folder: str | Path, scorer: Any, *, encoder: dict[str, Any] | None = None, texts: torch.Tensor | None = None
) -> None:
    """``write`` into a folder of its own, which appears whole or not at all."""
    with new_run(folder, "reward-model", {"family": scorer.family}) as run:
        write(run, scorer, encoder=encoder, texts=texts)


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder holds a reward model that ``write`` wrote."""
    return (Path(folder) / CARD).is_file()


def read_card(folder: str | Path) -> dict[str, Any]:
    """The checked ``reward_model.json`` of a finished folder."""
    folder = Path(folder)
    if folder.exists() and not is_artefact(folder):
        refuse_pickle(folder)
    if not is_artefact(folder):
        raise PrudentError(f"{folder} holds no reward model ({CARD} is missing); write one with prudent fit")
    read_manifest(folder)
    path = folder / CARD
    with damage_named(str(path), REMEDY):
        card = json.loads(path.read_text(encoding="utf-8"))
    check_card(card, path)
    return card


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _matrix(value: Any) -> bool:
    """Whether a value is a list of equally long lists of finite numbers, neither empty."""
    rows = isinstance(value, list) and value and all(isinstance(row, list) and row for row in value)
    if not rows or len({len(row) for row in value}) > 1:
        return False
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e38 for row in value for x in row)


ENCODER_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("the name of a language model", lambda v: isinstance(v, str) and bool(v)),
    "pooling": ("a pooling", lambda v: isinstance(v, str) and bool(v)),
    "max_length": ("a whole number of tokens", lambda v: _whole(v, 1)),
    "dtype": ("a precision", lambda v: isinstance(v, str) and bool(v)),
    "fingerprint": ("the hash of what makes the features", lambda v: isinstance(v, str) and bool(v)),
    "layer": ("a layer or null", lambda v: v is None or _whole(v, -10_000)),
}
CARD_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "family": ("a family", lambda v: isinstance(v, str)),
    "members": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "config": ("an object", lambda v: isinstance(v, dict)),
    "tensors": (
        "names and shapes",
        lambda v: isinstance(v, dict) and all(isinstance(s, list) and all(map(_whole, s)) for s in v.values()),
    ),
    "encoder": ("an object or null", lambda v: v is None or isinstance(v, dict)),
    "hashes": (
        f"an object with the hash of {WEIGHTS}",
        lambda v: isinstance(v, dict) and isinstance(v.get(WEIGHTS), str),
    ),
}


def check_fields(given: dict[str, Any], fields: dict[str, tuple[str, Callable[[Any], bool]]], path: Path) -> None:
    """PrudentError naming the first field that is missing or isn't what it should be."""
    for name, (wanted, right) in fields.items():
        if name not in given:
            raise PrudentError(f"{path} lacks {name!r} ({wanted}); {REMEDY}")
        if not right(given[name]):
            raise PrudentError(f"{name!r} in {path} is {given[name]!r:.60}, expected {wanted}; {REMEDY}")


def check_card(card: Any, path: Path) -> None:
    """PrudentError unless a card has every field of its family, of the right kind, the proofs of its scores included.

    Golden scores of features are due where the family has probes, those of texts where it can score texts: by itself or
    by the encoder that the card names.
    """
    if not isinstance(card, dict):
        raise PrudentError(f"{path} holds {type(card).__name__}, expected an object; {REMEDY}")
    if not _whole(card.get("format")) or card["format"] != FORMAT:
        raise PrudentError(f"{path} has format {card.get('format')!r:.60}, this version reads {FORMAT}")
    check_fields(card, {"family": CARD_FIELDS["family"]}, path)
    kind = family_class(card["family"])
    check_fields(card, CARD_FIELDS, path)
    if card["encoder"] is not None:
        check_fields(card["encoder"], ENCODER_FIELDS, path)
    due = ["golden"] if hasattr(kind, "probes") else []
    due += ["golden_texts"] if card["encoder"] is not None or hasattr(kind, "score") else []
    for name in {*due, *({"golden", "golden_texts"} & set(card))}:
        check_fields(card, {name: ("the scores that prove the model, a list a member", _matrix)}, path)
        if len(card[name]) != card["members"]:
            raise PrudentError(
                f"{name!r} in {path} holds scores of {len(card[name])} members, expected {card['members']}; {REMEDY}"
            )


def read_tensors(folder: Path, card: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of the members, each one named in the card present with its shape and finite."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise PrudentError(f"{path} is missing: it holds {', '.join(card['tensors']) or 'no weights'}; copy it back")
    with damage_named(str(path), REMEDY):
        tensors = load_file(path)
    missing = [name for name in card["tensors"] if name not in tensors]
    if missing:
        raise PrudentError(
            f"weights {', '.join(missing)} are missing from {path}: without them the scores would be random; "
            "copy the file again or fit the reward model again"
        )
    extra = [name for name in tensors if name not in card["tensors"]]
    if extra:
        raise PrudentError(f"weights {', '.join(extra)} in {path} are not in {CARD}; {REMEDY}")
    for name, shape in card["tensors"].items():
        if list(tensors[name].shape) != shape:
            raise PrudentError(f"weight {name} in {path} has shape {list(tensors[name].shape)}, expected {shape}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise PrudentError(f"weight {name} in {path} holds values that are not finite; fit the model again")
    if hash_file(path) != card["hashes"][WEIGHTS]:
        raise PrudentError(f"{path} is not the file that was saved with {CARD}; copy both from one place")
    return tensors


@contextlib.contextmanager
def folder_named(folder: Path) -> Iterator[None]:
    """Inside, every PrudentError names the folder: a family's own checks know nothing of it."""
    try:
        yield
    except PrudentError as error:
        if str(folder) in str(error):
            raise
        raise PrudentError(f"reward model {folder}: {error}") from error


def load(folder: str | Path, expected: type | None = None) -> Any:
    """Scorer of an artefact folder. Missing or changed weights and golden scores that differ raise PrudentError."""
    folder = Path(folder)
    with folder_named(folder):
        card = read_card(folder)
        kind = family_class(card["family"])
        if expected is not None and not issubclass(kind, expected):
            raise PrudentError(
                f"{folder} holds a reward model of family {card['family']!r}, not {expected.__name__}; "
                "read it with prudent.RewardModel.load"
            )
        tensors = read_tensors(folder, card)
        with damage_named(f"'config' in {folder / CARD}", REMEDY):
            scorer = kind.from_state(card["config"], tensors)
            if scorer.members != card["members"] or scorer.family != card["family"]:
                raise ValueError(f"it is of {scorer.members} members of family {scorer.family!r}")
            if hasattr(scorer, "probes"):
                _check_golden(folder, scorer, card)
    return scorer


def _check_golden(folder: Path, scorer: Any, card: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    path = folder / GOLDEN
    if not path.is_file():
        raise PrudentError(f"{path} is missing; copy it back: it proves that the scores are what they were")
    with damage_named(str(path), REMEDY):
        probes = load_file(path)
    found = scorer.scores(**probes)
    compare_golden(found, torch.tensor(card["golden"]), TOLERANCE, f"{folder}: probe")
    if len(found) > 1:
        warn_if_identical(found)


def compare_golden(found: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    """PrudentError when scores moved by more than ``tolerance`` times the largest golden score."""
    if found.shape != wanted.shape:
        raise PrudentError(f"{what} scores have shape {tuple(found.shape)}, saved ones {tuple(wanted.shape)}")
    change = float((found - wanted).abs().max())
    scale = float(wanted.abs().max()) or 1.0
    if not change <= tolerance * scale:
        member, item = divmod(int((found - wanted).abs().argmax()), wanted.shape[1])
        raise PrudentError(
            f"{what} {item + 1} scored {float(wanted[member, item]):.6g} by member {member + 1} when saved and "
            f"{float(found[member, item]):.6g} now (allowed change {tolerance * scale:.2g}): weights, language model, "
            "template or precision are not the ones it was saved with"
        )
