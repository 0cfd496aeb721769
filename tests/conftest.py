"""What every test shares: where the real data are, whether a browser is there, quiet and offline libraries."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# What libraries make when they are imported stays: collecting it again and again took a seventh of a file's time.
gc.set_threshold(50_000)
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for each other sleep rather than spin: on a busy machine spinning costs ten times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out among the workers already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that tests can import tests.tiny

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.second_device import SecondDevice

# A test must not fail because the machine is busy with something else.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

USUAL_MODELS = Path(os.environ.get("PRUDENT_CACHE") or Path.home() / ".cache" / "prudent").expanduser() / "models"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def new_cache(folders: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> None:
    """An empty feature cache from here on."""
    cache = folders.mktemp("cache")
    with contextlib.suppress(OSError):
        USUAL_MODELS.mkdir(parents=True, exist_ok=True)
        (cache / "models").symlink_to(USUAL_MODELS, target_is_directory=True)
    patch.setenv("PRUDENT_CACHE", str(cache))


def pytest_collection_finish() -> None:
    """What is there by now is never collected."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def first_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of modules and of the session write to, so that they don't fill the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        new_cache(tmp_path_factory, patch)
        yield


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a feature cache of its own, so that none reads what another left; converted models are shared."""
    new_cache(tmp_path_factory, monkeypatch)


@pytest.fixture
def shared() -> Path:
    """Folder of real preference, benchmark and rating files beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the folder ../shared with real data, which is not here")
    return SHARED


@pytest.fixture
def chromium() -> str:
    """Path of a headless browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium, which is not installed here")
    return path


@pytest.fixture(scope="session")
def tiny_model() -> tuple:
    """(model, tokenizer): a tiny random Llama-style model and a byte-level tokenizer with a chat template. All tests
    share them: who trains or changes a model makes its own by ``tiny_causal_lm``."""
    from tests.tiny import tiny_causal_lm

    return tiny_causal_lm()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds the tiny model and its tokenizer, as ``save_pretrained`` writes them, for all tests."""
    from tests.tiny import tiny_causal_lm

    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_causal_lm(folder)
    return folder


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDevice]:
    """A stand-in for a GPU, on for the test: tensors of it and of the processor must not meet."""
    from tests.second_device import entered

    with entered(monkeypatch) as mode:
        yield mode
