"""One run folder for all processes of a launched group: the first one writes it, the others compute along."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prudent.runs import Run

if TYPE_CHECKING:
    from prudent.features.processes import Processes


class Follower(Run):
    """The run as the other processes see it: its folder can be read, and nothing is written."""

    def write_text(self, name: str, text: str) -> Path:
        """Nothing: the first process writes."""
        return self.folder / name

    def write_table(self, name: str, columns: Mapping[str, Any]) -> Path:
        """Nothing: the first process writes."""
        return self.folder / name

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> Path:
        """Nothing: the first process writes."""
        return self.folder / name


@contextlib.contextmanager
def joined_run(
    processes: Processes, run: contextlib.AbstractContextManager[tuple[Run, bool]]
) -> Iterator[tuple[Run, bool]]:
    """A resumable run of several processes: the first one opens and finishes ``run``, the others follow it.

    The folder must be on storage that every process sees. An error ends its process, and the launcher ends the others.
    """
    if not processes.first:
        folder, resumes = processes.tell(None)
        yield Follower(Path(folder), "", {}, None), resumes
        processes.wait()
        return
    with run as (opened, resumes):
        processes.tell((str(opened.folder), resumes))
        yield opened, resumes
        processes.wait()
