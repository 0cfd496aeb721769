"""Checkpoints of an RL run: whole or absent, and enough to go on bit for bit.

Nothing random needs to be stored: every draw is a function of (seed, step, prompt), and the reward's centring and the
variance's scale are fixed before training. So a checkpoint is the weights in training, the optimiser's moments, and the
step. Only safetensors and JSON are written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prudent.errors import PrudentError
from prudent.files import dumps, fsync_folder, hash_file, write_atomic

NAME = re.compile(r"step-(\d+)")
WEIGHTS, MOMENTS, MANIFEST = "weights.safetensors", "optimizer.safetensors", "checkpoint.json"


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, history: list[Any]
) -> Path:
    """Write ``folder/step-N`` beside its place, flush it, rename it, then remove older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / f"step-{step:06d}", folder / f".step-{step:06d}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary / WEIGHTS)
    save_file(_flatten(optimizer), temporary / MOMENTS)
    hashes = {name: hash_file(temporary / name) for name in (WEIGHTS, MOMENTS)}
    write_atomic(temporary / MANIFEST, dumps({"step": step, "hashes": hashes, "history": history}))
    fsync_folder(temporary)
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; a half-written one has another name and is never looked at."""
    if not folder.is_dir():
        return None
    found = {int(m.group(1)): p for p in folder.iterdir() if (m := NAME.fullmatch(p.name)) and (p / MANIFEST).is_file()}
    return found[max(found)] if found else None


def load_checkpoint(
    checkpoint: Path, weights: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, list[Any]]:
    """Put a checkpoint's weights and moments into place; returns its step and history.

    Raises PrudentError where a file was changed or a weight is missing or of another shape.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    for name, digest in manifest["hashes"].items():
        if hash_file(checkpoint / name) != digest:
            raise PrudentError(f"{checkpoint / name} differs from what was saved; remove {checkpoint} to start again")
    stored = load_file(checkpoint / WEIGHTS)
    wrong = sorted(set(stored) ^ set(weights)) or [n for n in stored if stored[n].shape != weights[n].shape]
    if wrong:
        raise PrudentError(f"{checkpoint} doesn't fit this policy at {', '.join(wrong[:3])}; name another --out")
    with torch.no_grad():
        for name, value in stored.items():
            weights[name].copy_(value)
    _restore(optimizer, load_file(checkpoint / MOMENTS))
    return int(manifest["step"]), list(manifest["history"])


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, entry in state.items()
        for name, value in entry.items()
    }


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
