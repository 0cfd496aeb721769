"""One look for every chart: theme, colours that keep their meaning from chart to chart, and small helpers.

The palette is Okabe and Ito's (2008), which people with the common colour deficiencies can tell apart; marks also
differ in shape or dash, so that no chart relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from prudent.files import plain

INK, MUTED, GRID, PAPER = "#1f2933", "#52606d", "#e4e7eb", "#ffffff"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31", "#374151", "#9AA5B1")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")

# A method has one colour in all charts, whatever it is compared with.
METHOD_COLOURS: dict[str, str] = {
    "vanilla": "#D55E00",
    "mean": "#56B4E9",
    "proportional": "#0072B2",
    "bregman": "#009E73",
    "exact": "#CC79A7",
    "lcb": "#E69F00",
    "min": "#882255",
    "wco": "#882255",
    "uwo": "#7A5195",
    "entropic": "#8C6D31",
    "quantile": "#374151",
    "cvar": "#B5651D",
    "median": "#6B7A3A",
    "member": "#8B1E3F",
    "variance-only": "#7B8794",
    "permuted": "#B8A9C9",
    "reference": INK,
    "gold": "#B8860B",
    "proxy": "#0072B2",
}

_AXIS = {
    "labelColor": MUTED,
    "titleColor": INK,
    "labelFontSize": 13,
    "titleFontSize": 13,
    "titleFontWeight": 600,
    "gridColor": GRID,
    "domainColor": "#9aa5b1",
    "tickColor": "#9aa5b1",
    "labelLimit": 150,
}
THEME: dict[str, Any] = {
    "background": PAPER,
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None, "continuousHeight": 300},
    "axis": _AXIS,
    "axisX": {"titlePadding": 8, "tickCount": 6, "labelOverlap": True},
    # The title of the y axis lies flat above the axis: it is read without turning a phone and takes no width.
    "axisY": {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "end",
        "titleY": -10,
        "titleX": -28,
        "tickCount": 6,
    },
    "legend": {
        "orient": "bottom",
        "labelFontSize": 13,
        "titleFontSize": 13,
        "labelColor": INK,
        "titleColor": INK,
        "symbolSize": 110,
        "symbolStrokeWidth": 2.5,
        "symbolOpacity": 1,
        "labelLimit": 260,
        "rowPadding": 4,
        "columnPadding": 16,
    },
    "title": {"fontSize": 16, "anchor": "start", "color": INK, "fontWeight": 600, "offset": 18},
    "range": {"category": list(PALETTE), "heatmap": {"scheme": "blues"}},
    "line": {"strokeWidth": 2.5},
    "rule": {"strokeWidth": 2},
    "point": {"size": 70, "filled": True},
}

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Any


def rows_of(data: Rows, *fields: str) -> list[dict[str, Any]]:
    """Rows of ``data`` (a list of rows, a mapping of equally long columns, or a data frame) in which none of the fields
    is null. Non-finite becomes null."""
    if hasattr(data, "to_dict") and not isinstance(data, Mapping):
        data = data.to_dict(orient="list")
    if isinstance(data, Mapping):
        columns = {str(key): plain(values) for key, values in data.items()}
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"chart columns differ in length: { {key: len(v) for key, v in columns.items()} }")
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    else:
        rows = [{str(key): plain(value) for key, value in row.items()} for row in data]
    return [row for row in rows if all(row.get(field) is not None for field in fields)]


def with_text(rows: list[dict[str, Any]], *fields: str | None) -> list[dict[str, Any]]:
    """Rows whose named fields are text: scales of names compare by type, so 1 and "1" would be two names."""
    named = [field for field in fields if field]
    return [{**row, **{field: name_of(row[field]) for field in named}} for row in rows]


def name_of(value: Any) -> str:
    """Text of a category as a chart shows it."""
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def values(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Rows as Vega-Lite data, kept in the page itself."""
    return alt.InlineData(values=list(rows))


def names_in(rows: Iterable[Mapping[str, Any]], field: str | None) -> list[str]:
    """Distinct values of ``field`` as text, in order of first appearance."""
    return [] if field is None else list(dict.fromkeys(name_of(row[field]) for row in rows))


def colour_of(name: str, taken: Iterable[str] = ()) -> str:
    """Colour of a method; for ``lcb 0.5`` or ``proportional, beta 1`` that of the first known word."""
    for key in (name, name.lower(), *name.lower().replace(",", " ").replace("(", " ").replace(")", " ").split()):
        if key in METHOD_COLOURS:
            return METHOD_COLOURS[key]
    used = set(taken)
    return next((colour for colour in PALETTE if colour not in used), PALETTE[len(used) % len(PALETTE)])


def colour_map(names: Sequence[str]) -> dict[str, str]:
    """Colour of each name; known methods keep theirs, others get what is left of the palette, in order."""
    known = {name: colour_of(name) for name in names if is_known(name)}
    chosen: dict[str, str] = {}
    for name in names:
        chosen[name] = known.get(name) or colour_of(name, {*known.values(), *chosen.values()})
    return chosen


def is_known(name: str) -> bool:
    """Whether a name is a method's, which has one colour in all charts."""
    words = name.lower().replace(",", " ").replace("(", " ").replace(")", " ").split()
    return any(key in METHOD_COLOURS for key in (name, name.lower(), *words))


