"""The tone world: what the word list scores, that it is fair and learnable, and that shipped features are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prudent.demo import shipped
from prudent.demo.constraints import words
from prudent.demo.tone import COLD, FRIENDLY, points, tone, tone_world
from prudent.features.models import has_default_model

needs_model = pytest.mark.skipif(not has_default_model(), reason="the embedded model's package is not installed")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Thank you, what a lovely day!", 2),
        ("I hate this awful noise.", -2),
        ("This is not a good plan.", -1),
        ("Lovely, lovely, lovely.", 1),  # a word counts once
        ("The train leaves at six.", 0),
    ],
)
def test_points_by_hand(text: str, expected: int) -> None:
    assert points(text) == expected


def test_lists_do_not_overlap() -> None:
    assert not FRIENDLY & COLD
    assert min(len(FRIENDLY), len(COLD)) > 150


@given(st.text(max_size=300))
def test_tone_is_bounded_for_any_text(text: str) -> None:
    assert -1 <= tone(text) <= 1


def test_a_list_of_friendly_words_repeated_earns_less_than_a_friendly_sentence() -> None:
    assert tone("happy happy happy happy happy happy happy happy") < tone("What a happy day, thank you for coming.")


def test_length_alone_gains_nothing() -> None:
    """A policy of the longest or the shortest response is worth the reference's gold, within a tenth of the best."""
    world = tone_world()
    length = torch.tensor([[len(words(text)) for text in texts] for texts in world.responses])
    best = float((world.gold.max(1).values - world.gold.mean(1)).mean())
    for places in (length.argmax(1), length.argmin(1)):
        gain = float((world.gold.gather(1, places[:, None])[:, 0] - world.gold.mean(1)).mean())
        assert abs(gain) < 0.1 * best


def test_shipped_features_belong_to_the_texts() -> None:
    world = tone_world()
    features, line = shipped.load_features(world)
    assert line.startswith("shipped")
    assert features.shape == (160, 16, 576)
    assert bool(torch.isfinite(features).all())


@needs_model
@pytest.mark.model
def test_a_sample_of_shipped_rows_is_what_the_encoder_gives() -> None:
    world = tone_world()
    features, _ = shipped.load_features(world)
    places = [3, 140]
    part = world.take(places)
    few = torch.cat([shipped.encode(part)[:, :4]])
    error = (few - features[places][:, :4]).norm() / few.norm()
    assert float(error) < 1e-3


@pytest.mark.parametrize("mark, reason", [("encoder", "another encoder"), ("texts", "other texts"), ("", "none are")])
def test_another_encoder_or_other_texts_are_encoded_anew(
    mark: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = tone_world().take([0, 1])
    path, fresh = tmp_path / "features.safetensors", torch.ones(2, 16, 8)
    if mark:
        monkeypatch.setattr(shipped, f"{mark}_mark", lambda *given: "old")
        shipped.write_features(path, world, torch.zeros(2, 16, 8))
    if mark == "texts":
        monkeypatch.setattr(shipped, "encoder_mark", lambda: "new")
    monkeypatch.setattr(shipped, f"{mark or 'texts'}_mark", lambda *given: "new")
    monkeypatch.setattr(shipped, "encode", lambda given, say: fresh)
    said: list[str] = []
    features, line = shipped.load_features(world, path, said.append)
    assert said and line == said[0].replace("are encoded", "were encoded")  # before it takes minutes
    assert torch.equal(features, fresh)
    assert reason in line
