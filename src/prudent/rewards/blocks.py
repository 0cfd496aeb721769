"""Scoring by Ray's workers, each with a reward model of its own (``features.ray``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prudent.errors import RowsError
from prudent.features.blocks import Result, packed, texts_folder, use_block, write_texts
from prudent.features.large import together
from prudent.features.ray import RayEngine, everywhere
from prudent.files import cache_folder
from prudent.progress import meter
from prudent.rewards.model import RewardModel

if TYPE_CHECKING:
    import pyarrow as pa


class ScoreBlocks:
    """Scores blocks (``features.blocks``): (n, K) of n texts. options: of ``RewardModel.load``."""

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        self.model = RewardModel.load(source, **options)
        self.model.check()

    def __call__(self, block: pa.Table) -> pa.Table:
        lines, scores, bad, done = use_block(block, lambda *texts: self.model.score(*texts).T.contiguous().numpy())
        return packed(Result(lines, scores, bad, done, {}, ""))


def score_texts(
    engine: RayEngine, source: str, prompts: Sequence[Any], responses: Sequence[Any], **options: Any
) -> torch.Tensor:
    """Scores (K, N) float32 of N responses by ``RewardModel.load(source, **options)`` in each worker. RowsError names
    every text that can't be scored."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    bad: dict[int, str] = {}
    with texts_folder(cache_folder()) as folder, meter("scoring", len(prompts)) as advance:
        reads = write_texts(folder, prompts, responses, together(prompts), engine.rows)
        for result in engine.map(reads, ScoreBlocks, (everywhere(source), options)):
            parts += [(result.lines, result.values)] if len(result.lines) else []
            bad |= {row.line: row.detail for _, row in result.bad}
            advance(result.done)
    if bad:
        raise RowsError(dict(sorted(bad.items())))
    scores = torch.empty(parts[0][1].shape[1], len(prompts))
    for lines, values in parts:
        scores[:, torch.from_numpy(lines.copy())] = torch.from_numpy(values.T.copy())
    return scores
