"""R13: the score is read at the text's last token, whatever the padding side and whatever else is in the batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.tiny import tiny_causal_lm

from prudent.errors import PrudentError
from prudent.features.encoder import Encoder
from prudent.features.pooling import last_position, pool

PAD = -5.0


@pytest.mark.parametrize(
    ("scores", "mask"), [([0.1, 0.2, 0.9, PAD, PAD], [1, 1, 1, 0, 0]), ([PAD, PAD, 0.1, 0.2, 0.9], [0, 0, 1, 1, 1])]
)
def test_the_last_attended_position_is_read(scores: list[float], mask: list[int]) -> None:
    states, mask_tensor = torch.tensor(scores).view(1, 5, 1), torch.tensor([mask])
    assert pool(states, mask_tensor, "last").item() == pytest.approx(0.9)
    assert pool(states, mask_tensor, "mean").item() == pytest.approx(0.4)


def test_a_mask_of_zeros_is_an_error_that_names_the_row() -> None:
    with pytest.raises(PrudentError, match="row 1"):
        last_position(torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("pooling", ["last", "mean", "last+mean"])
def test_features_depend_on_neither_batch_size_nor_padding_side_nor_order(pooling: str) -> None:
    model, tokenizer = tiny_causal_lm()
    lengths = (1, 40, 3, 17, 5, 9, 33, 2, 21, 12)
    responses = [" ".join(f"w{i}" for i in range(length)) for length in lengths]
    prompts = ["Say something."] * 4 + [f"Say {i}." for i in range(6)]
    found = {}
    for side, tokens in itertools.product(("right", "left"), (1, 150, 400, 100_000)):
        encoder = Encoder(
            (model, tokenizer), pooling=pooling, padding_side=side, batch_tokens=tokens, cache=None, progress=False
        )
        found[side, tokens] = encoder.encode(prompts, responses)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = encoder.encode([prompts[i] for i in order], [responses[i] for i in order])
    found["shuffled", 0] = shuffled[torch.tensor(order).argsort()]
    alone = torch.cat([encoder.encode([p], [r]) for p, r in zip(prompts, responses)])
    assert alone.std(0).min() > 0.01, "the texts must get different features"
    for key, features in found.items():
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=0, msg=f"{key}")
