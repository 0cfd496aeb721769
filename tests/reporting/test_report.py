"""The report is one offline file, escapes what others wrote, and draws its charts in a browser."""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest

from prudent.reporting import charts, style
from prudent.reporting.report import VEGA_LITE, Report, cell, embed, mark_up, p_value
from prudent.runs import new_run

EVIL = "<script>document.title='owned'</script> & </script><!-- \ud83d"


def every_chart() -> dict:
    rows = [
        {"beta": b, "risk": 0.3 / b + 0.01 * i, "low": 0.2 / b, "high": 0.4 / b, "method": m}
        for i, m in enumerate(("vanilla", "proportional", "bregman"))
        for b in (1, 3, 10)
    ]
    random = np.random.default_rng(0)
    draws = {"vanilla": random.normal(0, 1, 200), "proportional": random.normal(0.3, 0.5, 200)}
    curve = [{"predicted": p, "observed": p * p, "low": p * p - 0.05, "high": p * p + 0.05} for p in (0.1, 0.5, 0.9)]
    interval = {"ends": ("low", "high")}
    return {
        "lines": charts.lines(
            rows, "beta", "risk", group="method", x_scale="log", reference=(0.05, "5 %"), title="Risk", **interval
        ),
        "points": charts.points(rows, "method", "risk", group="beta", **interval),
        "points-number": charts.points(rows, "beta", "risk", group="method", reference=0.0, **interval),
        "dots": charts.dot_intervals(rows[:3], "beta", "risk", reference=(0.1, "here"), **interval),
        "dots-grouped": charts.dot_intervals(rows, "beta", "risk", group="method", **interval),
        "histogram": charts.histogram(draws["vanilla"], reference=(0.0, "reference")),
        "histogram-log": charts.histogram(np.exp(draws["vanilla"]), log_x=True),
        "histograms": charts.histogram(draws),
        "ridges": charts.ridges(draws, reference=(0.0, "reference policy")),
        "scatter": charts.scatter(rows, "beta", "risk", group="method", label="method", diagonal=True),
        "bars": charts.bars(rows[:2], "method", "risk"),
        "calibration": charts.calibration(curve, **interval),
    }


def full_report() -> Report:
    report = Report("A report", "made of <everything>")
    report.heading("Verdict").verdict("**Risky** at `beta` 1.\n\nSee below.", "bad", title="Not safe")
    report.cards(("risk", 0.123456, "of 200", "bad"), ("n", 12345))
    report.heading("Verdict").text(EVIL).bullets(["one", EVIL]).code(EVIL)
    report.table(["name", "value"], [["a", 1.23456], {"name": EVIL, "value": None}], caption=EVIL, emphasise=[0])
    report.heading("Pairs").pairs(
        [
            {
                "prompt": EVIL,
                "chosen": [{"role": "assistant", "content": EVIL}],
                "rejected": "b",
                "facts": {"margin": 0.5},
            }
        ]
    )
    report.heading("Charts")
    drawn = every_chart()
    for name in list(drawn)[:-1]:
        report.chart(drawn[name], name, caption=f"chart {name}")
    with report.details("More"):
        report.chart(drawn["calibration"], "calibration").glossary({"beta": "weight of the KL term"})
    return report


def test_texts_of_others_show_as_text() -> None:
    page = full_report().html()
    assert page.count("<script>") == 2  # the library and ours; none from a text
    assert "document.title=&#39;owned&#39;" in page
    assert page.count("</script>") == 2 + len(every_chart())
    page.encode("utf-8")


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = full_report().html()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:)?//""", own)
    assert not re.search(r"@import|url\(", own)
    assert "default-src 'none'" in own
    assert page.count("vegaEmbed=") + page.count("vegaEmbed =") >= 1


def test_library_is_inlined_once_and_left_out_without_charts() -> None:
    plain = Report("Only words").text("hello").html()
    assert len(plain) < 20_000
    assert len(full_report().html()) < 1_300_000


