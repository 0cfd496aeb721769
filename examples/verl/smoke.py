"""launch.sh's overrides in veRL's own configuration, and its reward loading against a running service (see README.md).

python examples/verl/smoke.py --verl FOLDER_THAT_HOLDS_THE_PACKAGE
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "src")]
from rows import rows_of

import tiny


def overrides(adapter: str) -> list[str]:
    """The overrides of launch.sh, with its variables filled in."""
    text = (HERE / "launch.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(next(line for line in text.splitlines() if "main_ppo" in line))
    words = words[words.index("verl.trainer.main_ppo") + 1 :]
    return [word.replace("$ADAPTER", adapter).replace("$", "/") for word in words]


def composed(package: Path, words: list[str]) -> Any:
    """veRL's configuration with these overrides; an override of a field that isn't there fails."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str((package / "verl/trainer/config").resolve()), version_base=None):
        return compose("ppo_trainer", overrides=words)


def loader(package: Path) -> Any:
    """verl.utils.import_utils.load_extern_object, without the package's __init__, which needs tensordict."""
    spec = importlib.util.spec_from_file_location("verl_import_utils", package / "verl/utils/import_utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_extern_object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verl", type=Path, required=True, help="folder that holds the package verl")
    given = parser.parse_args()
    from prudent.serving.adapters import verl as adapter

    words = overrides(adapter.__file__)
    config = composed(given.verl, words)
    function = config.reward.custom_reward_function
    print(f"launch.sh: {len(words)} overrides composed; reward function {function.name} of {function.path}")
    compute = loader(given.verl)(module_path=function.path, object_name=function.name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make(folder)
        os.environ["PRUDENT_CACHE"] = str(folder / "cache")
        from prudent import RewardModel

        prompts, answers = ["Say lamp.", "Say river."], ["lamp 3", "no"]
        wanted = RewardModel.load(folder / "rm").score(prompts, answers).mean(0).tolist()
        with tiny.service(folder, "--rule", "mean") as url:
            os.environ["PRUDENT_SERVE_URL"] = url

            async def scored() -> list[dict[str, float]]:
                calls = [
                    compute(row["data_source"], answer, row["reward_model"]["ground_truth"], row["extra_info"])
                    for row, answer in zip(rows_of(prompts).to_pylist(), answers)
                ]
                return await asyncio.gather(*calls)

            found = asyncio.run(scored())
        rewards = [one["score"] for one in found]
        assert max(abs(a - b) for a, b in zip(rewards, wanted, strict=True)) < 1e-4, (rewards, wanted)
        print(f"veRL's function: {found} (prudent score: {wanted})")


if __name__ == "__main__":
    main()
