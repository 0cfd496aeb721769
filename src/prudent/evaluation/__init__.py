"""What a reward model or a policy is worth, and how sure that is. Metrics take arrays and load no model."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.evaluation",
    exports={
        "best_of_n": "prudent.evaluation.overoptimization",
        "kl_best_of_n": "prudent.evaluation.overoptimization",
        "fit_overoptimization": "prudent.evaluation.overoptimization",
        "rewardbench": "prudent.evaluation.reward_bench",
        "rewardbench2": "prudent.evaluation.reward_bench",
        "rewardmath": "prudent.evaluation.reward_math",
    },
    rooms=("statistics", "overoptimization", "reward_bench", "reward_math"),
)
