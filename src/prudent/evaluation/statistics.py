"""Statistics on arrays, in one place; nothing here knows models or files.

``wilson``, ``proportion``, ``bootstrap``, ``bounded_mean`` (plain or by clusters), ``paired_bootstrap``,
``simultaneous_bootstrap``, ``mcnemar``, ``holm``, ``correlation``; ``calibration``, ``auroc``, ``risk_coverage``. See
``resampling`` for how a million values and a thousand rounds stay exact, fast and small.
"""

from prudent.evaluation.calibration import Calibration, RiskCoverage, auroc, calibration, risk_coverage
from prudent.evaluation.intervals import (
    Estimate,
    McNemar,
    Paired,
    bootstrap,
    bounded_mean,
    correlation,
    holm,
    mcnemar,
    paired_bootstrap,
    proportion,
    simultaneous_bootstrap,
    wilson,
)
from prudent.evaluation.resampling import resampled_means, resampled_sums

__all__ = [
    "Calibration",
    "Estimate",
    "McNemar",
    "Paired",
    "RiskCoverage",
    "auroc",
    "bootstrap",
    "bounded_mean",
    "calibration",
    "correlation",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "proportion",
    "resampled_means",
    "resampled_sums",
    "risk_coverage",
    "simultaneous_bootstrap",
    "wilson",
]
