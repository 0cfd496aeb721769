"""train.py for two steps in two processes on CPUs, with a tiny policy. What is checked: see README.md."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import tiny

SMALL = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 2}
SMALL |= {"max_completion_length": 6, "bf16": False, "use_cpu": True, "save_steps": 10, "logging_steps": 1}


def main() -> None:
    from trl import RLOOConfig

    known = {field.name for field in dataclasses.fields(RLOOConfig)}
    for name in ("rloo.yaml", "rloo-vllm.yaml"):
        unknown = set(yaml.safe_load((HERE / name).read_text(encoding="utf-8"))) - known
        assert not unknown, f"{name}: RLOOConfig has no {unknown}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make(folder)
        fields = yaml.safe_load((HERE / "rloo.yaml").read_text(encoding="utf-8"))
        (folder / "rloo.yaml").write_text(yaml.safe_dump({**fields, **SMALL}), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # accelerate launch --cpu starts one process; torchrun starts two.
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        command += [str(HERE / "train.py"), "--config", str(folder / "rloo.yaml"), "--policy", str(folder / "policy")]
        command += ["--reward", str(folder / "rm"), "--reference", str(folder / "reference.jsonl"), "--lora-rank", "4"]
        subprocess.run(
            [sys.executable, *command, "--out", str(folder / "out")],
            check=True,
            env=tiny.environment(folder, ACCELERATE_USE_CPU="true"),
        )
        steps = [row for row in json.loads((folder / "out/history.json").read_text()) if "loss" in row]
        assert len(steps) == 2, steps
        numbers = {key: value for row in steps for key, value in row.items() if isinstance(value, float)}
        assert all(map(math.isfinite, numbers.values())), numbers
        assert (folder / "out/policy/adapter_model.safetensors").is_file()
        print(f"two steps in two processes: {', '.join(sorted(numbers))}")


if __name__ == "__main__":
    main()
