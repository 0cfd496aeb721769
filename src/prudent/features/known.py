"""What is known of a language model without loading it: written down when it is first loaded, held against its files.

An encoder whose texts are all in its cache computes no states. It needs the model's fingerprint and sizes alone, and
those are the same as long as the files are: the same names, sizes and times of change, as make and git judge, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prudent.features.adapters import find_adapter
from prudent.features.models import DEFAULT_MODEL, context_of, default_gguf, dtype_name, embedded_ids, named_path
from prudent.features.rendering import template_of
from prudent.files import cache_folder, dumps, hash_text, write_copy
from prudent.runs import versions

FORMAT = "1"
PASSING = ("_name_or_path", "transformers_version", "architectures", "use_cache", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Known:
    """Of a loaded backbone: dtype, width of its states, positions it reads at most, token ids it embeds, its settings
    (JSON), the hash of its weights (``hash_weights``), and its tokenizer's template and hash (``hash_tokenizer``)."""

    dtype: str
    width: int
    context: int | None
    embedded: int
    settings: str
    weights: str
    template: str
    tokenizer: str


def known_of(model: Any, body: Any, tokenizer: Any) -> Known:
    """What there is to know of ``model``, of which the blocks of ``body`` run."""
    settings = {name: value for name, value in body.config.to_dict().items() if name not in PASSING}
    return Known(
        dtype_name(body.dtype),
        int(body.config.hidden_size),
        context_of(model),
        embedded_ids(body),
        json.dumps(settings, sort_keys=True, default=str),
        hash_weights(body),
        template_of(tokenizer),
        hash_tokenizer(tokenizer),
    )


def files_of(name: str) -> list[Path] | None:
    """All files that a model of this name is read from, an adapter's base included; None where that isn't known
    beforehand: a hub id may name other files tomorrow. PrudentError for a path that leads nowhere."""
    path = named_path(name)
    if path is None:
        gguf = default_gguf() if name == DEFAULT_MODEL else None
        return None if gguf is None else [gguf]
    if path.is_file():
        return [path]
    files = sorted(file for part in (path, path / "additional_chat_templates") for file in part.glob("*"))
    files = [file for file in files if file.is_file()]
    adapter = find_adapter(path)
    base = files_of(adapter.base) if adapter else []
    return None if base is None else files + base


def _note(name: str, dtype: torch.dtype, layer: int | None) -> Path | None:
    """Where it is written down what is known of a model as its files are now; None where it has none."""
    files = files_of(name)
    if files is None:
        return None
    states = [(file, file.stat()) for file in files]
    about = [f"{file.resolve()} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for file, s in states]
    read_by = versions(("torch", "transformers"))
    using = [dtype_name(dtype), str(layer), read_by.get("torch", ""), read_by.get("transformers", "")]
    return cache_folder() / "known" / f"{hash_text(FORMAT, *using, *about)[:32]}.json"


def known(name: str, dtype: torch.dtype, layer: int | None, load: Callable[[], Known]) -> Known:
    """What is known of the first ``layer`` blocks of a model: as it was written down for these very files, else
    ``load``'s, written down where its files didn't change meanwhile."""
    note = _note(name, dtype, layer)
    if note is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or not whole: it is written again
            return Known(**json.loads(note.read_text(encoding="utf-8")))
    found = load()
    if note is not None and note == _note(name, dtype, layer):
        write_copy(note, dumps(dataclasses.asdict(found)))
    return found


def hash_weights(module: torch.nn.Module) -> str:
    """SHA-256 (hex) of the names, shapes, types and bits of a module's parameters and buffers, whatever its device."""

    def one(item: tuple[str, torch.Tensor]) -> str:
        name, tensor = item
        flat = tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8)
        digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor() as threads:
        return hash_text(*threads.map(one, sorted(module.state_dict().items())))


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 (hex) of a tokenizer's vocabulary and rules, without its passing padding and truncation settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_text(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    rules = json.loads(backend.to_str())
    return hash_text(json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True))
