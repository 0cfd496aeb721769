"""Trainers as they are against a running reward service: does each get the very scores that scoring offline gives?

    python benchmarks/serving_clients.py --peers .venv-serving/bin/python [--model FOLDER]

What is checked are the clients, so that any small language model does. The environment of ``--peers`` is that of
benchmarks/peers-serving.txt; Prudent itself is on its path without its dependencies, as a trainer's environment has it.
What is the client's own code, and what stands in for what:

* OpenRLHF 0.11.2: ``SingleTurnAgentExecutor.execute`` by URL and by our file, then
  ``SamplesGenerator._process_response_into_experience``. vLLM's engine is a stand-in that answers with given tokens,
  and the module vllm is empty.
* veRL 0.9.1: ``RewardLoopWorker.compute_score_batch`` with the naive and the gdpo manager over our function, which its
  own ``get_custom_reward_fn`` loads, and its built-in path (``compute_score_disrm``), for which the service stands in
  for vLLM's and SGLang's servers. Workers run in one process, without Ray's actors.
* TRL 1.16 (in this environment): a step of ``GRPOTrainer`` with our asynchronous function and, as a second reward, the
  exported folder of one label, which TRL loads by itself.
* RewardBench 0.1.4: its ``RewardBenchPipeline`` (padding, begin marks, batching) over the exported folder; its script
  sends inputs to a GPU and reads a hub's data set: both are replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

ADAPTERS = Path(__file__).resolve().parents[1] / "src/prudent/serving/adapters"


def openrlhf(case: dict[str, Any]) -> dict[str, list[float]]:
    """Rewards by URL and by file, as OpenRLHF's experience holds them."""
    from transformers import AutoTokenizer

    for name in ("vllm", "vllm.inputs", "vllm.utils"):
        sys.modules[name] = MagicMock()
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
    params = types.SimpleNamespace(max_tokens=200, logprobs=None)

    class Engine:
        """Answers with the given text and its end mark."""

        def __init__(self, answer: str) -> None:
            self.ids = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]

        async def generate(self, prompt: list[int], sampling: Any, multi_modal_data: Any) -> Any:
            one = types.SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
            return types.SimpleNamespace(outputs=[one])

    async def rewards(target: str) -> list[Any]:
        executor = SingleTurnAgentExecutor(target)
        return await asyncio.gather(
            *(
                executor.execute(prompt, "", params, 1000, tokenizer, Engine(answer))
                for prompt, answer in zip(case["rendered"], case["answers"])
            )
        )

    found = {}
    for name, target in (("url", f"{case['url']}/get_reward"), ("file", str(ADAPTERS / "openrlhf.py"))):
        made = [
            SamplesGenerator._process_response_into_experience(None, one, max_len=1000)
            for one in asyncio.run(rewards(target))
        ]
        found[f"OpenRLHF by {name}"] = [float(one.rewards.flatten()[0]) for one in made]
        found[f"OpenRLHF by {name}, variance"] = [float(one.info["variance"].flatten()[0]) for one in made]
    return found


def verl(case: dict[str, Any]) -> dict[str, list[float]]:
    """Rewards of veRL's reward loop: our function under two managers, and its built-in path in two servers' bodies."""
    ours, found = str(ADAPTERS / "verl.py"), {}
    for name, parts in (
        ("naive manager", ("naive", "vllm", ours)),
        ("gdpo manager", ("gdpo", "vllm", ours)),
        ("built-in path, vLLM's body", ("naive", "vllm", None)),
        ("built-in path, SGLang's body", ("naive", "sglang", None)),
    ):
        made = verl_outputs(case, *parts)
        found[f"veRL, {name}"] = [one["reward_score"] for one in made]
        if parts[2]:
            key = "reward_model_variance"
            found[f"veRL, {name}, variance"] = [one["reward_extra_info"][key] for one in made]
    return found


