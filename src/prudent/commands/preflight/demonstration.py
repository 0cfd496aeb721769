"""``prudent preflight --demo``: a part of the embedded world, whose truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prudent.commands.preflight.inputs import Inputs, Source
from prudent.demo.world import load_world, pool, preferences_dataset, split
from prudent.seeding import spawn

if TYPE_CHECKING:
    from prudent.data.pools import Pool

PROMPTS = 160  # of the embedded world, a balanced half: encoding their responses is most of the demo's time
LEARN_SHARE = 0.6
PAIRS, TEST_PAIRS = 400, 200
SLOPE = 4.0  # of the Bradley-Terry labels: preferences noisy enough that one reward model is not to be trusted


def demo_inputs(seed: int, prompts: int = PROMPTS) -> tuple[Inputs, Pool]:
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
    return Inputs([source], notes), pool(world.take(test))
