"""The pieces of a policy's pass that are ours: tokens' log-probabilities and adapted layers, against the plain ones."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear

from prudent.features.cpu.lora import LeanLinear
from prudent.policies.rl import vocabulary
from prudent.policies.rl.vocabulary import log_probabilities


def gradient_of(value, *inputs):
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=value.dtype)
    return torch.autograd.grad((value * weights).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [1 << 20, 3 * 50, 1])
def test_tokens_log_probabilities_and_their_slope_whatever_goes_through_at_once(monkeypatch, at_once, bias):
    monkeypatch.setitem(vocabulary.AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=bias)
    hidden, targets = torch.randn(11, 8, requires_grad=True), torch.randint(0, 50, (11,))
    plain = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    trained = log_probabilities(hidden, targets, head)
    head.requires_grad_(False)
    frozen = log_probabilities(hidden, targets, head)
    for found in (trained, frozen):
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(gradient_of(found, hidden), gradient_of(plain, hidden))
    with torch.no_grad():
        assert torch.equal(log_probabilities(hidden, targets, head), frozen)


def test_a_sure_token_keeps_its_small_slope_in_bfloat16():
    head = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    head.requires_grad_(False)
    hidden = torch.tensor([[9.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = log_probabilities(hidden, torch.tensor([0]), head)
    (slope,) = torch.autograd.grad(value.sum(), hidden)
    expected = 1 / (1 + torch.exp(torch.tensor(9.0)))
    torch.testing.assert_close(slope.float(), torch.tensor([[expected, -expected]]), rtol=1e-2, atol=0)


def test_no_token_has_no_log_probability():
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    assert log_probabilities(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), head).shape == (0,)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_an_adapted_layer_and_its_gradients_are_pefts(dtype, tolerance):
    torch.manual_seed(1)
    base = torch.nn.Linear(12, 7).to(dtype).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=6)
    layers = [kind(base, "default", config=config, r=3, lora_alpha=6) for kind in (Linear, LeanLinear)]
    torch.nn.init.normal_(layers[0].lora_B["default"].weight)
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 5, 12, dtype=dtype, requires_grad=True)
    found = []
    for layer in layers:
        value = layer(x)
        found.append([value, *gradient_of(value, x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)])
    for theirs, ours in zip(*found, strict=True):
        assert theirs.dtype == ours.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance * float(theirs.abs().max()), rtol=0)
    layers[1].enable_adapters(False)
    assert torch.equal(layers[1](x), base(x))
