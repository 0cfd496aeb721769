"""A small reward model with linear heads, and the service of it."""

import pytest


@pytest.fixture(scope="session")
def heads_folder(tmp_path_factory):
    """Folder of four heads on a tiny language model."""
    from tests.tiny import tiny_causal_lm

    from prudent import Encoder, HeadEnsemble, RewardModel

    root = tmp_path_factory.mktemp("serving")
    tiny_causal_lm(root / "lm")
    encoder = Encoder(str(root / "lm"), dtype="float32", cache=False, progress=False)
    prompts = [f"ask {row}" for row in range(30)]
    chosen = encoder.encode(prompts, ["good " * (1 + row % 4) for row in range(30)])
    rejected = encoder.encode(prompts, ["bad " * (1 + row % 3) for row in range(30)])
    heads = HeadEnsemble.fit(chosen, rejected, members=4, ridge=0.1)
    RewardModel(heads, encoder, model=str(root / "lm")).save(root / "rm")
    return root / "rm"


@pytest.fixture
def reward_model(heads_folder):
    from prudent import RewardModel

    return RewardModel.load(heads_folder, keep_features=False)
