"""Blind rules on the embedded world: what each gains is computed from texts alone and is small beside gold."""

from __future__ import annotations

import torch
from benchmarks.embedded_world import blind_features, tilt_gain

from prudent.demo.world import load_world


def test_a_balanced_world_leaves_little_to_a_rule_that_never_reads_the_prompt() -> None:
    world = load_world(160)
    gold = float(tilt_gain(world.gold, world.gold).mean())
    features = blind_features(world)
    assert gold > 0.2 and {"words", "commas", "mean log-probability"} <= features.keys()
    for name, (_, _, values) in features.items():
        for sign in (-1, 1):
            assert float(tilt_gain(sign * values, world.gold).mean()) < 0.15 * gold, name


def test_a_tilt_gains_what_its_policy_is_worth() -> None:
    gold = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert (tilt_gain(gold, gold) > 0.4).all()  # half a nat from uniform over two is nearly all on one
    assert (tilt_gain(-gold, gold) < -0.4).all()
