"""The paths of models on a stand-in for a GPU (``tests.second_device``): nothing meets a tensor of another device."""

from __future__ import annotations

import pytest
import torch
from tests.second_device import CPU, CUDA, SecondDevice, moved, place
from tests.tiny import tiny_causal_lm

from prudent.features.depths import encode_depths
from prudent.features.encoder import Encoder
from prudent.features.sampling import sample

PROMPTS = ["Name a hat."] * 3 + ["Name a sea and say where it is."] * 2 + ["Hi", "Ho"]
RESPONSES = ["cap", "a beret", "none", "Red Sea", "The Black Sea lies there.", "Hello you", "x"]


@pytest.mark.parametrize(
    "meet",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here[there.long()],
        lambda here, there: torch.where(there > 0, here, here),
        lambda here, there: there.numpy(),
        lambda here, there: torch.rand(3, generator=torch.Generator(), device=CUDA),
        lambda here, there: there.index_put((torch.tensor([0]),), here[:1]),
    ],
)
def test_the_stand_in_refuses_what_a_gpu_would(second_device: SecondDevice, meet) -> None:
    here, there = torch.ones(3), torch.ones(3).to("cuda")
    with pytest.raises((RuntimeError, TypeError)):
        meet(here, there)


def test_the_stand_in_allows_what_a_gpu_would(second_device: SecondDevice) -> None:
    here, there = torch.arange(3), torch.ones(3, device="cuda:0")
    assert place(there[here]) == CUDA and place((there * torch.tensor(2.0)).sum()) == CUDA
    assert place(there.cpu()) == CPU and place(here.to(there)) == CUDA and here.device.type == "cpu"
    there[:2] = torch.zeros(2)
    assert there.tolist() == [0.0, 0.0, 1.0] and there.device == CUDA


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_those_of_the_processor(second_device: SecondDevice, side: str) -> None:
    options = {"pooling": "last+mean", "cache": None, "progress": False, "padding_side": side}
    wanted = Encoder(tiny_causal_lm(), **options).encode(PROMPTS, RESPONSES)
    model, tokenizer = tiny_causal_lm()
    encoder = Encoder((moved(model), tokenizer), **options)
    features = encoder.encode(PROMPTS, RESPONSES)
    assert place(features) == CPU and {"linear", "scaled_dot_product_attention"} <= second_device.seen
    torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)
    if side == "right":
        assert torch.equal(encode_depths(encoder, PROMPTS, RESPONSES, [1, 3])[1], features)


def test_samples_are_those_of_the_processor(second_device: SecondDevice) -> None:
    options = {"samples": 3, "max_new_tokens": 6, "seed": 1, "batch_size": 4, "progress": False}
    wanted = sample(*tiny_causal_lm(), PROMPTS, **options)
    model, tokenizer = tiny_causal_lm()
    assert sample(moved(model), tokenizer, PROMPTS, **options) == wanted
