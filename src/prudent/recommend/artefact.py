"""Save a fitted recommender in a run folder and load it again: safetensors and JSON, checked by their hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from prudent.errors import PrudentError
from prudent.files import damage_named
from prudent.recommend.baselines import csr_matrix, csr_tensors, knn_scores, popularity_scores, sparse_scores
from prudent.recommend.metrics import Scorer
from prudent.recommend.models import Backbone, factor_scores, hash_tensors, no_gradient, vae_scores
from prudent.recommend.outside import from_callable
from prudent.recommend.pipeline import Model
from prudent.recommend.ranking import Blend
from prudent.recommend.splits import Data, Truth
from prudent.recommend.training import Curve
from prudent.recommend.uncertainty import log_variances
from prudent.runs import Run, read_manifest

COMMAND = "recommend fit"


def restore(kind: str, tensors: dict[str, torch.Tensor], train: sparse.csr_matrix) -> Scorer:
    """Scorer of a saved backbone of any kind but "callable"."""
    if kind == "factors":
        return factor_scores(tensors["user"], tensors["item"])
    if kind == "vae":
        return no_gradient(vae_scores(tensors, train))
    if kind.startswith("estimator-"):
        return no_gradient(log_variances(tensors, train, kind.partition("-")[2]))
    if kind == "popularity":
        return popularity_scores(tensors["counts"])
    if kind == "knn":
        return knn_scores(csr_matrix(tensors, train.shape[1]), train)
    if kind == "table":
        return sparse_scores(csr_matrix(tensors, train.shape[1]))
    raise PrudentError(f"a saved recommender is of kind {kind!r}, which this version doesn't know")


def _prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def truth_tensors(prefix: str, truth: Truth) -> dict[str, torch.Tensor]:
    """A held-out side as tensors."""
    return {
        **_prefixed(f"{prefix}.positives", csr_tensors(truth.positives)),
        **_prefixed(f"{prefix}.cold", csr_tensors(truth.cold)),
        f"{prefix}.unreachable": torch.from_numpy(truth.unreachable.astype(np.int64)),
        f"{prefix}.cold_unreachable": torch.from_numpy(truth.cold_unreachable.astype(np.int64)),
    }


def save(run: Run, model: Model) -> None:
    """Write ``model`` into an unfinished run folder and its hashes into the manifest."""
    data = model.data
    tensors = {**_prefixed("train", csr_tensors(data.train)), **_prefixed("seen", csr_tensors(data.seen))}
    sides = {"valid": data.valid, **({"test": data.test} if data.test is not None else {})}
    for name, truth in sides.items():
        tensors.update(truth_tensors(name, truth))
    run.write_tensors("interactions.safetensors", tensors)
    cold = {f"cold_{name}": truth.cold_users for name, truth in sides.items()}
    run.write_json("ids.json", {"users": data.users, "items": data.items, **cold})
    stages = {"backbone": model.backbone, "uncertainty": model.uncertainty}
    described = {}
    for name, stage in stages.items():
        if stage.tensors:
            run.write_tensors(f"{name}.safetensors", stage.tensors)
        run.manifest["hashes"][name] = stage.fingerprint()
        described[name] = {"name": stage.name, "kind": stage.kind, "curve": vars(stage.curve) if stage.curve else None}
    tail = {"popularity_below": model.tail_below, "items": int(model.tail.sum())}
    notes = {"notes": model.notes, "data_notes": data.notes}
    dropped = {name: truth.dropped for name, truth in sides.items()}
    run.write_json("model.json", {**described, "blend": vars(model.blend), "tail": tail, **notes, "dropped": dropped})
    run.manifest["hashes"]["interactions"] = hash_tensors(tensors)
    run.manifest["timings_s"] = model.seconds


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; PrudentError where it can't be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise PrudentError(f"{path} can't be read ({error}); fit the recommender again") from error


def read_truth(prefix: str, tensors: dict[str, torch.Tensor], cold_users: list[str], items: int, dropped: int) -> Truth:
    """Inverse of ``truth_tensors``."""

    def matrix(name: str) -> sparse.csr_matrix:
        return csr_matrix({part: tensors[f"{prefix}.{name}.{part}"] for part in ("indptr", "indices", "values")}, items)

    unreachable, cold_unreachable = (
        tensors[f"{prefix}.{name}"].numpy() for name in ("unreachable", "cold_unreachable")
    )
    return Truth(matrix("positives"), unreachable, matrix("cold"), cold_unreachable, cold_users, dropped)


def load(folder: str | Path, outside: Any = None) -> Model:
    """Model of a finished ``prudent recommend fit`` folder, its tensors checked against the manifest's hashes.

    outside: the function that the backbone asks, for a model that was fitted on one; a folder never names code to run.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, COMMAND)
    with damage_named(f"recommender {folder}", "fit it again"):
        return _load(folder, manifest, outside)


def _load(folder: Path, manifest: dict[str, Any], outside: Any) -> Model:
    described, ids = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("model.json", "ids.json"))
    tensors = read_tensors(folder / "interactions.safetensors")
    verify(folder, "interactions", tensors, manifest)
    items = len(ids["items"])
    train, seen = (
        csr_matrix({part: tensors[f"{name}.{part}"] for part in ("indptr", "indices", "values")}, items)
        for name in ("train", "seen")
    )
    truths = {
        name: read_truth(name, tensors, ids[f"cold_{name}"], items, described["dropped"][name])
        for name in ("valid", "test")
        if f"{name}.unreachable" in tensors
    }
    data = Data(ids["users"], ids["items"], train, seen, truths["valid"], truths.get("test"), described["data_notes"])
    stages = {}
    for name in ("backbone", "uncertainty"):
        about = described[name]
        curve = Curve(**about["curve"]) if about["curve"] else None
        if about["kind"] == "callable":
            if outside is None:
                raise PrudentError(f"{folder} ranks by an outside function ({about['name']}); give it again (--scorer)")
            stages[name] = from_callable(outside, data, about["name"])
            continue
        part = read_tensors(folder / f"{name}.safetensors")
        verify(folder, name, part, manifest)
        stages[name] = Backbone(about["name"], about["kind"], restore(about["kind"], part, train), part, curve)
    below = described["tail"]["popularity_below"]
    blend = Blend(**described["blend"])
    tail = data.popularity < below
    notes, seconds = described["notes"], manifest["timings_s"]
    return Model(data, stages["backbone"], stages["uncertainty"], blend, tail, below, notes, seconds)


def verify(folder: Path, name: str, tensors: dict[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    """PrudentError when tensors aren't those that were saved."""
    if hash_tensors(tensors) != manifest["hashes"].get(name):
        raise PrudentError(f"{folder / name}.safetensors isn't what was saved (its hash differs); fit again")
