"""What is known of candidate pairs before they are labelled: the posterior of a head fitted on the labelled pairs.

The head, its ridge and its posterior are those of ``rewards.laplace``; a pair's logit is a difference of two scores, so
its variance comes from their joint covariance and what both share (a member's offset) drops out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from prudent.acquisition.information import LabelModel
from prudent.arrays import ArrayLike, as_tensor, require_finite
from prudent.errors import PrudentError
from prudent.policies.finite import solve
from prudent.rewards.laplace import LaplacePosterior
from prudent.rewards.stored import CHUNK_ROWS, equal_rows
from prudent.seeding import Seed

LEAST_LABELLED = 8  # pairs; fewer say nothing about which others would help


@dataclass(frozen=True)
class Responses:
    """The distinct responses of sided candidates: standardised features (r, d), prompt number (r,), and which two of
    them each pair compares, (m, 2)."""

    features: np.ndarray
    owner: np.ndarray
    of_pair: np.ndarray


@dataclass(frozen=True)
class KnownPairs:
    """m candidate pairs as the posterior sees them.

    factor (m, r) float32: inner products of rows are the logits' covariance. logit (m,): their posterior mean. prompt
    (m,): numbers of the prompts, from 0. candidates, chosen, rejected: features as given.
    """

    posterior: LaplacePosterior
    factor: np.ndarray
    logit: np.ndarray
    prompt: np.ndarray
    labels: LabelModel
    candidates: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor

    def __len__(self) -> int:
        return len(self.logit)

    @cached_property
    def weight(self) -> np.ndarray:
        """Fisher information (m,) of a label of each pair."""
        return self.labels.fisher(self.logit)

    @cached_property
    def scale(self) -> torch.Tensor:
        """Standard deviations (d,) float32 that features are divided by."""
        return self.posterior.scale.float()

    def differences(self) -> np.ndarray:
        """Standardised feature differences (m, d) float32 of the candidates."""
        return (_differences(self.candidates) / self.scale).numpy()

    def labelled(self) -> np.ndarray:
        """The labelled pairs' (n, d)."""
        return ((self.chosen.float() - self.rejected.float()) / self.scale).numpy()

    def midpoints(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean standardised features of the candidates' prompts (prompts, d) and of the labelled pairs (n, d)."""
        sides = self._sides(rule)
        middle = (((sides[:, 0].float() + sides[:, 1].float()) / 2 - self.posterior.mean) / self.scale).float().numpy()
        total = np.zeros((int(self.prompt.max()) + 1, middle.shape[1]), dtype=np.float32)
        np.add.at(total, self.prompt, middle)
        own = ((self.chosen.float() + self.rejected.float()) / 2 - self.posterior.mean) / self.scale
        return total / np.bincount(self.prompt)[:, None], own.float().numpy()

    def _sides(self, rule: str) -> torch.Tensor:
        if self.candidates.ndim != 3:
            raise PrudentError(
                f"rule {rule!r} compares a prompt's responses; give candidates as both sides (m, 2, d), not as "
                "differences (m, d)"
            )
        return self.candidates

    def responses(self, rule: str) -> Responses:
        """The distinct responses behind the pairs: equal features of one prompt are one response."""
        flat = self._sides(rule).flatten(0, 1).float().contiguous().numpy()
        numbers: dict[tuple[int, bytes], int] = {}
        first: list[int] = []
        of_side = np.empty(len(flat), dtype=np.int64)
        for index, prompt in enumerate(np.repeat(self.prompt, 2).tolist()):
            key = (prompt, flat[index].tobytes())
            if key not in numbers:
                numbers[key] = len(first)
                first.append(index)
            of_side[index] = numbers[key]
        features = (flat[first] - self.posterior.mean.float().numpy()) / self.scale.numpy()
        return Responses(features, np.repeat(self.prompt, 2)[first], of_side.reshape(-1, 2))

    def tilted(self, responses: Responses, beta: float) -> np.ndarray:
        """Probability (r,) of each response under the policy that maximises the posterior mean reward at ``beta``, from
        a reference that is uniform over a prompt's responses."""
        reward = responses.features @ self.posterior.weight.numpy()
        order = np.argsort(responses.owner, kind="stable")
        counts = np.bincount(responses.owner)
        inside = np.arange(counts.max()) < counts[:, None]
        table, reference = np.zeros(inside.shape), inside / counts[:, None]
        table[inside] = reward[order]
        policy = solve(torch.from_numpy(table), torch.from_numpy(reference), beta).numpy()
        found = np.empty(len(reward))
        found[order] = policy[inside]
        return found


def known_pairs(
    chosen: ArrayLike,
    rejected: ArrayLike,
    candidates: ArrayLike,
    groups: Sequence[Any] | None,
    *,
    ridge: float | str,
    labels: LabelModel,
    seed: Seed,
) -> KnownPairs:
    """Fit the posterior on the labelled pairs (n, d) and place the candidates in it. PrudentError for bad shapes,
    values that aren't finite, widths that differ and too few labelled pairs."""
    better, worse, pool = (as_tensor(values) for values in (chosen, rejected, candidates))
    _check(better, worse, pool, groups)
    posterior = LaplacePosterior.fit(better, worse, ridge=ridge, members=2, seed=seed)
    root, scale, mean = posterior.root.float(), posterior.scale.float(), posterior.weight.float()
    factor, logit = torch.empty(len(pool), root.shape[1]), torch.empty(len(pool), dtype=torch.float64)
    for start in range(0, len(pool), CHUNK_ROWS):
        part = _differences(pool[start : start + CHUNK_ROWS]) / scale
        torch.mm(part, root, out=factor[start : start + CHUNK_ROWS])
        logit[start : start + CHUNK_ROWS] = (part @ mean).double()
    names = np.arange(len(pool)) if groups is None else np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    return KnownPairs(posterior, factor.numpy(), logit.numpy(), names, labels, pool, better, worse)


def _differences(pool: torch.Tensor) -> torch.Tensor:
    return (pool[:, 0] - pool[:, 1] if pool.ndim == 3 else pool).float()


def _check(better: torch.Tensor, worse: torch.Tensor, pool: torch.Tensor, groups: Sequence[Any] | None) -> None:
    if better.ndim != 2 or better.shape != worse.shape:
        raise PrudentError(
            f"chosen and rejected features must be (n, d) and equal, got {tuple(better.shape)} and {tuple(worse.shape)}"
        )
    if len(better) < LEAST_LABELLED:
        raise PrudentError(
            f"{len(better)} labelled pairs; at least {LEAST_LABELLED} are needed to say which others would help: label "
            "some drawn at random first"
        )
    if pool.ndim not in (2, 3) or (pool.ndim == 3 and pool.shape[1] != 2) or not len(pool):
        raise PrudentError(
            f"candidates must be differences (m, d) or both sides (m, 2, d), at least one, got {tuple(pool.shape)}"
        )
    if pool.shape[-1] != better.shape[1]:
        raise PrudentError(
            f"candidates have features of width {pool.shape[-1]}, the labelled pairs {better.shape[1]}: encode both "
            "with one encoder"
        )
    if groups is not None and len(groups) != len(pool):
        raise PrudentError(f"{len(groups)} groups for {len(pool)} candidates; give each pair's prompt")
    for name, values in (("chosen", better), ("rejected", worse), ("candidates", pool)):
        for start in range(0, len(values), CHUNK_ROWS):  # the whole mask of a large pool would double its memory
            part = values[start : start + CHUNK_ROWS]
            if not bool(torch.isfinite(part.sum())):
                require_finite(part, f"{name} from row {start}", ("pair",))
    if bool(equal_rows(better, worse).all()):
        raise PrudentError("both sides of every labelled pair have the same features: there is nothing to learn from")
