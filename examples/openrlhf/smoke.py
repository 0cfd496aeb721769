"""launch.sh against OpenRLHF's own parser, and its reward client against a running service (see README.md).

python examples/openrlhf/smoke.py --openrlhf FOLDER_THAT_HOLDS_THE_PACKAGE
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib
import os
import shlex
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "src")]
import tiny


def launch_arguments() -> list[str]:
    """The arguments of the module in launch.sh, with its variables filled in."""
    text = (HERE / "launch.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "train_ppo_ray" in line)
    words = shlex.split(line)
    words = words[words.index("openrlhf.cli.train_ppo_ray") + 1 :]
    return [word.replace("$REWARD", "http://h:8010/get_reward").replace("$", "/") for word in words]


def parser_of(package: Path) -> argparse.ArgumentParser:
    """The parser that OpenRLHF builds when it is started, without starting it (and importing CUDA's libraries)."""
    source = ast.parse((package / "openrlhf/cli/train_ppo_ray.py").read_text(encoding="utf-8"))
    block = next(node for node in source.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))
    stop = next(at for at, node in enumerate(block.body) if "parse_args" in ast.unparse(node))
    names: dict[str, Any] = {}
    built = ast.Module([node for node in source.body if ast.unparse(node) == "import argparse"] + block.body[:stop], [])
    exec("import os\nfrom datetime import datetime\n" + ast.unparse(built), names)
    return names["parser"]


def executor_of(package: Path) -> Any:
    """openrlhf.utils.agent's executor, without the packages' __init__, which imports DeepSpeed."""
    for name in ("openrlhf", "openrlhf.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(package / name.replace(".", "/"))]
        sys.modules[name] = module
    return importlib.import_module("openrlhf.utils.agent").SingleTurnAgentExecutor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openrlhf", type=Path, required=True, help="folder that holds the package openrlhf")
    given = parser.parse_args()
    found = parser_of(given.openrlhf).parse_args(launch_arguments())
    print(f"launch.sh: {len(launch_arguments())} words, estimator {vars(found)['algo.advantage.estimator']}: parsed")
    executor = executor_of(given.openrlhf)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make(folder)
        os.environ["PRUDENT_CACHE"] = str(folder / "cache")
        from prudent import RewardModel
        from prudent.features.rendering import prompt_text
        from prudent.serving.adapters import openrlhf as adapter

        model = RewardModel.load(folder / "rm")
        prompts, answers = ["Say lamp.", "Say river."], ["lamp 3", "no"]
        wanted = model.score(prompts, answers).mean(0)
        heads = [prompt_text(model.encoder.tokenizer, prompt) for prompt in prompts]
        queries = [head + answer + "<|im_end|>" for head, answer in zip(heads, answers)]
        with tiny.service(folder, "--rule", "mean") as url:
            os.environ["PRUDENT_SERVE_URL"] = url
            for where in (f"{url}/get_reward", adapter.__file__):
                client = executor(where)
                fetch = client._fetch_rewards_via_func if client.reward_func else client._fetch_rewards_via_http
                results = asyncio.run(fetch(queries, heads, ["", ""]))
                rewards = [float(value) for result in results for value in result["rewards"]]
                assert max(abs(a - b) for a, b in zip(rewards, wanted.tolist(), strict=True)) < 1e-4, (rewards, wanted)
                print(f"OpenRLHF's client by {where}: {rewards} (prudent score: {wanted.tolist()})")


if __name__ == "__main__":
    main()
