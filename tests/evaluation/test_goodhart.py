"""Overoptimisation worlds: curves against their definitions, two-way intervals, sweeps, the command, RL folders."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prudent.cli import app
from prudent.errors import PrudentError
from prudent.evaluation import best_of_n
from prudent.evaluation.overoptimization import goodhart as g
from prudent.evaluation.overoptimization.curves import (
    curve,
    drawn_curve,
    methods_at_kl,
    ragged_best_of_n,
    two_way_bootstrap,
)
from prudent.evaluation.overoptimization.rl_curves import read_rl_curves, rl_curve
from prudent.evaluation.overoptimization.sweeps import distinct_pairs, findings, settings_of, sweep_curves
from prudent.evaluation.overoptimization.worlds import read_world
from prudent.policies.finite import kl, solve
from prudent.rewards.uncertainty import deviation_within
from prudent.runs import new_run


def world(prompts: int = 60, samples: int = 12, width: int = 10, seed: int = 0) -> g.World:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(prompts, samples, width, generator=generator)
    truth = features @ torch.randn(width, generator=generator) / math.sqrt(width)
    return g.split_world(features, truth + 0.5 * torch.randn(prompts, samples, generator=generator), None, seed)


SETTING = g.Setting(pairs=80, slope=2.0, members=3, ridge=0.1)


def test_split_and_pairs() -> None:
    found = world()
    assert not set(found.train.tolist()) & set(found.test.tolist()) and len(found.train) == 30
    prompt, chosen, rejected = found.preferences(found.train, 3000, 1.5, 1)
    assert set(prompt.tolist()) <= set(found.train.tolist()) and bool((chosen != rejected).all())
    margin = found.gold[prompt, chosen] - found.gold[prompt, rejected]
    expected = torch.sigmoid(1.5 * margin.abs()).mean()
    assert float((margin > 0).double().mean()) == pytest.approx(float(expected), abs=0.03)
    clean = found.preferences(found.train, 200, math.inf, 1)
    assert bool((found.gold[clean[0], clean[1]] > found.gold[clean[0], clean[2]]).all())
    with pytest.raises(PrudentError, match="too few to split"):
        g.split_world(torch.zeros(3, 2, 2), torch.zeros(3, 2), None, 0)


def test_curve_is_best_of_n_from_the_reference() -> None:
    found = world()
    gold = found.gold[found.test]
    rewards = [g.reward_of(m, found.reference, SETTING) for m in g.member_scores(found, SETTING, 3, 5)]
    made = curve("c", rewards, gold, found.present[found.test], [1, 3, 12], seed=0)
    by_hand = np.mean([(best_of_n(r, gold, 3) - best_of_n(r, gold, 1)).mean().item() for r in rewards])
    assert [point.n for point in made.points] == [1, 3, 12] and made.points[0].gold.value == 0
    assert made.points[1].gold.value == pytest.approx(by_hand)
    assert made.points[1].gold.low < by_hand < made.points[1].gold.high
    assert [p.proxy.value for p in made.points] == sorted(p.proxy.value for p in made.points)
    assert all(float(deviation_within(r, found.reference)) == pytest.approx(1) for r in rewards)


def test_beyond_the_samples_tilting_is_labelled_and_has_the_right_kl() -> None:
    found = world()
    gold, present = found.gold[found.test], found.present[found.test]
    reward = g.reward_of(next(g.member_scores(found, SETTING, 1, 5)), found.reference, SETTING)
    made = curve("c", [reward], gold, present, [1, 2, 12, 20, 100_000], seed=0)
    tilted = [point for point in made.points if point.how == "tilted"]
    assert [point.how for point in made.points[:3]] == ["best of n"] * 3 and len(tilted) == 2
    assert tilted[-1].kl == pytest.approx(0.97 * math.log(12)) and any(
        "n >= 100000: null" in note for note in made.notes
    )
    from prudent.policies.finite import beta_for_kl

    beta = beta_for_kl(lambda b: solve(reward, found.reference, b), found.reference, tilted[0].kl)
    assert float(kl(solve(reward, found.reference, beta), found.reference).mean()) == pytest.approx(tilted[0].kl)
    assert made.fit is not None and made.fit.points == 3


def test_ragged_pools() -> None:
    present = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    rng = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).unbind(0)
    found, _ = ragged_best_of_n(proxy, gold, present, [1, 2])
    assert float(found[1, 1]) == pytest.approx(best_of_n(proxy[1:2, :2], gold[1:2, :2], 2).item())
    assert torch.allclose(found[1, [0, 2]], best_of_n(proxy[[0, 2]], gold[[0, 2]], 2))


def test_two_way_bootstrap_sees_both_sources_of_noise() -> None:
    rng = np.random.default_rng(0)
    draws, prompts = rng.normal(0, 1, (40, 1)), rng.normal(0, 1, (1, 80))
    values = torch.from_numpy(draws + prompts)[None]
    spread = float(two_way_bootstrap(values, 4000, 0).std())
    assert spread == pytest.approx(math.sqrt(draws.var() / 40 + prompts.var() / 80), rel=0.06)
    alone = float(two_way_bootstrap(values[:, :1], 4000, 0).std())
    assert alone == pytest.approx(math.sqrt(prompts.var() / 80), rel=0.06)


def test_constant_proxy_and_constant_gold_are_named() -> None:
    found = world()
    with pytest.raises(PrudentError, match="constant within every prompt"):
        g.reward_of(torch.ones(2, 30, 12), found.reference, SETTING)
    flat = g.World(found.features, torch.zeros_like(found.gold), found.present, found.train, found.test)
    with pytest.raises(PrudentError, match="gold is constant"):
        flat.preferences(flat.train, 10, 1.0, 0)


def test_accuracy_of_a_perfect_and_of_a_blind_reward() -> None:
    found = world()
    gold = found.gold[found.test]
    pairs = g.held_out_pairs(gold, found.present[found.test])
    assert len(pairs) == 30 * 66 and g.pair_accuracy(gold, pairs) == 1.0 and g.pair_accuracy(-gold, pairs) == 0.0
    assert g.pair_accuracy(torch.zeros_like(gold), pairs) == 0.5
    assert len(g.held_out_pairs(gold, found.present[found.test], most=300)) == 300


def test_more_pairs_are_better_and_sweeps_share_draws() -> None:
    found = world(prompts=200)
    curves = sweep_curves("pairs", {3: found}, SETTING, [1, 4, 12], draws=6, seed=0)
    assert curves[-1].label.endswith("(all)") and curves[-1].facts["pairs"] == distinct_pairs(found)
    assert curves[-1].over_first.low > 0 and curves[-1].accuracy.value > curves[0].accuracy.value
    again = drawn_curve("again", found, settings_of("pairs", SETTING, found)[0][1], [1, 4, 12], draws=6, seed=0)
    assert again.points[1].gold.value == curves[0].points[1].gold.value
    held = findings({"pairs": curves}, [])
    assert [f.confirmed for f in held[:2]] == [False, False] and "held-out accuracy by pairs" in held[1].evidence


def test_adversarial_errors_turn_the_curve_and_are_found() -> None:
    """A proxy with heavy-tailed errors, 400 prompts of 256: gold falls again, and the finding says so."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(400, 256))
    rewards = [torch.from_numpy(gold + rng.standard_t(2, gold.shape)) for _ in range(3)]
    made = curve(
        "heavy", rewards, torch.from_numpy(gold), torch.ones(gold.shape, dtype=torch.bool), [1, 4, 16, 64, 256]
    )
    assert made.points[2].gold.low > made.points[-1].gold.high
    (finding,) = findings({"base": [made]}, [])
    assert finding.confirmed is True and made.fit.peak is not None and made.peak.high is not None
    (finding,) = findings({"base": [made], "rule": [replace(made, fall=None)] * 10}, [])
    assert finding.confirmed is None and "can be luck" in finding.evidence  # one clear fall among eleven curves


