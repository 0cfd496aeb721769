"""From data to recommendations: check (f), cold users, blends, outside scorers, save and load, comparison."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tests.recommend.small import SHORT, TINY, data, dense, settings

from prudent.commands.recommend.page import OVERALL, RELATIVE, TAIL, add_sweep, answer
from prudent.errors import DataError, PrudentError
from prudent.recommend.artefact import load, save
from prudent.recommend.comparison import compare, paired_p
from prudent.recommend.models import fit_mf
from prudent.recommend.outside import from_table
from prudent.recommend.pipeline import BACKBONES, Model, fit, top
from prudent.recommend.ranking import blend, choose_blend, standardised
from prudent.recommend.splits import Truth
from prudent.reporting.report import Report
from prudent.runs import new_run


@pytest.fixture(scope="module")
def fitted() -> Model:
    return fit(data(), settings(), 0)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rank", ["score", "uncertainty", "blend"])
def test_f_seen_items_are_never_recommended(backbone, rank, request):
    model = fit(data(), settings(backbone=backbone), 0)
    known = model.data.seen_with_valid()
    found = top(model, k=len(model.data.items), rank=rank)
    place = {item: number for number, item in enumerate(model.data.items)}
    for user, items in enumerate(found.items):
        shown = {place[item] for item in items}
        assert len(shown) == len(items) == len(model.data.items) - known[user].nnz  # all unseen ones, each once
        assert not shown & set(known[user].indices)
    assert not any(found.cold)


def test_unknown_users_get_the_popular_items_and_are_counted(fitted):
    found = top(fitted, ["nobody", fitted.data.users[3]], k=4, rank="uncertainty")
    best = np.sort(fitted.data.popularity)[::-1][:4]  # of the items that tie for the last place any may be shown
    shown = [fitted.data.popularity[fitted.data.items.index(item)] for item in found.items[0]]
    assert shown == best.tolist() == found.scores[0] and len(set(found.items[0])) == 4
    assert found.cold == [True, False]
    assert found.counts() == {"users": 2, "users without history, given the popular items": 1}
    with pytest.raises(PrudentError, match="k is 0"):
        top(fitted, k=0)
    with pytest.raises(PrudentError, match="rank is 'best'"):
        top(fitted, rank="best")


def test_blend_ends_are_the_two_rankings_and_standardising_ignores_seen_items(fitted):
    seen = fitted.data.seen
    users = np.arange(5)
    one, other = fitted.backbone.scores, fitted.uncertainty.scores
    assert blend(one, other, seen, 0)(users) is not None
    assert torch.equal(blend(one, other, seen, 0)(users), one(users))
    assert torch.equal(blend(one, other, seen, 1)(users), other(users))
    z = standardised(one(users), seen, users)
    for user in users:
        unseen = np.setdiff1d(np.arange(len(fitted.data.items)), seen[user].indices)
        assert z[user, unseen].mean().abs() < 1e-5
        assert z[user, unseen].std().item() == pytest.approx(1, abs=1e-4)
    middle = blend(one, other, seen, 0.25)(users)
    torch.testing.assert_close(middle, 0.75 * z + 0.25 * standardised(other(users), seen, users))
    assert standardised(torch.ones(5, len(fitted.data.items)), seen, users).abs().max() == 0
    with pytest.raises(PrudentError, match="blend weight"):
        blend(one, other, seen, 1.5)


def test_blend_is_chosen_on_validation_by_its_rule(fitted):
    one, other = fitted.backbone.scores, fitted.uncertainty.scores
    overall = choose_blend(fitted.data, one, other, fitted.tail, "overall")
    best = max(row["recall@20 overall"] for row in overall.rows)
    assert next(row for row in overall.rows if row["weight"] == overall.weight)["recall@20 overall"] == best
    by_tail = choose_blend(fitted.data, one, other, fitted.tail, "tail")
    allowed = [row for row in by_tail.rows if row["recall@20 overall"] >= by_tail.rows[0]["recall@20 overall"]]
    chosen = next(row for row in by_tail.rows if row["weight"] == by_tail.weight)
    assert chosen in allowed
    assert chosen["recall@20 tail absolute"] == max(row["recall@20 tail absolute"] for row in allowed)
    with pytest.raises(PrudentError, match="blend rule"):
        choose_blend(fitted.data, one, other, fitted.tail, "luck")


def test_saved_and_loaded_models_agree_and_damage_is_found(fitted, tmp_path):
    with new_run(tmp_path / "run", "recommend fit", {}) as run:
        save(run, fitted)
    again = load(tmp_path / "run")
    for rank in ("score", "uncertainty", "blend"):
        assert top(again, k=7, rank=rank) == top(fitted, k=7, rank=rank)
    assert again.data.test.counts() == fitted.data.test.counts()
    assert again.blend == fitted.blend
    assert (again.tail == fitted.tail).all()
    shutil.copy(tmp_path / "run" / "uncertainty.safetensors", tmp_path / "run" / "backbone.safetensors")
    with pytest.raises(PrudentError, match="hash differs"):
        load(tmp_path / "run")
    (tmp_path / "run" / "backbone.safetensors").write_bytes(b"none")
    with pytest.raises(PrudentError, match="can't be read"):
        load(tmp_path / "run")


@pytest.mark.parametrize("backbone", ["vae", "als"])
def test_every_kind_of_backbone_survives_saving(backbone, tmp_path):
    model = fit(data(), settings(backbone=backbone), 0)
    with new_run(tmp_path / "run", "recommend fit", {}) as run:
        save(run, model)
    assert top(load(tmp_path / "run"), k=5, rank="score") == top(model, k=5, rank="score")


def scores_by_name(users: list[str], items: list[str]) -> np.ndarray:
    """An outside scorer: the sum of the characters of a pair's ids, so that a mix-up of places shows."""
    code = [[sum(map(ord, user)) % 7 / 10 + int(item[1:]) / 100 for item in items] for user in users]
    return np.array(code)


