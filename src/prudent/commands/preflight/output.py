"""Numbers to files: one JSON for people and programs, Parquet for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prudent.commands.preflight.answer import Answer
from prudent.commands.preflight.core import Outcomes
from prudent.commands.preflight.page_study import StudiedFile
from prudent.runs import Run


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as equally long columns; a key that a row lacks is null."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def draw_columns(outcomes: Outcomes, comparison: str) -> dict[str, list[Any]]:
    """Every draw of every method and setting, long."""
    methods, settings, draws = outcomes.gain.shape
    grid = [(m, b) for m in range(methods) for b in range(settings)]
    found: dict[str, list[Any]] = {
        "comparison": [comparison] * (methods * settings * draws),
        "method": [outcomes.methods[m] for m, _ in grid for _ in range(draws)],
        "setting": [outcomes.settings[b] for _, b in grid for _ in range(draws)],
        "draw": [draw for _ in grid for draw in range(draws)],
    }
    for name in ("beta", "gain", "kl", "worse"):
        values = getattr(outcomes, name).flatten()
        found[name] = [None if bad else value for bad, value in zip(torch.isnan(values).tolist(), values.tolist())]
    return found


def _study_dict(file: StudiedFile) -> dict[str, Any]:
    found = file.study
    return {
        "name": found.name,
        "facts": found.facts,
        "ensemble": found.ensemble,
        "longer_answer": found.longer,
        "members": found.by_member,
    }


def results(
    answer: Answer, files: Sequence[StudiedFile], diversities: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything in numbers, as results.json holds it."""
    return {
        "verdict": answer.verdict.as_dict(),
        "truth": answer.kind,
        "unit": answer.unit,
        "facts": answer.facts,
        "equal_beta": answer.equal_beta,
        "equal_kl": answer.equal_kl,
        "outlook": answer.outlook,
        "check": answer.check,
        "study": [_study_dict(file) for file in files],
        "diversity": list(diversities),
        **about,
    }


def write_tables(run: Run, answer: Answer, files: Sequence[StudiedFile]) -> None:
    """Parquet files: risk tables, every draw, the held-out pairs under all members."""
    run.write_table("tables/equal_beta.parquet", columns_of(answer.equal_beta))
    run.write_table("tables/equal_kl.parquet", columns_of(answer.equal_kl))
    run.write_table("tables/outlook.parquet", columns_of(answer.outlook))
    both = [draw_columns(answer.beta_outcomes, "equal beta"), draw_columns(answer.kl_outcomes, "equal kl")]
    run.write_table("tables/draws.parquet", {name: both[0][name] + both[1][name] for name in both[0]})
    rows = [
        {
            "file": file.study.name,
            "pair": pair,
            "mean_margin": float(file.study.mean[pair]),
            "deviation": float(file.study.deviation[pair]),
            **{f"member_{k + 1}": float(value) for k, value in enumerate(file.study.margins[:, pair])},
        }
        for file in files
        for pair in range(len(file.study.mean))
    ]
    run.write_table("tables/held_out_pairs.parquet", columns_of(rows))
