"""The level between the proportional and the Bregman form: first-order identities."""

from __future__ import annotations

import torch

from prudent.policies.finite import kl, multiplier, solve, value
from prudent.theory.levels import tilt_gain, tilt_kl, tilts


def test_first_order_split() -> None:
    """Equations (30) to (33)."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.1
    reference /= reference.sum(-1, keepdim=True)
    truth = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    truth -= (reference * truth).sum(-1, keepdim=True)
    variance = torch.exp(torch.randn(3, 6, generator=generator, dtype=torch.float64))
    beta = 1e5
    parts = tilts(truth, reference, beta, variance)
    level = multiplier(truth, reference, beta, variance)[..., None].expand(variance.shape)
    policies = {
        "bregman": solve(truth, reference, beta, variance=variance, form="bregman"),
        "proportional": solve(truth, reference, beta, variance=variance),
        "link": solve(level, reference, beta, variance=variance),  # the level alone: blind to which response is better
    }
    for name, policy in policies.items():
        gain = value(policy, truth) - value(reference, truth)
        assert torch.allclose(gain, tilt_gain(getattr(parts, name), reference, truth), rtol=1e-3), name
        assert torch.allclose(kl(policy, reference), tilt_kl(getattr(parts, name), reference), rtol=1e-2), name
    precision = 1 / variance
    together = tilt_gain(precision, reference, truth)
    expected = together.square() / (beta * (reference * precision).sum(-1))
    assert torch.allclose(tilt_gain(parts.link, reference, truth), expected)
