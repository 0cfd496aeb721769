"""``prudent sample``: the pool that a reward function in TRL centres on, from the training prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prudent.cli import app
from prudent.data.pools import read_pool
from prudent.policies.reward_function import RewardFunction


class Lengths:
    """Two members that score a response by its length and by half of it, each with an offset of its own."""

    def score(self, prompts: list, responses: list) -> torch.Tensor:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in responses]
        length = torch.tensor([float(len(text)) for text in texts])
        return torch.stack([length + 100, length / 2 - 7])


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, ["sample", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "Say a.", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "Say b."}], "chosen": "b", "rejected": "c"},
        {"prompt": "Say a.", "chosen": "a", "rejected": "d"},
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_training_prompt_is_sampled_once_and_serves_as_reference(
    prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool.jsonl"
    options = (
        "--prompts",
        prompts,
        "--policy",
        tiny_folder,
        "--samples",
        3,
        "--max-new-tokens",
        5,
        "--dtype",
        "float32",
    )
    found = json.loads(run(*options, "--output", pool, "--json").stdout)
    assert (found["prompts"], found["samples"]) == (2, 3)
    assert [len(texts) for texts in read_pool(pool).responses] == [3, 3]
    run(*options, "--output", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == pool.read_bytes()
    assert "give --overwrite" in run(*options, "--output", pool, code=2).stderr
    reward = RewardFunction(Lengths(), "vanilla", reference=pool)
    logged: dict[str, float] = {}
    asked = ["Say a.", [{"role": "user", "content": "Say a."}], "Say b."]  # text and message are one prompt
    values = reward(asked, ["xx", "xxxx", "xxx"], log_metric=lambda name, value: logged.update({name: value}))
    members = [logged["reward_model/member_0"], logged["reward_model/member_1"]]
    assert logged["reward_model/mean"] == pytest.approx(sum(members) / 2)
    assert abs(members[0]) < 50 and values[1] - values[0] == pytest.approx(1.5)  # the offset of 100 is gone
