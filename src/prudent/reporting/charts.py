"""Charts from plain rows or columns: one theme, stable colours, readable on a phone.

Every function takes ``data`` as a list of rows, a mapping of equally long columns or a data frame, and returns an
Altair chart (its width follows the page). A value that is null or not finite is left out of the drawing. Fields
are named by the caller; titles and axis titles are plain text. ``ends`` names the fields of an interval's two ends.
What frames a chart (titles, scales, formats, a reference line, height) are the options of ``style.Frame``, the same
for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from prudent.reporting import style
from prudent.reporting.distributions import calibration, histogram, ridges
from prudent.reporting.style import Frame, Rows, colour, colour_map, highlight, names_in, rows_of, shape, tips, values

__all__ = ["bars", "calibration", "colour_map", "dot_intervals", "histogram", "lines", "points", "ridges", "scatter"]
Ends = tuple[str, str]


def lines(
    data: Rows,
    x: str,
    y: str,
    *,
    ends: Ends | None = None,
    group: str | None = None,
    order: str | None = None,
    **frame: Any,
) -> Any:
    """Lines with points, one per ``group``, and an interval band where ``ends`` are named.

    order: field along which points are joined (default x). frame: of ``Frame``.
    """
    framed = Frame(**{"height": 320, **frame})
    rows = style.with_text(rows_of(data, x, y), group)
    names = names_in(rows, group)
    picked, opacity = highlight(group)
    hue, vertical, base = colour(group, names), framed.y(y), alt.Chart(values(rows))
    drawn = {
        "x": framed.x(x, whole=all(isinstance(row[x], int) for row in rows)),
        "y": vertical,
        "color": hue,
        "opacity": opacity,
    }
    layers = []
    if ends:
        # In each group's own colour; the legend is the line's, so that a click works on one set of symbols.
        faded = alt.value(0.14) if picked is None else alt.when(picked).then(alt.value(0.14)).otherwise(alt.value(0.0))
        band = {"y": alt.Y(f"{ends[0]}:Q", title=vertical["title"]), "y2": f"{ends[1]}:Q", "opacity": faded}
        layers.append(base.mark_area(interpolate="linear", strokeWidth=0).encode(**{**drawn, **band}))
    path: Any = alt.Order(f"{order}:Q") if order else alt.Undefined
    shown = tips(rows, group, x, y, *(ends or ()))
    dots = base.mark_point(size=60, filled=True).encode(**drawn, shape=shape(group, names), tooltip=shown)
    layers += [base.mark_line().encode(**drawn, order=path), style.clickable(dots, picked)]
    return framed.finished(layers, across=True)


def points(
    data: Rows,
    x: str,
    y: str,
    *,
    ends: Ends | None = None,
    group: str | None = None,
    tooltip: Sequence[str] = (),
    **frame: Any,
) -> Any:
    """Points with vertical error bars; several groups at the same x stand side by side when x is text."""
    framed = Frame(**{"height": 320, **frame})
    rows = rows_of(data, y)
    named = any(isinstance(row[x], str) for row in rows)
    rows = style.with_text(rows, group, x if named else None)
    names, sort, title = names_in(rows, group), names_in(rows, x), framed.x_title
    picked, opacity = highlight(group)
    vertical, base = framed.y(y), alt.Chart(values(rows))
    drawn: dict[str, Any] = {"x": framed.x(x), "y": vertical, "color": colour(group, names), "opacity": opacity}
    if named:
        flat = alt.Axis(labelAngle=0)
        drawn["x"] = alt.X(f"{x}:N", title=x if title is None else title, sort=sort, axis=flat)
    if named and group:
        drawn["xOffset"] = alt.XOffset(f"{group}:N", sort=names)
    layers = []
    if ends:
        low = alt.Y(f"{ends[0]}:Q", title=vertical["title"], scale=vertical["scale"])
        layers.append(base.mark_rule(strokeWidth=2).encode(**{**drawn, "y": low}, y2=f"{ends[1]}:Q"))
    shown = tips(rows, group, x, y, *(ends or ()), *tooltip)
    dots = base.mark_point(size=80, filled=True).encode(**drawn, shape=shape(group, names), tooltip=shown)
    return framed.finished([*layers, style.clickable(dots, picked)], across=True)


def dot_intervals(
    data: Rows, label: str, value: str, *, ends: Ends = ("low", "high"), group: str | None = None, **frame: Any
) -> Any:
    """A table as a chart: one line per label, its estimate as a dot and its interval as a bar (groups dodge)."""
    framed = Frame(**frame)
    rows = style.with_text(rows_of(data, value), label, group)
    labels, names = names_in(rows, label), names_in(rows, group)
    longest = max((len(name) for name in labels), default=1)
    room = 330 - min(176, 7 * longest + 6)  # the legend begins where the labels of the lines end
    known = all(style.is_known(name) for name in labels)  # methods keep their colours; other lines need none
    hue = colour(group, names, width=room) if group else colour(label if known else None, labels, legend=False)
    axis = alt.Axis(labelLimit=170, labelPadding=6, grid=False)
    drawn: dict[str, Any] = {"y": alt.Y(f"{label}:N", sort=labels, title=None, axis=axis), "color": hue}
    if group:
        drawn["yOffset"] = alt.YOffset(f"{group}:N", sort=names)
    horizontal, base = framed.x(value), alt.Chart(values(rows))
    low = alt.X(f"{ends[0]}:Q", title=horizontal["title"], scale=horizontal["scale"])
    bar = base.mark_rule(strokeWidth=3, opacity=0.55).encode(x=low, x2=f"{ends[1]}:Q", **drawn)
    form = shape(group, names, width=room) if group else alt.value("circle")
    shown = tips(rows, label, group, value, *ends)
    dot = base.mark_point(size=90, filled=True, opacity=1).encode(x=horizontal, shape=form, tooltip=shown, **drawn)
    per_label = 30 if not group else max(34, 15 * len(names) + 8)
    return framed.finished([bar, dot], height=max(80, per_label * len(labels) + (20 if longest else 0)))


def scatter(
    data: Rows,
    x: str,
    y: str,
    *,
    group: str | None = None,
    label: str | None = None,
    tooltip: Sequence[str] = (),
    diagonal: bool = False,
    **frame: Any,
) -> Any:
    """Points of x against y. label: field written beside each point. diagonal: draw y = x."""
    framed = Frame(**{"height": 340, **frame})
    logs = [field for field, scale in ((x, framed.x_scale), (y, framed.y_scale)) if scale == "log"]
    rows = style.with_text([row for row in rows_of(data, x, y) if all(row[field] > 0 for field in logs)], group)
    names = names_in(rows, group)
    picked, _ = highlight(group)
    solid = alt.value(0.9 if len(rows) < 120 else 0.45)
    opacity: Any = solid if picked is None else alt.when(picked).then(solid).otherwise(alt.value(0.06))
    both: dict[str, Any] = {"x": framed.x(x), "y": framed.y(y)}
    base = alt.Chart(values(rows))
    marks = {"color": colour(group, names), "shape": shape(group, names), "opacity": opacity}
    shown = tips(rows, label, group, x, y, *tooltip)
    dots = base.mark_point(filled=True, size=70 if len(rows) < 120 else 28).encode(**both, **marks, tooltip=shown)
    layers = [style.clickable(dots, picked)]
    if label:
        written = base.mark_text(align="left", dx=8, fontSize=12, color=style.MUTED)
        layers.append(written.encode(**both, text=f"{label}:N"))
    if diagonal and rows:
        ends = [row[key] for row in rows for key in (x, y)]
        line = alt.Chart(values([{x: end, y: end} for end in (min(ends), max(ends))]))
        line = line.mark_line(color=style.INK, strokeDash=[5, 4], strokeWidth=1.5)
        layers.append(line.encode(x=f"{x}:Q", y=f"{y}:Q"))
    return framed.finished(layers, across=True)


def bars(data: Rows, label: str, value: str, **frame: Any) -> Any:
    """Horizontal bars: labels stay readable on a phone."""
    framed = Frame(**{"x_zero": True, **frame})
    rows = style.with_text(rows_of(data, value), label)
    labels = names_in(rows, label)
    vertical = alt.Y(f"{label}:N", sort=labels, title=None, axis=alt.Axis(labelLimit=170, grid=False))
    drawn = {"x": framed.x(value), "y": vertical, "color": alt.value(style.PALETTE[0])}
    bar = alt.Chart(values(rows)).mark_bar(opacity=0.9).encode(**drawn, tooltip=tips(rows, label, value))
    return framed.finished([bar], height=max(80, 28 * len(labels) + 20))
