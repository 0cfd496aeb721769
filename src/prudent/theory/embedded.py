"""Promises held against the truth: reward models trained on fresh preferences of a world whose gold reward is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prudent.evaluation.risk import paired_risk, policy_risk
from prudent.evaluation.statistics import bootstrap
from prudent.policies.estimates import estimate
from prudent.policies.objectives import CONTROLS, OBJECTIVES, method_beta_for_kl
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
from prudent.theory.levels import split_at_kl
from prudent.theory.realised import can_fail, realised_gain, risk_curve

Choose = Callable[[Seed], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
METHODS = ("vanilla", "proportional", "bregman")
COMPARED = ("vanilla", "proportional", "bregman", "exact", *CONTROLS)


def beliefs(
    chosen: torch.Tensor, rejected: torch.Tensor, groups: list[Any], test: torch.Tensor, ridge: float | str, seed: Seed
) -> tuple[dict[str, Belief], torch.Tensor, float]:
    """Beliefs of a bootstrap ensemble, of a sandwich and of a Laplace posterior about test responses (P, C, d);
    members' scores (K, P, C), and the ridge used."""
    prompts, width, size = test.shape
    rows = test.reshape(-1, size)
    heads = HeadEnsemble.fit(chosen, rejected, members=10, ridge=ridge, groups=groups, seed=seed, tolerance=1e-5)
    used = float(heads.info["ridge"])
    scores = heads.scores(rows).double().reshape(-1, prompts, width)
    reference = torch.full((prompts, width), 1.0 / width, dtype=torch.float64)
    found = {"ensemble": belief_from_members(scores, reference)}
    for name in ("sandwich", "posterior"):
        fitted = LaplacePosterior.fit(
            chosen, rejected, ridge=used, sandwich=name == "sandwich", groups=groups, seed=seed
        )
        mean = fitted.expected(rows).reshape(prompts, width)
        found[name] = belief_from_posterior(mean, fitted.factor(rows).reshape(prompts, width, -1), reference)
    return found, scores, used


def calibrate(
    features: torch.Tensor,
    gold: torch.Tensor,
    choose: Choose,
    test: torch.Tensor,
    *,
    slope: float,
    betas: Sequence[float],
    kls: Sequence[float] = (),
    draws: int,
    delta: float = 0.05,
    seed: Seed = 0,
    tick: Callable[[int], None] = lambda number: None,
) -> dict[str, list[dict[str, Any]]]:
    """Promised against realised improvement over ``draws`` fresh sets of preferences, and methods at equal KL.

    features (P, C, d), gold (P, C). choose(seed): preferences as (prompt, chosen, rejected). test: places of the
    prompts that policies are solved on. Realised improvements are in units of the learnt reward: slope times gold. Rows
    of ``promises``: belief, method, beta, draw, promise of each kind, bound, realised; ``by_prompt`` holds each
    prompt's promised risk and realised gain. Rows of ``gains``: method, kl, draw, gain in gold. Rows of ``forms``: why
    the proportional and the Bregman form differ at that KL (`levels.AtKL`) and the link of variance and gold.
    """
    promises: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    forms: list[dict[str, Any]] = []
    ridge: float | str = "cv"
    truth = slope * gold[test].double()
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
        made, parts = at_equal_kl(scores, found["ensemble"].reference, gold[test].double(), kls, number)
        gains, forms = gains + made, forms + parts
        tick(number)
    return {"promises": promises, "gains": gains, "forms": forms}


