"""Options of ``prudent theory``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from prudent.commands.options import Images, RowOptions, RunOptions, command, option

LEAST_DELTA = 1e-3  # that of theory.error_quantiles, which imports torch


@command("theory reproduce", run="theory.run:reproduce", show="theory.run:show")
class ReproduceOptions(RunOptions):
    """Recompute the theory section: claim, predicted, measured, interval and verdict, with charts.

    Example: prudent theory reproduce --out runs/theory
    """

    images: Images = True


@command("theory certify", run="theory.certify:certify_model", show="theory.run:show")
class CertifyOptions(RowOptions, RunOptions):
    """Bounds on the value of a policy tuned against this reward model, per prompt and overall, at each beta.

    Example: prudent theory certify --model runs/heads --pool pool.jsonl --out runs/certificate
    """

    model: Annotated[Path, option("Reward model folder: an ensemble or a Laplace posterior.", exists=True)]
    pool: Annotated[
        Path, option("Prompts with responses and optionally gold, or solutions with is_correct.", exists=True)
    ]
    betas: Annotated[tuple[float, ...], option("KL weights, separated by commas.")] = (0.03, 0.1, 0.3, 1.0)
    delta: Annotated[float, option("Chance of being wrong that the bounds allow.")] = 0.05
    images: Images = True

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        problems = super().problems()
        if any(not 0 < beta < math.inf for beta in self.betas):
            problems.append(
                f"--betas are {', '.join(f'{beta:g}' for beta in self.betas)}, every value must be positive and finite"
            )
        if not LEAST_DELTA <= self.delta < 0.5:
            problems.append(f"--delta is {self.delta}, must be at least {LEAST_DELTA} and below 0.5")
        return problems
