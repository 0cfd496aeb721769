"""Run folders: written beside their final place, fsynced, renamed; the manifest comes last.

A folder without ``manifest.json`` is unfinished: it is resumed or refused, never read. Only JSON, JSONL, Parquet, HTML,
images and safetensors are written; no pickle is ever read or written.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prudent.errors import PrudentError
from prudent.files import clean_text, damage_named, dumps, fsync_folder, hash_text, plain, room_named, write_atomic

MANIFEST = "manifest.json"
PACKAGES = ("prudent", "torch", "transformers", "datasets", "accelerate", "peft", "trl", "numpy", "scipy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; of those that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_back_memory() -> None:
    """Give freed memory back to the system: glibc keeps it, and what comes next is put beside what it keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other allocators have no such function
    if trim is not None:
        trim(0)


class Run:
    """An output folder being written. ``folder`` is where files go until the run is finished."""

    def __init__(self, folder: Path, command: str, options: Mapping[str, Any], seed: int | None) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {
            "command": command,
            "options": plain(options),
            "seed": seed,
            "versions": versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "hashes": {},
            "timings_s": {},
        }

    def path(self, name: str) -> Path:
        """Path of ``name`` in the folder, its parents made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a UTF-8 file of the run; its path."""
        path = self.path(name)
        write_atomic(path, clean_text(text))
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a strict JSON file of the run (non-finite numbers become null); its path."""
        return self.write_text(name, dumps(value) + "\n")

    def write_jsonl(self, name: str, rows: Sequence[Any]) -> Path:
        """Write one JSON value a line; the path."""
        return self.write_text(name, "".join(dumps(row, indent=None) + "\n" for row in rows))

    def write_table(self, name: str, columns: Mapping[str, Any]) -> Path:
        """Parquet table of equally long columns (lists, numpy or torch)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(name)
        arrays = {
            key: column.tolist() if hasattr(column, "tolist") else list(column) for key, column in columns.items()
        }
        pq.write_table(pa.table(arrays), path)
        return path

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> Path:
        """Write tensors as safetensors; the path."""
        from safetensors.torch import save_file

        path = self.path(name)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
        return path

    def finish(self) -> None:
        """Flush everything, then write the manifest: from here on the folder may be read."""
        files = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        self.manifest["files"] = [name for name in files if name != MANIFEST]
        self.manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        fsync_folder(self.folder)
        write_atomic(self.folder / MANIFEST, dumps(self.manifest) + "\n")


def _unlisted(out: Path) -> list[str]:
    """Files in a finished run's folder that its manifest doesn't name; PrudentError where it isn't Prudent's own."""
    manifest = read_manifest(out)
    if not (isinstance(manifest.get("command"), str) and isinstance(manifest.get("files"), list)):
        raise PrudentError(f"output folder {out} holds a {MANIFEST} that isn't Prudent's; name another --out")
    listed = {MANIFEST, "state.json", *manifest["files"]}
    present = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for name in present if name not in listed)


