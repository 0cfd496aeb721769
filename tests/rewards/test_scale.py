"""More pairs than memory holds: the same heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prudent.data.preferences import read_preferences
from prudent.features import large
from prudent.features.encoder import Encoder
from prudent.rewards import coordinates, draws, heads, stored
from prudent.rewards.families import encode_pairs, fit_reward_model
from prudent.rewards.heads import HeadEnsemble

WORDS = ["harbour", "lamp", "river", "answer", "quiet", "seven", "bread", "window", "clock", "red"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Thirty pairs on fifteen prompts; the last one's sides are the same once cut to 64 tokens."""
    random = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Say {WORDS[i // 2 % 10]} {i // 2}.",
            "chosen": " ".join(random.choice(WORDS, 4)),
            "rejected": " ".join(random.choice(WORDS, 3)) + " no",
        }
        for i in range(29)
    ]
    long = "the same words again and again and on they go "
    rows.append({"prompt": "End.", "chosen": long * 2 + "yes", "rejected": long * 2 + "no"})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(("cached", "kind"), [(False, np.memmap), (True, large.StoredRows)])
@pytest.mark.parametrize("family", ["heads", "laplace"])
def test_features_on_disk_give_what_held_ones_give(
    family: str, cached: bool, kind: type, pairs: Path, tiny_model: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_preferences(pairs)
    encoder = Encoder(tiny_model, cache=cached, progress=False, max_length=64)
    held = fit_reward_model(data, family, encoder=encoder, members=3, ridge=0.1).scorer
    monkeypatch.setattr(large, "HELD_BYTES", 0)
    monkeypatch.setattr(coordinates, "HELD_IN_MEMORY", 0)
    monkeypatch.setattr(draws, "HELD_IN_MEMORY", 0)
    monkeypatch.setattr(heads, "CHUNK_ROWS", 7)
    monkeypatch.setattr(draws, "CHUNK_ROWS", 7)
    monkeypatch.setattr(stored, "CHUNK_ROWS", 5)
    monkeypatch.setattr(coordinates, "CHUNK", 5 * encoder.width)
    chosen, _ = encode_pairs(encoder, data)
    assert isinstance(chosen, kind)
    mapped = fit_reward_model(data, family, encoder=encoder, members=3, ridge=0.1).scorer
    assert held.info["identical_after_truncation"] == mapped.info["identical_after_truncation"] == 1
    for name, tensor in held.state()[1].items():
        torch.testing.assert_close(mapped.state()[1][name], tensor, atol=1e-5, rtol=1e-3)


def test_a_copy_on_write_map_keeps_its_changes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    chosen, rejected = random.normal(size=(2, 40, 6)).astype(np.float32)
    np.save(tmp_path / "chosen.npy", chosen)
    changed = np.load(tmp_path / "chosen.npy", mmap_mode="c")
    changed[:20] += 1
    wanted = HeadEnsemble.fit(np.array(changed), rejected, members=2, ridge=0.1)
    found = HeadEnsemble.fit(changed, rejected, members=2, ridge=0.1)
    assert np.array_equal(changed[:20], chosen[:20] + 1)
    torch.testing.assert_close(found.weights, wanted.weights)
