"""A series of runs: for every draw of the reward model and every objective, train, judge, write, go on.

Each finished run is a JSON file that appears whole; an interrupted series goes on with the runs that are missing, and
the run it was in goes on from its last checkpoint.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prudent.commands.align.options import AlignOptions
from prudent.commands.align.problem import Judged, Problem, side_values
from prudent.errors import PrudentError
from prudent.features.processes import Processes
from prudent.files import dumps, write_atomic
from prudent.policies.estimates import ReferenceStatistics, reference_statistics
from prudent.policies.finite import kl, value
from prudent.policies.monitoring.monitor import LEAST_REFERENCE, Monitor, Probe
from prudent.policies.objectives import OBJECTIVES
from prudent.policies.rl.engine import Step, Trainer, TrainingPrompts, TrainOptions, TrueValues, UpdateOptions
from prudent.policies.rl.packing import fill, pack
from prudent.policies.rl.policy import LoraOptions, Policy
from prudent.policies.rl.rollouts import Rollouts, groups_of, roll_out
from prudent.policies.rl.scorers import HeadScorer
from prudent.policies.rl.updates import segment_sums
from prudent.rewards.containers import CandidateFeatures
from prudent.rewards.heads import HeadEnsemble
from prudent.seeding import Seed, spawn


@dataclass(frozen=True)
class Models:
    """What runs share. new_policy: seed -> fresh policy at the reference. shared: the encoder reads the reference."""

    new_policy: Callable[[Seed], Policy]
    tokenizer: Any
    encoder: Any
    shared: bool


def statistics_of(heads: HeadEnsemble, side: CandidateFeatures, floor: float) -> ReferenceStatistics:
    """Centre and scale from the reference's samples on this side."""
    owner, _ = side.flat()
    return reference_statistics(heads.scores(side.features.flatten(0, 1)), torch.tensor(owner), floor=floor)


def train_options(settings: AlignOptions, objective: str, run: int, seed: Seed) -> TrainOptions:
    """Options of one run; the seed is the run's, the same for every objective."""
    more = {name: getattr(settings, name) for name in ("epochs", "minibatches", "advantages")}
    update = UpdateOptions(settings.algorithm, settings.beta, settings.completions, **more)
    own = {name: getattr(settings, name) for name in ("steps", "max_new_tokens", "learning_rate", "save_every")}
    member = 0 if settings.reward == "member" else None
    prompts = settings.prompts_per_step
    return TrainOptions(objective=objective, update=update, prompts=prompts, member=member, seed=seed, **own)


def monitor_of(settings: AlignOptions, heads: HeadEnsemble, side: CandidateFeatures) -> Monitor | None:
    """The run's monitor, if one is asked for, with the reference's samples of the training prompts."""
    if settings.monitor == "off":
        return None
    owner, texts = side.flat()
    if len(texts) < LEAST_REFERENCE:
        raise PrudentError(
            f"--monitor has {len(texts)} samples of the reference, and its limits need {LEAST_REFERENCE}: raise "
            "--reference-samples or --train-prompts"
        )
    probe = Probe(None, settings.probe_labels, settings.probe_every) if settings.probe_labels else None
    stop = "none" if settings.monitor == "watch" else settings.monitor
    monitor = Monitor(steps=settings.steps, false_alarm=settings.false_alarm, probe=probe, stop=stop)
    flat = side.features.flatten(0, 1)
    return monitor.set_reference(texts, torch.tensor(owner), scores=heads.scores(flat), features=flat)


def promise(
    heads: HeadEnsemble, judged: Judged, side: CandidateFeatures, objective: str, settings: AlignOptions, seed: Seed
) -> dict:
    """What preflight says of this objective and draw: the exact policy over the reference's samples of ``side``."""
    owner, texts = side.flat()
    flat = side.features.flatten(0, 1)
    member = 0 if settings.reward == "member" else None
    found = statistics_of(heads, side, settings.floor).estimate(heads.scores(flat), torch.tensor(owner), member)
    terms = OBJECTIVES[objective].terms(found, seed=seed).reshape(len(side), -1)
    reference = torch.full_like(terms.reward, 1.0 / terms.reward.shape[1])
    policy = terms.policy(reference, settings.beta)
    truth = judged.test(owner, texts, flat).reshape(reference.shape)
    gain = value(policy, truth) - value(reference, truth)
    return {"gain": float(gain.mean()), "kl": float(kl(policy, reference).mean())}


def judge(
    policy: Policy,
    models: Models,
    side: CandidateFeatures,
    judged: Judged,
    prompt_ids: list[list[int]],
    settings: AlignOptions,
    seed: Seed,
) -> tuple[dict[str, Any], Rollouts]:
    """A final policy on the test prompts: true value, KL, length, entropy, per prompt and over all; its samples."""
    rollouts = roll_out(
        policy.sampler(),
        models.tokenizer,
        prompt_ids,
        range(len(side)),
        completions=settings.eval_samples,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
    )
    together, _ = groups_of(rollouts, None)
    distance = torch.zeros(len(rollouts.texts), dtype=torch.float64)
    entropy = torch.zeros(len(rollouts.texts), dtype=torch.float64)
    for content in fill(together, TrainOptions.pack_tokens):
        row = pack(content)
        with torch.no_grad():
            reference = policy.reference_pass(row)
            current = policy.policy_pass(row, reference.trunk).log_probabilities
        distance[row.names] = segment_sums(current - reference.log_probabilities, row).double().cpu()
        entropy[row.names] = -segment_sums(current, row).double().cpu()
    values = judged.test(rollouts.prompts, rollouts.texts, None)
    size = (len(side), settings.eval_samples)
    lengths = torch.tensor([len(ids) for ids in rollouts.completions], dtype=torch.float64)
    return {
        "value": float(values.mean()),
        "value_by_prompt": values.reshape(size).mean(1).tolist(),
        "kl": float(distance.mean()),
        "kl_by_prompt": distance.reshape(size).mean(1).tolist(),
        "length_tokens": float(lengths.mean()),
        "entropy_per_token": float(entropy.sum() / lengths.sum()),
        "truncated_share": sum(not e for e in rollouts.ended) / len(rollouts.ended),
        "empty": sum(not t.strip() for t in rollouts.texts) / len(rollouts.texts),
    }, rollouts


