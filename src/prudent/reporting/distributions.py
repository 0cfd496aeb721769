"""Charts of distributions and calibration; ``prudent.reporting.charts`` offers them beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from prudent.reporting import style
from prudent.reporting.style import Frame, colour, names_in, tips, values


def histogram(data: Any, *, bins: int = 40, log_x: bool = False, **frame: Any) -> Any:
    """Histogram of values, or of several groups as overlaid outlines when ``data`` maps names to values.

    Bins are common to all groups; with groups the height is the share of each group, so that sizes compare.
    """
    framed = Frame(**{"x_title": "value", "y_title": "count", "height": 260, **frame})
    grouped = {str(k): _finite(v) for k, v in data.items()} if isinstance(data, Mapping) else {"": _finite(data)}
    pooled = np.concatenate(list(grouped.values())) if grouped else np.zeros(0)
    if log_x:
        grouped = {name: found[found > 0] for name, found in grouped.items()}
        pooled = pooled[pooled > 0]
    edges = _edges(pooled, bins, log_x)
    rows = []
    for name, found in grouped.items():
        counts, _ = np.histogram(found, edges)
        share = counts / max(1, counts.sum()) if len(grouped) > 1 else counts
        rows += [
            {"group": name, "from": float(a), "to": float(b), "height": float(h)}
            for a, b, h in zip(edges[:-1], edges[1:], share)
        ]
    names = list(grouped)
    scale = alt.Scale(type="log", nice=False) if log_x else alt.Scale(zero=False, nice=False)
    ticks = alt.Axis(format=".3~g", labelOverlap="greedy", tickCount=5) if log_x else alt.Axis(format=".4~g")
    horizontal = alt.X("from:Q", title=framed.x_title, scale=scale, axis=ticks)
    tall = alt.Y("height:Q", title=framed.y_title if len(names) < 2 else "share", axis=alt.Axis(format=".4~g"))
    tooltip = tips(rows, "from", "to", "height")
    base = alt.Chart(values(rows))
    if len(names) < 2:
        bar = base.mark_rect(color=style.PALETTE[0], opacity=0.85, stroke="white", strokeWidth=0.5)
        layers = [bar.encode(x=horizontal, x2="to:Q", y=tall, y2=alt.datum(0), tooltip=tooltip)]
    else:
        picked, opacity = style.highlight("group")
        outline = base.mark_line(interpolate="step-after", strokeWidth=2)
        drawn = {"x": horizontal, "y": tall, "color": colour("group", names), "opacity": opacity}
        layers = [outline.encode(**drawn, tooltip=tooltip).add_params(picked)]
    return framed.finished(layers)


def _finite(found: Any) -> np.ndarray:
    array = np.asarray(found.tolist() if hasattr(found, "tolist") else found, dtype=float).ravel()
    return array[np.isfinite(array)]


def _edges(pooled: np.ndarray, bins: int, log_x: bool = False) -> np.ndarray:
    if not len(pooled):
        return np.linspace(0.0, 1.0, bins + 1)
    low, high = float(pooled.min()), float(pooled.max())
    if low == high:
        low, high = (low * 0.9, high * 1.1) if log_x else (low - 0.5, high + 0.5)
    return np.geomspace(low, high, bins + 1) if log_x else np.linspace(low, high, bins + 1)


def ridges(data: Mapping[str, Any], *, bins: int = 48, row_height: int = 56, **frame: Any) -> Any:
    """One histogram per name, stacked on a common axis, with a tick at each mean and a reference line through all."""
    framed = Frame(**{"x_title": "value", **frame})
    grouped = {str(name): _finite(found) for name, found in data.items()}
    line = framed.reference[:1] if isinstance(framed.reference, tuple) else framed.reference
    edges = _edges(np.concatenate([*grouped.values(), *([] if line is None else [np.atleast_1d(line)])]), bins)
    names, rows, means = list(grouped), [], []
    for level, (name, found) in enumerate(grouped.items()):
        base_line = len(names) - 1 - level
        counts, _ = np.histogram(found, edges)
        top = max(1, counts.max(initial=0))
        for a, b, c in zip(edges[:-1], edges[1:], counts):
            if c:
                row = {"name": name, "from": float(a), "to": float(b), "draws": int(c), "floor": base_line}
                rows.append({**row, "top": base_line + 0.86 * float(c) / top})
        if len(found):
            means.append({"name": name, "mean": float(found.mean()), "floor": base_line, "top": base_line + 0.86})
    labels = ", ".join(f"'{name}'" for name in (n.replace("'", "’") for n in reversed(names)))
    bare: dict[str, Any] = dict.fromkeys(("ticks", "grid", "domain", "labelOverlap"), False)
    at: dict[str, Any] = {
        "values": [i + 0.3 for i in range(len(names))],
        "labelExpr": f"[{labels}][floor(datum.value)]",
    }
    axis = alt.Axis(**at, **bare, labelLimit=150, tickCount=len(names) + 1)
    scale = alt.Scale(domain=[0, max(1, len(names))], nice=False)
    horizontal = alt.X(
        "from:Q", title=framed.x_title, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(format=".4~g")
    )
    level_axis = alt.Y("floor:Q", axis=axis, scale=scale, title=None)
    hue = colour("name", names, legend=False)
    bar = alt.Chart(values(rows)).mark_rect(opacity=0.75, strokeWidth=0)
    tooltip = tips(rows, "name", "from", "to", "draws")
    layers = [
        bar.encode(x=horizontal, x2="to:Q", y=level_axis, y2="top:Q", color=hue, tooltip=tooltip),
        alt.Chart(values(means))
        .mark_rule(strokeWidth=2.5)
        .encode(x="mean:Q", y=level_axis, y2="top:Q", color=hue, tooltip=tips(means, "name", "mean")),
    ]
    return framed.finished(layers, height=row_height * max(1, len(names)) + 10)


def calibration(
    data: style.Rows,
    predicted: str = "predicted",
    observed: str = "observed",
    *,
    ends: tuple[str, str] | None = None,
    group: str | None = None,
    **frame: Any,
) -> Any:
    """Calibration curve: observed share against predicted probability, with the diagonal of perfect calibration."""
    framed = Frame(**{"x_title": "predicted probability", "y_title": "observed share", "height": 340, **frame})
    rows = style.with_text(style.rows_of(data, predicted, observed), group)
    names, unit = names_in(rows, group), alt.Scale(domain=[0, 1])
    both: dict[str, Any] = {
        "x": alt.X(f"{predicted}:Q", title=framed.x_title, scale=unit),
        "y": alt.Y(f"{observed}:Q", title=framed.y_title, scale=unit),
    }
    corners = alt.Chart(values([{predicted: 0, observed: 0}, {predicted: 1, observed: 1}]))
    layers = [corners.mark_line(color=style.MUTED, strokeDash=[5, 4], strokeWidth=1.5).encode(**both)]
    base, hue = alt.Chart(values(rows)), colour(group, names)
    if ends:
        low = alt.Y(f"{ends[0]}:Q", title=framed.y_title)
        layers.append(base.mark_rule(opacity=0.6).encode(x=both["x"], y=low, y2=f"{ends[1]}:Q", color=hue))
    shown = tips(rows, group, predicted, observed, *(ends or ()))
    dots = base.mark_point(filled=True, size=70)
    layers.append(base.mark_line().encode(**both, color=hue))
    layers.append(dots.encode(**both, color=hue, shape=style.shape(group, names), tooltip=shown))
    return framed.finished(layers)
