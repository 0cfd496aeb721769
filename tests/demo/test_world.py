"""The embedded data: size, balance, reproducibility from the script, and preferences drawn from gold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from prudent.demo import build, design, world
from prudent.demo.constraints import Constraint
from prudent.demo.world import draw_preferences, gold_reward, load_world, pool, preferences_dataset
from prudent.errors import PrudentError


def test_size_of_the_world() -> None:
    whole = load_world()
    assert len(whole) >= 320
    assert whole.gold.shape == (len(whole), 16)
    assert whole.gold.dtype == torch.float64
    assert len(set(whole.ids)) == len(set(whole.tasks)) == len(whole)
    assert min(Counter(whole.topics).values()) >= 10
    assert all(len(texts) == 16 for texts in whole.responses)
    assert sum(path.stat().st_size for path in build.DATA.iterdir()) <= 4 * 2**20


def test_every_kind_is_as_frequent_as_its_opposite() -> None:
    whole = load_world()
    kinds = Counter(part.kind for constraints in whole.constraints for part in constraints)
    assert set(kinds.values()) == {32}
    pairs = Counter(frozenset(part.kind for part in constraints) for constraints in whole.constraints)
    assert set(pairs.values()) == {2}  # every combination of two kinds in each sense
    assert len(pairs) == 4 * len(design.combinations())


def test_no_kind_is_beyond_the_model_or_beneath_it() -> None:
    whole = load_world()
    credits: dict[str, list[float]] = {}
    for constraints, texts in zip(whole.constraints, whole.responses, strict=True):
        for part in constraints:
            credits.setdefault(part.kind, []).extend(gold_reward([[part]] * len(texts), texts).tolist())
    for kind, values in credits.items():
        assert 0.02 < np.mean(np.array(values) >= 1) < 0.98, kind
    assert 0.1 < float(whole.gold.std(1).mean()) < 0.4


def test_prompts_are_what_the_script_makes() -> None:
    assert build.prompt_rows() == build.read_rows(build.DATA / world.PROMPTS)


def test_prompts_say_their_constraints() -> None:
    for row in build.prompt_rows():
        assert row["prompt"].startswith(row["task"])
        for part in row["constraints"]:
            named = [str(part["word"])] if "word" in part else []
            if part["kind"] in ("at_most_words", "at_least_words"):
                named.append(str(part["number"]))
            elif "number" in part:
                named.append(design.SPELLED[part["number"]])
            assert all(name in row["prompt"] for name in named), row


def test_blind_rules_gain_little() -> None:
    """Taking each prompt's shortest or longest response, or the one with fewest commas, is worth hardly anything."""
    whole = load_world()
    for feature in (lambda text: len(text), lambda text: text.count(","), lambda text: text.count("!")):
        values = torch.tensor([[float(feature(text)) for text in texts] for texts in whole.responses])
        for sign in (1, -1):
            weights = torch.softmax(sign * 4 * (values - values.mean(1, keepdim=True)) / values.std(), 1).double()
            gain = (weights * whole.gold).sum(1) - whole.gold.mean(1)
            assert abs(float(gain.mean())) < 0.2 * float(whole.gold.max(1).values.mean() - whole.gold.mean())


def test_parts_are_nested_and_balanced() -> None:
    small, large = load_world(40), load_world(80)
    assert set(small.ids) < set(large.ids)
    for part, expected in ((large, 8), (load_world(160), 16)):
        assert set(Counter(c.kind for constraints in part.constraints for c in constraints).values()) == {expected}
    place = load_world().ids.index(small.ids[3])
    assert torch.equal(load_world().gold[place], small.gold[3])
    assert load_world(["cooking-02", "cooking-01"]).ids == ["cooking-02", "cooking-01"]


@pytest.mark.parametrize("wrong", [0, 10_000, ["nowhere-01"]])
def test_a_part_that_is_not_there(wrong: object) -> None:
    with pytest.raises(PrudentError):
        load_world(wrong)  # type: ignore[arg-type]


def test_gold_of_any_text() -> None:
    whole = load_world(5)
    texts = [texts[2] for texts in whole.responses]
    assert torch.equal(gold_reward(whole.ids, texts), whole.gold[:, 2])
    assert torch.equal(gold_reward(whole.constraints, texts), whole.gold[:, 2])
    assert gold_reward([[Constraint("no_commas")]], ["no comma here"]).tolist() == [1.0]
    with pytest.raises(PrudentError, match="nowhere"):
        gold_reward(["nowhere-01"], ["text"])
    with pytest.raises(PrudentError, match="1 prompts for 2 texts"):
        gold_reward(["cooking-01"], ["text", "text"])


def test_preferences_follow_bradley_terry() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    prompt, chosen, rejected = draw_preferences(rewards, [0, 1], 40_000, 2.0, seed=1)
    assert bool((chosen != rejected).all())
    assert set(prompt.tolist()) == {0, 1}
    right = (rewards[prompt, chosen] > rewards[prompt, rejected]).double().mean()
    assert float(right) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.01)
    noise = draw_preferences(rewards, [0, 1], 40_000, 0.0, seed=1)
    assert float((rewards[noise[0], noise[1]] > 0.5).double().mean()) == pytest.approx(0.5, abs=0.01)


def test_preferences_are_even_over_prompts_and_repeat() -> None:
    whole = load_world()
    first = draw_preferences(whole, range(7, 17), 25, 2.0, seed=3)
    again = draw_preferences(whole.gold.numpy(), torch.arange(7, 17), 25, 2.0, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    counts = Counter(first[0].tolist())
    assert set(counts) == set(range(7, 17))
    assert set(counts.values()) == {2, 3}
    assert not torch.equal(first[1], draw_preferences(whole, range(7, 17), 25, 2.0, seed=4)[1])


@pytest.mark.parametrize("indices, pairs", [([], 5), ([-1], 5), ([400], 5), ([0], 0)])
def test_preferences_that_cannot_be_drawn(indices: list[int], pairs: int) -> None:
    with pytest.raises(PrudentError):
        draw_preferences(load_world(), indices, pairs, 2.0, seed=0)


def test_preferences_read_as_a_preference_file(tmp_path: Path) -> None:
    from prudent.data.preferences import read_preferences

    whole = load_world(8)
    made = preferences_dataset(whole, range(8), 12, 4.0, seed=5)
    path = tmp_path / "pairs.jsonl"
    made.to_json(path)
    read = read_preferences(path)
    assert read["prompt"][:] == made["prompt"][:]
    assert read["chosen"][:] == made["chosen"][:]
    assert "gold" not in made.column_names


def test_pool_carries_gold(tmp_path: Path) -> None:
    from prudent.data.pools import read_pool, write_pool

    whole = load_world(4)
    write_pool(tmp_path / "pool.jsonl", pool(whole))
    found = read_pool(tmp_path / "pool.jsonl")
    assert found.responses == whole.responses
    assert found.ids == whole.ids
    assert torch.equal(torch.tensor(found.gold, dtype=torch.float64), whole.gold)


def test_split_is_balanced_and_leaves_no_prompt_on_both_sides() -> None:
    whole = load_world()
    train, held = world.split(whole, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(whole)))
    for side in (train, held):
        kinds = Counter(part.kind for place in side.tolist() for part in whole.constraints[place])
        assert set(kinds.values()) == {16}
    assert not torch.equal(train, world.split(whole, seed=1)[0])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = build.read_rows(build.DATA / world.RESPONSES)
    build.write_rows(tmp_path / "again.jsonl.gz", rows)
    assert (tmp_path / "again.jsonl.gz").read_bytes() == (build.DATA / world.RESPONSES).read_bytes()