def test_methods_at_matched_kl() -> None:
    made = methods_at_kl(world(), SETTING, ["proportional", "variance-only"], [0.3, 1.0], draws=4, seed=0)
    names = [m.method for m in made]
    assert names == ["vanilla", "proportional", "variance-only"] and made[0].over_vanilla[0].value == 0
    assert made[0].gold[1].value > made[0].gold[0].value and made[0].reached == [4, 4]
    assert made[2].gold[1].value < made[0].gold[1].value


def test_solutions_and_pools_are_worlds(shared: Path, tmp_path: Path) -> None:
    found = read_world(shared / "data/evaluation/gsm8k_solutions.jsonl.gz")
    gold, present = found.padded_gold()
    assert len(found) == 914 and present.all() and set(gold.unique().tolist()) == {0.0, 1.0}
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "responses": ["a", "b"]}) + "\n")
    with pytest.raises(PrudentError, match="has no gold"):
        read_world(path)


def rl_folder(tmp_path: Path, peak: float = 1.5) -> Path:
    """A finished align folder whose true value follows the RL form exactly."""
    beta = 0.2
    alpha = beta * (1 + math.log(peak))
    folder = tmp_path / "align"
    with new_run(folder, "align", {}, 0) as run:
        for number in range(3):
            history = []
            for step in range(20):
                d = 0.15 * step
                gain = d * (alpha - beta * math.log(d)) if d else 0.0
                history.append({"step": step + 1, "kl": d * d, "truth_gain": gain, "reward": d, "seconds": {}})
            run.write_json(
                f"runs/run-{number:03d}-vanilla.json", {"run": number, "objective": "vanilla", "history": history}
            )
    return folder


