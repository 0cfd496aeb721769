"""A report: sections of text, tables, charts and preference pairs, written as one offline HTML file.

Nothing in the file is loaded from elsewhere: the chart library, the descriptions of the charts, style and script are
all inside. Every text is escaped, so a response that holds ``<script>`` shows as text.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from prudent.files import cache_folder, clean_text, plain, write_copy
from prudent.runs import Run

TONES = ("good", "warn", "bad", "neutral")
VEGA_LITE = "6.4"
IMAGE_WIDTH = 720
LONGEST_SHOWN = 20_000  # characters of one text
_BOLD, _CODE = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"`([^`]+)`")
_PERCENT = re.compile(r"(?<=\d) %")
_SLUG = re.compile(r"[^a-z0-9]+")

Columns = Sequence[tuple[str, str | Callable[[Any], Any]]]


class Report:
    """Collects the parts of a report in order; ``write`` makes the files.

    title, subtitle: plain text. In paragraphs ``**strong**`` and `` `code` `` are marked up; all else shows as written.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.blocks: list[dict[str, Any]] = []
        self.contents: list[dict[str, str]] = []
        self.charts: dict[str, dict[str, Any]] = {}
        self.terms: dict[str, str] = {}
        self._anchors: set[str] = set()
        self._open: list[list[dict[str, Any]]] = [self.blocks]

    def _add(self, kind: str, **content: Any) -> Report:
        self._open[-1].append({"kind": kind, **content})
        return self

    def heading(self, text: str, level: int = 2) -> Report:
        """A heading; those of level 2 make the table of contents."""
        anchor = stem = _SLUG.sub("-", text.lower()).strip("-") or "section"
        while anchor in self._anchors:
            anchor = f"{stem}-{len(self._anchors)}"
        self._anchors.add(anchor)
        if level == 2:
            self.contents.append({"text": text, "anchor": anchor})
        return self._add("heading", text=text, level=level, anchor=anchor)

    def text(self, paragraph: str) -> Report:
        """Add a paragraph; ``**bold**`` and `code` are read as Markdown."""
        return self._add("text", text=paragraph)

    def bullets(self, items: Sequence[str]) -> Report:
        """Add a list of one-line items."""
        return self._add("bullets", items=list(items))

    def code(self, text: str) -> Report:
        """Text in a fixed-width box, as written."""
        return self._add("code", text=shortened(text))

    def verdict(self, text: str, tone: str = "neutral", title: str = "") -> Report:
        """The answer in words. tone: good, warn, bad or neutral; shown by a word and a mark, not by colour alone."""
        if tone not in TONES:
            raise ValueError(f"tone {tone!r} is unknown; choose one of {', '.join(TONES)}")
        return self._add("verdict", text=text, tone=tone, title=title)

    def cards(self, *cards: tuple[Any, ...]) -> Report:
        """A row of key numbers, each a label and a value, and optionally a note and a tone."""
        filled = [(*card, "", "")[:4] for card in cards]
        shown = [{"label": a, "value": cell(b), "note": note, "tone": tone} for a, b, note, tone in filled]
        return self._add("cards", cards=shown)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any] | Mapping[str, Any]],
        caption: str = "",
        emphasise: Sequence[int] = (),
    ) -> Report:
        """A table that scrolls sideways inside its own box. Numbers are rounded for reading; null shows as a dash.

        rows: sequences in the order of ``columns``, or mappings by column. emphasise: numbers of rows to set in bold.
        """
        listed = [[row.get(c) for c in columns] if isinstance(row, Mapping) else list(row) for row in rows]
        for number, row in enumerate(listed):
            if len(row) != len(columns):
                raise ValueError(f"table row {number} has {len(row)} cells for {len(columns)} columns")
        numeric = [_is_numeric([row[i] for row in listed]) for i in range(len(columns))]
        shown = [[cell(value) for value in row] for row in listed]
        return self._add(
            "table", columns=list(columns), rows=shown, numeric=numeric, caption=caption, emphasise=set(emphasise)
        )

    def records(self, records: Iterable[Any], columns: Columns, caption: str = "") -> Report:
        """A table of like records. columns: each heading with the key or attribute that stands under it, or a function
        of the record."""

        def value(record: Any, what: str | Callable[[Any], Any]) -> Any:
            if callable(what):
                return what(record)
            return record[what] if isinstance(record, Mapping) else getattr(record, what)

        rows = [[value(record, what) for _, what in columns] for record in records]
        return self.table([heading for heading, _ in columns], rows, caption)

    def chart(self, chart: Any, name: str, caption: str = "", narrow: Any = None) -> Report:
        """An Altair chart. name: unique, also the stem of its image files. caption: what to see in it. narrow: the
        same for a phone, where its views have widths of their own, which can't follow the page."""
        if name in self.charts:
            raise ValueError(f"chart name {name!r} is used twice in this report")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"chart name {name!r} must be made of letters, digits, '_', '.' and '-'")
        spec = plain(chart if isinstance(chart, Mapping) else chart.to_dict())
        self.charts[name] = spec
        inline = {key: value for key, value in spec.items() if key != "title"}
        title = spec.get("title", "")
        title = title.get("text", "") if isinstance(title, Mapping) else title
        specs = (
            {"": embed(inline)} if narrow is None else {"wide": embed(inline), "narrow": embed(plain(narrow.to_dict()))}
        )
        return self._add("chart", name=name, caption=caption, title=title, specs=specs)

    def pairs(self, pairs: Sequence[Mapping[str, Any]], names: tuple[str, str] = ("chosen", "rejected")) -> Report:
        """Preference pairs in full text: mappings with ``prompt``, ``chosen``, ``rejected`` (text or messages) and
        optionally ``note`` and ``facts`` (a mapping of labels to numbers). names: what stands above the two sides."""
        shown = []
        for pair in pairs:
            facts = {str(key): cell(value) for key, value in dict(pair.get("facts", {})).items()}
            sides = {side: turns(pair.get(side, "")) for side in ("prompt", "chosen", "rejected")}
            shown.append({**sides, "note": pair.get("note", ""), "facts": facts})
        return self._add("pairs", pairs=shown, names=names)

    def glossary(self, terms: Mapping[str, str], tips: Sequence[str] | None = None) -> Report:
        """Terms and their meaning, listed; those in ``tips`` (None: all) also as tooltips where a paragraph has one."""
        self.terms.update({term: terms[term] for term in (terms if tips is None else tips)})
        return self._add("glossary", terms=dict(terms))

    @contextlib.contextmanager
    def details(self, summary: str, opened: bool = False) -> Iterator[Report]:
        """What is added inside stands in a box that folds open on a click."""
        inner: list[dict[str, Any]] = []
        self._add("details", summary=summary, blocks=inner, opened=opened)
        self._open.append(inner)
        try:
            yield self
        finally:
            self._open.pop()

    def html(self) -> str:
        """The whole report as one HTML text."""
        templates = environment(Path(__file__).parent / "templates")
        templates.globals["mark"] = functools.partial(mark_up, terms=self.terms)
        page = templates.get_template("report.html.j2").render(
            title=self.title,
            subtitle=self.subtitle,
            blocks=self.blocks,
            contents=self.contents,
            style=Markup(_asset("colours.css") + _asset("report.css")),
            script=Markup(_asset("report.js")),
            library=Markup(chart_library() if self.charts else ""),
            has_charts=bool(self.charts),
        )
        return clean_text(page)

    def write(self, run: Run, name: str = "report.html", images: bool = True) -> Path:
        """Write the HTML file and, with ``images``, each chart as ``charts/NAME.svg`` and ``charts/NAME.png``."""
        path = run.write_text(name, self.html())
        if images:
            for chart, spec in self.charts.items():
                svg, png = chart_images(spec)
                run.write_text(f"charts/{chart}.svg", svg)
                run.path(f"charts/{chart}.png").write_bytes(png)
        return path


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a page, and how much more there is: browsers lay out a few
    megabytes of one paragraph for a minute. The run's files hold it whole."""
    more = len(text) - LONGEST_SHOWN
    return text if more <= 0 else f"{text[:LONGEST_SHOWN]} … ({more:,} more characters are not shown)"


