"""The processes that ``accelerate launch`` (or torchrun) started."""

from __future__ import annotations

import os
from typing import Any

import torch


class Processes:
    """rank and size of the launched group; 0 and 1 where nothing was launched."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.cuda.is_available())
            self.rank, self.size = self._state.process_index, self._state.num_processes

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def tell(self, value: Any) -> Any:
        """The first process's ``value``, in every process."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
