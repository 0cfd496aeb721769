"""``prudent align``: from settings to a run folder. Everything that takes long says how far it is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from prudent.commands.align.inputs import Sampler, demo_problem, read_problem
from prudent.commands.align.options import AlignOptions
from prudent.commands.align.page import write_report
from prudent.commands.align.problem import Problem
from prudent.commands.align.series import Models, policy_factory, run_series
from prudent.commands.align.summary import summarise
from prudent.commands.common import say
from prudent.commands.joined_run import joined_run
from prudent.features.depths import blocks_of
from prudent.features.encoder import Encoder
from prudent.features.models import load_language_model
from prudent.features.processes import Processes
from prudent.features.sampling import sample
from prudent.policies.rl.engine import Step
from prudent.runs import resumable_run

Say = Callable[[str], None]


def build_models(settings: AlignOptions) -> Models:
    """Encoder and a maker of fresh policies, both from the policy model's weights."""
    encoder = Encoder(
        settings.policy,
        pooling=settings.pooling,
        max_length=settings.max_length,
        dtype=settings.dtype,
        layer=settings.blocks,
    )

    def model_of() -> Any:
        model, _ = load_language_model(settings.policy, dtype=settings.dtype)
        return model.float() if settings.full else model

    # Training every weight holds the policy in float32; its reference, a copy, then differs from the encoder's network,
    # as the reference's last states differ from those of a network that is cut.
    shared = not settings.full and blocks_of(encoder) == encoder.model.config.num_hidden_layers
    return Models(policy_factory(model_of, settings), encoder.tokenizer, encoder, shared)


def _silent(text: str) -> None:
    """Say nothing."""


def run(settings: AlignOptions) -> dict[str, Any]:
    """The command, by either engine."""
    if settings.engine == "own":
        return align(settings)
    from prudent.commands.align.trl_run import train_with_trl

    return train_with_trl(settings, say=say)


def align(settings: AlignOptions, *, say: Say = say) -> dict[str, Any]:
    """Train and judge a series; write the run folder; go on where an interrupted one stopped.

    Of several launched processes only the first speaks and writes.
    """
    settings.checked()
    out = settings.out
    processes = Processes()
    say = say if processes.first else _silent
    with joined_run(processes, resumable_run(out, "align", settings.chosen(), settings.seed)) as (run, resumes):
        if resumes:
            say(f"going on with the series in {out}")
        began = time.perf_counter()
        models = build_models(settings)
        problem = _problem(settings, models)
        for note in problem.notes:
            say(note)
        run.manifest["timings_s"]["preparation"] = time.perf_counter() - began
        began = time.perf_counter()
        results = run_series(problem, models, settings, run.folder, processes, progress(settings, say))
        run.manifest["timings_s"]["runs"] = time.perf_counter() - began
        run.manifest["hashes"]["encoder"] = models.encoder.fingerprint
        summary = summarise(problem, results, settings)
        run.write_json("results.json", {**summary, "notes": problem.notes})
        run.write_table("runs.parquet", _columns(summary["runs"]))
        if processes.first:
            write_report(run, summary, results, problem, settings)
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return summary


def reference_sampler(settings: AlignOptions, models: Models) -> Sampler:
    """Draws the reference's samples of prompts."""

    def draw(prompts: Any, seed: Any) -> list[list[str]]:
        return sample(
            models.encoder.model,
            models.tokenizer,
            prompts,
            samples=settings.reference_samples,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
        )

    return draw


def _problem(settings: AlignOptions, models: Models) -> Problem:
    read = demo_problem if settings.demo else read_problem
    return read(settings, models.encoder, reference_sampler(settings, models))


def progress(settings: AlignOptions, say: Say) -> Callable[[int, str, Step], None]:
    """A line a step: the run, what it measured, and the time left in the series at the pace so far."""
    began = time.perf_counter()
    done = 0
    total = settings.runs * len(settings.objectives) * settings.steps

    def report(run: int, objective: str, step: Step) -> None:
        nonlocal done
        done += 1
        left = (time.perf_counter() - began) / done * (total - done)
        found = step.metrics
        truth = f" truth {found['truth']:.3f}" if "truth" in found else ""
        where = f"run {run + 1}/{settings.runs} {objective} step {step.step}/{settings.steps}"
        pace = f"{sum(step.seconds.values()):.1f} s; about {left / 60:.0f} min left"
        say(f"{where}: reward {found['reward']:+.3f}{truth} KL {found['kl']:.2f} ({pace})")
        if step.note:
            say(step.note)

    return report


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