def refuse_used(out: str | Path, overwrite: bool = False) -> Path:
    """``out``, links followed, or PrudentError when it is in use or can't be written to."""
    out = Path(out)
    try:
        out = out.resolve()
        if out.exists() and not out.is_dir():
            raise PrudentError(f"output {out} is a file, not a folder; name another --out")
        used = out.is_dir() and any(out.iterdir())
        above = next(parent for parent in out.parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise PrudentError(f"output {out} can't be made: {above} is not a writable folder; name another --out")
        if len(os.fsencode(out.name)) > 255:
            raise PrudentError(f"output name {out.name[:40]}... is longer than 255 bytes; name a shorter --out")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise PrudentError(f"output {str(out)[:200]} can't be used: {error}; name another --out") from error
    if used and not overwrite:
        state = "a finished run" if (out / MANIFEST).is_file() else "files that no run finished"
        raise PrudentError(f"output folder {out} is in use: it holds {state}; name another --out or give --overwrite")
    if used and not (out / MANIFEST).is_file():
        raise PrudentError(
            f"output folder {out} holds no finished run, so it is not overwritten; remove it or name another --out"
        )
    if used and (others := _unlisted(out)):
        raise PrudentError(
            f"output folder {out} holds files that its run didn't write ({', '.join(others[:5])}), so it is not "
            "overwritten; move them or name another --out"
        )
    return out


def _lives(process: int) -> bool:
    """Whether a process of this machine is still there, whosever it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _partial(out: Path) -> Path:
    """Where a run is written before it is finished; what runs that were killed on this machine left there is removed.
    Those of other machines that share the folder may be at work."""
    tag = f".prudent-{hash_text(out.name)[:12]}-{hash_text(platform.node())[:8]}"
    for left in out.parent.glob(f"{tag}.*.partial"):
        process = left.name.split(".")[-2]
        if process.isdigit() and int(process) != os.getpid() and not _lives(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    return out.parent / f"{tag}.{os.getpid()}.partial"


def _put(temporary: Path, out: Path, overwrite: bool) -> None:
    """Rename a finished run to its place: onto nothing or an empty folder, or in the place of a finished run."""
    aside = temporary.with_suffix(".replaced")
    try:
        if overwrite and (out / MANIFEST).is_file() and not _unlisted(out):
            os.rename(out, aside)
        os.rename(temporary, out)
    except (OSError, PrudentError) as error:
        if aside.exists():
            os.rename(aside, out)
        kept = next(path for n in range(1, 10_000) if not os.path.lexists(path := out.parent / f"{out.name[:200]}-{n}"))
        os.rename(temporary, kept)
        raise PrudentError(
            f"output folder {out} can't take the finished run ({error}); nothing there was touched, the finished run "
            f"is in {kept}"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)
    fsync_folder_entry(out.parent)


@contextlib.contextmanager
def new_run(
    out: str | Path, command: str, options: Mapping[str, Any], seed: int | None = None, overwrite: bool = False
) -> Iterator[Run]:
    """A run that appears at ``out`` whole or not at all: an error or Ctrl-C inside leaves nothing behind.

    Files that others put into ``out`` meanwhile are never deleted: the finished run is then kept beside it, and the
    PrudentError says where.
    """
    out = refuse_used(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = _partial(out)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise PrudentError(f"output {out} can't be written: {error}; name another --out") from error
    try:
        run = Run(temporary, command, options, seed)
        with room_named(f"output {out}"):
            yield run
            run.finish()
        _put(temporary, out, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fsync_folder_entry(folder: Path) -> None:
    """Flush a folder's own entries (after a rename in it)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def resumable_run(
    out: str | Path, command: str, options: Mapping[str, Any], seed: int | None = None
) -> Iterator[tuple[Run, bool]]:
    """A run written in place that can go on where it stopped. Yields the run and whether it resumes an earlier one.

    ``state.json`` holds the options it was started with; other options refuse to resume it. The manifest comes last.
    """
    out = Path(out)
    try:
        finished = (out / MANIFEST).is_file()
    except OSError as error:  # a name that is too long
        raise PrudentError(f"output {str(out)[:200]} can't be used: {error.strerror}; name another --out") from error
    if finished:
        raise PrudentError(f"output folder {out} holds a finished run; name another --out")
    state = out / "state.json"
    wanted = {"command": command, "options": plain(options), "seed": seed}
    resumes = state.is_file()
    if resumes:
        if not os.access(out, os.W_OK | os.X_OK):
            raise PrudentError(f"output folder {out} is not writable; make it so, or name another --out")
        with damage_named(str(state), "remove its folder to start anew, or name another --out"):
            found = json.loads(state.read_text(encoding="utf-8"))
            keys = sorted(set(found["options"]) | set(wanted["options"]))
            differing = [key for key in keys if found["options"].get(key) != wanted["options"].get(key)]
            changed = found["command"] != command or found["seed"] != seed
        if changed or differing:
            other = ", ".join(differing) or "command or seed"
            raise PrudentError(f"{out} was started with other options ({other}); name another --out")
    else:
        refuse_used(out)
        with room_named(f"output {out}"):
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(state, dumps(wanted) + "\n")
    run = Run(out, command, options, seed)
    with room_named(f"output {out}"):
        try:
            yield run, resumes
        finally:
            if [path.name for path in out.iterdir()] == [state.name]:  # it failed before anything was made
                shutil.rmtree(out)
        run.finish()


def read_manifest(folder: str | Path, command: str | None = None) -> dict[str, Any]:
    """Manifest of a finished run folder, or PrudentError when there is none or it is another command's."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise PrudentError(f"{folder} holds no {MANIFEST}: not a finished run; run the command again")
    with damage_named(str(path), "run the command again"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise TypeError(f"it holds {type(manifest).__name__}, expected an object")
    if command is not None and manifest.get("command") != command:
        raise PrudentError(f"{folder} was written by {manifest.get('command')!r}, expected {command!r}")
    return manifest
