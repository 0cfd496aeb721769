"""``prudent align --engine trl``: TRL's RLOO or GRPO with the KL weighted by the reward's variance, for scale.

The YAML holds TRL's own field names (those of RLOOConfig or GRPOConfig) and, under ``peft``, those of LoraConfig; so
DeepSpeed, FSDP, vLLM, checkpoints, callbacks and trackers are TRL's. Launch it with ``accelerate launch -m
prudent.cli align --engine trl ...`` and one of TRL's own accelerate configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint

from prudent.commands.align.options import AlignOptions
from prudent.commands.joined_run import joined_run
from prudent.commands.yaml_file import read_yaml
from prudent.data.failing import Origin
from prudent.data.pools import Pool, read_pool, read_prompts, write_pool
from prudent.errors import DataError, PrudentError, RowsError
from prudent.features.models import (
    DEFAULT_MODEL,
    best_device,
    best_dtype,
    converted_default,
    dtype_name,
    load_language_model,
)
from prudent.features.processes import Processes
from prudent.features.sampling import sample
from prudent.policies.monitoring.monitor import Monitor
from prudent.policies.reward_function import RewardFunction
from prudent.rewards.model import RewardModel
from prudent.runs import resumable_run


def read_config(path: Path | None) -> dict[str, Any]:
    """The YAML file's fields, or nothing."""
    return {} if path is None else read_yaml(path)


def build_config(kind: str, fields: dict[str, Any], *, folder: Path, beta: float, seed: int, length: int) -> Any:
    """TRL's config of this kind: the file's fields over Prudent's defaults (no truncation, temperature 1)."""
    import trl

    factories: dict[str, Any] = {"rloo": trl.RLOOConfig, "grpo": trl.GRPOConfig}
    if kind not in factories:
        raise PrudentError(f"--algorithm {kind} doesn't run on --engine trl; choose rloo or grpo")
    known = {field for field in factories[kind].__dataclass_fields__ if not field.startswith("_")}
    unknown = sorted(set(fields) - known - {"peft"})
    if unknown:
        raise PrudentError(f"--trl-config has fields that {factories[kind].__name__} lacks: {', '.join(unknown)}")
    values = {
        "output_dir": str(folder),
        "beta": beta,
        "seed": seed,
        "max_completion_length": length,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "report_to": [],
        "bf16": best_device().type == "cuda" and best_dtype(best_device()) == torch.bfloat16,
    }
    if "peft" in fields:  # the frozen network in the precision of the reference's samples; whole ones train in float32
        values["model_init_kwargs"] = {"dtype": dtype_name(best_dtype(best_device()))}
    return factories[kind](**{**values, **{k: v for k, v in fields.items() if k != "peft"}})


def train_with_trl(settings: AlignOptions, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Train with TRL and keep the policy under ``out/policy``; the reference's samples are kept as a pool beside it.

    Launched in several processes, the first one samples and writes. Started again after it was stopped, it reads the
    samples and goes on from TRL's last checkpoint.
    """
    out, policy, algorithm, samples = settings.out, settings.policy, settings.algorithm, settings.reference_samples
    reward_model, prompts, objective = settings.reward_model, settings.prompts, settings.objectives[0]
    beta, max_new_tokens, seed = settings.beta, settings.max_new_tokens, settings.seed
    _require_trl()
    if reward_model is None or prompts is None:
        raise PrudentError("--engine trl needs --reward-model (a folder of `prudent fit`) and --prompts (a file)")
    fields = read_config(settings.trl_config)
    conversations, origins = read_prompts(prompts, settings.columns)
    processes = Processes()
    options = {
        "policy": policy,
        "reward_model": reward_model,
        "prompts": prompts,
        "objective": objective,
        "algorithm": algorithm,
        "advantages": settings.advantages,
        "beta": beta,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        **fields,
    }
    beta = fields.get("beta", beta)
    with joined_run(processes, resumable_run(out, "align-trl", options, seed)) as (run, _):
        args = build_config(algorithm, fields, folder=run.folder / "trl", beta=beta, seed=seed, length=max_new_tokens)
        samples_file = run.folder / "reference.jsonl"
        if processes.first and not samples_file.is_file():
            say(f"sampling the reference: {samples} answers to each of {len(conversations)} prompts")
            with _prompts_named(origins, str(prompts)):
                write_pool(samples_file, _reference(policy, conversations, samples, args.max_completion_length, seed))
        processes.wait()
        function = RewardModel.load(reward_model).as_reward_function(
            objective, weighted_kl=True, beta=args.beta, reference=read_pool(samples_file)
        )
        monitor = _monitor(settings, function, read_pool(samples_file), args, len(conversations))
        trainer = _trainer_class(algorithm)(
            model=str(converted_default()) if policy == DEFAULT_MODEL else policy,  # TRL loads it as it shards it
            args=args,
            train_dataset=Dataset.from_list([{"prompt": p} for p in conversations]),
            reward_function=function,
            advantages=settings.advantages,
            peft_config=_lora(fields["peft"]) if "peft" in fields else None,
            callbacks=[] if monitor is None else [monitor.callback(say)],
        )
        checkpoint = fields.get("resume_from_checkpoint") or get_last_checkpoint(args.output_dir)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(str(run.folder / "policy"))
        history = trainer.state.log_history
        alarm = None if monitor is None or monitor.alarm is None else asdict(monitor.alarm)
        run.write_json("history.json", {"history": history, "alarm": alarm})
    last = history[-1] if history else {}
    return {"out": str(out), "objective": objective, "steps": trainer.state.global_step, "last": last, "alarm": alarm}


@contextmanager
def _prompts_named(origins: Sequence[Origin], source: str) -> Iterator[None]:
    """Inside, prompts that the model's context has no room for are named by file and line."""
    try:
        yield
    except RowsError as error:
        bad = [origins[row].bad(detail) for row, detail in error.rows.items()]
        remedy = "shorten these prompts or take them out, or give shorter completions"
        raise DataError(source, bad, remedy) from error


def _monitor(settings: AlignOptions, function: RewardFunction, pool: Pool, args: Any, prompts: int) -> Monitor | None:
    """The run's monitor, watching ``function``, if one is asked for."""
    if settings.monitor == "off":
        return None
    steps = args.max_steps
    if steps < 1:
        a_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = max(1, math.ceil(args.num_train_epochs * prompts * args.num_generations / a_batch))
    stop = "none" if settings.monitor == "watch" else settings.monitor
    monitor = Monitor(function.model, pool, steps=steps, false_alarm=settings.false_alarm, stop=stop)
    monitor.watch(function)
    return monitor


def _require_trl() -> None:
    try:
        import trl  # noqa: F401
    except ModuleNotFoundError as error:
        raise PrudentError("--engine trl needs TRL: pip install 'prudent[trl]'") from error


def _reference(policy: str, prompts: list[Any], samples: int, length: int, seed: int) -> Pool:
    """The reference's samples of every prompt. The model is let go again before TRL loads its own."""
    model, tokenizer = load_language_model(policy)
    texts = sample(model, tokenizer, prompts, samples=samples, max_new_tokens=length, seed=seed)
    return Pool(prompts, texts, None, [str(number) for number in range(len(texts))])


def _trainer_class(algorithm: str) -> Any:
    from prudent.policies.trl import VarianceAwareGRPOTrainer, VarianceAwareRLOOTrainer

    return {"rloo": VarianceAwareRLOOTrainer, "grpo": VarianceAwareGRPOTrainer}[algorithm]


def _lora(options: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})
