"""Has the true value fallen since its peak? A sequential test on small probes of labels.

The null hypothesis is that the mean never falls from one probe to a later one. For every probe that might be the peak
a bettor starts with 1: he pairs each later label y with a label x of the peak or before that he hasn't used yet, and
bets that y - x is negative. Under the null no bet has a positive expectation, so his wealth exceeds 1 / a with
probability a at most (Ville's inequality), however long he plays; the alarm's level is shared among the peaks that
there can be. Source: Waudby-Smith and Ramdas, 2010.09686 (betting on bounded means).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prudent.errors import PrudentError

STAKES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # a sixth of the capital is played at each; a mixture needs no tuning


class TurnTest:
    """probes: the most there will be. false_alarm: the chance of an alarm in the whole run while the mean never falls.
    low, high: what a label can be, exact bounds."""

    def __init__(self, probes: int, false_alarm: float, low: float, high: float) -> None:
        if probes < 2 or not 0 < false_alarm < 1 or not -math.inf < low < high < math.inf:
            raise PrudentError(
                f"a sequential test needs at least 2 probes, a false-alarm rate between 0 and 1 and finite bounds of "
                f"the labels, got {probes}, {false_alarm} and {low} to {high}"
            )
        self.probes, self.low, self.high = probes, low, high
        self.limit = math.log((probes - 1) / false_alarm)
        self.labels: list[np.ndarray] = []
        self.peak: int | None = None

    def add(self, labels: Sequence[float]) -> bool:
        """One probe's labels (n,); True as soon as the alarm is raised, ``peak`` then is the probe it fell from."""
        values = np.asarray(labels, dtype=float)
        if not np.isfinite(values).all() or (values < self.low).any() or (values > self.high).any():
            raise PrudentError(f"a gold label lies outside {self.low} to {self.high}: give the range that holds all")
        if len(self.labels) == self.probes:
            raise PrudentError(f"more than the {self.probes} probes that the test's level is shared among")
        self.labels.append(values)
        evidence = self.evidence()
        if self.peak is None and max(evidence, default=0.0) >= self.limit:
            self.peak = int(np.argmax(evidence))
        return self.peak is not None

    def evidence(self) -> list[float]:
        """Log wealth, the highest reached, of the bettor on each probe but the last as the peak; alarm at ``limit``."""
        return [self._wealth(peak) for peak in range(len(self.labels) - 1)]

    def _wealth(self, peak: int) -> float:
        before = np.concatenate(self.labels[peak::-1])  # the peak's own labels first
        after = np.concatenate(self.labels[peak + 1 :])
        count = min(len(before), len(after))
        change = (after[:count] - before[:count]) / (self.high - self.low)  # in [-1, 1]
        capital = np.log1p(-np.outer(STAKES, change)).cumsum(1)
        return float(np.logaddexp.reduce(capital, axis=0).max(initial=0.0) - math.log(len(STAKES)))
