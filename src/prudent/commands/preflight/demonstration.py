"""``prudent preflight --demo``: a part of the embedded world, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prudent.commands.preflight.blind_rules import blind_gains
from prudent.commands.preflight.inputs import Inputs, Source
from prudent.commands.preflight.regimes import assumed_map, learned_map
from prudent.demo.world import World, draw_preferences, load_world, pool, preferences_dataset, side_places, split
from prudent.seeding import Seed, spawn

if TYPE_CHECKING:
    from prudent.data.pools import Pool

PROMPTS = 160  # of the embedded world, a balanced half: encoding their responses is most of the demo's time
LEARN_SHARE = 0.6
PAIRS, TEST_PAIRS = 400, 200
SLOPE = 4.0  # of the Bradley-Terry labels: preferences noisy enough that one reward model is not to be trusted
MAP_BETAS = (0.1, 0.3)
MAP_GRIDS = {  # pairs and slopes; on one side all is learnt from fewer and noisier pairs
    "balanced": ((100, 300, 1000), (2.0, 4.0, 8.0)),
    "restraint": ((100, 200, 400), (2.0, 4.0)),
    "demand": ((100, 200, 400), (2.0, 4.0)),
}
MAP_DRAWS = 40
UNEQUAL, NOISES = (0.0, 0.5, 1.0, 1.5, 2.0), (10.0, 40.0)


@dataclass(frozen=True)
class Demo:
    """The part of the world in use, and which of its prompts are for learning and which for the policies."""

    world: World
    train: torch.Tensor
    test: torch.Tensor


def demo_inputs(seed: int, prompts: int = PROMPTS) -> tuple[Inputs, Pool, Demo]:
    """Noisy preferences on part of the prompts, candidates with gold on the rest."""
    world = load_world(prompts)
    parts, learn, held = spawn(seed, 3)
    train, test = split(world, LEARN_SHARE, parts)
    source = Source(
        "embedded world",
        preferences_dataset(world, train, PAIRS, SLOPE, learn),
        preferences_dataset(world, test, TEST_PAIRS, SLOPE, held),
    )
    notes = [
        f"{len(world)} of the embedded prompts: {PAIRS} preference pairs on {len(train)} of them, drawn from gold by "
        f"Bradley-Terry with slope {SLOPE:g}; policies are solved on the candidates of the other {len(test)}",
        "no reward model sees gold or a prompt that policies are solved on",
    ]
    return Inputs([source], notes), pool(world.take(test)), Demo(world, train, test)


def demo_regimes(demo: Demo, features: torch.Tensor, seed: Seed, tick: Callable[[str], None]) -> dict[str, Any]:
    """Both maps of ``regimes``, the learned one for each side of the world, and what blind rules gain.

    features (P, C, d) of all responses of the demo's prompts.
    """
    learn, assume = spawn(seed, 2)
    gold = demo.world.gold

    learned = []
    for side, child in zip(MAP_GRIDS, spawn(learn, len(MAP_GRIDS)), strict=True):
        inside = side_places(demo.world, side)
        train, test = (places[torch.isin(places, inside)] for places in (demo.train, demo.test))
        counts, slopes = MAP_GRIDS[side]
        tick(f"{side} prompts")

        def choose(pairs: int, slope: float, seed: Seed, train: torch.Tensor = train) -> Any:
            return draw_preferences(gold, train, pairs, slope, seed)

        rows = learned_map(
            features,
            gold,
            choose,
            test,
            pairs=counts,
            slopes=slopes,
            betas=MAP_BETAS,
            draws=MAP_DRAWS,
            seed=child,
            tick=tick,
        )
        learned += [{"side": side, **row} for row in rows]
    tick("independent noise")
    assumed = assumed_map(
        gold[demo.test], inequalities=UNEQUAL, noises=NOISES, betas=(1.0, 3.0), draws=100, seed=assume
    )
    return {"learned": learned, "assumed": assumed, "blind": blind_gains(demo.world.take(demo.test))}
