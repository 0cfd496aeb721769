"""OpenRLHF: ``--reward.remote_url /path/to/this/file.py``; the service's URL in its place does as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prudent.serving.client import RewardClient


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Rewards of rendered conversations. queries: prompt and answer; prompts: rendered prompts of the same length."""
    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts)]
    results = RewardClient().score(prompts, answers)
    rewards = torch.tensor([result["reward"] for result in results])
    logs = {
        name: torch.tensor([float(result[name]) for result in results])
        for name in ("mean", "variance", "standard_deviation", "centred")
        if all(result[name] is not None for result in results)
    }
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
