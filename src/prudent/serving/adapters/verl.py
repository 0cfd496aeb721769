"""veRL: ``reward.custom_reward_function.path=/path/to/this/file.py`` with ``name=compute_score``.

The prompt is the data set's: rows need ``extra_info.prompt`` (a text or messages). Every answer has the same keys, as
veRL's reward loop needs; with ``algorithm.adv_estimator=gdpo``, those named in ``algorithm.gdpo_reward_keys``, such as
``[reward_model_member_0, reward_model_member_1]``, are normalised apart.
"""

from __future__ import annotations

from typing import Any

from prudent.errors import PrudentError
from prudent.serving.client import RewardClient


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Reward of one solution, with mean, variance and standard deviation beside it (0 for a single member)."""
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise PrudentError(f"rows of {data_source!r} hold no extra_info.prompt; put each row's prompt there")
    if hasattr(prompt, "tolist"):  # messages out of a parquet file can be an array
        prompt = prompt.tolist()
    result = (await RewardClient().ascore([prompt], [solution_str]))[0]
    return {
        "score": result["reward"],
        "reward_model_mean": result["mean"],
        "reward_model_variance": result["variance"] or 0.0,
        "reward_model_standard_deviation": result["standard_deviation"] or 0.0,
        "reward_model_centred": float(result["centred"]),  # 0 where the service answered by --fallback's rule
        **{f"reward_model_member_{number}": score for number, score in enumerate(result["members"])},
    }
