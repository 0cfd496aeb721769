"""Numbers as a person reads them, the same on every page and terminal."""

from __future__ import annotations


def interval(value: float | None, low: float | None = None, high: float | None = None, form: str = ".3f") -> str:
    """``0.812 [0.790, 0.833]``; the value alone where it has no interval, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def percent(share: float | None, digits: int | None = None) -> str:
    """A share in percent: 0 %, 0.5 %, 12 %; with so many digits where columns compare. None is "unknown"."""
    if share is None:
        return "unknown"
    value = 100 * share
    if digits is not None:
        return f"{value:.{digits}f} %"
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.0f} %" if value >= 10 or value == round(value) else f"{value:.1f} %"
