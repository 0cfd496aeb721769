"""Prudent: reward models that know what they don't know, and policies that heed it."""

from prudent.lazy import attach

__version__ = "0.1.0"

__getattr__, __all__ = attach(
    "prudent",
    exports={
        "read_preferences": "prudent.data.preferences",
        "Encoder": "prudent.features.encoder",
        "HeadEnsemble": "prudent.rewards.heads",
        "RewardModel": "prudent.rewards.model",
        "moments": "prudent.rewards.uncertainty",
        "aggregate": "prudent.rewards.aggregation",
        "estimate_risk": "prudent.evaluation.risk_estimate",
        "Monitor": "prudent.policies.monitoring.monitor",
        "acquire": "prudent.acquisition.pick",
        "run_preflight": "prudent.commands.api",
        "PrudentError": "prudent.errors",
        "DataError": "prudent.errors",
    },
    rooms=(
        "data",
        "features",
        "rewards",
        "policies",
        "theory",
        "evaluation",
        "acquisition",
        "serving",
        "recommend",
        "reporting",
        "demo",
    ),
)