def test_outside_function_and_file_give_the_same_ranking(tmp_path):
    world = data()
    model = fit(world, settings(outside=scores_by_name), 0)
    table = scores_by_name(world.users, world.items)
    torch.testing.assert_close(dense(model.backbone.scores, 60), torch.from_numpy(table).float())
    path = tmp_path / "scores.csv"
    lines = [f"{u},{i},{table[r, c]}" for r, u in enumerate(world.users) for c, i in enumerate(world.items)]
    path.write_text("user,item,score\n" + "\n".join(reversed(lines)) + "\nstranger,i1,1\n")
    other = fit(world, settings(outside=path), 0)
    assert other.notes["pairs of users or items unseen in training"] == 1
    assert other.notes["known pairs without a score, taken as 0"] == 0
    assert top(other, k=9, rank="score") == top(model, k=9, rank="score")
    assert other.uncertainty.fingerprint() == model.uncertainty.fingerprint()
    with new_run(tmp_path / "run", "recommend fit", {}) as run:
        save(run, model)
    with pytest.raises(PrudentError, match="outside function"):
        load(tmp_path / "run")
    again = load(tmp_path / "run", outside=scores_by_name)
    assert top(again, k=9, rank="blend") == top(model, k=9, rank="blend")
    with new_run(tmp_path / "filed", "recommend fit", {}) as run:
        save(run, other)
    assert top(load(tmp_path / "filed"), k=9, rank="blend") == top(other, k=9, rank="blend")


def test_outside_scores_that_are_wrong_are_refused(tmp_path):
    world = data()
    path = tmp_path / "scores.csv"
    path.write_text(f"user,item,score\n{world.users[0]},{world.items[0]},x\n{world.users[1]},{world.items[1]},\n")
    with pytest.raises(DataError) as caught:
        from_table(path, world)
    assert [(row.line, row.reason) for row in caught.value.rows] == [(2, "unparsable-score"), (3, "missing-score")]
    path.write_text("user,item,score\n" + f"{world.users[0]},{world.items[0]},1\n" * 2)
    with pytest.raises(DataError, match="1 bad row"):
        from_table(path, world)
    path.write_text("user,item,score\nstranger,thing,1\n")
    with pytest.raises(PrudentError, match="no score of a known user"):
        from_table(path, world)
    with pytest.raises(PrudentError, match="shape"):
        fit(world, settings(outside=lambda users, items: np.zeros((1, 1))), 0)
    with pytest.raises(PrudentError, match="scores must be finite"):
        fit(world, settings(outside=lambda users, items: np.full((len(users), len(items)), math.nan)), 0)
    with pytest.raises(PrudentError, match="can't be loaded"):
        fit(world, settings(outside="no_such_module:function"), 0)


def test_comparison_pairs_rankings_and_counts_cold_users(fitted):
    lists = {user: [item] for user, item in zip(fitted.data.users, fitted.data.items)}
    found = compare(fitted, lists={"mine": lists}, rounds=100)
    names = [
        "mf: score",
        "mf: uncertainty",
        "mf: blend",
        "popularity",
        "item-kNN",
        "ALS (implicit)",
        "MF + IPW",
        "mine",
    ]
    assert [row["ranking"] for row in found.table] == names
    first, second = (found.rankings[name].values["recall@20 overall"] for name in names[:2])
    row = next(r for r in found.paired if r["ranking"] == names[1] and r["metric"] == "recall@20 overall")
    assert row["difference"] == pytest.approx(np.nanmean(second) - np.nanmean(first))
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["p_holm"] >= row["p"]
    assert found.sweep[0]["recall@20 overall"] == pytest.approx(np.nanmean(first))
    assert found.sweep[-1]["recall@20 overall"] == pytest.approx(np.nanmean(second))
    assert found.items["popularity"].sum() == fitted.data.train.nnz
    test = fitted.data.test
    cold = replace(test, cold=test.positives[:3], cold_unreachable=np.zeros(3, dtype=int), cold_users=["a", "b", "c"])
    with_cold = compare(replace(fitted, data=replace(fitted.data, test=cold)), baselines=(), rounds=100)
    assert with_cold.counts["users without training history (popularity is shown to them)"] == 3
    assert with_cold.counts["users without history: recall@20 overall of the popular items"] >= 0
    with pytest.raises(PrudentError, match="k is 0"):
        compare(fitted, ks=(0, 20), baselines=())
    with pytest.raises(PrudentError, match="no test side"):
        compare(replace(fitted, data=replace(fitted.data, test=None)))
    nothing = Truth(test.positives * 0, test.unreachable * 0, test.cold, test.cold_unreachable)
    nothing.positives.eliminate_zeros()
    with pytest.raises(PrudentError, match="no known user has a test positive"):
        compare(replace(fitted, data=replace(fitted.data, test=nothing)))


