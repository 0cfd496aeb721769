"""The theorems as running code: exact risks, confidence bounds and promises from data."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.theory",
    exports={
        "risk": "prudent.theory.risks",
        "misspecified_risk": "prudent.theory.risks",
        "improvement_bound": "prudent.theory.bounds",
        "LowRank": "prudent.theory.covariances",
        "certify": "prudent.theory.certificates",
    },
    rooms=("risks", "bounds", "covariances", "simulation", "levels", "certificates", "claims", "experiments"),
)
