"""Files: JSON that is strict, hashes, writes that a reader never sees half done, and what went wrong with them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prudent.errors import PrudentError

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would pass the file-size limit",
}
DENIED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "a read-only file system",
    errno.ENAMETOOLONG: "the name is too long",
}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """``text`` with lone surrogates replaced by U+FFFD, so that one bad character never costs a whole file."""
    return text if text.isascii() else LONE_SURROGATE.sub("\ufffd", text)


def plain(value: Any, path: str = "$", undefined: list[str] | None = None) -> Any:
    """``value`` in plain JSON types: arrays to lists; non-finite numbers to None, their path noted."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if undefined is not None:
            undefined.append(path)
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{path}.{key}", undefined) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, bytes):
        return [plain(item, f"{path}[{i}]", undefined) for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist(), path, undefined)
    if hasattr(value, "__dataclass_fields__"):
        return plain({name: getattr(value, name) for name in value.__dataclass_fields__}, path, undefined)
    return str(value)


def dumps(value: Any, indent: int | None = 2) -> str:
    """Strict JSON text. A number that is not finite becomes ``null`` and its path is listed under ``undefined``."""
    undefined: list[str] = []
    data = plain(value, "$", undefined)
    if undefined and isinstance(data, dict) and "undefined" not in data:
        data["undefined"] = {"reason": "not finite: it could not be computed from these data", "paths": undefined}
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)


def hash_text(*parts: str) -> str:
    """SHA-256 (hex) of texts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Flush every file below ``folder``, and the folder itself, to disk."""
    for path in [*sorted(p for p in folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder() -> Path:
    """Folder of everything that can be computed again: $PRUDENT_CACHE, or ~/.cache/prudent."""
    return Path(os.environ.get("PRUDENT_CACHE") or Path.home() / ".cache" / "prudent").expanduser()


def made_cache(folder: Path) -> Path:
    """A folder of the cache, made where it isn't there; PrudentError where it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrudentError(
            f"the cache {folder} can't be made ({error.strerror}); set PRUDENT_CACHE to a folder that can be written"
        ) from error
    return folder


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write one file so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_copy(path: Path, text: str) -> None:
    """``write_atomic`` of what can be made again: a full disk costs the copy, not the run."""
    with contextlib.suppress(OSError):
        write_atomic(path, text)


def output_faults(path: Path, overwrite: bool, inputs: Sequence[Path] = (), flag: str = "--output") -> list[str]:
    """Why a file to be written can't be: it is a folder, one of the inputs, there already, or in no writable folder."""
    try:
        if path.is_dir():
            return [f"{flag} {path} is a folder; name a file"]
        if path.is_file():
            if any(file.exists() and path.samefile(file) for file in inputs):
                return [f"{flag} {path} is a file that is read; name another"]
            if not overwrite:
                return [f"{flag} {path} exists; name another or give --overwrite"]
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            return [f"{flag} {path} can't be made: {above} is not a writable folder; name another"]
        if len(os.fsencode(path.name)) > 230:  # it is written under a longer name beside it
            return [f"{flag} {path.name[:40]}... is longer than 230 bytes; name a shorter one"]
    except OSError as error:
        return [f"{flag} {str(path)[:200]} can't be used: {error}; name another"]
    return []


def write_output(path: Path, text: str, flag: str = "--output") -> None:
    """A regular file appears whole; a pipe or a device (/dev/stdout) is written to as it is."""
    try:
        with room_named(f"{flag} {path}"):
            if path.exists() and not path.is_file():
                with path.open("w", encoding="utf-8") as file:
                    file.write(text)
            else:
                write_atomic(path.resolve(), text)
    except OSError as error:
        raise PrudentError(f"{flag} {path} can't be written: {error}; name another") from error


@contextlib.contextmanager
def damage_named(what: str, remedy: str) -> Iterator[None]:
    """Inside, whatever goes wrong in reading what someone gave is one PrudentError: ``what`` is damaged, and why."""
    try:
        yield
    except PrudentError:
        raise
    except Exception as error:  # a tampered file can fail in any way that its reader can
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise PrudentError(f"{what} is damaged ({type(error).__name__}: {reason}); {remedy}") from error


@contextlib.contextmanager
def room_named(what: str = "a file") -> Iterator[None]:
    """Inside, a full disk, a used-up quota and a file-size limit are a PrudentError, whichever library met them; so is
    a file that may not be read or written."""
    try:
        yield
    except PrudentError:
        raise
    except Exception as error:  # safetensors and pyarrow raise their own kinds, with the system's words in them
        number, text = getattr(error, "errno", None), str(error)
        found = [
            reason
            for code, reason in ROOM.items()
            if number == code or (number is None and (f"(os error {code})" in text or os.strerror(code) in text))
        ]
        if not found and number in DENIED and getattr(error, "filename", None):
            raise PrudentError(
                f"{str(error.filename)[:200]} can't be used: {DENIED[number]}; name another, or change its rights"  # type: ignore[attr-defined]
            ) from error
        if not found:
            raise
        where = getattr(error, "filename", None) or what
        raise PrudentError(
            f"{where} can't be written: {found[0]} ({text[:200]}); free some room there or name another place"
        ) from error


def refuse_pickle(path: Path) -> None:
    """PrudentError with a hint when ``path`` is a pickle, or a folder whose only weights are pickles."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    pickles = [file for file in files if file.suffix.lower() in PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise PrudentError(
            f"{pickles[0]} is a pickle, which can run code when it is read, so it is refused; convert it where you "
            "trust it: load it there and write its tensors with safetensors.torch.save_file (transformers models: "
            "model.save_pretrained(folder) writes safetensors)"
        )
