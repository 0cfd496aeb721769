"""``prudent align``: fine-tune by RL against drawn reward models, and judge what it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prudent.commands.common import ConfigOption, JsonOption, OutOption, SeedOption, guarded, print_json, say
from prudent.commands.preflight.cli import ManyValues

EPILOG = "Example: prudent align --preferences train.jsonl --objective vanilla --objective proportional --out runs/a"
RL, SERIES, DATA = "Reinforcement learning", "Series and judging", "Data"
# Under twenty minutes on two cores; a rate at which so many steps go about as far as best of 16 does (2 nats).
DEMO = {
    "demo_pairs": 1000,
    "train_prompts": 40,
    "eval_prompts": 40,
    "eval_samples": 16,
    "steps": 24,
    "learning_rate": 1e-3,
    "prompts_per_step": 8,
    "completions": 4,
    "max_new_tokens": 64,
}


def register(app: typer.Typer) -> None:
    app.command(name="align", epilog=EPILOG, cls=ManyValues)(align)


@guarded
def align(
    context: typer.Context,
    out: OutOption,
    preferences: Annotated[list[str] | None, typer.Option(help="Preference files or hub ids.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Train on the embedded prompts, whose gold is exact.")] = False,
    demo_side: Annotated[
        str, typer.Option(help="Embedded prompts that ask for more (demand), less (restraint), or both (balanced).")
    ] = "demand",
    demo_pairs: Annotated[int, typer.Option(help="Preferences that each run of --demo draws.")] = 400,
    demo_slope: Annotated[float, typer.Option(help="How sure those are; 0 is pure noise, 8 nearly clean.")] = 4.0,
    policy: Annotated[str, typer.Option(help="Model to train: smollm2 (embedded), a folder or a hub id.")] = "smollm2",
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="vanilla, proportional, bregman, exact, lcb, min, uwo, entropic, variance-only, permuted.",
            show_default="vanilla proportional",
            rich_help_panel=RL,
        ),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="rloo or ppo.", rich_help_panel=RL)] = "rloo",
    beta: Annotated[float, typer.Option(help="KL coefficient.", rich_help_panel=RL)] = 0.1,
    steps: Annotated[int, typer.Option(help="Policy updates a run.", rich_help_panel=RL)] = 40,
    prompts_per_step: Annotated[int, typer.Option(help="Prompts a step.", rich_help_panel=RL)] = 8,
    completions: Annotated[int, typer.Option(help="Completions a prompt.", rich_help_panel=RL)] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of a completion.", rich_help_panel=RL)] = 48,
    learning_rate: Annotated[float, typer.Option(help="AdamW's rate.", rich_help_panel=RL)] = 3e-4,
    epochs: Annotated[int, typer.Option(help="Passes over one set of rollouts.", rich_help_panel=RL)] = 1,
    minibatches: Annotated[int, typer.Option(help="PPO's minibatches a pass.", rich_help_panel=RL)] = 1,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.", rich_help_panel=RL)] = 16,
    lora_layers: Annotated[
        int | None,
        typer.Option(help="Adapters on so many layers from the top; fewer is faster. Default all.", rich_help_panel=RL),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train every weight (float32).", rich_help_panel=RL)] = False,
    runs: Annotated[
        int,
        typer.Option(help="Policies per objective, each against its own reward-model draw.", rich_help_panel=SERIES),
    ] = 1,
    members: Annotated[int, typer.Option(help="Members of each reward model.", rich_help_panel=SERIES)] = 10,
    reward: Annotated[str, typer.Option(help="Reward: one member, or the mean.", rich_help_panel=SERIES)] = "member",
    ridge: Annotated[str, typer.Option(help="Ridge of the heads, or cv.", rich_help_panel=SERIES)] = "cv",
    floor: Annotated[float, typer.Option(help="Least variance, in units of its mean.", rich_help_panel=SERIES)] = 1e-2,
    judge: Annotated[
        str | None,
        typer.Option(help="Reward model that says what is true; default a cross-fit.", rich_help_panel=SERIES),
    ] = None,
    eval_prompts: Annotated[int, typer.Option(help="Held-out prompts to judge on.", rich_help_panel=SERIES)] = 32,
    eval_samples: Annotated[int, typer.Option(help="Samples a held-out prompt.", rich_help_panel=SERIES)] = 8,
    reference_samples: Annotated[
        int, typer.Option(help="Samples of the reference a prompt.", rich_help_panel=SERIES)
    ] = 16,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=SERIES)] = 10,
    prompts: Annotated[
        str | None, typer.Option(help="File of training prompts; default those of the pairs.", rich_help_panel=DATA)
    ] = None,
    train_prompts: Annotated[int, typer.Option(help="Training prompts at most.", rich_help_panel=DATA)] = 32,
    max_pairs: Annotated[int | None, typer.Option(help="Preference pairs at most.", rich_help_panel=DATA)] = None,
    holdout: Annotated[float, typer.Option(help="Share of prompts held out.", rich_help_panel=DATA)] = 0.3,
    on_error: Annotated[str, typer.Option(help="Bad rows: raise or skip.", rich_help_panel=DATA)] = "raise",
    pooling: Annotated[
        str, typer.Option(help="Features: last, mean or last+mean.", rich_help_panel=DATA)
    ] = "last+mean",
    max_length: Annotated[int, typer.Option(help="Tokens kept of a text.", rich_help_panel=DATA)] = 1024,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16; default by processor.")] = None,
    images: Annotated[bool, typer.Option(help="Write the charts as PNG and SVG too.")] = True,
    engine: Annotated[
        str, typer.Option(help="own (one machine), or trl (RLOO or GRPO of TRL, at scale).", rich_help_panel=RL)
    ] = "own",
    trl_config: Annotated[
        Path | None, typer.Option(help="YAML with TRL's own field names, for --engine trl.", rich_help_panel=RL)
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="Folder of `prudent fit`, for --engine trl.", rich_help_panel=RL)
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Fine-tune a policy so that it moves less where the reward is uncertain, and see what that is worth.

    An interrupted series goes on where it stopped when the same command is given again.
    """
    from prudent.commands.align.options import Settings, check
    from prudent.errors import PrudentError

    given = dict(context.params)
    for name in ("out", "config", "json", "objective", "engine", "trl_config", "reward_model"):
        given.pop(name, None)
    given["preferences"] = tuple(preferences or ())
    if objective:
        given["objectives"] = tuple(objective)
    if demo:
        given |= {k: v for k, v in DEMO.items() if _defaulted(context, k)}
    if engine == "trl":
        _refuse_for_trl(context, objective)
        from prudent.commands.align.trl_run import train_with_trl

        outcome = train_with_trl(
            policy=policy,
            reward_model=reward_model,
            prompts=prompts,
            objective=(objective or ["proportional"])[0],
            config=trl_config,
            algorithm=algorithm,
            beta=beta,
            out=out,
            samples=reference_samples,
            max_new_tokens=max_new_tokens,
            seed=seed,
            say=say,
        )
        if json:
            print_json(outcome)
        return
    if engine != "own":
        raise PrudentError(f"--engine is {engine!r}, must be own or trl")
    from prudent.commands.align.page import verdict_text
    from prudent.commands.align.run import align as run_align

    settings = check(Settings(**given))
    summary = run_align(settings, out, say=say)
    if json:
        print_json(summary)
        return
    words, _ = verdict_text(summary, settings)
    print(words.replace("**", ""))
    print(f"report: {out / 'report.html'}")


