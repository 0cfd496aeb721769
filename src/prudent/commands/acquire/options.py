"""Options of ``prudent acquire``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prudent.commands.depth import DepthOptions
from prudent.commands.options import (
    DEFAULT_MODEL,
    SOURCE,
    Encoder,
    EncoderDtype,
    EncoderLength,
    EncoderPooling,
    OnError,
    PairOptions,
    RunOptions,
    command,
    option,
)

LABELS, FORECAST = "How people label", "How many labels"


@command("acquire", run="acquire.run:acquire", show="acquire.page:show")
class AcquireOptions(DepthOptions, PairOptions, RunOptions):
    """Say which pairs to label next, and how many labels until the risk is low enough.

    Writes to_label.jsonl in the order to label, label.html (a form for people, offline), argilla.json, and a report.
    What the form saves and what Argilla exports are preference files for every command.

    Example: prudent acquire --preferences train.jsonl --candidates pool.jsonl --budget 200 --out runs/acquire
    """

    preferences: Annotated[
        tuple[str, ...], option("Labelled preference files or hub ids, one or several."), SOURCE
    ] = ()
    candidates: Annotated[
        Path, option("Pool, JSONL with prompt and responses: every two of a prompt are a pair.", exists=True)
    ]
    budget: Annotated[int, option("Labels to ask for.", min=1, max=1_000_000)] = 200
    rule: Annotated[
        Literal[
            "random",
            "diversity",
            "margin",
            "bald",
            "d-optimal",
            "bal-pm",
            "maxmin-lcb",
            "drts",
            "delta-ucb",
            "envelope",
            "risk",
        ],
        option("How pairs are picked; docs/acquire.md says what each was worth."),
    ] = "random"
    policy_tilt: Annotated[
        float, option("Beta of the policy that the pairs and the forecast are for.", "--policy-tilt")
    ] = 0.1
    noise: Annotated[float, option("Share of labels that are the wrong way round.", panel=LABELS)] = 0.0
    ties: Annotated[float, option("Share of labels that are ties.", panel=LABELS)] = 0.0
    repeat: Annotated[
        int,
        option(
            "Most labels of one pair; the rule asks again where that says more than a new pair.",
            min=1,
            max=100,
            panel=LABELS,
        ),
    ] = 1
    max_risk: Annotated[float, option("Risk that is low enough.", panel=FORECAST)] = 0.05
    method: Annotated[
        Literal["vanilla", "mean", "proportional", "bregman", "exact", "lcb", "min", "uwo", "entropic"],
        option("How the policy will be optimised.", panel=FORECAST),
    ] = "vanilla"
    simulations: Annotated[
        int, option("Rewards simulated; 0 makes no forecast.", min=0, max=10_000, panel=FORECAST)
    ] = 40
    on_error: OnError = "raise"
    encoder: Encoder = DEFAULT_MODEL
    pooling: EncoderPooling = "last+mean"
    max_length: EncoderLength = 1024
    dtype: EncoderDtype = None

    def problems(self) -> list[str]:
        """What is wrong with these options together."""
        problems = super().problems()
        problems += [] if self.preferences else ["no labelled preferences were given; name a file with --preferences"]
        if not self.policy_tilt > 0:
            problems.append(f"--policy-tilt is {self.policy_tilt}, it must be positive")
        if not 0 <= self.noise < 0.5:
            problems.append(f"--noise is {self.noise}, it must lie in [0, 0.5): half of all labels wrong says nothing")
        if not 0 <= self.ties < 1:
            problems.append(f"--ties is {self.ties}, it must lie in [0, 1)")
        if not 0 < self.max_risk < 1:
            problems.append(f"--max-risk is {self.max_risk}, it must lie between 0 and 1")
        if self.repeat > 1 and self.rule in ("random", "diversity", "margin", "maxmin-lcb", "drts", "delta-ucb"):
            problems.append(
                f"--rule {self.rule} can't say what a second label is worth; --repeat works with bald, d-optimal, "
                "bal-pm, envelope and risk"
            )
        return problems