def verl_outputs(case: dict[str, Any], manager: str, engine: str, path: str | None) -> list[dict[str, Any]]:
    """What a ``RewardLoopWorker`` gives for the case, by our function at ``path`` or without one by its own client."""
    import numpy as np
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    model = {"enable": path is None, "model_path": case["tokenizer"], "rollout": {"name": engine}}
    reward = {
        "reward_model": model,
        "custom_reward_function": {"path": path, "name": "compute_score"},
        "reward_manager": {"source": "register", "name": manager},
    }
    policy = {"model": {"tokenizer_path": case["tokenizer"], "path": case["tokenizer"]}}
    config = {"actor_rollout_ref": policy, "reward": reward, "trainer": {"experiment_name": "check"}}
    address = case["url"].removeprefix("http://") if path is None else None
    worker = RewardLoopWorker(OmegaConf.create(config), address)
    found = worker.loop.run_until_complete(worker.compute_score_batch(verl_batch(case)))
    worker.reward_manager.assemble_rm_scores(verl_batch(case), [one["reward_score"] for one in found])
    keys = list(found[0].get("reward_extra_info", {}))  # as RewardLoopManager.compute_rm_score reads them
    for key in keys:
        np.array([one["reward_extra_info"][key] for one in found]).astype(float)
    return found


def verl_batch(case: dict[str, Any]) -> Any:
    """The case's answers as veRL's ``DataProto`` of a finished rollout."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer
    from verl.protocol import DataProto

    tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
    rows = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in case["answers"]]
    width, count = max(map(len, rows)), len(rows)
    responses = torch.full((count, width), tokenizer.pad_token_id or 0)
    mask = torch.zeros(count, width + 1, dtype=torch.long)
    for row, ids in enumerate(rows):
        responses[row, : len(ids)], mask[row, : len(ids) + 1] = torch.tensor(ids), 1

    def objects(values: list[Any]) -> Any:
        found = np.empty(count, dtype=object)
        found[:] = values
        return found

    return DataProto.from_dict(
        tensors={"prompts": torch.zeros(count, 1).long(), "responses": responses, "attention_mask": mask},
        non_tensors={
            "raw_prompt": objects([np.array(prompt, dtype=object) for prompt in case["prompts"]]),
            "data_source": objects(["mine"] * count),
            "reward_model": objects([{"ground_truth": ""}] * count),
            "extra_info": objects([{"prompt": prompt} for prompt in case["prompts"]]),
        },
    )


def rewardbench(case: dict[str, Any]) -> dict[str, list[float]]:
    """Logits, plus the folder's constant, of RewardBench's own pipeline on the exported folder of one label."""
    import importlib.util

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

    place = Path(str(importlib.metadata.distribution("rewardbench").locate_file("rewardbench/models/pipeline.py")))
    spec = importlib.util.spec_from_file_location("rewardbench_pipeline", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    BatchEncoding.to = lambda self, device: self  # type: ignore[assignment, method-assign, misc]  # it asks for "cuda"
    tokenizer = AutoTokenizer.from_pretrained(case["rule"])
    tokenizer.padding_side = "left"  # as its script sets it
    model = AutoModelForSequenceClassification.from_pretrained(case["rule"])
    pipeline = module.RewardBenchPipeline("text-classification", model, tokenizer)
    conversations = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(case["prompts"], case["answers"])
    ]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    with torch.inference_mode():
        logits = pipeline(texts, truncation=False, padding=True, max_length=2048)
    return {"RewardBench": (logits[:, 0].double() + model.config.prudent_constants[0]).tolist()}


CLIENTS = {"openrlhf": openrlhf, "verl": verl, "rewardbench": rewardbench}


def trl_step(
    case: dict[str, Any], folder: Path, policy: str
) -> tuple[list[Any], list[str], list[float], list[float], set[str]]:
    """A GRPO step: prompts, completions, rewards of our function and of the exported folder, and names in the log."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from prudent.features.models import DEFAULT_MODEL, converted_default
    from prudent.serving.adapters.trl import reward

    os.environ["PRUDENT_SERVE_URL"] = case["url"]
    seen: list[Any] = []

    class Recording(trl.GRPOTrainer):
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
            found = super()._calculate_rewards(inputs, prompts, completions, ids)
            seen.append((prompts, [one[-1]["content"] for one in completions], found.double().T.tolist()))
            return found

    args = trl.GRPOConfig(
        output_dir=str(folder),
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=12,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    rewards: list[Any] = [reward, case["rule"]]
    trainer = Recording(
        model=str(converted_default()) if policy == DEFAULT_MODEL else policy,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in case["prompts"]]),
        reward_funcs=rewards,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    prompts, completions, (served, exported) = seen[0]
    return prompts, completions, served, exported, {name for entry in trainer.state.log_history for name in entry}


