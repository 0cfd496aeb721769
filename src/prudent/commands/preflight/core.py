"""The computation at the heart of preflight, on arrays alone.

Draws of the reward model -> scores of the policy's candidates -> the policy of every method at every beta -> what each
is worth. All methods share draws, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.errors import PrudentError
from prudent.evaluation.risk import paired_risk, policy_gain, policy_risk
from prudent.policies.estimates import Estimate, estimate
from prudent.policies.finite import beta_for_kl, kl
from prudent.policies.objectives import METHODS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.rewards.draws import draw_heads
from prudent.seeding import Seed

BETAS = (0.03, 0.1, 0.3, 1.0)
KL_TOLERANCE = 1e-3  # relative; a gain moves by less
BASELINE = "vanilla"


@dataclass(frozen=True)
class DrawnScores:
    """scores (draws, members, P, C) float64 of the candidates; ridge used and where it came from. own (draws, P, C):
    of the reward model fitted on all that each draw holds, or None where the first member is one."""

    scores: torch.Tensor
    ridge: float
    ridge_table: dict[str, Any] | None
    own: torch.Tensor | None = None


@dataclass(frozen=True)
class Outcomes:
    """Expected rewards of policies of M methods at B settings over D draws: all (M, B, D) float64.

    beta: used. gain: value minus the reference's. kl: mean over prompts, nats. worse: share of prompts made worse.
    by_judge: (M, B, J, D) gains by J resampled judges, where the truth is a judge.
    """

    methods: tuple[str, ...]
    settings: tuple[float, ...]
    beta: torch.Tensor
    gain: torch.Tensor
    kl: torch.Tensor
    worse: torch.Tensor
    by_judge: torch.Tensor | None = None

    def of(self, method: str, setting: float) -> tuple[int, int]:
        """(method, setting) as indices."""
        return self.methods.index(method), self.settings.index(setting)


def draw_scores(
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    *,
    draws: int,
    members: int,
    ridge: float | str = "cv",
    seed: Seed = 0,
) -> DrawnScores:
    """Scores of the candidates in every draw: by the draw's own fit, and by its ``members`` resamples."""
    drawn = draw_heads(pairs, draws, members, ridge=ridge, seed=seed)
    scores = drawn.scores(candidates)
    return DrawnScores(scores[:, 1:], drawn.ridge, drawn.ridge_table, scores[:, 0])


def estimate_of(
    drawn: DrawnScores, reference: torch.Tensor, *, reward: str = "member:0", floor: float = 1e-2
) -> Estimate:
    """What methods see of each draw: rewards centred per prompt, variance with mean 1 over the pool and floored.

    reward: "mean" of the members, or "member:0": the draw's own fit where there is one.
    """
    own = drawn.own if reward == "member:0" and drawn.own is not None else reward
    return estimate(drawn.scores, reference, reward=own, centre=True, normalise=True, floor=floor)