def legend_columns(names: Sequence[str], width: int = 330) -> int:
    """Columns of a legend that still fit a phone 390 px wide."""
    longest = max((len(name) for name in names), default=1)
    return max(1, min(4, len(names), int(width // (longest * 7.2 + 38))))


def colour(
    field: str | None, names: Sequence[str], title: str | None = None, legend: bool = True, width: int = 330
) -> Any:
    """Colour encoding of ``field`` (or one fixed colour when there is no grouping). width: room of the legend, px."""
    if field is None:
        return alt.value(PALETTE[0])
    chosen = colour_map(names)
    scale = alt.Scale(domain=list(names), range=[chosen[name] for name in names])
    drawn = alt.Legend(title=title, columns=legend_columns(names, width)) if legend and len(names) > 1 else None
    return alt.Color(f"{field}:N", scale=scale, legend=drawn, sort=list(names))


def shape(field: str | None, names: Sequence[str], legend: bool = True, width: int = 330) -> Any:
    """Shape encoding of ``field``, in the same legend as the colour."""
    if field is None or len(names) < 2:
        return alt.value("circle")
    scale = alt.Scale(domain=list(names), range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    drawn = alt.Legend(title=None, columns=legend_columns(names, width)) if legend else None
    return alt.Shape(f"{field}:N", scale=scale, legend=drawn, sort=list(names))


def quantitative(
    channel: Any, field: str, title: str | None, scale: str, zero: bool, domain: Any, form: str, whole: bool = False
) -> Any:
    """Axis of numbers: the channel of a field with its title, scale, zero and format; whole: marked at whole numbers
    alone."""
    options: dict[str, Any] = {"type": scale} if scale != "linear" else {"zero": zero}
    if domain is not None:
        options["domain"] = list(domain)
    more: dict[str, Any] = {"tickMinStep": 1} if whole else {}
    axis = alt.Axis(format=form, **more)
    return channel(f"{field}:Q", title=field if title is None else title, scale=alt.Scale(**options), axis=axis)


def reference_rule(at: float, horizontal: bool, label: str | None) -> list[Any]:
    """A dashed reference line with its label."""
    row: dict[str, Any] = {"at": at, "label": label or ""}
    channel: dict[str, Any] = {"y" if horizontal else "x": alt.Y("at:Q") if horizontal else alt.X("at:Q")}
    base = alt.Chart(values([row]))
    drawn = [base.mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.5).encode(**channel)]
    if label:
        if horizontal:
            text = base.mark_text(align="right", dy=-8, color=MUTED, fontSize=12)
            drawn.append(text.encode(text="label:N", x=alt.value("width"), **channel))
        else:
            text = base.mark_text(align="left", dx=6, color=MUTED, fontSize=12, baseline="bottom")
            drawn.append(text.encode(text="label:N", y=alt.value(-2), **channel))
    return drawn


def tips(rows: Sequence[Mapping[str, Any]], *fields: str | None) -> list[Any]:
    """Tooltip of the named fields (None is skipped), numbers to four digits."""
    chosen = [field for field in dict.fromkeys(fields) if field]
    texts = {field for field in chosen if any(isinstance(row.get(field), str) for row in rows)}
    return [
        alt.Tooltip(f"{field}:N") if field in texts else alt.Tooltip(f"{field}:Q", format=".4~g") for field in chosen
    ]


def highlight(group: str | None) -> tuple[Any, Any]:
    """A click on a legend entry brings its group to the front; a click beside it restores all."""
    if group is None:
        return None, alt.value(1.0)
    picked = alt.selection_point(fields=[group], bind="legend", name="picked")
    return picked, alt.when(picked).then(alt.value(1.0)).otherwise(alt.value(0.12))


def clickable(chart: Any, picked: Any) -> Any:
    """The chart with ``highlight``'s selection, where there is one."""
    return chart if picked is None else chart.add_params(picked)


def finish(chart: Any, title: str | None = None, height: int | None = None) -> Any:
    """The chart with theme, title, container width (or as it is where views stand side by side)."""
    properties: dict[str, Any] = {}
    if title:
        properties["title"] = title
    if isinstance(chart, alt.Chart | alt.LayerChart):
        properties["width"] = "container"
        properties["height"] = height or 300
    return chart.properties(**properties).configure(**THEME)


@dataclass(frozen=True)
class Frame:
    """What frames a chart of any kind: titles, axes (field names where no title is given), reference line, height.

    x_scale, y_scale: "linear" or "log". x_zero, y_zero: whether a linear axis begins at 0. reference: value of a dashed
    line, or value and label. height: in pixels.
    """

    title: str | None = None
    x_title: str | None = None
    y_title: str | None = None
    x_scale: str = "linear"
    y_scale: str = "linear"
    x_domain: Sequence[float] | None = None
    y_domain: Sequence[float] | None = None
    x_zero: bool = False
    y_zero: bool = False
    x_format: str = ".4~g"
    y_format: str = ".4~g"
    reference: float | tuple[float, str] | None = None
    height: int = 300

    def x(self, field: str, whole: bool = False) -> Any:
        """The horizontal axis of a field of numbers, marked at ``whole`` ones alone."""
        whole = whole and self.x_scale == "linear"
        return quantitative(alt.X, field, self.x_title, self.x_scale, self.x_zero, self.x_domain, self.x_format, whole)

    def y(self, field: str) -> Any:
        """The vertical axis of a field of numbers."""
        return quantitative(alt.Y, field, self.y_title, self.y_scale, self.y_zero, self.y_domain, self.y_format)

    def finished(self, layers: list[Any], *, across: bool = False, height: int | None = None) -> Any:
        """The layers and the reference line (``across``: horizontal) as one chart with theme and title."""
        if self.reference is not None:
            at, label = self.reference if isinstance(self.reference, tuple) else (self.reference, None)
            layers = [*layers, *reference_rule(at, across, label)]
        return finish(alt.layer(*layers), self.title, height or self.height)
