"""What a series of runs is given: prompts, samples of the reference, reward models by draw, and what is true.

A *side* is a set of prompts with the reference's samples and their features. Policies train on one and are judged on
the other. The samples of the first also give the centre of the rewards and the scale of the variance, and those of the
second the reference's expected reward and what preflight promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.commands.preflight.truth import accuracy
from prudent.errors import PrudentError
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.rewards.draws import draw_heads, halves
from prudent.rewards.heads import HeadEnsemble
from prudent.seeding import Seed, spawn

JUDGE_MEMBERS = 20
Truth = Callable[[Sequence[int], Sequence[str], torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Judged:
    """A truth for one run: name, unit, how good it is, and its value of completions on the two sides.

    Each takes (prompt indices, texts, features or None) and gives (N,) float64.
    """

    kind: str
    unit: str
    train: Truth
    test: Truth
    quality: dict[str, Any]


def side_values(side: CandidateFeatures, truth: Truth) -> torch.Tensor:
    """(P,) expected reward of the reference on each prompt of a side, from its own samples."""
    owner, texts = side.flat()
    return truth(owner, texts, side.features.flatten(0, 1)).reshape(len(side), -1).mean(1)


@dataclass(frozen=True)
class Problem:
    """train, test: sides. heads: one ensemble a run. judged: one truth a run. notes: what a reader must know."""

    train: CandidateFeatures
    test: CandidateFeatures
    heads: list[HeadEnsemble]
    judged: list[Judged]
    notes: list[str]


def drawn_heads(pairs: PairFeatures, draws: int, members: int, ridge: float | str, seed: Seed) -> list[HeadEnsemble]:
    """One ensemble of ``members`` heads a draw: the first is fitted on all that it drew, the others resample it."""
    return HeadEnsemble.of_draws(draw_heads(pairs, draws, members - 1, ridge=ridge, seed=seed))


def crossed(
    pairs: PairFeatures,
    runs: int,
    members: int,
    ridge: float | str,
    encode: Callable[[str, Sequence[int], Sequence[str]], torch.Tensor],
    seed: Seed,
) -> tuple[list[HeadEnsemble], list[Judged]]:
    """Reward models and judges of a cross-fit: even runs learn from one half of the prompts' pairs and are judged by
    the other half's judge, odd runs the other way round. encode: (side, prompt indices, texts) -> features."""
    split_seed, *seeds = spawn(seed, 5)
    parts = halves(pairs.groups, split_seed)
    heads: list[list[HeadEnsemble]] = []
    judges: list[Judged] = []
    for learner in (0, 1):
        learns, judging = pairs.take(parts[learner]), pairs.take(parts[1 - learner])
        heads.append(drawn_heads(learns, (runs + 1 - learner) // 2 or 1, members, ridge, seeds[2 * learner]))
        judge = HeadEnsemble.fit(
            **judging.fit_arguments(), members=JUDGE_MEMBERS, ridge=ridge, seed=seeds[2 * learner + 1]
        )
        margins = (judge.scores(learns.chosen) - judge.scores(learns.rejected)).mean(0)
        judges.append(_head_judge(judge, encode, {**accuracy(margins), "trained_on": len(judging)}))
    order = [(run % 2, run // 2) for run in range(runs)]
    return [heads[half][position] for half, position in order], [judges[half] for half, _ in order]


def _head_judge(
    judge: HeadEnsemble, encode: Callable[[str, Sequence[int], Sequence[str]], torch.Tensor], quality: dict[str, Any]
) -> Judged:
    def value(side: str) -> Truth:
        def of(prompts: Sequence[int], texts: Sequence[str], features: torch.Tensor | None) -> torch.Tensor:
            found = encode(side, prompts, texts) if features is None else features
            return judge.scores(found).mean(0).double()

        return of

    return Judged("cross-fit", "units of the judge's score", value("train"), value("test"), quality)


def standardised_by(judged: Judged, test: CandidateFeatures) -> Judged:
    """The judge in standard deviations of the reference's own responses within a prompt: its scale means nothing."""
    owner, texts = test.flat()
    values = judged.test(owner, texts, test.features.flatten(0, 1))
    index = torch.tensor(owner)
    means = torch.zeros(len(test), dtype=torch.float64).index_add_(0, index, values) / torch.bincount(index)
    deviation = float((values - means[index]).square().mean().sqrt())
    if deviation == 0:
        raise PrudentError("the judge gives every response of a prompt the same score; it can't tell policies apart")

    def scaled(truth: Truth) -> Truth:
        return lambda prompts, texts, features: truth(prompts, texts, features) / deviation

    unit = "standard deviations of the judge within a prompt"
    return Judged(judged.kind, unit, scaled(judged.train), scaled(judged.test), judged.quality)
