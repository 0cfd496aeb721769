"""Intervals on margins with a coverage that doesn't depend on the model being right (split conformal, by mapie).

A margin's interval is mean -+ q * sigma, with sigma the standard deviation over members and q the quantile of |target -
mean| / sigma on pairs kept aside for it. Exchangeable pairs are covered at the level asked for, on average over all of
them; a group of prompts may be covered more or less, so coverage is reported by group. Source: Lei et al. 2018 (JASA),
normalised residuals; Vovk et al. 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError


class _Column:
    """A fitted regressor, in scikit-learn's words, that gives one column of X: margins and standard
    deviations are known."""

    def __init__(self, column: int) -> None:
        self.column, self.is_fitted_, self.n_features_in_ = column, True, 2

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Column:
        """Nothing is learnt: the column is a prediction already."""
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The column (n,) of x (n, columns)."""
        return np.asarray(x)[:, self.column]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What scikit-learn clones the estimator by."""
        return {"column": self.column}


@dataclass(frozen=True)
class Coverage:
    """Share of targets inside their interval, overall and by group, with counts and the mean width."""

    share: float
    width: float
    pairs: int
    groups: dict[str, dict[str, float]]


class MarginIntervals:
    """Calibrated intervals. Make one with ``MarginIntervals.calibrate``."""

    def __init__(self, regressor: Any, level: float, pairs: int, sigma_floor: float) -> None:
        self._regressor, self.level, self.pairs, self._floor = regressor, level, pairs, sigma_floor

    @classmethod
    def calibrate(cls, mean: ArrayLike, sigma: ArrayLike, target: ArrayLike, level: float = 0.9) -> MarginIntervals:
        """From n pairs that no member was trained on: margin means and standard deviations over members, and the
        margins that a judge or the gold reward gives them ((n,) each). level: coverage wanted.

        Raises PrudentError for fewer pairs than the level needs (its quantile would be infinite).
        """
        try:
            from mapie.conformity_scores import ResidualNormalisedScore
            from mapie.regression import SplitConformalRegressor
        except ImportError as error:
            raise PrudentError("calibrated intervals need mapie; run: pip install 'prudent[conformal]'") from error
        if not 0 < level < 1:
            raise PrudentError(f"level must lie between 0 and 1, got {level}")
        wanted = as_tensor(target, torch.float64)
        require_finite(wanted, "target", ("pair",))
        floor = 1e-6 * max(float(as_tensor(sigma, torch.float64).mean()), 1e-12)
        x = _columns(mean, sigma, floor)
        needed = int(np.ceil(level / (1 - level) - 1e-9))  # below this the quantile is infinite
        if wanted.shape != (len(x),) or len(x) < needed:
            raise PrudentError(
                f"{len(x)} pairs and targets of shape {tuple(wanted.shape)}: coverage {level} needs at least {needed} "
                "pairs, each with a target"
            )
        score = ResidualNormalisedScore(residual_estimator=_Column(1), prefit=True, sym=True)
        regressor = SplitConformalRegressor(_Column(0), confidence_level=level, conformity_score=score, prefit=True)
        regressor.conformalize(x, wanted.numpy())
        return cls(regressor, level, len(x), floor)

    def interval(self, mean: ArrayLike, sigma: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper ends (n,) float64 for pairs' margin means and standard deviations (n,)."""
        _, bounds = self._regressor.predict_interval(_columns(mean, sigma, self._floor))
        return torch.from_numpy(bounds[:, 0, 0].copy()), torch.from_numpy(bounds[:, 1, 0].copy())

    def coverage(
        self, mean: ArrayLike, sigma: ArrayLike, target: ArrayLike, groups: Sequence[Any] | None = None
    ) -> Coverage:
        """Coverage on further pairs. groups (n,): names, such as a prompt's kind or source."""
        low, high = self.interval(mean, sigma)
        wanted = as_tensor(target, torch.float64)
        inside = ((wanted >= low) & (wanted <= high)).double()
        found: dict[str, dict[str, float]] = {}
        names = [str(name) for name in groups] if groups is not None else []
        if groups is not None and len(names) != len(wanted):
            raise PrudentError(f"{len(names)} groups for {len(wanted)} pairs; give one a pair")
        for name in dict.fromkeys(names):
            rows = torch.tensor([index for index, other in enumerate(names) if other == name])
            found[name] = {
                "share": float(inside[rows].mean()),
                "width": float((high - low)[rows].mean()),
                "pairs": len(rows),
            }
        return Coverage(float(inside.mean()), float((high - low).mean()), len(wanted), found)


def _columns(mean: ArrayLike, sigma: ArrayLike, floor: float) -> np.ndarray:
    """(n, 2): margins and their standard deviation, floored."""
    first, second = as_tensor(mean, torch.float64), as_tensor(sigma, torch.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise PrudentError(f"mean has shape {tuple(first.shape)}, sigma {tuple(second.shape)}; both must be (pairs,)")
    require_finite(first, "mean", ("pair",))
    require_finite(second, "sigma", ("pair",))
    if bool((second < 0).any()):
        raise PrudentError("sigma must not be negative; give standard deviations")
    return torch.stack([first, second.clamp_min(floor)], 1).numpy()