def test_written_files(tmp_path: Path) -> None:
    report = Report("Small").chart(every_chart()["bars"], "risk-by-method")
    with new_run(tmp_path / "out", "test", {}) as run:
        report.write(run)
    out = tmp_path / "out"
    assert (out / "charts/risk-by-method.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "charts/risk-by-method.svg").read_text().startswith("<svg")
    assert "charts/risk-by-method.svg" in json.loads((out / "manifest.json").read_text())["files"]


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1200, 390])
def test_charts_are_drawn_in_a_browser(tmp_path: Path, chromium: str, width: int) -> None:
    page = tmp_path / "report.html"
    html = full_report().html()
    probe = (
        "<script>setTimeout(()=>{document.body.dataset.overflow="
        "document.documentElement.scrollWidth-document.documentElement.clientWidth},30000)</script>"
    )
    before, end, after = html.rpartition("</body>")
    page.write_text(before + probe + end + after, encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={max(width, 500)},900",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=60000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    dom = done.stdout
    assert dom.count('data-state="drawn"') >= len(every_chart()) - 1  # one is folded away
    assert 'data-state="failed"' not in dom
    assert dom.count('class="marks"') >= len(every_chart()) - 1
    assert "mark-rect" in dom and "mark-line" in dom and "mark-symbol" in dom
    assert "<title>A report</title>" in dom
    assert 'data-overflow="0"' in dom  # nothing makes the page scroll sideways


def test_numbers_are_rounded_and_null_is_a_dash() -> None:
    assert [cell(v) for v in (None, float("nan"), 0.0, 0.05123, 12.345, 1234.5, 3e-7, True, 20000, [1, 0.5])] == [
        "–",
        "–",
        "0",
        "0.051",
        "12.35",
        "1,234",
        "3.00e-07",
        "yes",
        "20,000",
        "1, 0.500",
    ]


def test_embedded_json_holds_no_markup() -> None:
    text = str(embed({"a": EVIL.replace("\ud83d", "")}))
    assert "<" not in text and ">" not in text
    assert json.loads(text)["a"].startswith("<script>")


def test_mark_up_escapes_first() -> None:
    html = str(mark_up("**a<b** and `x<y` and KL, KL", {"KL": 'a "divergence"'}))
    assert html.startswith("<strong>a&lt;b</strong> and <code>x&lt;y</code>")
    assert html.count("<abbr") == 1 and "&#34;divergence&#34;" in html


def test_misuse_is_named() -> None:
    report = Report("x").chart(every_chart()["bars"], "one")
    for bad, words in (
        (lambda: report.chart(every_chart()["bars"], "one"), "used twice"),
        (lambda: report.chart(every_chart()["bars"], "../one"), "must be made of"),
        (lambda: report.verdict("x", "green"), "tone"),
        (lambda: report.table(["a"], [[1, 2]]), "cells"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()


def test_methods_keep_their_colour_whatever_they_stand_beside() -> None:
    alone = style.colour_map(["proportional"])
    among = style.colour_map(["something", "lcb", "proportional", "vanilla (mean)"])
    assert alone["proportional"] == among["proportional"] == style.METHOD_COLOURS["proportional"]
    assert among["vanilla (mean)"] == style.METHOD_COLOURS["vanilla"]
    assert len(set(among.values())) == 4


def test_chart_data_may_be_columns_frames_or_rows_and_holds_no_nan() -> None:
    import pandas as pd

    columns = {"a": np.array([1.0, math.nan]), "b": ["x", "y"]}
    expected = [{"a": 1.0, "b": "x"}, {"a": None, "b": "y"}]
    assert style.rows_of(columns) == style.rows_of(pd.DataFrame(columns)) == expected
    with pytest.raises(ValueError, match="differ in length"):
        style.rows_of({"a": [1], "b": [1, 2]})
    assert "NaN" not in json.dumps(charts.scatter(columns, "a", "b").to_dict())


def test_empty_data_still_make_a_chart() -> None:
    for chart in (
        charts.histogram([]),
        charts.ridges({"a": []}),
        charts.bars([], "a", "b"),
        charts.lines([], "x", "y"),
    ):
        assert chart.to_dict()["height"] > 0


def test_every_ridge_is_named() -> None:
    import vl_convert

    names = [f"method {i}" for i in range(9)]
    spec = charts.ridges({name: [1.0, 2.0, 3.0] for name in names}).to_dict()
    svg = vl_convert.vegalite_to_svg({**spec, "width": 300}, vl_version=VEGA_LITE)
    assert all(f">{name}<" in svg for name in names)


def test_p_values_never_read_as_nothing() -> None:
    assert [p_value(p) for p in (None, 1e-9, 0.0104, 1.0)] == ["–", "<0.001", "0.010", "1.000"]


@pytest.mark.chromium
def test_a_page_of_five_megabytes_opens_in_time(tmp_path: Path, chromium: str) -> None:
    report, text = Report("Much text"), "the cat sat on the mat. "
    report.pairs([{"prompt": "p", "chosen": text * 100_000, "rejected": "x" * 2_400_000}])
    assert len(report.html()) < 100_000 and "2,380,000 more characters are not shown" in report.html()
    report.pairs([{"prompt": str(i), "chosen": text * 210, "rejected": text * 208} for i in range(500)])
    page = tmp_path / "report.html"
    page.write_text(report.html(), encoding="utf-8")
    assert page.stat().st_size > 5_000_000
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, timeout=120, check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime < 10  # of the processor; 2 to 3 s
