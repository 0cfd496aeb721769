"""The explorer of preflight's report: sliders for beta and pairs over a precomputed grid, linked charts. No script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from prudent.commands.preflight.answer import Answer
from prudent.commands.preflight.explore import MOVED, PROMPTS, Grid
from prudent.data.messages import last_text
from prudent.reporting.numbers import percent
from prudent.reporting.report import Report
from prudent.reporting.style import INK, MUTED, colour, finish, reference_rule, values
from prudent.rewards.containers import CandidateFeatures

WIDE, NARROW = (2, 405, 880), (1, 262, 300)  # panels a line, width of a panel and of the list of prompts
LINE, LONGEST = 19, 600  # pixels of a line of text; characters of a text kept, of which a pointer shows all
UP, DOWN = "#006b4f", "#a33b00"
PANELS = (
    ("risk", "risk", "%"),
    ("gain", "gain", ".3~g"),
    ("kl", "KL from the reference, nats", ".3~g"),
    ("worse", "prompts made worse", "%"),
)


def explorer_section(report: Report, answer: Answer, candidates: CandidateFeatures, max_risk: float) -> None:
    """Sliders and linked charts."""
    grid = answer.grid
    known = [row for row in grid.rows if row["risk"] is not None]
    if not known:
        return
    report.heading("Explore: beta and the number of pairs")
    report.text(
        "Move the sliders: the first picks beta, the second how many of the pairs the reward model is trained on. All "
        "four charts follow, and so does the list of the prompts whose answers change most."
    )
    picked = answer.verdict.choice or answer.verdict.vanilla
    start = min(range(len(grid.betas)), key=lambda b: abs(grid.betas[b] - picked["setting"]))
    method = picked["method"] if picked["method"] in MOVED else MOVED[0]
    drawn = [
        _explorer(grid, known, candidates, layout, start=start, method=method, max_risk=max_risk)
        for layout in (WIDE, NARROW)
    ]
    report.chart(
        drawn[0],
        "explorer",
        "Dots mark the beta of the slider; the dashed line in the first chart is the accepted risk of "
        f"{percent(max_risk)}. Fewer pairs are a part of yours drawn at random, so a curve may cross another by luck. "
        "A prompt's two responses are those whose probability rises and falls most, in percentage points: point at "
        "a text, or tap it, to read it whole.",
        narrow=drawn[1],
    )


def _explorer(
    grid: Grid,
    known: Sequence[dict[str, Any]],
    candidates: CandidateFeatures,
    layout: tuple[int, int, int],
    *,
    start: int,
    method: str,
    max_risk: float,
) -> Any:
    columns, width, whole = layout
    names = list(dict.fromkeys(row["method"] for row in known))
    number = {beta: b for b, beta in enumerate(grid.betas)}
    rows = [{**row, "b": number[row["beta"]], "s": grid.sizes.index(row["pairs"])} for row in known]
    last = len(grid.sizes) - 1
    beta = alt.param(
        name="betaAt", value=start, bind=alt.binding_range(min=0, max=len(grid.betas) - 1, step=1, name="beta")
    )
    choose: dict[str, Any] = {"bind": alt.binding_range(min=0, max=last, step=1, name="pairs")} if last else {}
    pairs = alt.param(name="pairsAt", value=last, **choose)
    listed = alt.param(name="listed", value=method, bind=alt.binding_select(options=list(MOVED), name="prompts by"))
    base = alt.Chart(values(rows)).transform_filter("datum.s == pairsAt")
    panels = [
        _panel(base, name, title, form, names, width, grid, max_risk if name == "risk" else None)
        for name, title, form in PANELS
    ]
    betas = json.dumps([float(f"{value:.3g}") for value in grid.betas])
    words = f"'beta ' + {betas}[betaAt] + ', from ' + {json.dumps(grid.sizes)}[pairsAt] + ' of {grid.sizes[-1]} pairs'"
    heading = (
        alt.Chart(values([{}]))
        .mark_text(align="left", x=0, fontSize=15, fontWeight=600, color=INK)
        .encode(text=alt.value(alt.ExprRef(words)))
        .properties(width=whole, height=18)
    )
    charts = alt.concat(*panels, columns=columns, spacing={"row": 26, "column": 26}).resolve_scale(color="shared")
    moved = _moved(grid, candidates, whole)
    return finish(alt.vconcat(heading, charts, moved, spacing=22).add_params(beta, pairs, listed))


def _panel(
    base: Any, name: str, title: str, form: str, names: Sequence[str], width: int, grid: Grid, limit: float | None
) -> Any:
    """One number by beta, a line a method, the dots of the picked beta."""
    x = alt.X(
        "beta:Q",
        title="beta",
        scale=alt.Scale(type="log", domain=[grid.betas[0], grid.betas[-1]], nice=False),
        axis=alt.Axis(format=".2~g", values=_ticks(grid.betas), grid=False),
    )
    y = alt.Y(f"{name}:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=name != "gain"))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("beta:Q", format=".3~g"),
        alt.Tooltip("risk:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%", title="risk, low"),
        alt.Tooltip("high:Q", format=".1%", title="risk, high"),
        alt.Tooltip("gain:Q", format="+.3~g"),
        alt.Tooltip("kl:Q", format=".3~g", title="KL"),
        alt.Tooltip("worse:Q", format=".0%"),
    ]
    hue = colour("method", names, width=width)
    hue["legend"] = alt.Legend(title=None, orient="top", direction="horizontal", columns=min(6, width // 85))
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=hue)
    dots = (
        base.transform_filter("datum.b == betaAt")
        .mark_point(size=90, filled=True, opacity=1)
        .encode(x=x, y=y, color=hue, tooltip=tooltip)
    )
    marks = alt.Chart(values([{"b": b, "beta": beta} for b, beta in enumerate(grid.betas)]))
    rule = marks.transform_filter("datum.b == betaAt").mark_rule(color=MUTED, strokeWidth=1, opacity=0.5).encode(x=x)
    layers = [rule, line, dots]
    if limit is not None:
        layers += reference_rule(limit, True, None)
    return alt.layer(*layers).properties(width=width, height=190)


def _ticks(betas: Sequence[float]) -> list[float]:
    """Powers of ten, and three times them, within the betas."""
    found = [m * 10.0**e for e in range(-6, 7) for m in (1, 3)]
    return [value for value in found if betas[0] * 0.999 <= value <= betas[-1] * 1.001]


def _moved(grid: Grid, candidates: CandidateFeatures, width: int) -> Any:
    """The prompts that move furthest, three lines each: the prompt, what rises, what falls."""
    number = {beta: b for b, beta in enumerate(grid.betas)}
    rows = [
        {
            "s": grid.sizes.index(row["pairs"]),
            "b": number[row["beta"]],
            "m": row["method"],
            "k": row["rank"],
            "p": row["prompt"],
            "u": _key(row["prompt"], row["rises"]),
            "d": _key(row["prompt"], row["falls"]),
            "up": round(100 * row["rise"], 1),
            "down": round(100 * row["fall"], 1),
        }
        for row in grid.moves
    ]
    prompts = sorted({row["p"] for row in rows})
    asked = alt.LookupData(
        values([{"p": p, "asked": _short(last_text(candidates.prompts[p]))} for p in prompts]), "p", ["asked"]
    )
    used = sorted({row[side] for row in rows for side in ("u", "d")})
    texts = [{"key": key, "text": _short(candidates.responses[key // 10_000][key % 10_000])} for key in used]
    base = (
        alt.Chart(values(rows))
        .transform_filter("datum.s == pairsAt && datum.b == betaAt && datum.m == listed")
        .transform_lookup("p", asked)
        .transform_lookup("u", alt.LookupData(values(texts), "key", ["text"]), as_=["rises"], default="")
        .transform_lookup("d", alt.LookupData(values(texts), "key", ["text"]), as_=["falls"], default="")
        .transform_calculate(
            l0="3 * datum.k",
            l1="3 * datum.k + 1",
            l2="3 * datum.k + 2",
            t0="(datum.k + 1) + '. ' + datum.asked",
            t1="'▲ ' + format(datum.up, '+.1f') + '  ' + datum.rises",
            t2="'▼ ' + format(datum.down, '+.1f') + '  ' + datum.falls",
        )
    )
    scale = alt.Scale(domain=[-0.5, 3 * PROMPTS - 0.5], reverse=True, nice=False)
    kinds: tuple[tuple[int, int, str, Literal["normal", "bold"], str, str], ...] = (
        (0, 0, INK, "bold", "asked", "prompt"),
        (1, 12, UP, "normal", "rises", "rises"),
        (2, 12, DOWN, "normal", "falls", "falls"),
    )
    layers = [
        base.mark_text(align="left", x=indent, limit=width - indent, color=hue, fontSize=13, fontWeight=weight).encode(
            y=alt.Y(f"l{line}:Q", axis=None, scale=scale),
            text=f"t{line}:N",
            tooltip=[alt.Tooltip(f"{field}:N", title=title)],
        )
        for line, indent, hue, weight, field, title in kinds
    ]
    return alt.layer(*layers).properties(width=width, height=3 * PROMPTS * LINE)


def _key(prompt: int, response: int) -> int:
    return 10_000 * prompt + response


def _short(text: str) -> str:
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
