"""More pairs than memory holds, and more processes than one: the same heads and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.launch import in_two_processes
from typer.testing import CliRunner

from prudent.data.preferences import read_preferences
from prudent.features import large
from prudent.features.encoder import Encoder
from prudent.rewards import coordinates, draws, heads, stored
from prudent.rewards.families import encode_pairs, fit_reward_model
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.model import RewardModel

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


def test_features_on_disk_give_the_heads_that_held_ones_give(pairs: Path, tiny_model, monkeypatch) -> None:
    data = read_preferences(pairs)
    encoder = Encoder(tiny_model, cache=None, progress=False, max_length=64)
    held = fit_reward_model(data, encoder=encoder, members=3, ridge=0.1).scorer
    monkeypatch.setattr(large, "HELD_BYTES", 0)
    monkeypatch.setattr(coordinates, "HELD_IN_MEMORY", 0)
    monkeypatch.setattr(draws, "HELD_IN_MEMORY", 0)
    monkeypatch.setattr(heads, "CHUNK_ROWS", 7)
    monkeypatch.setattr(draws, "CHUNK_ROWS", 7)
    monkeypatch.setattr(stored, "CHUNK_ROWS", 5)
    monkeypatch.setattr(coordinates, "CHUNK", 5 * encoder.width)
    chosen, _ = encode_pairs(encoder, data)
    assert isinstance(chosen, np.memmap)
    mapped = fit_reward_model(data, encoder=encoder, members=3, ridge=0.1).scorer
    assert held.info["identical_after_truncation"] == mapped.info["identical_after_truncation"] == 1
    torch.testing.assert_close(mapped.weights, held.weights, atol=1e-5, rtol=1e-4)


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


COMMANDS = """
import sys
from prudent.cli import app
folder, model = sys.argv[1:]
pairs = f"{folder}/pairs.jsonl"
options = ["--model", model, "--members", "3", "--dtype", "float32", "--ridge", "0.1"]
app(["fit", "--preferences", pairs, "--test", pairs, *options, "--out", f"{folder}/two"], standalone_mode=False)
scored = ["--data", f"{folder}/asked.jsonl", "--output", f"{folder}/two.jsonl"]
app(["score", "--model", f"{folder}/one", *scored], standalone_mode=False)
"""


def test_two_processes_fit_and_score_as_one(pairs: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from prudent.cli import app

    asked = [{"prompt": f"Say {word}.", "responses": [word, word * 2, f"{word} {i}"]} for i, word in enumerate(WORDS)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    fit = ["fit", "--preferences", str(pairs), "--model", str(tiny_folder), "--members", "3", "--dtype", "float32"]
    score = ["score", "--model", str(tmp_path / "one"), "--data", str(tmp_path / "asked.jsonl"), "--output"]
    for command in ([*fit, "--ridge", "0.1", "--out", str(tmp_path / "one")], [*score, str(tmp_path / "one.jsonl")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    in_two_processes("-c", COMMANDS, str(tmp_path), str(tiny_folder), PRUDENT_CACHE=str(tmp_path / "cache"))
    one, two = (RewardModel.load(tmp_path / name).scorer.weights for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
    alone, shared = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("one.jsonl", "two.jsonl")
    )
    assert [row["prompt"] for row in shared] == [row["prompt"] for row in alone]
    for left, right in zip(alone, shared):
        torch.testing.assert_close(torch.tensor(right["members"]), torch.tensor(left["members"]), atol=1e-4, rtol=1e-3)
