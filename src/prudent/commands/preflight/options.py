"""Options of ``prudent preflight``."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from prudent.commands.depth import DepthOptions
from prudent.commands.engine import EngineOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    MOST_TOKENS,
    SOURCE,
    Encoder,
    EncoderDtype,
    EncoderLength,
    EncoderPooling,
    OnError,
    PairOptions,
    RunOptions,
    command,
    number_or_cv,
    option,
    said,
    time_of,
)

REWARDS = {"member": "member:0", "mean": "mean"}
BETAS = (0.03, 0.1, 0.3, 1.0)
DRAWS, SAMPLING = "Draws and risk", "Candidates sampled from the policy"


@command(
    "preflight",
    run="preflight.run:preflight",
    show="preflight.terminal:show",
    interrupted="there was not enough for an answer yet; what is sampled and encoded is kept for the next run",
)
class PreflightOptions(DepthOptions, EngineOptions, PairOptions, RunOptions):
    """Tell the risk of optimising a policy against reward models trained on these preferences, before any training.

    Example: prudent preflight --preferences train.jsonl --policy smollm2 --out runs/preflight
    """

    preferences: Annotated[tuple[str, ...], option("Preference files or hub ids, one or several."), SOURCE] = ()
    test: Annotated[
        tuple[str, ...], option("Held-out preference files; without any, part of the prompts is held out."), SOURCE
    ] = ()
    policy: Annotated[str, option("Model to optimise: smollm2 (embedded), a folder or a hub id.")] = DEFAULT_MODEL
    pool: Annotated[
        str | None, option("JSONL with prompt, responses and optionally gold, in place of sampling."), SOURCE
    ] = None
    judge: Annotated[str | None, option("Reward model that says what is true: a folder or a hub id.")] = None
    gold: Annotated[
        str | None, option("Column of the pool with the true reward; a column named gold is used anyway.")
    ] = None
    demo: Annotated[bool, option("Run on a part of the embedded world, whose truth is known.", "--demo")] = False
    betas: Annotated[
        tuple[float, ...], option("KL weights, several; 0 takes each prompt's best candidate.", panel=DRAWS)
    ] = BETAS
    draws: Annotated[int, option("Reward models drawn.", min=4, max=100_000, panel=DRAWS)] = 200
    members: Annotated[int, option("Members of each.", min=2, max=10_000, panel=DRAWS)] = 10
    reward: Annotated[
        Literal["member", "mean"], option("Reward of a draw: one member, or their mean.", panel=DRAWS)
    ] = "member"
    max_risk: Annotated[float, option("Risk that a recommended setting's interval must lie under.", panel=DRAWS)] = 0.05
    ridge: Annotated[str, option('Ridge of the heads: a number, or "cv".', panel=DRAWS)] = "cv"
    floor: Annotated[float, option("Least variance, as a share of its mean over the pool.", min=0.0, panel=DRAWS)] = (
        0.01
    )
    check: Annotated[bool, option("With gold: also show what would have been promised without it.", panel=DRAWS)] = True
    max_pairs: Annotated[int | None, option("Use at most so many pairs, drawn at random.", min=8)] = None
    max_test_pairs: Annotated[int | None, option("The same for each test file.", min=8)] = None
    holdout: Annotated[float, option("Share of prompts held out without a test file.")] = 0.2
    on_error: OnError = "raise"
    encoder: Encoder = DEFAULT_MODEL
    pooling: EncoderPooling = "last+mean"
    max_length: EncoderLength = 1024
    dtype: EncoderDtype = None
    prompts: Annotated[int, option("Held-out prompts.", min=1, max=1_000_000, panel=SAMPLING)] = 40
    samples: Annotated[int, option("Responses a prompt.", min=2, max=10_000, panel=SAMPLING)] = 16
    max_new_tokens: Annotated[int, option("Longest response.", min=1, max=MOST_TOKENS, panel=SAMPLING)] = 48
    budget: Annotated[
        str | None, option("Time for all of it, 60s, 10m or 1h: the answer is of what is done by then.")
    ] = None
    images: Annotated[bool, option("Also write each chart as PNG and SVG.")] = True

    @property
    def reward_rule(self) -> str:
        """The reward that policies are optimised against, in the words of ``policies.estimates``."""
        return REWARDS[self.reward]

    @property
    def ridge_value(self) -> float | str:
        """The ridge as a number, or "cv"."""
        return number_or_cv("--ridge", self.ridge) or "cv"

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of --budget, or None for no limit."""
        return None if self.budget is None else time_of("--budget", self.budget)

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if not self.preferences and not self.demo:
            problems.append("no preference file was given; name one with --preferences, or try --demo")
        if self.demo and (self.preferences or self.pool or self.judge or self.test):
            problems.append(
                "--demo brings its own preferences, pool and gold; leave --preferences, --pool, --judge, --test out"
            )
        if self.gold and self.judge:
            problems.append("--gold and --judge both say what is true; give one of them")
        if self.gold and not self.pool and not self.demo:
            problems.append(f"--gold {self.gold} names a column of the pool; give the pool with --pool FILE")
        if not self.betas or any(not (b >= 0 and math.isfinite(b)) for b in self.betas):
            problems.append(
                f"--betas must be numbers of at least 0, got {', '.join(f'{b:g}' for b in self.betas) or 'none'}"
            )
        if len(set(self.betas)) != len(self.betas):
            problems.append("--betas names a value twice")
        for name, share in (("--max-risk", self.max_risk), ("--holdout", self.holdout)):
            if not 0 < share < 1:
                problems.append(f"{name} is {share}, it must lie between 0 and 1")
        return problems + said(lambda: self.ridge_value, lambda: self.budget_seconds)
