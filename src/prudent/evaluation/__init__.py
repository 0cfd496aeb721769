"""How good a reward model or a policy is, with intervals. Metrics take arrays and load no model."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.evaluation",
    exports={
        "best_of_n": "prudent.evaluation.overoptimization.fits",
        "kl_best_of_n": "prudent.evaluation.overoptimization.fits",
        "fit_overoptimization": "prudent.evaluation.overoptimization.fits",
        "estimate_trained_risk": "prudent.evaluation.trained_risk",
        "rewardbench": "prudent.evaluation.benchmarks.reward_bench",
        "rewardbench2": "prudent.evaluation.benchmarks.reward_bench",
        "rewardmath": "prudent.evaluation.benchmarks.reward_math",
    },
    rooms=("statistics", "risk", "benchmarks", "overoptimization"),
)
