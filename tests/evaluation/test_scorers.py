"""Scorers on tiny random models built in place: callables, DPO pairs, process models, judges, classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_causal_lm
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

from prudent.errors import PrudentError
from prudent.evaluation.benchmarks.contest import judge
from prudent.evaluation.benchmarks.items import Items
from prudent.evaluation.benchmarks.scorers import Options, judge_ratings, judge_verdicts, score_items

CPU = Options(dtype="float32", device="cpu")


@pytest.fixture
def items() -> Items:
    n = 3
    return Items(
        "rewardmath",
        "made",
        [f"i{k}" for k in range(n)],
        [f"What is {k}?" for k in range(n)],
        [[f"It is {k}.\nSo {k}.", "Who knows\nor cares", "No"] for k in range(n)],
        [1] * n,
        ["all"] * n,
        [[""] * 3] * n,
    )


def test_callable(items: Items, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_scorer.py").write_text(
        "def length(prompts, responses):\n    return [[len(r) for r in responses]] * 2\n"
    )
    monkeypatch.chdir(tmp_path)
    found = score_items("my_scorer:length", items, CPU)
    assert found.kind == "members" and found.values[0].tolist()[:3] == [len(c) for c in items.candidates[0]]
    with pytest.raises(PrudentError, match="can't be imported"):
        score_items("my_scorer:nothing", items, CPU)


def test_dpo_pair_is_the_log_ratio_of_the_response(items: Items, tmp_path: Path) -> None:
    model, tokenizer = tiny_causal_lm(tmp_path / "reference", seed=1)
    tiny_causal_lm(tmp_path / "policy", seed=2)
    names = f"{tmp_path / 'policy'},{tmp_path / 'reference'}"
    found = score_items(f"dpo:{names}", items, Options(beta=0.5, dtype="float32", device="cpu"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": items.prompts[1]}], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": items.prompts[1]}, {"role": "assistant", "content": "No"}], tokenize=False
    )
    start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
    totals = []
    for name in ("policy", "reference"):
        model = LlamaForCausalLM.from_pretrained(tmp_path / name).float()
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        totals.append(float(logp[start - 1 :].sum()))
    assert found.values[0][5] == pytest.approx(0.5 * (totals[0] - totals[1]), abs=1e-4)
    same = score_items(f"dpo:{tmp_path / 'policy'},{tmp_path / 'policy'}", items, CPU)
    assert abs(same.values).max() == 0
    with pytest.raises(PrudentError, match="dpo:POLICY,REFERENCE"):
        score_items("dpo:one", items, CPU)


def test_process_models_score_every_step(items: Items, tmp_path: Path) -> None:
    model, tokenizer = tiny_causal_lm(tmp_path / "lm")
    classifier = LlamaForTokenClassification(model.config)
    classifier.save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")
    for name in ("prm", "lm"):
        found = score_items(f"prm:{tmp_path / name}", items, CPU)
        assert found.kind == "steps" and [len(s) for s in found.values] == [2, 2, 1] * 3
        assert all(0 < p < 1 for steps in found.values for p in steps)
    by_hand = tokenizer("What is 2?\nIt is 2.\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = classifier.eval()(torch.tensor([[tokenizer.bos_token_id, *by_hand]])).logits[0, -1]
    found = score_items(f"prm:{tmp_path / 'prm'}", items, CPU)
    assert found.values[6][0] == pytest.approx(float(logits.softmax(-1)[-1]), abs=1e-5)


def test_saved_classifier_is_a_scorer_and_reads_each_text_once(items: Items, tmp_path: Path) -> None:
    model, tokenizer = tiny_causal_lm(tmp_path / "lm")
    torch.manual_seed(0)
    head = LlamaForSequenceClassification(type(model.config)(**{**model.config.to_dict(), "num_labels": 1}))
    head.config.pad_token_id = tokenizer.pad_token_id
    head.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    found = score_items(str(tmp_path / "rm"), items, CPU)
    assert found.kind == "scores" and found.values.shape == (1, 9) and len(set(found.values[0].tolist())) == 9
    doubled = Items(**{**items.__dict__, "candidates": [[c[0], c[0], c[0]] for c in items.candidates]})
    same = score_items(str(tmp_path / "rm"), doubled, CPU).values[0].reshape(3, 3)
    assert (same[:, 0] == same[:, 1]).all() and abs(same[:, 0] - found.values[0][0::3]).max() < 1e-5


def test_judges_place_by_item_and_are_parsed(items: Items) -> None:
    def first_slot(name: str, prompts: list[str], options: Options) -> list[str]:
        return ["I take the first. [[A]]" for _ in prompts]

    pairs = Items(**{**items.__dict__, "benchmark": "preferences", "candidates": [c[:2] for c in items.candidates]})
    many = Items(
        "preferences",
        "made",
        [f"i{k}" for k in range(60)],
        ["Q"] * 60,
        [["x", "y"]] * 60,
        [1] * 60,
        ["all"] * 60,
        [["", ""]] * 60,
    )
    found = judge_verdicts("j", many, CPU, write=first_slot)
    outcomes = [row[0] for row in found.values]
    assert 15 < outcomes.count("right") < 45
    again = judge_verdicts("j", many.chosen(reversed(range(60))), CPU, write=first_slot)
    assert [row[0] for row in again.values] == outcomes[::-1]
    both = judge_verdicts("j", many, Options(swap=True), write=first_slot)
    assert {row[0] for row in both.values} == {"tie"}  # a judge who always takes a slot contradicts itself
    silent = judge_verdicts("j", pairs, CPU, write=lambda n, p, o: [""] * len(p))
    assert {row[0] for row in silent.values} == {"invalid"}
    assert [len(row) for row in judge_verdicts("j", items, CPU, write=first_slot).values] == [2, 2, 2]


def test_judges_rate_each_answer_alone(items: Items) -> None:
    """Ratings rank several correct answers too; what can't be read never helps the item."""
    two = Items(
        "rewardbench2",
        "made",
        ["ref:1", "tied:1"],
        ["Name red.", "Name a colour."],
        [["Red.", "Sea."], ["Red.", "Blue.", "Sea."]],
        [1, 2],
        ["Ties", "Ties"],
        [[""] * 2, [""] * 3],
    )

    def rate(name: str, prompts: list[str], options: Options) -> list[str]:
        assert all(text.count("# Answer") == 1 for text in prompts)
        return [f"Well. [[{2 if text.endswith('Sea.') else 9}]]" for text in prompts]

    rated = judge_ratings("j", two, Options(ratings=True), write=rate)
    assert rated.values.tolist() == [[9, 2, 9, 9, 2]]
    options = {"rule": "mean", "rules": [], "weights": "counts", "prior": False, "rounds": 20, "seed": 0}
    assert judge(rated, two, options).view.detail.ties.tied_accuracy == 1
    for unread in ("Red.", "Sea."):
        texts = lambda n, p, o: ["?" if t.endswith(unread) else "[[5]]" for t in p]  # noqa: E731, B023
        found = judge_ratings("j", items.chosen([0]), CPU, write=lambda n, p, o: ["?"] * len(p))
        assert found.values[0][0] < found.values[0][1] and "3 of 3 ratings" in found.notes[1]
        tied = judge_ratings("j", two, CPU, write=texts).values[0]
        assert tied[0] < tied[1]
    with pytest.raises(PrudentError, match="--swap is for verdicts"):
        judge_ratings("j", two, Options(swap=True, ratings=True), write=rate)


def test_judge_on_a_tiny_model_runs(items: Items, tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "lm")
    options = Options(max_new_tokens=4, dtype="float32", device="cpu")
    found = score_items(f"judge:{tmp_path / 'lm'}", items.chosen([0]), options)
    assert found.kind == "judge" and all(o in ("right", "wrong", "tie", "invalid") for o in found.values[0])
    options = Options(max_new_tokens=4, ratings=True, dtype="float32", device="cpu")
    assert score_items(f"judge:{tmp_path / 'lm'}", items.chosen([0]), options).values.shape == (1, 3)


def test_texts_are_needed(items: Items) -> None:
    bare = Items(**{**items.__dict__, "candidates": [["", "", ""]] * 3})
    with pytest.raises(PrudentError, match="needs texts"):
        score_items("any", bare, CPU)
