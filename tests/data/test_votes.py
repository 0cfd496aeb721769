"""Merging annotators: verdicts, soft labels, agreement; and CHH-RLHF's rule against planted noise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from prudent.data.preferences import read_preferences
from prudent.data.rules import RULES, Rows
from prudent.data.votes import BOTH_BAD, krippendorff_alpha, merge_votes, read_votes
from prudent.errors import PrudentError


@pytest.mark.parametrize(
    ("votes", "outcome", "soft"),
    [
        ([1, 1, 0], "first", 5 / 6),
        ([2, 2, 2], "second", 0.0),
        ([0, 0, 1], "tie", 2 / 3),
        ([1, 2, 0], "undecided", 0.5),
        ([1, 2], "undecided", 0.5),
        ([BOTH_BAD] * 3, "both-bad", 0.5),
        ([], "no-votes", None),
        ([1, 1, 2, 2], "undecided", 0.5),
    ],
)
def test_verdicts(votes: list[int], outcome: str, soft: float | None) -> None:
    found = merge_votes(votes)
    assert found.outcome == outcome
    assert found.soft_label == (None if soft is None else pytest.approx(soft))


def test_three_of_four_and_ties_left_out() -> None:
    assert merge_votes([1, 1, 2], min_share=0.75).outcome == "undecided"
    assert merge_votes([1, 1, 1, 2], min_share=0.75).outcome == "first"
    assert merge_votes([1, 1, 0], soft="ignore").soft_label == 1.0
    assert merge_votes([0, 0], soft="ignore").soft_label is None
    assert merge_votes([1, 1], soft=None).soft_label is None


def test_words_for_votes() -> None:
    assert read_votes(["model_a", "model_b", "tie", "tie (bothbad)", 1.0, "2"]) == [1, 2, 0, 3, 1, 2]
    assert read_votes("model_b") == [2] and read_votes(None) == []
    for wrong in (3, "best", True, 1.5):
        with pytest.raises(ValueError, match="not a vote"):
            read_votes([wrong])


def test_votes_in_the_result_are_about_chosen_and_rejected(tmp_path: Path) -> None:
    row = {"prompt": "P", "response_1": "a", "response_2": "b", "votes": [2, 2, 1]}
    (tmp_path / "v.jsonl").write_text(json.dumps(row))
    data = read_preferences(tmp_path / "v.jsonl")
    assert data[0]["chosen"][0]["content"] == "b" and data[0]["votes"] == [1, 1, 2]
    assert data[0]["soft_label"] == pytest.approx(2 / 3) and data[0]["agreement"] == pytest.approx(2 / 3)


def test_votes_of_one_class_are_no_judgement(tmp_path: Path) -> None:
    rows = [{"prompt": f"P{i}", "response_1": "a", "response_2": "b", "votes": [1, 1, 1]} for i in range(5)]
    path = tmp_path / "v.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(PrudentError, match="all 15 votes are 1"):
        read_preferences(path)
    assert len(read_preferences(path, on_error="skip")) == 5
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {**rows[0], "votes": [2, 2, 1]}]))
    assert len(read_preferences(path)) == 6


def test_alpha_against_its_definition() -> None:
    votes = [[1, 1, 2], [2, 2, 2], [1, 0, 1], [1, 1, 1]]
    values = sorted({v for row in votes for v in row})
    observed = np.zeros((len(values), len(values)))
    for row in votes:  # coincidences of ordered pairs within a row, each weighted 1 / (votes - 1)
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if i != j:
                    observed[values.index(a), values.index(b)] += 1 / (len(row) - 1)
    totals = observed.sum(1)
    n = totals.sum()
    disagreement = 1 - np.trace(observed) / n
    chance = 1 - (totals * (totals - 1)).sum() / (n * (n - 1))
    assert krippendorff_alpha(votes) == pytest.approx(1 - disagreement / chance)
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None  # a single value: undefined, not perfect
    assert krippendorff_alpha([[1], [2]]) is None
    assert krippendorff_alpha([[1, 1], [2, 2]]) == pytest.approx(1.0)


def planted(seed: int, n: int = 1000, accuracy: float = 0.85) -> tuple[list[dict], np.ndarray]:
    """20 % inverted pairs, four annotators who see the truth with the given accuracy."""
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(n) < 0.2 * n
    right = generator.random((n, 4)) < accuracy
    votes = np.where(right != wrong[:, None], 1, 2)  # an annotator who is right opposes an inverted label
    rows = [
        {
            "row": i + 1,
            "prompt": [{"role": "user", "content": f"P{i}"}],
            "votes": votes[i].tolist(),
            "chosen": [{"role": "assistant", "content": "bad" if wrong[i] else "good"}],
            "rejected": [{"role": "assistant", "content": "good" if wrong[i] else "bad"}],
        }
        for i in range(n)
    ]
    return rows, wrong


def test_planted_inversions_are_flipped_as_often_as_expected() -> None:
    rows, wrong = planted(0)
    found = list(RULES["votes"].find(Rows(rows, [str(i) for i in range(len(rows))])))
    flips = np.zeros(len(rows), dtype=bool)
    flips[[f.index for f in found if f.suggestion == "flip"]] = True
    drops = np.zeros(len(rows), dtype=bool)
    drops[[f.index for f in found if f.suggestion == "drop"]] = True
    hit = sum(math.comb(4, k) * 0.85**k * 0.15 ** (4 - k) for k in (3, 4))
    miss = sum(math.comb(4, k) * 0.15**k * 0.85 ** (4 - k) for k in (3, 4))
    assert hit == pytest.approx(0.8905, abs=1e-4) and miss == pytest.approx(0.0120, abs=1e-4)
    for share, rate, n in ((flips[wrong].mean(), hit, 200), (flips[~wrong].mean(), miss, 800)):
        assert abs(share - rate) < 3 * math.sqrt(rate * (1 - rate) / n)
    kept = ~drops
    before, after = (~wrong).mean(), (flips == wrong)[kept].mean()  # a perfect scorer agrees with true labels alone
    assert before == pytest.approx(0.80) and after > 0.97


def test_votes_rule_needs_votes() -> None:
    rows, _ = planted(1, 10)
    for row in rows:
        del row["votes"]
    with pytest.raises(PrudentError, match='column "votes"'):
        list(RULES["votes"].find(Rows(rows, ["x"] * 10)))
