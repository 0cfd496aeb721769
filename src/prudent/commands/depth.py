"""``--layer``: how many of a language model's blocks a command runs for features."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from prudent.commands.options import FEATURES, MANY, CommonOptions, option, said
from prudent.errors import PrudentError

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.features.encoder import Encoder
    from prudent.reporting.report import Report
    from prudent.rewards.depth import Depth

AUTO, ALL = "auto", "all"


def layer_of(text: str, chooses: bool = True) -> int | None:
    """Blocks that --layer names; None for all of them, and for auto, which is refused where nothing ``chooses``.
    PrudentError for another text."""
    if text == AUTO and not chooses:
        raise PrudentError("--layer auto isn't for this command; give a number (prudent fit --layer auto finds one)")
    if text in (AUTO, ALL):
        return None
    with contextlib.suppress(ValueError):
        if 0 < int(text) <= MANY:
            return int(text)
    raise PrudentError(f"--layer is {text!r}, must be a number of blocks from 1 to {MANY}, all or auto")


@dataclass(frozen=True, kw_only=True)
class DepthOptions(CommonOptions):
    """Options of a command that reads features, at a depth. chooses: whether it can choose one, with --layer auto."""

    chooses: ClassVar[bool] = True
    layer: Annotated[
        str,
        option(
            "Blocks of the language model to read features at: a number, all, or auto (by held-out log loss).",
            panel=FEATURES,
        ),
    ] = ALL

    @property
    def blocks(self) -> int | None:
        """Blocks that --layer names; None for all of them, and for auto."""
        return layer_of(self.layer, self.chooses)

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        return super().problems() + said(lambda: self.blocks)


def at_depth(encoder: Encoder, layer: str, data: Sequence[Dataset], seed: int) -> tuple[Encoder, Depth | None]:
    """The encoder, with --layer auto at a depth that is chosen on a part of these pairs, and what that rests on."""
    if layer != AUTO:
        return encoder, None
    from prudent.rewards.depth import choose_depth

    return choose_depth(encoder, data, seed)


def depth_section(report: Report, depth: dict[str, Any] | None) -> None:
    """What a chosen depth (``Depth.as_dict``) cost and bought, and what every depth gave; nothing for None."""
    if depth is None:
        return
    report.text(f"Depth: {depth['words']}.")
    if depth["table"]:
        caption = (
            f"Every depth on the {depth['pairs']} pairs that the choice was made on: heads that saw none of a prompt."
        )
        report.table(["layer", "log_loss", "accuracy"], depth["table"], caption)