def test_p_of_a_difference_is_a_paired_t_test_that_holm_can_live_with():
    one, other = np.random.default_rng(0).random((2, 50))
    assert paired_p(one - other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert paired_p(np.linspace(0.5, 0.6, 500)) < 1e-9  # a bootstrap of 1,000 rounds couldn't say less than 0.002
    assert paired_p(np.zeros(5)) == 1
    assert paired_p(np.array([0.5])) is None
    assert paired_p(np.full(5, 0.5)) is None


def test_a_sweep_in_which_the_tail_stands_still_is_told_and_not_drawn(fitted):
    found = compare(fitted, baselines=(), rounds=100)
    still = [row | {TAIL: 0.0, RELATIVE: place / 10} for place, row in enumerate(found.sweep)]
    report = Report("title", "subtitle")
    add_sweep(report, fitted, replace(found, sweep=still))
    assert [block["name"] for block in report.blocks if block["kind"] == "chart"] == ["blend-relative"]
    assert any("(absolute) is 0.000 at every w" in block["text"] for block in report.blocks if block["kind"] == "text")


def test_results_do_not_depend_on_the_order_of_users_in_a_batch(fitted):
    users = np.array([5, 2, 9])
    scores = fitted.uncertainty.scores(users)
    for row, user in enumerate(users):
        torch.testing.assert_close(scores[row], fitted.uncertainty.scores(np.array([user]))[0], atol=1e-6, rtol=1e-5)


def test_a_different_backbone_gives_different_uncertainty():
    world = data()
    one = fit(world, settings(), 0)
    backbone = fit_mf(world, TINY, replace(SHORT, epochs=20), 5)
    assert one.backbone.fingerprint() != backbone.fingerprint()
    assert fit(world, settings(), 0).uncertainty.fingerprint() == one.uncertainty.fingerprint()
    assert fit(world, settings(backbone="als"), 0).uncertainty.fingerprint() != one.uncertainty.fingerprint()


def comparison(gaps, rivals=0.0, lead=(0.01, -0.02, 0.04)):
    """A comparison in which uncertainty, blend and one baseline differ from the score by the given clear gaps."""
    names = ("mf: score", "mf: uncertainty", "mf: blend", "ALS (implicit)")
    table = [{"ranking": name, OVERALL: {"mean": 0.2 + (rivals if "ALS" in name else 0)}} for name in names]
    paired = [
        {"ranking": name, "metric": metric, "difference": gap, "low": gap - 0.01, "high": gap + 0.01, "p_holm": 0.01}
        for name, gap in zip(names[1:], (*gaps, rivals))
        for metric in (OVERALL, TAIL, RELATIVE)
    ]
    validation = {"users": 30, "positives": 60, **dict(zip(("gain", "low", "high"), lead))}
    return SimpleNamespace(table=table, paired=paired, validation=validation)


@pytest.mark.parametrize(
    ("gaps", "weight", "start"),
    [
        ((0.0, 0.0), 0.3, "**Rank by score**"),
        ((0.0, 0.05), 0.3, "**Rank by blend**"),
        ((0.05, 0.05), 0.0, "**Rank by uncertainty**"),
        ((-0.05, -0.05), 0.3, "**Rank by score**"),
    ],
)
def test_the_answer_names_a_ranking_and_how_thin_its_choice_was(gaps, weight, start):
    model = SimpleNamespace(blend=SimpleNamespace(weight=weight))
    text, _ = answer(model, comparison(gaps))
    assert text.startswith(start) and "60 validation positives of 30 users" in text
    assert ("too thin a lead" if weight else "it is the score alone") in text
    assert "a clear lead" in answer(model, comparison(gaps, lead=(0.03, 0.01, 0.05)))[0] or not weight
    beaten, tone = answer(model, comparison(gaps, rivals=0.1))
    assert "ALS (implicit) finds more than the backbone" in beaten and tone == "warn"


def test_a_difference_that_holm_takes_back_changes_no_answer():
    found = comparison((0.05, 0.05))
    for row in found.paired:
        row["p_holm"] = 0.2
    assert answer(SimpleNamespace(blend=SimpleNamespace(weight=0.3)), found)[0].startswith("**Rank by score**")
