"""TRL: ``GRPOTrainer(reward_funcs=[reward])`` against a running service, scored while other rewards are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prudent.serving.client import RewardClient


async def reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float]:
    """Rewards of completions; variance and standard deviation go to the trainer's log and completions table."""
    results = await RewardClient().ascore(prompts, completions)
    for name in ("variance", "standard_deviation"):
        values = [result[name] for result in results]
        if any(value is None for value in values):
            continue
        if log_extra is not None:
            log_extra(f"reward_model_{name}", values)
        if log_metric is not None:
            log_metric(f"reward_model/{name}", sum(values) / len(values))
    return [result["reward"] for result in results]
