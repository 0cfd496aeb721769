"""Rules: each finds what it is for, names its evidence, and leaves sound pairs alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prudent.data.cleaning import apply_changes, changes_of_findings, hashes_of
from prudent.data.conflicts import parse_conflict
from prudent.data.duplicates import jaccard, near_duplicates, shingles
from prudent.data.rules import RULES, Finding, Rows, main_script, parse_actions, run_rules
from prudent.errors import PrudentError

TEXT = "the river runs past the old mill and under two bridges before it meets the sea at noon"


def row(number: int, prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    sides = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {"row": number, **{k: [{"role": roles[k], "content": v}] for k, v in sides.items()}, **more}


def find(rule: str, rows: list[dict[str, Any]], **options: Any) -> list[Finding]:
    return list(RULES[rule].find(Rows(rows, [r["prompt"][0]["content"] for r in rows], **options)))


def test_near_identical_sees_case_space_and_small_edits() -> None:
    long = " ".join(f"word{i}" for i in range(200))
    rows = [
        row(1, "P", "A  good\nanswer", "a good answer"),
        row(2, "P", long, long.replace("word100", "other")),
        row(3, "P", long, long[: len(long) // 2]),
        row(4, "P", "word word word word", "word word"),
    ]
    assert [f.index for f in find("near-identical", rows)] == [0, 1]


def test_near_duplicates_know_their_direction() -> None:
    words = TEXT.split()
    edited = " ".join([*words, "and", "rests", "there", "for", "good"])
    longer, other = " ".join([TEXT] + [f"x{i}" for i in range(60)]), " ".join(f"y{i}" for i in range(60))
    rows = [
        row(1, "P", longer, other),
        row(2, "P", longer + " end", other),
        row(3, "P", other, longer + " stop"),
        row(4, "P", edited, other),
        row(5, "quite another prompt", longer, other),
    ]
    found = {f.index: f.evidence for f in find("near-duplicate", rows)}
    assert sorted(found) == [1, 2]
    assert not found[1]["opposite_label"] and found[2]["opposite_label"]
    assert all(0.9 <= evidence["similarity"] < 1 for evidence in found.values())


def test_minhash_finds_what_exact_comparison_finds() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(150):
        a, b = (" ".join(f"w{k}" for k in generator.integers(0, 300, 60)) for _ in range(2))
        rows.append(row(i + 1, f"prompt {i % 5}", a, b))
        if i % 3 == 0:
            rows.append(row(1000 + i, f"prompt {i % 5}", a + " tail", b))
    exact = {
        i
        for i in range(len(rows))
        for j in range(i)
        if rows[i]["prompt"] == rows[j]["prompt"]
        and all(
            jaccard(shingles(rows[i][s][0]["content"]), shingles(rows[j][s][0]["content"])) >= 0.9
            for s in ("chosen", "rejected")
        )
    }
    found = {near.row for near in near_duplicates(rows, 0.9)}
    assert found <= exact and len(found) >= 0.95 * len(exact) and len(exact) == 50


def test_duplicates_leaks_and_empties() -> None:
    rows = [row(1, "P", "a", "b"), row(2, "P", "a", "b"), row(3, "Q", "a", " "), row(4, "R", "a", "b")]
    assert [(f.index, f.evidence["same_as_line"]) for f in find("duplicate", rows)] == [(1, 1)]
    assert [(f.index, f.evidence["empty_sides"]) for f in find("empty", rows)] == [(2, ["rejected"])]
    leaks = find("leak", rows, others={"test.jsonl": {"R": 7}})
    assert [(f.index, f.evidence["prompt_also_in"]) for f in leaks] == [(3, [{"split": "test.jsonl", "line": 7}])]


def test_broken_transcripts_and_damage() -> None:
    rows = [
        row(1, "P", "An answer.\n\nHuman: And then?\n\nAssistant: Then", "fine"),
        row(2, "P", "A play: Human: enters.", "fine"),
        row(3, "P", "caf\u00c3\u00a9", "fine"),
        row(4, "P", "caf\u00e9 \u2013 na\u00efve", "fine"),
        row(5, "P", "half \ufffd", "fine"),
        row(6, "P", "bell \x07", "fine"),
        row(7, "P", "fine", "Human: I ask you"),
    ]
    broken = {f.index: f.evidence["faults"] for f in find("broken-transcript", rows)}
    assert broken == {0: ['chosen runs on into "Human:"'], 6: ['rejected begins with "Human:"']}
    damaged = {f.index: f.evidence["faults"] for f in find("damaged-text", rows)}
    assert damaged == {
        2: ["mojibake in chosen"],
        4: ["replacement character in chosen"],
        5: ["control character in chosen"],
    }


def test_inverted_scores_are_suggested_for_a_flip() -> None:
    rows = [
        row(1, "P", "a", "b", score_chosen=2.0, score_rejected=9.0),
        row(2, "P", "a", "c", score_chosen=3, score_rejected=1),
    ]
    found = find("scores", rows)
    assert [(f.index, f.suggestion, f.evidence) for f in found] == [
        (0, "flip", {"score_chosen": 2.0, "score_rejected": 9.0})
    ]
    with pytest.raises(PrudentError, match="score_chosen, score_rejected; chosen_score"):
        find("scores", [row(1, "P", "a", "b")])


def test_scripts() -> None:
    assert main_script("plain English words") == "LATIN"
    assert main_script("Это русский текст") == "CYRILLIC"
    assert main_script("これは日本語の文章です。漢字") == "CJK"
    assert main_script("12 + 34") is None
    rows = [row(1, "P", "plain English words", "Это русский текст"), row(2, "P", "plain English words", "42")]
    assert [f.index for f in find("language", rows)] == [0]


def test_truncation_needs_a_model() -> None:
    with pytest.raises(PrudentError, match="--encoder"):
        find("truncated", [row(1, "P", "a", "b")])


def test_actions_and_unknown_names() -> None:
    assert parse_actions(["near-duplicate=drop"])["near-duplicate"] == "drop"
    assert set(parse_actions(["all=keep"]).values()) == {"keep"}
    with pytest.raises(PrudentError, match=r"unknown rule 'spelling'; known: empty"):
        parse_actions(["spelling=drop"])
    with pytest.raises(PrudentError, match="unknown action 'remove'"):
        parse_actions(["empty=remove"])


def test_rules_do_not_depend_on_row_order() -> None:
    rows = [row(i, f"P{i % 4}", f"a{i % 2} b c", f"a{i % 3} b c") for i in range(40)]
    actions = parse_actions(["truncated=keep", "votes=keep", "scores=keep", "leak=keep", "near-duplicate=keep"])

    def summary(order: list[int]) -> set[tuple[str, tuple[str, ...]]]:
        listed = [rows[i] for i in order]
        keys = [r["prompt"][0]["content"] for r in listed]
        texts = [tuple(r[s][0]["content"] for s in ("prompt", "chosen", "rejected")) for r in listed]
        return {(f.rule, texts[f.index]) for f in run_rules(Rows(listed, keys), actions)}

    order = np.random.default_rng(1).permutation(40).tolist()
    assert summary(order) == summary(list(range(40))) != set()


def test_planted_empties_and_copies_are_all_removed() -> None:
    """2 % empty, 3 % duplicates among 1,000 pairs."""
    from datasets import Dataset

    generator = np.random.default_rng(3)
    rows = [row(i + 1, f"P{i}", f"yes {generator.random()}", f"no {generator.random()}") for i in range(950)]
    rows += [row(951 + i, f"E{i}", "", "no") for i in range(20)]
    rows += [{**rows[i], "row": 971 + i} for i in range(30)]
    data = Dataset.from_list(rows)
    actions = parse_actions(["truncated=keep", "votes=keep", "scores=keep", "leak=keep"])
    findings = run_rules(Rows(rows, [r["prompt"][0]["content"] for r in rows]), actions)
    cleaned = apply_changes(data, changes_of_findings(findings, actions, data["row"], hashes_of(data)))
    assert len(cleaned.rows) == 950 and [r["row"] for r in cleaned.rows] == list(range(1, 951))
    assert len(cleaned.log) == 50 and all(entry["evidence"] for entry in cleaned.log)


def scored(count: int = 40) -> list[dict[str, Any]]:
    """Pairs that a judge and a person score alike (on other scales), but for the pairs on lines 4 and 9."""
    rows = []
    for i in range(count):
        base = (i * 7) % 5 - 2.0
        judge = {"chosen": [{"score": 3 + base}], "rejected": [{"score": 3.0}]}
        rows.append(row(i + 1, f"P{i}", f"a{i}", f"b{i}", overall=50 + 10 * base, **{"judge.v1": judge}))
    rows[3]["overall"], rows[8]["overall"] = 150.0, -20.0
    rows[11]["overall"], rows[12]["judge.v1"] = "n/a", {"chosen": [], "rejected": None}
    return rows


def test_conflicts_of_two_sources_are_ranked_by_size() -> None:
    conflict = parse_conflict("overall, judge.v1.chosen.0.score:judge.v1.rejected.0.score", 1.5)
    found = find("conflict", scored(), conflict=conflict)
    assert [finding.index for finding in found] == [3, 8]
    evidence = found[0].evidence
    assert evidence["overall"] == 150.0 and evidence["rank"] == 1 and evidence["compared"] == 38
    assert evidence["judge.v1.chosen.0.score:judge.v1.rejected.0.score"] == (3 * 7) % 5 - 2.0
    sizes = [finding.evidence["standard_deviations_apart"] for finding in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1.5
    assert len(find("conflict", scored(), conflict=parse_conflict("overall,judge.v1.chosen.0.score", 0))) == 38


def test_the_scale_of_a_difference_keeps_its_zero() -> None:
    """Two judges of one sign never conflict by their means alone: 1 and 3 against 2 and 6 is one opinion."""
    rows = [row(i, f"P{i}", "a", "b", a=1.0 + 2 * (i % 2), b=2.0 + 4 * (i % 2), zero=0.0) for i in range(6)]
    found = find("conflict", rows, conflict=parse_conflict("a:zero,b:zero", 0))
    assert max(finding.evidence["standard_deviations_apart"] for finding in found) < 1e-6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("overall", "give ONE,OTHER"),
        ("a,b,c", "give ONE,OTHER"),
        ("a:b:c,d", "give ONE,OTHER"),
        ("overall,overall", "give ONE,OTHER"),
        ("overall,judge.v1.chosen.0.points", "columns with numbers: row, overall, judge.v1.chosen.0.score"),
        ("overall,judge.v1.rejected.0.score", "is the same in every pair"),
    ],
)
def test_sources_that_can_t_be_compared_are_named(text: str, said: str) -> None:
    with pytest.raises(PrudentError, match=said):
        find("conflict", scored(), conflict=parse_conflict(text))


def test_large_scores_do_not_overflow() -> None:
    rows = [row(i, f"P{i}", "a", "b", a=1e300 * (i % 3), b=float(i % 3 if i else 2)) for i in range(9)]
    assert [finding.index for finding in find("conflict", rows, conflict=parse_conflict("a,b", 1.0))] == [0]


def test_inverted_scores_come_with_the_largest_difference_first() -> None:
    rows = [row(i, f"P{i}", "a", "b", score_chosen=1, score_rejected=s) for i, s in enumerate((2, 0, 9, 4))]
    assert [finding.index for finding in find("scores", rows)] == [2, 3, 0]
