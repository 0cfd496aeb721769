"""Numbers as a person reads them, the same on every page and terminal."""

from __future__ import annotations


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
