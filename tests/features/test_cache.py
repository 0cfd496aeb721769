"""The cache on disk: shared, merged, and valid whenever a writer dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prudent.errors import PrudentError
from prudent.features.cache import MERGE_FROM, FeatureCache, row_key


def rows(start: int, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """Keys and features that tell from each other whether a row is whole: feature j of row i is i + j / 8."""
    numbers = range(start, start + count)
    keys = np.array([row_key([i], [i, i]) for i in numbers], dtype=np.int64)
    return keys, torch.tensor(list(numbers), dtype=torch.float32).unsqueeze(1) + torch.arange(4) / 8


def check(cache: FeatureCache, start: int, count: int) -> int:
    keys, expected = rows(start, count)
    held, found = cache.find(keys)
    assert torch.equal(found, expected[torch.from_numpy(held)])
    return int(held.sum())


def test_keys_tell_texts_and_their_division_apart() -> None:
    keys = {row_key([1, 2], [3]), row_key([1], [2, 3]), row_key([1, 2, 3], []), row_key([1, 2], [4])}
    assert len(keys) == 4
    assert row_key([1, 2], [3]) == row_key((1, 2), (3,))


def test_what_is_added_is_found_by_others_once_flushed(tmp_path: Path) -> None:
    one, two = FeatureCache(tmp_path, 4), FeatureCache(tmp_path, 4)
    one.add(*rows(0, 10))
    assert check(two, 0, 20) == 0
    one.flush()
    assert check(two, 0, 20) == check(one, 0, 20) == 10
    two.add(*rows(5, 10))  # five of them again
    two.flush()
    assert check(one, 0, 20) == 15
    assert len(one) == len(two) == 15
    assert check(FeatureCache(tmp_path, 4), 0, 20) == 15


def test_an_empty_flush_writes_nothing(tmp_path: Path) -> None:
    FeatureCache(tmp_path, 4).flush()
    assert list(tmp_path.iterdir()) == []


def test_small_shards_are_merged_without_loss(tmp_path: Path) -> None:
    cache, watcher = FeatureCache(tmp_path, 4), FeatureCache(tmp_path, 4)
    for number in range(3 * MERGE_FROM):
        cache.add(*rows(number, 2))  # each row twice over, in neighbouring shards
        cache.flush()
        if number % 7 == 0:
            assert check(watcher, 0, number + 2) == number + 2
    assert len(list(tmp_path.glob("*.parquet"))) < MERGE_FROM
    assert check(cache, 0, 1000) == check(watcher, 0, 1000) == 3 * MERGE_FROM + 1


def test_files_that_another_process_takes_away_meanwhile_are_passed_over(tmp_path: Path, monkeypatch) -> None:
    """Between listing the folder and looking at a file another worker may merge or rename it."""
    cache, listing = FeatureCache(tmp_path, 4), os.scandir
    for number in range(MERGE_FROM - 1):
        cache.add(*rows(number, 1))
        cache.flush()
    going = [*sorted(tmp_path.glob("*.parquet")), tmp_path / "0.part"]
    going[-1].touch()

    def late(folder: Path):
        entries = list(listing(folder))
        (going.pop() if going else tmp_path / "none").unlink(missing_ok=True)
        return iter(entries)

    monkeypatch.setattr("prudent.features.cache.os.scandir", late)
    for number in (500, 501, 502):
        cache.add(*rows(number, 1))
        cache.flush()
    monkeypatch.undo()
    assert check(FeatureCache(tmp_path, 4), 500, 3) == 3


def test_large_shards_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prudent.features.cache.MERGE_BYTES", 10)
    cache = FeatureCache(tmp_path, 4)
    for number in range(MERGE_FROM + 3):
        cache.add(*rows(number, 1))
        cache.flush()
    assert len(list(tmp_path.glob("*.parquet"))) == MERGE_FROM + 3


def test_a_full_buffer_is_written_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prudent.features.cache.FLUSH_ROWS", 8)
    cache = FeatureCache(tmp_path, 4)
    cache.add(*rows(0, 5))
    assert check(FeatureCache(tmp_path, 4), 0, 20) == 0
    cache.add(*rows(5, 5))
    assert check(FeatureCache(tmp_path, 4), 0, 20) == 10


def write_for_ever(folder: Path, width: int) -> None:
    cache = FeatureCache(folder, width)
    start = 0
    while True:
        cache.add(*rows(start, 50))
        cache.flush()
        start += 50


def test_kill_at_any_moment_leaves_it_valid(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    most, folder = 0, tmp_path / "cache"
    for _ in range(25):
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(folder, 4)
            finally:
                os._exit(1)
        time.sleep(float(random.uniform(0.0, 0.12)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the writer must have been killed, not have failed"
        cache = FeatureCache(folder, 4)
        held = check(cache, 0, 3000)
        assert held >= most, "what was once readable stays readable"
        assert held % 50 == 0, "a shard is there whole or not at all"
        most = held
    assert most > 0
    cache = FeatureCache(folder, 4)
    cache.add(*rows(2990, 10))
    cache.flush()
    assert check(cache, 2990, 10) == 10


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"nonsense")
    with pytest.raises(PrudentError, match=r"broken\.parquet is damaged.*remove it"):
        FeatureCache(tmp_path, 4).find(rows(0, 1)[0])
    (tmp_path / "broken.parquet").unlink()
    cache = FeatureCache(tmp_path, 4)
    cache.add(*rows(0, 1))
    cache.flush()
    with pytest.raises(PrudentError, match="expected width 5"):
        FeatureCache(tmp_path, 5).find(rows(0, 1)[0])
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(PrudentError, match="can't be made"):
        FeatureCache(blocked / "cache", 4)


def test_leftovers_of_the_killed_are_cleared_in_time(tmp_path: Path) -> None:
    old, young = tmp_path / "old.part", tmp_path / "young.part"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = FeatureCache(tmp_path, 4)
    for number in range(MERGE_FROM):
        cache.add(*rows(number, 1))
        cache.flush()
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_features_from_the_same_state_of_the_cache_are_the_same_bits(tmp_path: Path, dtype, bound: float) -> None:
    from tests.tiny import tiny_causal_lm

    from prudent.features.encoder import Encoder

    model, tokenizer = tiny_causal_lm()
    prompts = [f"ask {i // 2} " + "word " * (i % 7) for i in range(40)]
    responses = ["answer " + "x " * (i * 5 % 23) for i in range(40)]

    def encode(folder: str | None, step: int = 1) -> torch.Tensor:
        cache = False if folder is None else tmp_path / folder
        encoder = Encoder((model.to(dtype), tokenizer), pooling="last+mean", cache=cache, progress=False)
        return encoder.encode(prompts[::step], responses[::step])

    cold = encode(None)
    assert torch.equal(cold, encode(None)) and torch.equal(cold, encode("full")) and torch.equal(cold, encode("full"))
    encode("part", step=3)  # the rest is batched otherwise
    assert float((encode("part") - cold).abs().max() / cold.std()) < bound
