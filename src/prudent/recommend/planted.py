"""A made-up world in which it is known which missing pairs are positives that no one saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prudent.errors import PrudentError
from prudent.recommend.interactions import Interactions
from prudent.recommend.metrics import tail_items
from prudent.recommend.splits import Data, Truth, catalogue_index, split, truth_of
from prudent.seeding import Seed, numpy_generator, spawn


@dataclass(frozen=True)
class World:
    """truth: (users, items) bool, who likes what. observed: positives that exposure let through. hidden: the rest."""

    truth: np.ndarray
    observed: Interactions
    hidden: Interactions
    tail: np.ndarray


def plant(
    users: int = 500,
    items: int = 300,
    *,
    rank: int = 8,
    density: float = 0.12,
    skew: float = 1.0,
    hidden_share: float = 0.3,
    percentile: float = 80.0,
    seed: Seed = 0,
) -> World:
    """Low-rank tastes, popularity-biased exposure: ``hidden_share`` of the positives of tail items are never seen.

    An affinity is the inner product of ``rank`` normal factors, scaled to standard deviation 1, plus ``skew`` times a
    normal item bias; the ``density`` share of pairs with the highest affinity are positives. Tail: items under
    ``percentile`` of popularity.
    """
    if not 0 < density < 1 or not 0 <= hidden_share < 1:
        raise PrudentError(f"density {density} must be in (0, 1) and hidden share {hidden_share} in [0, 1)")
    world_seed, exposure_seed = spawn(seed, 2)
    generator = numpy_generator(world_seed)
    taste, trait = generator.standard_normal((users, rank)), generator.standard_normal((items, rank))
    affinity = taste @ trait.T / np.sqrt(rank) + skew * generator.standard_normal(items)
    truth = affinity > np.quantile(affinity, 1 - density)
    tail, _ = tail_items(truth.sum(0), percentile=percentile)
    chance = numpy_generator(exposure_seed).random(truth.shape)
    hidden = truth & tail & (chance < hidden_share)
    user_names = [f"u{index:0{len(str(users))}d}" for index in range(users)]
    item_names = [f"i{index:0{len(str(items))}d}" for index in range(items)]

    def cells(mask: np.ndarray) -> Interactions:
        user, item = np.nonzero(mask)
        codes = (user.astype(np.int32), item.astype(np.int32))
        return Interactions(user_names, item_names, *codes, np.ones(len(user), dtype=bool), None)

    return World(truth, cells(truth & ~hidden), cells(hidden), tail)


def planted_data(
    world: World, seed: Seed = 0, *, valid: float = 0.1, test: float = 0.1
) -> tuple[Data, Truth, np.ndarray]:
    """The observed positives split at random, the hidden ones as a second truth, and which items of the catalogue are
    tail.
    """
    data = split(world.observed, "user", valid=valid, test=test, seed=seed)
    hidden = truth_of(data.users, data.items, data.train, world.hidden)
    kept = catalogue_index(data.items, world.observed.items)
    return data, hidden, world.tail[kept]
