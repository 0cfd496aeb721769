"""The theorems as running code: exact risks and confidence bounds."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.theory",
    exports={"risk": "prudent.theory.risks"},
    rooms=("risks", "bounds"),
)
