"""The risk of the policies that these pairs give: one definition with ``estimate_risk``, and sane at both ends."""

from __future__ import annotations

import pytest
import torch

from prudent import estimate_risk
from prudent.commands.preflight.answer import Plan, answer
from prudent.commands.preflight.given_pairs import posterior_table, risk_rows, trained_on, valued
from prudent.commands.preflight.truth import gold_truth

PLAN = Plan((0.1, 1.0), draws=80, members=4, ridge="cv", reward="member:0", floor=0.01, max_risk=0.05)
SETTINGS = [("vanilla", 0.1), ("lcb", 0.1), ("proportional", 1.0)]


def trained(pairs, candidates, seed=3):
    return trained_on(pairs, candidates, PLAN, seed)


def test_preflight_and_estimate_risk_say_the_same(world) -> None:
    pairs, candidates, _ = world(pairs=120, prompts=20, width=6, strength=1.0)
    mine = risk_rows(trained(pairs, candidates), SETTINGS, None, 80, 3)
    sides = (pairs.chosen, pairs.rejected, pairs.groups, candidates.features, candidates.reference)
    theirs = estimate_risk(
        *sides, betas=(0.1, 1.0), methods=("vanilla", "lcb", "proportional"), draws=80, members=4, seed=3
    )
    by = {(row["method"], row["beta"]): row for row in theirs}
    for setting, row in zip(SETTINGS, mine):
        for name in ("risk", "low", "high", "gain"):
            assert row[name] == pytest.approx(by[setting][name], abs=1e-9), (setting, name)


def test_the_table_holds_the_same_risks_and_pairs_methods(world) -> None:
    pairs, candidates, _ = world(pairs=120, prompts=20, width=6, strength=1.0)
    model = trained(pairs, candidates)
    by_beta, by_kl = valued(model, (0.1, 1.0), ("vanilla", "lcb", "proportional"), 400, 5)
    rows = {(r["method"], r["setting"]): r for r in posterior_table(model, by_beta, 3)}
    for setting, row in zip(SETTINGS, risk_rows(model, SETTINGS, None, 80, 3)):
        assert rows[setting]["risk"] == pytest.approx(row["risk"], abs=1e-9)
        drawn = by_beta.gain[by_beta.of(*setting)]
        assert float((drawn <= 0).double().mean()) == pytest.approx(row["risk"], abs=0.08)  # 400 draws
        assert rows[setting]["gain_low"] <= rows[setting]["gain"] <= rows[setting]["gain_high"]
        assert (rows[setting]["low"], rows[setting]["high"]) == pytest.approx((row["low"], row["high"]))
    equal = posterior_table(model, by_kl, 3)
    assert all(row["low"] == 0 for row in equal)  # one definition of the interval in every table
    elsewhere = type(candidates)(candidates.features + 1.0, candidates.reference)
    moved = trained(pairs, elsewhere)
    for outcomes in valued(moved, (0.1,), ("vanilla", "lcb"), 100, 5):
        assert all(row["high"] >= 0.5 for row in posterior_table(moved, outcomes, 3))
    kl = {row["setting"]: row["kl"] for row in equal if row["method"] == "vanilla"}
    assert all(row["kl"] == pytest.approx(kl[row["setting"]], rel=0.01) for row in equal)


def test_a_clear_signal_is_safe_and_none_is_not(world) -> None:
    pairs, candidates, _ = world(pairs=600, prompts=40, width=6, strength=3.0)
    clear = answer(pairs, candidates, None, PLAN, seed=1)
    assert clear.kind == "posterior" and clear.verdict.tone == "good" and clear.verdict.vanilla["risk"] < 0.02
    assert {"procedure_risk", "procedure_low", "reason"} <= set(clear.equal_beta[0])
    flip = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0)) < 0.5
    sides = (
        torch.where(flip[:, None], pairs.rejected, pairs.chosen),
        torch.where(flip[:, None], pairs.chosen, pairs.rejected),
    )
    blind = type(pairs)(*sides, pairs.groups)
    coin = answer(blind, candidates, None, PLAN, seed=1)
    assert coin.verdict.choice is None and coin.verdict.vanilla["risk"] > 0.1 and coin.verdict.vanilla["high"] >= 0.5


def test_with_gold_the_two_risks_stand_apart(world) -> None:
    pairs, candidates, gold = world(pairs=120, prompts=20, width=6, strength=1.0)
    found = answer(pairs, candidates, gold_truth(gold, candidates.reference), PLAN, seed=1)
    row = next(r for r in found.equal_beta if r["method"] == "vanilla" and r["setting"] == 0.1)
    drawn = found.beta_outcomes.gain[found.beta_outcomes.of("vanilla", 0.1)]
    assert row["procedure_risk"] == float((drawn <= 0).double().mean())
    assert row["low"] in (0.0, 1.0) and row["high"] in (0.0, 1.0)  # gold settles it, or not
    assert found.check is not None and 0 < found.check["rows"][0]["promised_risk"] < 1


def test_too_few_pairs_give_the_widest_interval(world) -> None:
    pairs, candidates, _ = world(pairs=20, prompts=20, width=6, strength=1.0)
    found = answer(pairs, candidates, None, PLAN, seed=1)
    assert found.verdict.choice is None and "20 pairs" in found.verdict.sentences[0]
    assert all(row["risk"] is None and (row["low"], row["high"]) == (0.0, 1.0) for row in found.equal_beta)


def test_gold_on_few_prompts_gives_the_measured_procedure_risk_with_the_widest_interval(world) -> None:
    pairs, candidates, gold = world(pairs=120, prompts=20, width=6, strength=1.0)
    candidates = type(candidates)(candidates.features[:5], candidates.reference[:5])
    found = answer(pairs, candidates, gold_truth(gold[:5], candidates.reference), PLAN, seed=1)
    row = next(r for r in found.equal_beta if r["method"] == "vanilla" and r["setting"] == 0.1)
    drawn = found.beta_outcomes.gain[found.beta_outcomes.of("vanilla", 0.1)]
    assert row["procedure_risk"] == float((drawn <= 0).double().mean())
    assert (row["procedure_low"], row["procedure_high"]) == (row["low"], row["high"]) == (0.0, 1.0)
    assert row["risk"] is None and "valued on 5 prompts" in row["reason"]
    assert found.verdict.choice is None and "as far as so few data tell" in found.verdict.sentences[0]
