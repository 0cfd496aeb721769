"""The theorems as running code: exact risks, confidence bounds, promises from data, and where the method helps."""

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
    rooms=(
        "risks",
        "bounds",
        "covariances",
        "simulation",
        "regimes",
        "levels",
        "maps",
        "certificates",
        "embedded",
        "claims",
        "experiments",
    ),
)