def trainer_of(
    policy: Policy,
    models: Models,
    heads: HeadEnsemble,
    judged: Judged,
    side: CandidateFeatures,
    options: TrainOptions,
    floor: float,
    **more: Any,
) -> Trainer:
    """A trainer of ``policy`` on the prompts of ``side`` against these heads, which also logs the true value."""
    ids = models.encoder.renderer.prompts(side.prompts)
    prompts = TrainingPrompts(ids, [prompt[-1]["content"][:80] for prompt in side.prompts])
    scorer = HeadScorer(heads, models.encoder, side.prompts, shared=models.shared)

    def truth(rollouts: Rollouts, features: torch.Tensor | None) -> torch.Tensor:
        return judged.train(rollouts.prompts, rollouts.texts, features)

    known = TrueValues(truth, side_values(side, judged.train))
    statistics = statistics_of(heads, side, floor)
    return Trainer(policy, models.tokenizer, prompts, scorer, statistics, options, truth=known, **more)


def _run_name(run: int, objective: str) -> str:
    return f"run-{run:03d}-{objective}"


def one_run(
    problem: Problem,
    models: Models,
    settings: AlignOptions,
    run: int,
    objective: str,
    folder: Path,
    report: Callable[[Step], None],
) -> dict[str, Any]:
    """Train and judge one policy; its checkpoints live in ``folder`` until it is done."""
    policy_seed, train_seed, judge_seed, shuffle_seed = spawn(spawn(settings.seed, run + 1)[-1], 4)
    heads, judged = problem.heads[run], problem.judged[run]
    policy = models.new_policy(policy_seed)
    options, monitor = train_options(settings, objective, run, train_seed), monitor_of(settings, heads, problem.train)
    trainer = trainer_of(
        policy, models, heads, judged, problem.train, options, settings.floor, folder=folder, monitor=monitor
    )
    history = trainer.train(report)
    test_ids = models.encoder.renderer.prompts(problem.test.prompts)
    found, rollouts = judge(policy, models, problem.test, judged, test_ids, settings, judge_seed)
    return {
        "run": run,
        "objective": objective,
        "final": found,
        "promised": promise(heads, judged, problem.test, objective, settings, shuffle_seed),
        "alarm": None if trainer.monitor is None or trainer.monitor.alarm is None else asdict(trainer.monitor.alarm),
        "history": history,
        "samples": [rollouts.texts[i * settings.eval_samples] for i in range(len(problem.test))],
        "seconds": sum(sum(h["seconds"].values()) for h in history),
    }


def reference_values(problem: Problem, run: int) -> torch.Tensor:
    """(P,) the reference's true value on each test prompt, from its own samples."""
    return side_values(problem.test, problem.judged[run].test)


def run_series(
    problem: Problem,
    models: Models,
    settings: AlignOptions,
    folder: Path,
    processes: Processes,
    report: Callable[[int, str, Step], None] = lambda run, objective, step: None,
) -> list[dict[str, Any]]:
    """All runs, draw by draw, objective by objective. folder: where finished runs and checkpoints go.

    Several processes share each step; the first one writes, and all read what it wrote.
    """
    results = []
    for run in range(settings.runs):
        for objective in settings.objectives:
            path = folder / "runs" / f"{_run_name(run, objective)}.json"
            if not path.is_file():
                checkpoints = folder / "checkpoints" / _run_name(run, objective)
                done = one_run(
                    problem, models, settings, run, objective, checkpoints, functools.partial(report, run, objective)
                )
                if processes.first:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    keep_adapter(checkpoints, folder / "policies" / _run_name(run, objective))
                    write_atomic(path, dumps(done) + "\n")
                processes.wait()
            results.append(read_run(path))
    return results


def keep_adapter(checkpoints: Path, target: Path) -> None:
    """Keep the trained weights of a finished run, drop its optimiser's moments."""
    from prudent.policies.rl.checkpoints import WEIGHTS, latest_checkpoint

    last = latest_checkpoint(checkpoints)
    if last is not None:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(last / WEIGHTS, target / WEIGHTS)
        shutil.rmtree(checkpoints)


def read_run(path: Path) -> dict[str, Any]:
    """A finished run's file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PrudentError(f"{path} is damaged ({error}); remove it to have the run made again") from error


def policy_factory(model_of: Callable[[], Any], settings: AlignOptions) -> Callable[[Seed], Policy]:
    """seed -> a policy that starts at the reference, from freshly loaded weights."""
    lora = None if settings.full else LoraOptions(settings.lora_rank, 2 * settings.lora_rank, settings.lora_layers)

    def new(seed: Seed) -> Policy:
        return Policy(model_of(), lora=lora, seed=seed)

    return new
