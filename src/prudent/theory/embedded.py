"""Promises held against the truth: reward models trained on fresh preferences of a world whose gold reward is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prudent.policies.methods import estimate
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.laplace import LaplacePosterior
from prudent.seeding import Seed, spawn
from prudent.theory.certificates import (
    Belief,
    belief_from_members,
    belief_from_posterior,
    certify,
    cross_fit,
    policy_of,
)
from prudent.theory.levels import split

Choose = Callable[[Seed], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
METHODS = ("vanilla", "proportional", "bregman")


def beliefs(
    chosen: torch.Tensor, rejected: torch.Tensor, groups: list[Any], test: torch.Tensor, ridge: float | str, seed: Seed
) -> tuple[dict[str, Belief], torch.Tensor, float]:
    """Beliefs of a bootstrap ensemble and of a sandwich posterior about test responses (P, C, d); members' scores
    (K, P, C), and the ridge used."""
    prompts, width, size = test.shape
    rows = test.reshape(-1, size)
    heads = HeadEnsemble.fit(chosen, rejected, members=10, ridge=ridge, groups=groups, seed=seed, tolerance=1e-5)
    used = float(heads.info["ridge"])
    scores = heads.scores(rows).double().reshape(-1, prompts, width)
    posterior = LaplacePosterior.fit(chosen, rejected, ridge=used, sandwich=True, groups=groups, seed=seed)
    reference = torch.full((prompts, width), 1.0 / width, dtype=torch.float64)
    mean = posterior.expected(rows).reshape(prompts, width)
    factor = posterior.factor(rows).reshape(prompts, width, -1)
    found = {
        "ensemble": belief_from_members(scores, reference),
        "posterior": belief_from_posterior(mean, factor, reference),
    }
    return found, scores, used


def calibrate(
    features: torch.Tensor,
    gold: torch.Tensor,
    choose: Choose,
    test: torch.Tensor,
    *,
    slope: float,
    betas: Sequence[float],
    draws: int,
    delta: float = 0.05,
    seed: Seed = 0,
    tick: Callable[[int], None] = lambda number: None,
) -> dict[str, list[dict[str, Any]]]:
    """Promised against realised improvement over ``draws`` fresh sets of preferences.

    features (P, C, d), gold (P, C). choose(seed): preferences as (prompt, chosen, rejected). test: places of the
    prompts that policies are solved on. Realised improvements are in units of the learnt reward: slope times gold. Rows
    of ``promises``: belief, method, beta, draw, promise of each kind, bound, realised. Rows of ``forms``: what the
    level between the proportional and the Bregman form is worth (`levels.split`), by beta and draw.
    """
    promises: list[dict[str, Any]] = []
    forms: list[dict[str, Any]] = []
    ridge: float | str = "cv"
    truth = slope * gold[test].double()
    truth = truth - truth.mean(-1, keepdim=True)
    target = features[test].float()
    for number, child in enumerate(spawn(seed, draws)):
        pick, fit = spawn(child, 2)
        prompt, better, worse = choose(pick)
        found, scores, ridge = beliefs(
            features[prompt, better].float(), features[prompt, worse].float(), prompt.tolist(), target, ridge, fit
        )
        promises += [
            {"belief": name, "draw": number, **_promise(belief, scores, truth, method, beta, delta)}
            for name, belief in found.items()
            for method in METHODS
            for beta in betas
        ]
        seen = estimate(scores, found["ensemble"].reference, reward="mean")
        for beta in betas:
            parts = split(seen.reward, found["ensemble"].reference, beta, seen.variance, gold[test])
            forms.append({"draw": number, "beta": beta, "link": _link(seen.variance, gold[test]), **parts._asdict()})
        tick(number)
    return {"promises": promises, "forms": forms}


def _promise(
    belief: Belief, scores: torch.Tensor, truth: torch.Tensor, method: str, beta: float, delta: float
) -> dict[str, Any]:
    found = certify(belief, beta, method, delta=delta)

    def realised(policy: torch.Tensor) -> float:
        return float(((policy - belief.reference) * truth).sum(-1).mean())

    row = {
        "method": method, "beta": beta, "plug_in": found.plug_in, "corrected": found.improvement,
        "bound": found.bound, "uniform": found.uniform, "risk": found.risk, "kl": found.kl,
        "realised": realised(policy_of(belief, belief.reward, beta, method)),
    }  # fmt: skip
    if not math.isinf(belief.freedom):
        deviations = scores - scores.mean(0)
        deviations = deviations - deviations.mean(-1, keepdim=True)
        row["cross_fit"] = cross_fit(belief, deviations, beta, method, delta=delta).improvement
        row["realised_member"] = realised(policy_of(belief, belief.reward + deviations, beta, method).mean(0))
    return row


def _link(variance: torch.Tensor, gold: torch.Tensor) -> float:
    """Correlation of log variance and gold within prompts."""
    logs, truth = (x - x.mean(-1, keepdim=True) for x in (torch.log(variance), gold.double()))
    return float((logs * truth).sum() / (logs.square().sum() * truth.square().sum()).sqrt())


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over draws by belief, method and beta, and how often the realised improvement reached the bound."""
    table = []
    for key in dict.fromkeys((row["belief"], row["method"], row["beta"]) for row in rows):
        own = [row for row in rows if (row["belief"], row["method"], row["beta"]) == key]
        means: dict[str, float] = {
            name: sum(row[name] for row in own) / len(own)
            for name in ("plug_in", "corrected", "bound", "realised", "risk", "cross_fit", "realised_member", "kl")
            if name in own[0]
        }
        table.append({
            "belief": key[0], "method": key[1], "beta": key[2], "draws": len(own), **means,
            "covered": sum(row["bound"] <= row["realised"] for row in own) / len(own),
            "covered_uniform": None
            if math.isnan(own[0]["uniform"])
            else sum(row["uniform"] <= row["realised"] for row in own) / len(own),
            "realised_risk": sum(row["realised"] <= 0 for row in own) / len(own),
        })  # fmt: skip
    return table