def _defaulted(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name == "DEFAULT"


# What --engine trl takes from Prudent's command line; everything else is TRL's own, by --trl-config.
TRL_TAKES = {
    "out",
    "policy",
    "objective",
    "algorithm",
    "beta",
    "prompts",
    "reference_samples",
    "max_new_tokens",
    "engine",
    "trl_config",
    "reward_model",
    "seed",
    "json",
    "config",
}


def _refuse_for_trl(context: typer.Context, objective: list[str] | None) -> None:
    """PrudentError naming every option given that TRL's engine wouldn't honour."""
    from prudent.errors import PrudentError
    from prudent.policies.objectives import OBJECTIVES

    given = [name for name in context.params if name not in TRL_TAKES and not _defaulted(context, name)]
    problems = [
        f"--engine trl doesn't take --{name.replace('_', '-')}: name TRL's own field in --trl-config, or leave it out"
        for name in given
    ]
    if objective and len(objective) > 1:
        problems.append(f"--engine trl trains one --objective, got {len(objective)}: {', '.join(objective)}")
    unknown = [name for name in objective or () if name not in OBJECTIVES]
    if unknown:
        problems.append(f"--objective {', '.join(unknown)} is unknown; one of {', '.join(OBJECTIVES)}")
    if problems:
        raise PrudentError("; ".join(problems))