def _outcome(
    policy: torch.Tensor, reference: torch.Tensor, truth: torch.Tensor, judges: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    gain, worse = policy_gain(policy, reference, truth)
    by_judge = None
    if judges is not None:
        change = (policy - reference).flatten(-2) / policy.shape[-2]  # (D, P * C)
        by_judge = torch.where(reference > 0, judges, 0.0).flatten(-2).double() @ change.T  # (J, D)
    return gain, worse, kl(policy, reference).mean(-1), by_judge


def _collect(
    estimate: Estimate,
    reference: torch.Tensor,
    truth: torch.Tensor,
    judges: torch.Tensor | None,
    methods: Sequence[str],
    settings: Sequence[float],
    beta_of: Callable[[str, int], torch.Tensor],
    advance: Callable[[str], None],
) -> Outcomes:
    draws = max(estimate.reward.shape[0], truth.shape[0] if truth.ndim == 3 else 1)
    shape = (len(methods), len(settings), draws)
    beta, gain, divergence, worse = (torch.full(shape, float("nan"), dtype=torch.float64) for _ in range(4))
    by_judge = None if judges is None else torch.full((*shape[:2], len(judges), draws), float("nan")).double()
    for m, method in enumerate(methods):
        for b in range(len(settings)):
            used = beta_of(method, b)
            reachable = torch.isfinite(used)
            beta[m, b] = used
            if not bool(reachable.any()):
                continue
            safe = torch.where(reachable, used, 1.0)[:, None, None]
            policy = METHODS[method](estimate, reference, safe)
            found = _outcome(policy, reference, truth, judges)
            gain[m, b], worse[m, b], divergence[m, b] = found[0], found[1], found[2]
            missing = ~reachable.expand(draws)
            for values in (gain, worse, divergence):
                values[m, b, missing] = float("nan")
            if by_judge is not None and found[3] is not None:
                by_judge[m, b] = found[3]
                by_judge[m, b, :, missing] = float("nan")
        advance(method)
    return Outcomes(tuple(methods), tuple(settings), beta, gain, divergence, worse, by_judge)


def at_equal_beta(
    estimate: Estimate,
    reference: ArrayLike,
    truth: ArrayLike,
    betas: Sequence[float] = BETAS,
    *,
    methods: Sequence[str] = tuple(METHODS),
    judges: torch.Tensor | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> Outcomes:
    """Every method at every beta. truth (P, C): true reward of the candidates; judges (J, P, C): resampled judges.

    truth (D, P, C), with one draw of the reward model: what the reward may be, so that the one policy has D values.
    beta 0: each prompt's best candidate by the method (``Terms.policy``).
    """
    if not betas or any(not beta >= 0 for beta in betas):
        raise PrudentError(f"betas are {list(betas)}; give numbers of at least 0, for example 0.1 0.3 1")
    pi0, gold = as_tensor(reference, torch.float64), as_tensor(truth, torch.float64)
    draws = estimate.reward.shape[0]
    return _collect(
        estimate,
        pi0,
        gold,
        judges,
        methods,
        betas,
        lambda method, b: torch.full((draws,), float(betas[b]), dtype=torch.float64),
        advance,
    )


def at_equal_kl(
    estimate: Estimate,
    reference: ArrayLike,
    truth: ArrayLike,
    anchor: Outcomes,
    *,
    methods: Sequence[str] = tuple(METHODS),
    judges: torch.Tensor | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> Outcomes:
    """Every method at the KL that vanilla spends in the same draw at each beta of ``anchor``.

    beta is found for each draw, so methods are compared at equal distance from the reference draw by draw. Draws in
    which no beta reaches that KL are nan (and counted in the tables). At beta 0 nothing is searched: one best candidate
    of equally likely ones spends the logarithm of their number by every method.
    """
    pi0, gold = as_tensor(reference, torch.float64), as_tensor(truth, torch.float64)
    draws = estimate.reward.shape[0]
    target = anchor.kl[anchor.methods.index(BASELINE)][:, :draws]

    def beta_of(method: str, b: int) -> torch.Tensor:
        if method == BASELINE or anchor.settings[b] == 0:
            return anchor.beta[anchor.methods.index(BASELINE), b, :draws]
        # The search starts at vanilla's beta: no method needs a very different one.
        start, terms = float(anchor.settings[b]), METHODS[method].terms(estimate)
        found = beta_for_kl(
            lambda factor: terms.policy(pi0, start * factor),
            pi0,
            target[b].clamp_min(1e-12),
            shape=(draws,),
            strict=False,
            tolerance=KL_TOLERANCE,
        )
        return start * found

    return _collect(estimate, pi0, gold, judges, methods, anchor.settings, beta_of, advance)


def join(parts: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of several sets of draws (the directions of a cross-fit) as one."""
    first = parts[0]
    if any(part.methods != first.methods or part.settings != first.settings for part in parts):
        raise PrudentError("outcomes to join have different methods or settings")
    beta, gain, divergence, worse = (
        torch.cat([getattr(part, name) for part in parts], -1) for name in ("beta", "gain", "kl", "worse")
    )
    found = [part.by_judge for part in parts if part.by_judge is not None]
    by_judge = torch.cat(found, -1) if len(found) == len(parts) else None
    return Outcomes(first.methods, first.settings, beta, gain, divergence, worse, by_judge)


def table(outcomes: Outcomes, *, level: float = 0.95, seed: Seed = 0) -> list[dict[str, Any]]:
    """One row a method and setting: gain, its deviation, risk with its Wilson interval, KL, prompts made worse, and the
    paired difference from vanilla on the same draws. Draws that are nan are left out and counted as ``unreached``."""
    rows = []
    base_index = outcomes.methods.index(BASELINE) if BASELINE in outcomes.methods else None
    for m, method in enumerate(outcomes.methods):
        for b, setting in enumerate(outcomes.settings):
            gain = outcomes.gain[m, b]
            kept = torch.isfinite(gain)
            row: dict[str, Any] = {
                "method": method,
                "setting": setting,
                "unreached": int((~kept).sum()),
                "kind": kind_of(method),
            }
            if bool(kept.any()):
                row |= policy_risk(gain[kept], level=level, seed=seed).row()
                row |= {
                    "beta": float(outcomes.beta[m, b][kept].median()),
                    "kl": float(outcomes.kl[m, b][kept].mean()),
                    "worse": float(outcomes.worse[m, b][kept].mean()),
                }
                if outcomes.by_judge is not None:
                    row |= _judge_range(outcomes.by_judge[m, b][:, kept], level)
                if base_index is not None and m != base_index:
                    versus = paired_risk(gain[kept], outcomes.gain[base_index, b][kept], level=level, seed=seed).row()
                    row |= {f"vs_{key}": value for key, value in versus.items()}
            rows.append(row)
    return rows


def _judge_range(by_judge: torch.Tensor, level: float) -> dict[str, float]:
    """Range of risk and gain over resampled judges: how much of the answer hangs on who judges."""
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    risk = torch.quantile((by_judge <= 0).double().mean(1), ends)
    gain = torch.quantile(by_judge.mean(1), ends)
    return {
        "judge_risk_low": float(risk[0]),
        "judge_risk_high": float(risk[1]),
        "judge_gain_low": float(gain[0]),
        "judge_gain_high": float(gain[1]),
    }


def kind_of(method: str) -> str:
    """What a method is in the comparison: baseline, variance-aware, rival or control."""
    return METHODS[method].kind
