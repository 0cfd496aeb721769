"""At what depth a language model is read: chosen on a part of the pairs by held-out log loss, all depths in one pass.

Heads are cross-validated at each depth (prompts stay whole). Of the depths whose loss can't be told from the lowest
one's (within ERRORS standard errors of the difference, pair by pair, over prompts) the shallowest is taken: what it
saves is certain.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prudent.data.failing import by_pair
from prudent.data.preferences import data_hash, draw_pairs, pair_groups, training_columns
from prudent.errors import PrudentError, RowsError
from prudent.features.depths import blocks_of, depths_of, encode_depths, encoder_at, keep_features
from prudent.files import cache_folder, dumps, hash_text, write_copy
from prudent.rewards.accuracy import credit
from prudent.rewards.columns import pair_columns
from prudent.rewards.containers import PairFeatures, combine
from prudent.rewards.draws import held_out, standard_difference, standardisation, unit_members
from prudent.seeding import Seed

if TYPE_CHECKING:
    from datasets import Dataset

    from prudent.features.encoder import Encoder

FORMAT = "1"  # of kept choices: changes whenever the same pairs would get another
PAIRS = 128  # that the choice is made on
ERRORS = 1.0  # standard errors of a difference in log loss that don't count


class Held(NamedTuple):
    """Of pairs (n,) float64, by heads that saw no pair of their prompt: log loss and logit."""

    loss: torch.Tensor
    logit: torch.Tensor


def held_at(pairs: PairFeatures, seed: Seed) -> Held:
    """Each pair's held-out log loss at the ridge whose mean is lowest."""
    scale = standardisation(pairs.chosen, pairs.rejected)[1]
    difference = standard_difference(pairs.chosen, pairs.rejected, scale)
    found = held_out(difference, columns=pairs.columns, groups=pairs.groups, seed=seed)
    logit = found.logits(int(found.mean_loss.argmin()))
    return Held(found.columns.losses(logit), logit)


def difference_of(one: torch.Tensor, other: torch.Tensor, groups: Sequence[Any]) -> tuple[float, float]:
    """Mean of one - other (n,) and its standard error, the pairs of a prompt taken together."""
    values = one - other
    index, size = unit_members(groups, len(values))
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, index, values - values.mean())
    return float(values.mean()), float((sums.square().sum() * size / max(size - 1, 1)).sqrt()) / len(values)


def shallowest(losses: Sequence[torch.Tensor], groups: Sequence[Any], errors: float = ERRORS) -> int:
    """Index of the first of the losses (n,), shallow to deep, that can't be told from the lowest one's."""
    best = min(losses, key=lambda loss: float(loss.mean()))
    for index, loss in enumerate(losses):
        mean, error = difference_of(loss, best, groups)
        if mean <= errors * error:
            return index
    raise AssertionError("the lowest differs from itself")


@dataclass(frozen=True)
class Depth:
    """How deep a language model is read, and why. layer: blocks that are run, of ``blocks``. pairs: those that the
    choice was made on, read at all depths; 0 where, for ``reason``, none could be made. table: a row a depth, its
    held-out log loss (nats) and accuracy on them. difference, error: log loss there minus that of all blocks, and its
    standard error."""

    layer: int
    blocks: int
    pairs: int = 0
    table: Sequence[dict[str, Any]] = ()
    difference: float = 0.0
    error: float = 0.0
    reason: str = ""

    def share(self, texts: int) -> float:
        """Blocks run, over those of reading all ``texts`` at full depth; the choice's own reading is in it."""
        probe = min(2 * self.pairs, texts)
        return (probe + (texts - probe) * self.layer / self.blocks) / texts if texts else 1.0

    def at(self, layer: int) -> dict[str, Any]:
        """The row of a depth."""
        return next(row for row in self.table if row["layer"] == layer)

    def as_dict(self, texts: int) -> dict[str, Any]:
        """What a result holds: the fields, and what share of the encoding of so many texts it took."""
        return {**asdict(self), "encoding_share": self.share(texts), "words": self.words(texts)}

    def words(self, texts: int) -> str:
        """What the depth cost and bought, in a sentence without its full stop."""
        read = f"features are read at {self.layer} of {self.blocks} blocks"
        if self.reason:
            return f"{read}: no depth could be chosen ({self.reason})"
        here, whole = self.at(self.layer), self.at(self.blocks)
        return (
            f"{read}, chosen on {self.pairs} pairs: held-out log loss {here['log_loss']:.3f} there and "
            f"{whole['log_loss']:.3f} at all (difference {self.difference:+.3f}, standard error {self.error:.3f}), "
            f"accuracy {here['accuracy']:.3f} and {whole['accuracy']:.3f}; encoding took {self.share(texts):.0%} "
            "of what all blocks take, the choice included"
        )


