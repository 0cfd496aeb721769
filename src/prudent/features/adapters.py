"""PEFT adapter folders: the base model they name, the head they hold, and a plain model of the two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from prudent.errors import PrudentError
from prudent.files import damage_named, refuse_pickle

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = re.compile(r"[.]lora_(A|B|embedding_A|embedding_B)([.]|$)")
HEADS = ("score", "classifier", "classification_head", "qa_outputs")


class Adapter(NamedTuple):
    """folder: of the adapter. base: the model it was trained on, a folder or hub id. task: as PEFT names it. tokenizer:
    where the tokenizer is, beside the adapter or with the base."""

    folder: Path
    base: str
    task: str
    tokenizer: str

    def head(self) -> dict[str, list[int]]:
        """Names and shapes of the saved weights of a head, none where it was not saved."""
        from safetensors import safe_open

        with damage_named(f"adapter {self.folder}", "copy it again"), safe_open(self.folder / WEIGHTS, "pt") as file:
            names = [name for name in file.keys() if set(name.split(".")) & set(HEADS)]  # noqa: SIM118 (no mapping)
            return {name: file.get_slice(name).get_shape() for name in names if "lora_" not in name}


def find_adapter(source: str | Path) -> Adapter | None:
    """The adapter of a folder or hub id; None for a whole model. PrudentError where its base or weights are missing."""
    path = Path(source)
    if path.is_dir():
        found = path / CONFIG if (path / CONFIG).is_file() and not (path / "config.json").is_file() else None
    elif path.exists() or str(source).startswith(("/", ".", "~")) or str(source).count("/") > 1:
        return None
    else:
        from transformers.utils import find_adapter_config_file

        try:
            file = find_adapter_config_file(str(source))
        except (OSError, ValueError):  # no name of the hub: whoever asked says so
            return None
        found = None if file is None else Path(file)
    if found is None:
        return None
    folder = found.parent
    refuse_pickle(folder)
    if not (folder / WEIGHTS).is_file():
        if path.is_dir():
            raise PrudentError(f"adapter folder {folder} holds no {WEIGHTS}; copy it again")
        folder = _downloaded(str(source))
    with damage_named(str(found), "copy the adapter again"):
        config = json.loads(found.read_text(encoding="utf-8"))
        base, task = config.get("base_model_name_or_path"), str(config.get("task_type"))
    if not isinstance(base, str) or not base:
        raise PrudentError(f"{found} names no base_model_name_or_path; name the base model's folder or hub id there")
    if not Path(base).is_dir() and (folder / base).is_dir():
        base = str((folder / base).resolve())  # named from the adapter's folder
    elif not Path(base).exists() and (Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1):
        raise PrudentError(
            f"adapter {source} was trained on {base!r}, which is not there; correct base_model_name_or_path in {found}"
        )
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return Adapter(folder, base, task, str(folder) if own else base)


def _downloaded(name: str) -> Path:
    from transformers.utils import cached_file

    with damage_named(f"adapter {name}", "give an adapter with safetensors weights"):
        return Path(str(cached_file(name, WEIGHTS))).parent


def refuse_head_adapter(adapter: Adapter) -> None:
    """PrudentError where an adapter is one of a classifier: as a language model it has no use for its head."""
    if adapter.task in ("SEQ_CLS", "TOKEN_CLS"):
        raise PrudentError(
            f"adapter {adapter.folder} is of a classifier (task_type {adapter.task}), and a language model is needed "
            "here; give it as a reward model, or another adapter"
        )


def require_tensors(adapter: Adapter, model: Any) -> None:
    """PrudentError where an adapter's file holds fewer of LoRA's tensors than its configuration adapts: peft begins
    those anew and only warns. model: with the adapter in place, not merged."""
    from safetensors import safe_open

    def plain(name: str) -> str:
        return name.replace(".default", "").removeprefix("base_model.model.")

    with damage_named(f"adapter {adapter.folder}", "copy it again"), safe_open(adapter.folder / WEIGHTS, "pt") as file:
        held = {plain(name) for name in file.keys() if LORA.search(name)}  # noqa: SIM118 (no mapping)
    wanted = {plain(name) for name, _ in model.named_parameters() if LORA.search(name)}
    if len(held) < len(wanted):
        named = ", ".join(sorted(wanted - held)[:3])
        raise PrudentError(
            f"adapter {adapter.folder} holds {len(held)} of LoRA's tensors, and its {CONFIG} adapts maps that have "
            f"{len(wanted)} (missing: {named}, ...): the others would be random; copy both files again"
        )


def merged_classifier(adapter: Adapter, dtype: Any) -> Any:
    """Sequence classifier with one output: base and adapter as one plain model, the head from the adapter.

    PrudentError where the head was not saved or has another number of outputs, and for weights that are missing.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    head = adapter.head()
    weights = [shape for name, shape in head.items() if name.endswith("weight") and len(shape) == 2]
    if not weights:
        raise PrudentError(
            f"adapter {adapter.folder} was saved without its reward head (no weights of {' or '.join(HEADS[:2])} in "
            f"{WEIGHTS}): without it scores would be random; train with task_type SEQ_CLS, or with "
            "modules_to_save=['score'], and save again"
        )
    labels = weights[-1][0]
    if labels != 1:
        raise PrudentError(f"the head of adapter {adapter.folder} has {labels} outputs; a reward model has one")
    model, report = AutoModelForSequenceClassification.from_pretrained(
        adapter.base, num_labels=1, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    missing = sorted(name for name in report["missing_keys"] if not set(name.split(".")) & set(HEADS))
    if missing:
        raise PrudentError(f"weights {', '.join(missing[:5])} are missing from {adapter.base}, the adapter's base")
    whole = PeftModel.from_pretrained(model, str(adapter.folder))
    require_tensors(adapter, whole)
    tuner: Any = whole.base_model
    if not hasattr(tuner, "merge_and_unload"):
        raise PrudentError(f"adapter {adapter.folder} is of a kind that can't be merged into its base; give a LoRA one")
    return tuner.merge_and_unload()