def cell(value: Any) -> str:
    """A value as a reader wants it: numbers to three or four significant digits, null and non-finite as a dash."""
    value = plain(value)
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return shortened(", ".join(cell(item) for item in value))
    return shortened(str(value))


def number(value: float) -> str:
    """A number as the tables print it: three significant digits, large ones with separators."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}"
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 100
        else f"{value:.2f}"
        if size >= 10
        else f"{value:.3f}"
    )


def p_value(p: float | None) -> str:
    """A p value as the tables print it: three decimals, smaller ones as ``<0.001``, a dash for none."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _is_numeric(column: Sequence[Any]) -> bool:
    found = [plain(value) for value in column]
    kept = [value for value in found if value not in (None, "", "–")]
    texts = [value for value in kept if isinstance(value, str)]
    looks = all(re.match(r"^[\s+\-−–<>≤≥~±]*[\d.]", text) for text in texts)
    return bool(kept) and looks and not any(isinstance(value, list) for value in kept)


def turns(content: Any) -> list[dict[str, str]]:
    """Text or chat messages as a list of role and content."""
    if isinstance(content, str):
        return [{"role": "", "content": shortened(content)}]
    return [{"role": str(turn.get("role", "")), "content": shortened(str(turn.get("content", "")))} for turn in content]


