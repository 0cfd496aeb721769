"""Policies from scores and variance: exact over candidates, best of n, or by RL on a language model."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.policies",
    exports={
        "solve": "prudent.policies.finite",
        "log_solve": "prudent.policies.finite",
        "multiplier": "prudent.policies.finite",
        "ball": "prudent.policies.finite",
        "kl": "prudent.policies.finite",
        "value": "prudent.policies.finite",
        "objective": "prudent.policies.finite",
        "beta_for_kl": "prudent.policies.finite",
        "METHODS": "prudent.policies.objectives",
        "Estimate": "prudent.policies.estimates",
        "estimate": "prudent.policies.estimates",
        "method_beta_for_kl": "prudent.policies.objectives",
    },
    rooms=("finite", "estimates", "objectives", "spd", "best_of_n", "rl", "trl", "rlp"),
)