def at_equal_kl(
    scores: torch.Tensor, reference: torch.Tensor, gold: torch.Tensor, kls: Sequence[float], number: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One draw's gains of every method and its decompositions, at each KL. A method that can't reach it gives none."""
    known = estimate(scores, reference, reward="mean")
    gains, forms = [], []
    for target in kls:
        for name in COMPARED:
            beta = method_beta_for_kl(name, known, reference, target, strict=False, seed=number)
            if bool(torch.isfinite(beta)):
                policy = OBJECTIVES[name](known, reference, beta, seed=number)
                gain = float(realised_gain(policy, reference, gold).mean())
                gains.append({"method": name, "kl": target, "draw": number, "gain": gain})
        parts = split_at_kl(known.reward, reference, known.variance, gold, target)
        if parts is not None:
            forms.append({"draw": number, "kl": target, "correlation": _link(known.variance, gold), **parts._asdict()})
    return gains, forms


def _promise(
    belief: Belief, scores: torch.Tensor, truth: torch.Tensor, method: str, beta: float, delta: float
) -> dict[str, Any]:
    found = certify(belief, beta, method, delta=delta)
    each = realised_gain(policy_of(belief, belief.reward, beta, method), belief.reference, truth)
    row = {
        "method": method,
        "beta": beta,
        "plug_in": found.plug_in,
        "corrected": found.improvement,
        "bound": found.bound,
        "uniform": found.uniform,
        "risk": found.risk,
        "kl": found.kl,
        "realised": float(each.mean()),
        "by_prompt": {"risk": found.prompts["risk"], "realised": each},
    }
    if not math.isinf(belief.freedom):
        deviations = scores - scores.mean(0)
        deviations = deviations - deviations.mean(-1, keepdim=True)
        row["cross_fit"] = cross_fit(belief, deviations, beta, method, delta=delta).improvement
        alone = policy_of(belief, belief.reward + deviations, beta, method)
        row["realised_member"] = float(realised_gain(alone, belief.reference, truth).mean())
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
        table.append(
            {
                "belief": key[0],
                "method": key[1],
                "beta": key[2],
                "draws": len(own),
                **means,
                "covered": sum(row["bound"] <= row["realised"] for row in own) / len(own),
                "covered_uniform": None
                if math.isnan(own[0]["uniform"])
                else sum(row["uniform"] <= row["realised"] for row in own) / len(own),
                "realised_risk": sum(row["realised"] <= 0 for row in own) / len(own),
            }
        )
    return table


def risk_curves(rows: Sequence[dict[str, Any]], reference: torch.Tensor, gold: torch.Tensor) -> list[dict[str, Any]]:
    """Promised against realised risk of single prompts, all draws and betas, by belief and method. Prompts whose gold
    is the same for every response are left out."""
    kept = can_fail(reference, gold)
    table = []
    for belief, method in dict.fromkeys((row["belief"], row["method"]) for row in rows):
        own = [row["by_prompt"] for row in rows if (row["belief"], row["method"]) == (belief, method)]
        promised, realised = (torch.stack([one[name][kept] for one in own]) for name in ("risk", "realised"))
        table += [{"belief": belief, "method": method, **row} for row in risk_curve(promised, realised)]
    return table


def methods_table(gains: Sequence[dict[str, Any]], draws: int) -> list[dict[str, Any]]:
    """Gain and risk of each method at each KL over draws, and its paired difference to vanilla. A row whose method
    reaches the KL in no draw has its share reached, 0, and nothing else."""
    found: dict[tuple[float, str], dict[int, float]] = {}
    for one in gains:
        found.setdefault((one["kl"], one["method"]), {})[one["draw"]] = one["gain"]
    table = []
    for kl in dict.fromkeys(one["kl"] for one in gains):
        base = found.get((kl, "vanilla"), {})
        for method in COMPARED:
            own = found.get((kl, method), {})
            row: dict[str, Any] = {"kl": kl, "method": method, "reached": len(own) / draws}
            if own:
                known = policy_risk(list(own.values()))
                row |= {"gain": known.gain, "low": known.gain_low, "high": known.gain_high}
                row |= {"risk": known.risk, "risk_low": known.low, "risk_high": known.high}
            shared = sorted(base.keys() & own.keys())
            if method != "vanilla" and shared:
                over = paired_risk([own[n] for n in shared], [base[n] for n in shared])
                row |= {"over": over.gain, "over_low": over.gain_low, "over_high": over.gain_high}
            table.append(row)
    return table


def forms_table(forms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over draws of the decomposition at each KL; the gap with its bootstrap interval over draws."""
    table = []
    for kl in dict.fromkeys(row["kl"] for row in forms):
        own = [row for row in forms if row["kl"] == kl]
        names = [name for name in own[0] if name not in ("draw", "kl")]
        gap = bootstrap([row["proportional"] - row["bregman"] for row in own])
        table.append(
            {
                "kl": kl,
                "draws": len(own),
                **{name: sum(row[name] for row in own) / len(own) for name in names},
                "gap": gap.value,
                "gap_low": gap.low,
                "gap_high": gap.high,
            }
        )
    return table