def test_rl_curves_from_run_folders(tmp_path: Path) -> None:
    (found,) = read_rl_curves(rl_folder(tmp_path))
    assert found.runs == 3 and found.peak.value == pytest.approx(1.5) and found.fit.r_squared == pytest.approx(1)
    assert found.rows[0]["gold"] == 0 and found.rows[-1]["distance"] == pytest.approx(2.85)
    with pytest.raises(PrudentError, match="at least three"):
        rl_curve("short", [[{"kl": 0, "truth_gain": 0, "reward": 0}] * 2])
    below = rl_curve("low", [[{"kl": k, "truth_gain": k, "reward": k} for k in (0.0, -0.1, 0.2, 0.5)]])
    assert "below 0" in below.notes[0]


def pool_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["red", "blue", "sea", "harbour", "night", "stone"]
    path = tmp_path / "pool.jsonl"
    rows = []
    for i in range(12):
        texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(4 + i % 2)]
        rows.append({"prompt": f"Say {i}", "responses": texts, "gold": [t.count("sea") + 0.1 * len(t) for t in texts]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_command(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "overoptimize",
        "--pool",
        str(pool_file(tmp_path)),
        "--language-model",
        str(tiny_folder),
        "--pairs",
        "40",
    ]
    arguments += ["--draws", "2", "--members", "2", "--layers", "1", "--runs", str(rl_folder(tmp_path))]
    result = CliRunner().invoke(
        app, [*arguments, "--sweep", "layers", "--sweep", "variance", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert [c["label"] for c in found["curves"]["layers"]] == ["1 layers", "3 layers"]
    assert found["rl"][0]["peak"]["value"] == pytest.approx(1.5) and len(found["matched_kl"]) == 8
    assert found["units"]["kl"].startswith("nats") and found["curves"]["base"][0]["ends"] is None
    for name in ("overoptimize.json", "curves.parquet", "report.html", "manifest.json"):
        assert (out / name).is_file()
    short = ["--sweep", "none", "--out", str(tmp_path / "shown")]
    shown = CliRunner().invoke(app, [*arguments, *short])
    assert shown.exit_code == 0, shown.exception
    assert re.search(r"^(holds here|doesn't hold here|can't tell): ", shown.stdout, re.MULTILINE)
    refused = CliRunner().invoke(app, [*arguments, "--sweep", "tides", "--out", str(tmp_path / "no")])
    assert refused.exit_code == 2 and "sweep 'tides' is unknown" in refused.stderr