def mark_up(text: Any, terms: Mapping[str, str] | None = None) -> Markup:
    """Escaped text with ``**strong**``, `` `code` `` and a tooltip at the first use of each glossary term."""
    out = str(escape(shortened(str(text))))
    held: list[str] = []

    def hold(html: str) -> str:
        held.append(html)
        return f"\x00{len(held) - 1}\x00"

    out = out.replace("\x00", "")
    out = _CODE.sub(lambda match: hold(f"<code>{match.group(1)}</code>"), out)
    for term, meaning in sorted((terms or {}).items(), key=lambda item: -len(item[0])):
        pattern = re.compile(rf"(?<![\w-]){re.escape(str(escape(term)))}(?![\w-])")
        found = pattern.search(out)
        if found:
            tip = hold(f'<abbr title="{escape(meaning)}">{found.group(0)}</abbr>')
            out = out[: found.start()] + tip + out[found.end() :]
    out = _BOLD.sub(r"<strong>\1</strong>", out)
    out = _PERCENT.sub("\u00a0%", out)  # a number and its sign stay on one line
    while "\x00" in out:
        out = re.sub("\x00(\\d+)\x00", lambda match: held[int(match.group(1))], out)
    return Markup(out)


def embed(value: Any) -> Markup:
    """JSON that is safe inside a script element: no ``<``, so no end tag and no comment can appear."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@functools.cache
def chart_library() -> str:
    """JavaScript of Vega, Vega-Lite and Vega-Embed with all they need, safe inside a script element.

    Bundling takes 2 seconds of the processor, so the bundle of these versions is kept in the cache folder.
    """
    import vl_convert

    kept = cache_folder() / "charts" / f"vega-lite-{VEGA_LITE}-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    safe = re.sub(r"</(script)", r"<\\/\1", bundle, flags=re.IGNORECASE)
    write_copy(kept, safe)
    return safe


def chart_images(spec: Mapping[str, Any], width: int = IMAGE_WIDTH) -> tuple[str, bytes]:
    """SVG text and PNG bytes (twice the resolution) of a chart description."""
    import vl_convert

    still = {**spec, "width": width} if spec.get("width") == "container" else dict(spec)
    svg = vl_convert.vegalite_to_svg(still, vl_version=VEGA_LITE)
    return svg, vl_convert.svg_to_png(svg, scale=2)


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder: every text is escaped, and a missing value is an error."""
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def form(template: Path, *, style: Path, script: Path, **values: Any) -> str:
    """HTML of a form that a person fills in: one offline page, its style (over the reports' colours) and
    script from files of ours inside."""
    page = environment(template.parent).get_template(template.name)
    inside = {
        "style": Markup(_asset("colours.css") + style.read_text(encoding="utf-8")),
        "script": Markup(script.read_text(encoding="utf-8")),
    }
    return clean_text(page.render(**values, **inside))
