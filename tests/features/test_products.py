"""Products with frozen weights: torch's own numbers, gradients left to torch, trained layers left alone."""

import copy

import pytest
import torch
from torch import nn

from prudent.features.cpu.products import FrozenLinear, product, quicken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (0, 12)])
def test_a_product_is_torchs(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator, dtype=dtype) for s in (shape, (5, 12), (5,)))
    for given in (None, bias):
        torch.testing.assert_close(product(x, weight, given), nn.functional.linear(x, weight, given))
    across = torch.randn(12, 5, generator=generator, dtype=dtype).t()
    torch.testing.assert_close(product(x, across), x @ across.t())


def test_frozen_layers_alone_are_quickened_and_gradients_still_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    model[0].requires_grad_(False)
    plain = copy.deepcopy(model)
    quicken(model)
    assert type(model[0]) is FrozenLinear and type(model[2]) is nn.Linear
    x = torch.randn(5, 6, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    for one, other in zip(*(torch.autograd.grad(m(x).sum(), (x, m[2].weight)) for m in (model, plain))):
        torch.testing.assert_close(one, other)
