"""Policies from scores and variance: exact over candidates, best of n, or by RL on a language model."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.policies",
    exports={"solve": "prudent.policies.finite", "ball": "prudent.policies.finite"},
    rooms=("finite", "best_of_n", "objectives", "rlhf", "trl_adapter", "rlp"),
)
