"""Three uses of a reward model, by its accuracy (CHH-RLHF, arXiv 2409.19024): does a more accurate one serve better?

On finite candidates whose gold reward is known, each reward model is used (1) as the reward of RL, (2) to label pairs
for ranking optimisation, (3) as the judge of policies. All exact, no sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate, correlation, ranks, row_correlation
from prudent.rewards.accuracy import credit, differences


@dataclass(frozen=True)
class Uses:
    """One entry a reward model, (M,) float64 each. accuracy: share of a prompt's candidate pairs with different gold
    that it orders right, mean over prompts. rl, ranking, best_of_n: gold gained over the reference. judge: Spearman
    correlation of judged and true value over policies. correlations: of accuracy with each use, over models."""

    accuracy: np.ndarray
    rl: np.ndarray
    ranking: np.ndarray
    best_of_n: np.ndarray
    judge: np.ndarray
    correlations: dict[str, Estimate]


def pair_accuracy(scores: ArrayLike, gold: ArrayLike) -> torch.Tensor:
    """(M,) accuracy of scores (M, prompts, candidates) on every pair of one prompt's candidates with different gold."""
    reward, truth = as_tensor(scores, torch.float64), as_tensor(gold, torch.float64)
    counted = (differences(truth) > 0).double()
    accuracies = []
    for one in reward:
        right = counted * credit(differences(one))
        each = right.sum((1, 2)) / counted.sum((1, 2))
        accuracies.append(each[counted.sum((1, 2)) > 0].mean())
    return torch.stack(accuracies)


def tilted(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """pi proportional to reference exp(reward / beta), over the last axis."""
    return torch.softmax(reference.log() + reward / beta, -1)


def win_shares(reward: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Probability that each candidate beats one drawn from the reference by this reward, ties half: what optimising
    RM-labelled rankings sees (Azar et al. 2023, arXiv 2310.12036, eq. 7: IPO's exact optimum tilts by it)."""
    return (credit(differences(reward)) * reference[..., None, :]).sum(-1)


def best_of_reference(reward: torch.Tensor, reference: torch.Tensor, n: int) -> torch.Tensor:
    """Exact policy of best of n draws from the reference; ties share their probability by the reference."""
    below = ((reward[..., None, :] < reward[..., :, None]).double() * reference[..., None, :]).sum(-1)
    level = ((reward[..., None, :] == reward[..., :, None]).double() * reference[..., None, :]).sum(-1)
    return reference / level * ((below + level) ** n - below**n)


def reward_uses(
    scores: ArrayLike,
    gold: ArrayLike,
    policies: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    beta: float = 0.3,
    ranking_beta: float = 0.3,
    n: int = 16,
    seed: int = 0,
) -> Uses:
    """Gains of M reward models in each use. scores (M, prompts, candidates), gold (prompts, candidates), policies
    (J, prompts, candidates): those that each reward model judges. reference: probabilities, uniform by default.

    Each model's scores are centred and scaled to unit standard deviation within prompts (mean over prompts), so that
    beta means the same for all. Raises PrudentError for unequal shapes and fewer than three models or policies.
    """
    reward, truth = as_tensor(scores, torch.float64), as_tensor(gold, torch.float64)
    judged = as_tensor(policies, torch.float64)
    if reward.ndim != 3 or reward.shape[1:] != truth.shape or judged.shape[1:] != truth.shape:
        raise PrudentError(
            f"scores {tuple(reward.shape)}, gold {tuple(truth.shape)} and policies {tuple(judged.shape)} must be "
            "(models, prompts, candidates), (prompts, candidates) and (policies, prompts, candidates)"
        )
    if len(reward) < 3 or len(judged) < 3:
        raise PrudentError(
            f"{len(reward)} reward models and {len(judged)} policies: a rank correlation needs at least 3"
        )
    base = torch.full_like(truth, 1 / truth.shape[1]) if reference is None else as_tensor(reference, torch.float64)
    reward = reward - reward.mean(-1, keepdim=True)
    deviation = reward.std(-1, correction=1).mean(-1)[:, None, None]
    reward = reward / torch.where(deviation > 0, deviation, 1.0)
    start = (base * truth).sum(-1).mean()

    def gain(policy: torch.Tensor) -> np.ndarray:
        return ((policy * truth).sum(-1).mean(-1) - start).numpy()

    accuracy = pair_accuracy(reward, truth).numpy()
    ranking_scale = win_shares(reward, base)
    true_value = (judged * truth).sum(-1).mean(-1).numpy()
    judged_value = torch.einsum("jpc,mpc->mj", judged, reward).numpy() / truth.shape[0]
    judge = row_correlation(ranks(judged_value), ranks(np.broadcast_to(true_value, judged_value.shape)))
    uses: dict[str, Any] = {
        "rl": gain(tilted(base, reward, beta)),
        "ranking": gain(tilted(base, ranking_scale, ranking_beta)),
        "best_of_n": gain(best_of_reference(reward, base, n)),
        "judge": judge,
    }
    correlations = {name: correlation(accuracy, value, "spearman", seed=seed) for name, value in uses.items()}
    return Uses(accuracy=accuracy, correlations=correlations, **uses)
