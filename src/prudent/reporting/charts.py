"""Charts from plain rows or columns: one theme, stable colours, readable on a phone.

Every function takes ``data`` as a list of rows, a mapping of equally long columns or a data frame, and returns an
Altair chart (its width follows the page). A value that is null or not finite is left out of the drawing. Fields
are named by the caller; titles and axis titles are plain text. What frames a chart (titles, scales, formats, a
reference line, height) are the options of ``style.Frame``, the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from prudent.reporting.distributions import calibration, histogram, ridges
from prudent.reporting.style import (
    INK,
    MUTED,
    PALETTE,
    Frame,
    Rows,
    colour,
    colour_map,
    highlight,
    is_known,
    names_in,
    rows_of,
    shape,
    tips,
    values,
    with_text,
)

__all__ = ["bars", "calibration", "colour_map", "dot_intervals", "histogram", "lines", "points", "ridges", "scatter"]


def lines(
    data: Rows,
    x: str,
    y: str,
    *,
    low: str | None = None,
    high: str | None = None,
    group: str | None = None,
    order: str | None = None,
    **frame: Any,
) -> Any:
    """Lines with points, one per ``group``, and an interval band where ``low`` and ``high`` are named.

    order: field along which points are joined (default x). frame: of ``Frame``.
    """
    framed = Frame(**{"height": 320, **frame})
    rows = [row for row in rows_of(data) if row.get(y) is not None and row.get(x) is not None]
    rows = with_text(rows, group)
    names = names_in(rows, group)
    picked, opacity = highlight(group)
    horizontal, vertical = framed.x(x, whole=all(isinstance(row[x], int) for row in rows)), framed.y(y)
    hue = colour(group, names)
    tooltip = tips(rows, group, x, y, low, high)
    base = alt.Chart(values(rows))
    layers = []
    if low and high:
        # In each group's own colour; the legend is the line's, so that a click works on one set of symbols.
        faded = alt.value(0.14) if picked is None else alt.when(picked).then(alt.value(0.14)).otherwise(alt.value(0.0))
        band = base.mark_area(interpolate="linear", strokeWidth=0)
        layers.append(
            band.encode(
                x=horizontal, y=alt.Y(f"{low}:Q", title=vertical["title"]), y2=f"{high}:Q", color=hue, opacity=faded
            )
        )
    path: Any = alt.Order(f"{order}:Q") if order else alt.Undefined
    line = base.mark_line().encode(x=horizontal, y=vertical, color=hue, opacity=opacity, order=path)
    dots = base.mark_point(size=60, filled=True).encode(
        x=horizontal, y=vertical, color=hue, shape=shape(group, names), opacity=opacity, tooltip=tooltip
    )
    layers += [line, dots.add_params(picked) if picked is not None else dots]
    return framed.finished(layers, across=True)


def points(
    data: Rows,
    x: str,
    y: str,
    *,
    low: str | None = None,
    high: str | None = None,
    group: str | None = None,
    tooltip: Sequence[str] = (),
    **frame: Any,
) -> Any:
    """Points with vertical error bars; several groups at the same x stand side by side when x is text."""
    framed = Frame(**{"height": 320, **frame})
    rows = [row for row in rows_of(data) if row.get(y) is not None]
    named = any(isinstance(row[x], str) for row in rows)
    rows = with_text(rows, group, x if named else None)
    names = names_in(rows, group)
    sort = names_in(rows, x)
    horizontal: Any = (
        alt.X(f"{x}:N", title=x if framed.x_title is None else framed.x_title, sort=sort, axis=alt.Axis(labelAngle=0))
        if named
        else framed.x(x)
    )
    offset: dict[str, Any] = {"xOffset": alt.XOffset(f"{group}:N", sort=names)} if group and named else {}
    picked, opacity = highlight(group)
    vertical = framed.y(y)
    shown = tips(rows, group, x, y, low, high, *tooltip)
    base = alt.Chart(values(rows))
    layers = []
    if low and high:
        bar = base.mark_rule(strokeWidth=2)
        layers.append(
            bar.encode(
                x=horizontal,
                y=alt.Y(f"{low}:Q", title=vertical["title"], scale=vertical["scale"]),
                y2=f"{high}:Q",
                color=colour(group, names),
                opacity=opacity,
                **offset,
            )
        )
    dots = base.mark_point(size=80, filled=True).encode(
        x=horizontal,
        y=vertical,
        color=colour(group, names),
        shape=shape(group, names),
        opacity=opacity,
        tooltip=shown,
        **offset,
    )
    layers.append(dots.add_params(picked) if picked is not None else dots)
    return framed.finished(layers, across=True)


def dot_intervals(
    data: Rows, label: str, value: str, low: str, high: str, *, group: str | None = None, **frame: Any
) -> Any:
    """A table as a chart: one line per label, its estimate as a dot and its interval as a bar (groups dodge)."""
    framed = Frame(**frame)
    rows = [row for row in rows_of(data) if row.get(value) is not None]
    rows = with_text(rows, label, group)
    labels, names = names_in(rows, label), names_in(rows, group)
    longest = max((len(name) for name in labels), default=1)
    room = 330 - min(176, 7 * longest + 6)  # the legend begins where the labels of the lines end
    known = all(is_known(name) for name in labels)  # methods keep their colours; other lines need none
    hue = colour(group, names, width=room) if group else colour(label if known else None, labels, legend=False)
    vertical = alt.Y(f"{label}:N", sort=labels, title=None, axis=alt.Axis(labelLimit=170, labelPadding=6, grid=False))
    dodge: dict[str, Any] = {"yOffset": alt.YOffset(f"{group}:N", sort=names)} if group else {}
    horizontal = framed.x(value)
    base = alt.Chart(values(rows))
    bar = base.mark_rule(strokeWidth=3, opacity=0.55).encode(
        x=alt.X(f"{low}:Q", title=horizontal["title"], scale=horizontal["scale"]),
        x2=f"{high}:Q",
        y=vertical,
        color=hue,
        **dodge,
    )
    dot = base.mark_point(size=90, filled=True, opacity=1).encode(
        x=horizontal,
        y=vertical,
        color=hue,
        shape=shape(group, names, width=room) if group else alt.value("circle"),
        tooltip=tips(rows, label, group, value, low, high),
        **dodge,
    )
    layers = [bar, dot]
    per_label = 30 if not group else max(34, 15 * len(names) + 8)
    return framed.finished(layers, height=max(80, per_label * len(labels) + (20 if longest else 0)))


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
    rows = [row for row in rows_of(data) if row.get(x) is not None and row.get(y) is not None]
    if framed.x_scale == "log":
        rows = [row for row in rows if row[x] > 0]
    if framed.y_scale == "log":
        rows = [row for row in rows if row[y] > 0]
    rows = with_text(rows, group)
    names = names_in(rows, group)
    picked, _ = highlight(group)
    solid = 0.9 if len(rows) < 120 else 0.45
    opacity: Any = (
        alt.value(solid) if picked is None else alt.when(picked).then(alt.value(solid)).otherwise(alt.value(0.06))
    )
    horizontal, vertical = framed.x(x), framed.y(y)
    shown = tips(rows, label, group, x, y, *tooltip)
    base = alt.Chart(values(rows))
    dots = base.mark_point(filled=True, size=70 if len(rows) < 120 else 28).encode(
        x=horizontal, y=vertical, color=colour(group, names), shape=shape(group, names), opacity=opacity, tooltip=shown
    )
    layers = [dots.add_params(picked) if picked is not None else dots]
    if label:
        written = base.mark_text(align="left", dx=8, fontSize=12, color=MUTED)
        layers.append(written.encode(x=horizontal, y=vertical, text=f"{label}:N"))
    if diagonal and rows:
        ends = [row[key] for row in rows for key in (x, y)]
        line = alt.Chart(values([{x: end, y: end} for end in (min(ends), max(ends))]))
        layers.append(line.mark_line(color=INK, strokeDash=[5, 4], strokeWidth=1.5).encode(x=f"{x}:Q", y=f"{y}:Q"))
    return framed.finished(layers, across=True)


def bars(
    data: Rows,
    label: str,
    value: str,
    *,
    low: str | None = None,
    high: str | None = None,
    group: str | None = None,
    **frame: Any,
) -> Any:
    """Horizontal bars (labels stay readable on a phone), grouped side by side, with interval lines if named."""
    framed = Frame(**{"x_zero": True, **frame})
    rows = [row for row in rows_of(data) if row.get(value) is not None]
    rows = with_text(rows, label, group)
    labels, names = names_in(rows, label), names_in(rows, group)
    vertical = alt.Y(f"{label}:N", sort=labels, title=None, axis=alt.Axis(labelLimit=170, grid=False))
    dodge: dict[str, Any] = {"yOffset": alt.YOffset(f"{group}:N", sort=names)} if group else {}
    horizontal = framed.x(value)
    shown = tips(rows, label, group, value, low, high)
    hue = colour(group, names) if group else alt.value(PALETTE[0])
    base = alt.Chart(values(rows))
    layers = [base.mark_bar(opacity=0.9).encode(x=horizontal, y=vertical, color=hue, tooltip=shown, **dodge)]
    if low and high:
        rule = base.mark_rule(color=INK, strokeWidth=1.5)
        layers.append(rule.encode(x=alt.X(f"{low}:Q", title=horizontal["title"]), x2=f"{high}:Q", y=vertical, **dodge))
    per_label = 28 if not group else max(30, 13 * len(names) + 8)
    return framed.finished(layers, height=max(80, per_label * len(labels) + 20))
