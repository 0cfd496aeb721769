"""Options of commands that encode texts: where the language models run, here or in Ray's workers, and what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from prudent.commands.options import MANY, CommonOptions, option

if TYPE_CHECKING:
    from prudent.features.ray import RayEngine

ENGINE = "Engine"  # panel
Split = Annotated[str | None, option("Split of a hub data set.")]


@dataclass(frozen=True, kw_only=True)
class EngineOptions(CommonOptions):
    """Options of a command that encodes texts: where the work is done."""

    engine: Annotated[
        Literal["local", "ray"], option("Language models run here, or in Ray's workers (extra ray).", panel=ENGINE)
    ] = "local"
    address: Annotated[str | None, option("Ray cluster, such as auto; by default Ray starts here.", panel=ENGINE)] = (
        None
    )
    concurrency: Annotated[
        int | None, option("Workers; by default one a GPU, or a core.", min=1, max=MANY, panel=ENGINE)
    ] = None
    num_gpus: Annotated[float | None, option("GPUs of a worker, as 1 or 0.5.", min=0, max=MANY, panel=ENGINE)] = None
    block_rows: Annotated[int, option("Texts that a worker takes at a time.", min=1, max=1_000_000, panel=ENGINE)] = (
        1024
    )

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        flags = ("--address", "--concurrency", "--num-gpus") if self.engine == "local" else ()
        return super().problems() + self.unusable(flags, "--engine local")

    def ray_engine(self) -> RayEngine | None:
        """Ray as these options ask for it, or None where models run here."""
        if self.engine == "local":
            return None
        from prudent.features.ray import RayEngine

        return RayEngine(self.address, self.concurrency, self.num_gpus, self.block_rows)