def choose_depth(encoder: Encoder, data: Sequence[Dataset], seed: int = 0, pairs: int = PAIRS) -> tuple[Encoder, Depth]:
    """``encoder`` at the depth that heads on ``pairs`` of these preferences order held-out ones best at, or as well.

    They are read once, at all depths; what they gave at the chosen one goes into its cache, and the choice is kept
    beside it. Pairs that can't be rendered take no part. Where nothing can be chosen: the encoder as it is.
    """
    total = sum(map(len, data))
    drawn = [_renderable(encoder, draw_pairs(part, -(-pairs * len(part) // total), seed)) for part in data if len(part)]
    file = None
    if encoder.cache is not None:
        name = hash_text(FORMAT, encoder.fingerprint, str(seed), str(ERRORS), *map(data_hash, drawn))
        file = cache_folder() / "depths" / f"{name[:32]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            kept = Depth(**json.loads(file.read_text(encoding="utf-8")))
            return encoder_at(encoder, kept.layer), kept
    texts = (
        [text for part in drawn for text in [*part["prompt"]] * 2],
        [text for part in drawn for side in ("chosen", "rejected") for text in part[side]],
    )
    try:
        found, features = _choice(encoder, drawn, texts, seed)
    except (PrudentError, RowsError) as error:
        blocks = blocks_of(encoder)
        return encoder, Depth(blocks, blocks, reason=str(error))
    chosen = encoder_at(encoder, found.layer)
    keep_features(chosen, *texts, features)
    if file is not None:
        write_copy(file, dumps(asdict(found)))
    return chosen, found


def _choice(
    encoder: Encoder, data: Sequence[Dataset], texts: tuple[list[Any], list[Any]], seed: int
) -> tuple[Depth, torch.Tensor]:
    """The choice on all of these pairs, and the features (2 n, d) of their ``texts`` at that depth."""
    depths = depths_of(blocks_of(encoder))
    features = encode_depths(encoder, *texts, depths)
    sizes = [len(part) for part in data]
    groups = [pair_groups(part) for part in data]
    columns = [pair_columns(len(part), **training_columns(part)) for part in data]
    held = []
    for both in features:
        sides = both.split([size for size in sizes for _ in range(2)])
        pairs = combine([PairFeatures(*found) for found in zip(sides[::2], sides[1::2], groups, columns)])
        held.append(held_at(pairs, seed))
    names = [name for part in groups for name in part]
    index = shallowest([one.loss for one in held], names)
    table = [
        {"layer": depth, "log_loss": float(one.loss.mean()), "accuracy": float(credit(one.logit).mean())}
        for depth, one in zip(depths, held, strict=True)
    ]
    gap = difference_of(held[index].loss, held[-1].loss, names)
    return Depth(depths[index], depths[-1], len(names), table, *gap), features[index]


def _renderable(encoder: Encoder, data: Dataset) -> Dataset:
    try:
        with by_pair(len(data)):
            encoder.sizes(list(data["prompt"]) * 2, [*data["chosen"], *data["rejected"]])
    except RowsError as error:
        return data.select([row for row in range(len(data)) if row not in error.rows])
    return data
