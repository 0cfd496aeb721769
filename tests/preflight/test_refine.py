"""Rough verdicts, budgets and Ctrl-C: what is done early is part of the whole, and nothing is computed twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import tiny_causal_lm
from typer.testing import CliRunner

from prudent.cli import app
from prudent.commands.preflight import pieces, refine
from prudent.commands.preflight.candidates import Sampler
from prudent.commands.preflight.options import PreflightOptions
from prudent.commands.preflight.run import preflight as run_options
from prudent.features.backbone import Runner


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PreflightOptions:
    """60 pairs of 60 prompts; 9 held-out prompts to sample 4 short responses for."""
    folder = tmp_path_factory.mktemp("refine")
    tiny_causal_lm(folder / "policy")
    rows = [
        {"prompt": f"Question {i}?", "chosen": "good " + "a" * (i % 9 + 1), "rejected": f"bad {i % 5} b"}
        for i in range(60)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PreflightOptions(
        preferences=(str(folder / "pairs.jsonl"),),
        policy=str(folder / "policy"),
        encoder=str(folder / "policy"),
        betas=(0.1, 1.0),
        draws=8,
        members=3,
        prompts=9,
        samples=4,
        max_new_tokens=4,
        dtype="float32",
        ridge="1.0",
        images=False,
        out=Path("unused"),
    )


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "TEXTS", 8)  # two prompts' responses, or four pairs


def run(settings: PreflightOptions, out: Path, **changes) -> tuple[dict, list[str]]:
    said: list[str] = []
    return run_options(replace(settings, out=out, **changes), say=said.append), said


def test_rough_verdicts_come_first_and_change_nothing(settings, small_pieces, tmp_path, monkeypatch) -> None:
    whole, quiet = run(settings, tmp_path / "whole")
    assert sum(line.startswith("forecast: about") for line in quiet) == 1
    assert not [line for line in quiet if line.startswith("rough verdict")]
    monkeypatch.setenv("PRUDENT_CACHE", str(tmp_path / "fresh"))
    for name, value in {"FIRST": 0.0, "WORTH_WAITING": -1.0, "RATIO": 0.0}.items():
        monkeypatch.setattr(refine, name, value)
    found, said = run(settings, tmp_path / "rough")
    rough = [line for line in said if line.startswith("rough verdict after")]
    assert rough and "of 48 pairs, candidates of" in rough[0] and "vanilla's risk at beta" in rough[0]
    assert found["equal_beta"] == whole["equal_beta"] and found["stopped"] is None
    assert found["done"] == {"prompts": [9, 9], "pairs": [48, 48], "held_out_pairs": [12, 12]}


def test_a_shallow_encoder_gives_the_first_verdict_and_the_chosen_one_the_answer(
    settings, small_pieces, tmp_path, monkeypatch
) -> None:
    for name, value in {"FIRST": 0.0, "WORTH_WAITING": -1.0}.items():
        monkeypatch.setattr(refine, name, value)
    monkeypatch.setattr("prudent.rewards.depth.shallowest", lambda *_: 0)  # one block, where the first look had two
    found, said = run(settings, tmp_path / "rough", layer="auto")
    rough, chosen = (next(n for n, line in enumerate(said) if line.startswith(s)) for s in ("rough", "features are"))
    assert rough < chosen and "read at 1 of 3 blocks, chosen on 48 pairs" in said[chosen]
    assert found["depth"]["layer"] == 1 and found["done"]["pairs"] == [48, 48]
    monkeypatch.setenv("PRUDENT_CACHE", str(tmp_path / "fresh"))
    given, _ = run(settings, tmp_path / "given", layer="1")
    assert [row["kl"] for row in found["equal_beta"]] == pytest.approx(
        [row["kl"] for row in given["equal_beta"]], rel=1e-3
    )


def test_a_run_stopped_before_the_choice_says_how_deep_it_read(settings, small_pieces, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(refine, "seconds", lambda *_: 1e9)
    found, _ = run(settings, tmp_path / "part", layer="auto", budget="1s")
    assert "read at 2 of 3 blocks: no depth could be chosen (the run was stopped before)" in found["depth"]["words"]


def test_a_budget_ends_with_the_least_that_answers_and_the_next_run_goes_on(
    settings, small_pieces, tmp_path, monkeypatch
) -> None:
    found, _ = run(settings, tmp_path / "part", budget="1s")
    assert found["stopped"] == "--budget" and found["verdict"]["headline"].startswith("Rough: ")
    (pairs, all_pairs), (prompts, all_prompts) = found["done"]["pairs"], found["done"]["prompts"]
    assert 30 <= pairs < all_pairs == 48 and 1 <= prompts < all_prompts == 9
    page = (tmp_path / "part/report.html").read_text(encoding="utf-8")
    assert f"{pairs} of 48 pairs" in page and f"{pairs} preference pairs" in page

    sampled: list[int] = []
    fresh, read = Sampler.fresh, []
    monkeypatch.setattr(Sampler, "fresh", lambda s, p, n: sampled.append(len(p) * (n == 4)) or fresh(s, p, n))
    plain = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, texts: read.append(len(texts)) or plain(self, texts))
    monkeypatch.setattr(pieces, "speeds", lambda work: (1.0, 1.0))
    monkeypatch.setattr(refine, "speeds", lambda work: (1.0, 1.0))
    whole, said = run(settings, tmp_path / "whole")
    assert whole["stopped"] is None and sum(sampled) == 9 - prompts  # the others' responses are kept
    # A pair has two texts; of the responses some may be equal, and equal texts are encoded once.
    assert sum(read) <= 2 * (60 - pairs - found["done"]["held_out_pairs"][0]) + 4 * (9 - prompts)
    assert any("are on disk already" in line for line in said)


def test_ctrl_c_writes_the_report_of_what_there_is(settings, small_pieces, tmp_path, monkeypatch) -> None:
    step = pieces.Work.step

    def stop(work, run) -> None:
        if work.ready:
            raise KeyboardInterrupt
        step(work, run)

    monkeypatch.setattr(pieces.Work, "step", stop)
    found, said = run(settings, tmp_path / "out")
    assert found["stopped"] == "Ctrl-C" and "Ctrl-C ended it early" in found["verdict"]["rough"]
    assert found["done"]["pairs"][0] < 48 and (tmp_path / "out/manifest.json").is_file()
    assert any("report of what there is follows" in line for line in said)


def test_ctrl_c_before_anything_can_be_said_leaves_nothing(settings, small_pieces, tmp_path, monkeypatch) -> None:
    def stop(work, run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces.Work, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_row_is_in_one_piece_and_prompts_stay_together(settings, small_pieces) -> None:
    from prudent.commands.preflight.inputs import read_inputs

    work = pieces.plan_work(settings, read_inputs(settings), None, None)
    for kind, count in ((pieces.TRAIN, 48), (pieces.TEST, 12)):
        rows = [row for piece in work.pieces[kind] for row in piece.rows]
        assert sorted(rows) == [(0, row) for row in range(count)]
        assert all(piece.texts == 2 * len(piece.rows) <= 8 for piece in work.pieces[kind])
    assert [piece.rows for piece in work.pieces[pieces.CANDIDATES]] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert all(piece.sampled == 16 * len(piece.rows) for piece in work.pieces[pieces.CANDIDATES])


def test_long_prompts_are_sampled_few_at_a_time(settings, monkeypatch) -> None:
    sampler = Sampler.load(settings)
    layers, heads, width, sides = 3, 2, 8, 2  # of the tiny model, in float32
    assert sampler.token_bytes == layers * heads * width * sides * 4
    prompts = [[{"role": "user", "content": "long " * n}] for n in (1, 40, 1, 1)]
    monkeypatch.setattr(pieces, "KEYS", sampler.samples * sampler.token_bytes * 2 * 100)  # two rows of 100 tokens
    found = pieces.sampling_pieces(sampler, prompts, [20, 220, 20, 20])
    assert [piece.rows for piece in found] == [[0], [1], [2, 3]]


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("10m", 600), ("1.5h", 5400)])
def test_budgets_are_times(settings, text, seconds) -> None:
    assert replace(settings, budget=text).budget_seconds == seconds


@pytest.mark.parametrize("text", ["10", "m", "-1m", "0s", "nan s", "ten minutes", "infs"])
def test_other_budgets_are_refused_by_name(settings, text, tmp_path) -> None:
    given = ["preflight", "--preferences", settings.preferences[0], "--out", str(tmp_path / "o"), f"--budget={text}"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2 and f"--budget is {text!r}, must be a time such as 60s, 10m or 1h" in done.output
