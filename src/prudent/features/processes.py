"""The processes that ``accelerate launch`` (or torchrun) started, and which rows fall to each of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class Processes:
    """rank and size of the launched group; 0 and 1 where nothing was launched, or sharing isn't wanted."""

    def __init__(self, wanted: bool = True) -> None:
        self.rank, self.size = 0, 1
        self._state: Any = None
        if wanted and int(os.environ.get("WORLD_SIZE", "1")) > 1:
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

    def joined(self, values: torch.Tensor, rows: np.ndarray, count: int) -> torch.Tensor:
        """(K, count): columns of all processes put together, each process giving its own ``values`` (K, its rows)."""
        if self._state is None:
            return values
        from accelerate.utils import reduce

        whole = torch.zeros(len(values), count, dtype=values.dtype, device=self._state.device)
        whole[:, torch.from_numpy(rows).to(whole.device)] = values.to(whole.device)
        return reduce(whole, "sum").cpu()

    def share(self, prompts: Sequence[Any]) -> np.ndarray:
        """Row numbers that fall to this process: by the prompts' text, so that the answers to a prompt stay together
        wherever they stand, and evenly over many prompts."""
        if self.size == 1:
            return np.arange(len(prompts))
        return np.flatnonzero([number_of(prompt) % self.size == self.rank for prompt in prompts])


def number_of(prompt: Any) -> int:
    """A number that depends on a prompt's text alone, in every process the same (Python's own hash differs)."""
    text = prompt if isinstance(prompt, str) else repr(prompt)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