def checked(root: Path, peers: str, language_model: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Figures: the largest difference of each client from scoring offline. Versions of the clients."""
    import results

    import serving
    from prudent.features.rendering import prompt_text
    from prudent.serving.export import export_classifier

    model, _, (prompts, answers) = serving.prepared(root / "rm", 40, language_model)
    prompts, answers = prompts[:16:2], answers[:16:2]
    card = export_classifier(model, root / "rule", labels="rule")
    service = serving.Service(root / "rm", serving.free_port())
    atexit.register(service.process.kill)
    tokenizer = model.renderer().tokenizer
    url = f"http://127.0.0.1:{service.port}"
    case = {
        "url": url,
        "prompts": prompts,
        "answers": answers,
        "rendered": [prompt_text(tokenizer, prompt) for prompt in prompts],
        "tokenizer": str(root / "rule"),
        "rule": str(root / "rule"),
    }
    (root / "case.json").write_text(json.dumps(case))
    scores = model.score(prompts, answers).double()
    figures = []

    def figure(name: str, found: list[float], wanted: Any, most: float = 1e-5) -> None:
        worst = max(abs(one - want) for one, want in zip(found, wanted.tolist(), strict=True))
        figures.append(results.figure(f"{name}: largest difference from offline", worst, unit="", at_most=most))

    environment = {**os.environ, "PRUDENT_SERVE_URL": url, "PYTHONPATH": str(ADAPTERS.parents[2])}
    versions: dict[str, str] = {}
    for client in CLIENTS:
        command = [peers, str(Path(__file__).resolve()), "--client", client, "--case", str(root / "case.json")]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        if ended.returncode:
            raise SystemExit(f"{client} failed:\n{ended.stderr[-3000:]}")
        answer = json.loads(ended.stdout.splitlines()[-1])
        versions[client] = answer["version"]
        print(f"{client} {answer['version']}: {sorted(answer['found'])}", flush=True)
        for name, found in answer["found"].items():
            wanted = scores.var(0) if name.endswith("variance") else scores.mean(0)
            figure(name, found, wanted, 1e-4 if client == "rewardbench" else 1e-5)
    asked, completions, served, exported, logged = trl_step(case, root / "grpo", language_model)
    wanted = model.score(asked, completions).double().mean(0)
    figure("TRL's GRPO, our function", served, wanted)
    figure("TRL's GRPO, the exported folder", [one + card["constants"][0] for one in exported], wanted, 1e-4)
    missing = {"reward_model/variance", "reward_model/standard_deviation"} - logged
    figures.append(results.figure("TRL's GRPO: names missing in its log", len(missing), unit="names", at_most=0))
    service.stop()
    return figures, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="Python of the environment of benchmarks/peers-serving.txt")
    parser.add_argument("--model", default="smollm2", help="language model of the features")
    parser.add_argument("--client", choices=sorted(CLIENTS), help="run one client's side in this environment")
    parser.add_argument("--case", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/serving_clients.json")
    options = parser.parse_args()
    if options.client:
        found = CLIENTS[options.client](json.loads(options.case.read_text()))
        print("\n" + json.dumps({"found": found, "version": importlib.metadata.version(options.client)}))
        return
    import results

    with tempfile.TemporaryDirectory() as root:
        figures, versions = checked(Path(root), options.peers, options.model)
    question = "Trainers' own reward code against a running service: the very scores?"
    results.write(options.out, question, figures, packages=("trl", "fastapi", "uvicorn"), clients=versions)


if __name__ == "__main__":
    main()
