"""slime: ``--custom-rm-path prudent.serving.adapters.slime.reward --reward-key score``, one sample or a group.

``--rm-type remote_rm --rm-url URL/score --reward-key reward`` needs no file of ours.
"""

from __future__ import annotations

from typing import Any

from prudent.serving.client import RewardClient


async def reward(args: Any, sample: Any, **kwargs: Any) -> dict[str, float] | list[dict[str, float]]:
    """A dictionary a sample: score, mean, variance, standard_deviation."""
    group = sample if isinstance(sample, list) else [sample]
    results = await RewardClient(getattr(args, "rm_url", None)).ascore(
        [one.prompt for one in group], [one.response for one in group]
    )
    found = [
        {
            "score": result["reward"],
            "mean": result["mean"],
            "variance": result["variance"] or 0.0,
            "standard_deviation": result["standard_deviation"] or 0.0,
        }
        for result in results
    ]
    return found if isinstance(sample, list) else found[0]
