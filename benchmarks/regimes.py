"""When does it help? Every method's risk and gain at equal KL in worlds whose truth and noise are known.

    python benchmarks/regimes.py [--count 150] [--draws 10] [--kl 0.5] [--out maps.json]

A world is a prompt with n responses: true rewards R with a set spread, and noise variances whose logarithms have a set
spread ("inequality") and a set correlation with R. Reward estimates are R plus independent Gaussian noise. A method
sees the true variances, those estimated from K members, or wrong ones. Maps: inequality by correlation with variances
known, inequality by wrong variances, and the members that it takes. docs/theory.md, section "When does it help?".
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prudent.errors import PrudentError
from prudent.evaluation.statistics import wilson
from prudent.files import dumps
from prudent.policies.estimates import Estimate
from prudent.policies.finite import kl
from prudent.policies.objectives import METHODS, method_beta_for_kl
from prudent.seeding import Seed, spawn, torch_generator

COMPARED = ("vanilla", "proportional", "bregman", "exact", "variance-only", "permuted")
INEQUALITIES = (0.25, 0.5, 1.0, 1.5, 2.0)
CORRELATIONS = (-0.8, -0.4, 0.0, 0.4, 0.8)
ERRORS = (0.0, 0.5, 1.0, 1.5, 2.0)
MEMBERS = (2, 3, 5, 10, 20, 50)
AWARE = ("proportional", "bregman", "exact")


@dataclass(frozen=True)
class Regime:
    """A kind of world, and what the methods know of its variance.

    inequality: standard deviation of the log variances among a prompt's responses. correlation: of log variance and
    true reward; negative where low variance goes with truth. signal: spread of the true rewards, in units of the
    noise's root mean square. responses: n. members: K that estimate the variance; None knows it. in_sample: the reward
    is one of these members (as in practice), not a draw apart. error: standard deviation of a wrong factor on the log
    variance. kl: nats spent by every method. floor: least variance as a share of a prompt's mean.
    """

    inequality: float = 1.0
    correlation: float = 0.0
    signal: float = 0.5
    responses: int = 16
    members: int | None = None
    in_sample: bool = False
    error: float = 0.0
    kl: float = 0.5
    floor: float = 1e-2

    def __post_init__(self) -> None:
        if not -1 <= self.correlation <= 1 or self.inequality < 0 or self.error < 0 or self.signal <= 0:
            raise PrudentError(
                f"{self} is no regime: correlation must lie in [-1, 1], inequality and error be >= 0, signal > 0"
            )
        if self.members is not None and self.members < 2:
            raise PrudentError(f"members is {self.members}; a variance takes at least 2, or None where it is known")


def worlds(regime: Regime, count: int, seed: Seed = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(true rewards, noise variances), (count, n) each: rewards centred with spread ``signal``, variances of mean 1."""
    generator = torch_generator(seed)
    shape = (count, regime.responses)
    truth, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    truth = truth - truth.mean(-1, keepdim=True)
    truth = truth / truth.std(-1, keepdim=True)
    log_variance = regime.correlation * truth + math.sqrt(1 - regime.correlation**2) * other
    variance = torch.exp(regime.inequality * log_variance)
    return regime.signal * truth, variance / variance.mean(-1, keepdim=True)


def small_ball_risks(truth: torch.Tensor, variance: torch.Tensor, assumed: torch.Tensor | None = None) -> torch.Tensor:
    """Exact risks of worlds (..., n), on the simplex, of a method that takes ``assumed`` for the diagonal covariance.

    assumed None is vanilla; the variance itself is aware. Equations (17) to (19), for many worlds at once.
    """
    weight = torch.ones_like(variance) if assumed is None else 1.0 / assumed
    level = (weight * truth).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    direction = weight * (truth - level)
    gain = (direction * truth).sum(-1)
    noise = (variance * direction.square()).sum(-1).sqrt()
    return torch.special.ndtr(-gain / noise)


def observe(
    regime: Regime, truth: torch.Tensor, variance: torch.Tensor, draws: int, seed: Seed = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(reward estimates, variances that the method believes), (draws, worlds, n) each."""
    reward_seed, member_seed, error_seed = spawn(seed, 3)
    shape = (draws, *truth.shape)
    deviation = variance.sqrt()

    def noise(seed: Seed, *lead: int) -> torch.Tensor:
        return torch.randn(*lead, *shape, generator=torch_generator(seed), dtype=torch.float64) * deviation

    reward = truth + noise(reward_seed)
    believed = variance.expand(shape)
    if regime.members is not None:
        apart = noise(member_seed, regime.members - 1 if regime.in_sample else regime.members)
        members = torch.cat([(reward - truth)[None], apart]) if regime.in_sample else apart
        believed = members.var(0)
    if regime.error:
        wrong = torch.randn(truth.shape, generator=torch_generator(error_seed), dtype=torch.float64)
        believed = believed * torch.exp(regime.error * wrong)
    believed = believed / believed.mean(-1, keepdim=True)
    return reward, believed.clamp(min=regime.floor)


def compare(
    regime: Regime, *, count: int = 300, draws: int = 20, seed: Seed = 0, methods: tuple[str, ...] = COMPARED
) -> list[dict[str, Any]]:
    """Risk and gain of each method at the regime's KL, one row a method, over ``count`` worlds of ``draws`` estimates
    each.

    Every world is a prompt by itself and spends exactly the KL. Rows: risk with its Wilson interval (draws of one world
    are counted as independent, worlds are what the regime averages over), gain in units of the signal, its standard
    error over worlds, and the share of estimates for which some beta reaches the KL (the others are left out).
    """
    world_seed, draw_seed = spawn(seed, 2)
    truth, variance = worlds(regime, count, world_seed)
    reward, believed = observe(regime, truth, variance, draws, draw_seed)
    n = regime.responses
    reference = torch.full((1, n), 1.0 / n, dtype=torch.float64)
    centred = (reward - reward.mean(-1, keepdim=True)).reshape(-1, 1, n)
    spread = believed.reshape(-1, 1, n)
    scale = centred.square().mean((-2, -1), keepdim=True).sqrt()
    seen = Estimate(centred[:, None], centred, centred, spread, spread.sqrt(), scale)
    rows = []
    for method in methods:
        beta = method_beta_for_kl(method, seen, reference, regime.kl, strict=False, tolerance=1e-3)
        reached = torch.isfinite(beta)
        policy = METHODS[method](seen, reference, torch.where(reached, beta, 1.0)[:, None, None])
        gain = (policy.reshape(draws, count, n) * truth).sum(-1) / regime.signal
        kept = reached.reshape(draws, count)
        row: dict[str, Any] = {"method": method, "reached": float(kept.double().mean())}
        if float(row["reached"]) < 0.5:
            row |= {"risk": None, "reason": f"fewer than half of the estimates can spend {regime.kl:g} nats"}
        else:
            below, total = int(((gain <= 0) & kept).sum()), int(kept.sum())
            low, high = wilson(below, total)
            each = torch.where(kept, gain, 0.0).sum(0) / kept.sum(0).clamp(min=1)
            each = each[kept.any(0)]
            row |= {
                "risk": below / total,
                "low": low,
                "high": high,
                "gain": float(gain[kept].mean()),
                "error": float(each.std()) / math.sqrt(len(each)),
                "kl": float(kl(policy, reference)[reached].mean()),
            }
        rows.append(row)
    return rows


def exact_ratio(regime: Regime, *, count: int = 2000, draws: int = 10, seed: Seed = 0) -> dict[str, float]:
    """Mean exact small-ball risks over worlds: vanilla, aware (with what the method believes) and their ratio.

    Believed variances are taken as independent of the reward, as in equation (19) (in_sample has no closed form here).
    """
    world_seed, draw_seed = spawn(seed, 2)
    truth, variance = worlds(regime, count, world_seed)
    vanilla = small_ball_risks(truth, variance).mean()
    _, believed = observe(regime, truth, variance, draws, draw_seed)
    aware = small_ball_risks(truth, variance, believed).mean()
    return {"vanilla": float(vanilla), "aware": float(aware), "ratio": float(aware / vanilla)}


def share_kept(with_members: float, vanilla: float, oracle: float) -> float | None:
    """Share of the oracle's advantage over vanilla that an estimated variance keeps; None where the oracle has none."""
    return None if abs(oracle - vanilla) < 1e-12 else (with_members - vanilla) / (oracle - vanilla)


def members_needed(curve: list[dict[str, Any]], share: float = 0.9, key: str = "share_gain") -> int | None:
    """Least K of a curve from which on the share kept stays at or above ``share``; None if it never does."""
    needed = None
    for row in sorted(curve, key=lambda row: -row["members"]):
        if row[key] is None or row[key] < share:
            break
        needed = row["members"]
    return needed


def members_curve(
    regime: Regime,
    sizes: tuple[int, ...] = (2, 3, 5, 8, 10, 15, 20, 30, 50, 100),
    *,
    method: str = "bregman",
    count: int = 300,
    draws: int = 20,
    seed: Seed = 0,
) -> list[dict[str, Any]]:
    """Risk and gain of ``method`` with variances from K members, beside vanilla and the oracle that knows them."""
    options: dict[str, Any] = {"count": count, "draws": draws, "seed": seed, "methods": ("vanilla", method)}
    vanilla, oracle = compare(replace(regime, members=None), **options)
    rows = []
    for members in sizes:
        _, found = compare(replace(regime, members=members), **options)
        rows.append(
            {
                "members": members,
                "method": method,
                "in_sample": regime.in_sample,
                "risk": found["risk"],
                "gain": found["gain"],
                "vanilla_risk": vanilla["risk"],
                "vanilla_gain": vanilla["gain"],
                "oracle_risk": oracle["risk"],
                "oracle_gain": oracle["gain"],
                "share_risk": share_kept(found["risk"], vanilla["risk"], oracle["risk"]),
                "share_gain": share_kept(found["gain"], vanilla["gain"], oracle["gain"]),
            }
        )
    return rows


def cell(regime: Regime, labels: dict[str, Any], count: int, draws: int, seed: Seed) -> dict[str, Any]:
    """One cell: every method's risk and gain at equal KL, and the exact small-ball risks."""
    rows = {row["method"]: row for row in compare(regime, count=count, draws=draws, seed=seed, methods=COMPARED)}
    return {**labels, "methods": rows, "small_ball": exact_ratio(regime, count=10 * count, draws=3, seed=seed)}


def draw_maps(
    *,
    count: int = 150,
    draws: int = 10,
    nats: float = 0.5,
    seed: Seed = 0,
    inequalities: Sequence[float] = INEQUALITIES,
    correlations: Sequence[float] = CORRELATIONS,
    errors: Sequence[float] = ERRORS,
    members: Sequence[int] = MEMBERS,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """All maps: ``link`` (inequality x correlation, variances known), ``error`` (inequality x wrong factor),
    ``members`` (share of the oracle's advantage kept by K members), ``losing`` cells and a ``verdict`` in words."""
    tick("inequality and link")
    link = [
        cell(Regime(inequality=i, correlation=c, kl=nats), {"inequality": i, "correlation": c}, count, draws, seed)
        for i in inequalities
        for c in correlations
    ]
    tick("wrong variances")
    error = [
        cell(Regime(inequality=i, error=e, kl=nats), {"inequality": i, "error": e}, count, draws, seed)
        for i in inequalities
        for e in errors
    ]
    tick("members")
    curves = [
        {"inequality": i, "reward": "one of the K" if inside else "apart", **row}
        for i in (0.5, 1.0, 2.0)
        for inside in (False, True)
        for row in members_curve(
            Regime(inequality=i, kl=nats, in_sample=inside), tuple(members), count=count, draws=draws, seed=seed
        )
    ]
    needed = [
        {
            "inequality": i,
            "reward": reward,
            "risk": members_needed(found, key="share_risk"),
            "gain": members_needed(found, key="share_gain"),
        }
        for i in (0.5, 1.0, 2.0)
        for reward in ("apart", "one of the K")
        if (found := [row for row in curves if row["inequality"] == i and row["reward"] == reward])
    ]
    losing = [row for name, cells in (("link", link), ("error", error)) for row in lost(cells, name)]
    return {
        "kl": nats,
        "link": link,
        "error": error,
        "members": curves,
        "needed": needed,
        "losing": losing,
        "verdict": verdict(losing, len(link) + len(error)),
    }


def lost(cells: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Cells in which a variance-aware form's risk interval lies wholly above vanilla's."""
    found = []
    for row in cells:
        vanilla = row["methods"]["vanilla"]
        for method in AWARE:
            other = row["methods"][method]
            if other["risk"] is not None and vanilla["risk"] is not None and other["low"] > vanilla["high"]:
                where = {key: value for key, value in row.items() if key not in ("methods", "small_ball")}
                found.append(
                    {"map": name, "method": method, **where, "risk": other["risk"], "vanilla": vanilla["risk"]}
                )
    return found


def verdict(losing: Sequence[dict[str, Any]], cells: int) -> str:
    """The losing corners in words, from the cells themselves."""
    parts = []
    for method in AWARE:
        own = [row for row in losing if row["method"] == method]
        against = sum(row["map"] == "link" and row["correlation"] > 0 for row in own)
        wrong = sum(row["map"] == "error" and row["error"] > 0 for row in own)
        rest = len(own) - against - wrong
        why = [f"{against} where high variance goes with reward"] if against else []
        why += [f"{wrong} where the variances are wrong"] if wrong else []
        why += [f"{rest} elsewhere"] if rest else []
        text = f"{method} is riskier than vanilla in {len(own)} of {cells} cells"
        if own:
            text += (
                f" ({', '.join(why)}), its losing corner at {corner(max(own, key=lambda r: r['risk'] - r['vanilla']))}"
            )
        parts.append(text)
    return "At equal KL, " + "; ".join(parts) + "."


def corner(row: dict[str, Any]) -> str:
    """A losing cell in words."""
    where = f"link {row['correlation']:+g}" if row["map"] == "link" else f"error {row['error']:g} of the log variance"
    return f"inequality {row['inequality']:g}, {where}: {row['risk']:.0%} against {row['vanilla']:.0%}"


def table(cells: Sequence[dict[str, Any]], x: str) -> str:
    """Risk and gain of every method in every cell, as Markdown."""
    lines = [f"| inequality | {x} | {' | '.join(COMPARED)} | exact ratio |", "| --- " * (len(COMPARED) + 3) + "|"]
    for row in cells:
        shown = [
            "n/a" if (own := row["methods"][m])["risk"] is None else f"{own['risk']:.1%}, {own['gain']:+.2f}"
            for m in COMPARED
        ]
        numbers = f"| {row['inequality']:g} | {row[x]:g} | {' | '.join(shown)} |"
        lines.append(f"{numbers} {row['small_ball']['ratio']:.2f} |")
    return "\n".join(lines)


def show(maps: dict[str, Any]) -> None:
    """All maps as text."""
    print(
        maps["verdict"]
        + "\n\nRisk, gain in units of the signal; n/a: fewer than half of the estimates can spend the KL."
    )
    print("Exact ratio: risk of small balls, aware over vanilla.\n\nVariances known, by correlation\n")
    print(table(maps["link"], "correlation") + "\n\nWrong variances, by the standard deviation of the log error\n")
    print(table(maps["error"], "error") + "\n\nMembers until the Bregman form keeps 90 % of the known variance's\n")
    print("| inequality | the reward is | gain | risk reduction |\n| --- | --- | --- | --- |")
    for row in maps["needed"]:
        gain, risk = (row[key] or "more than tried" for key in ("gain", "risk"))
        print(f"| {row['inequality']:g} | {row['reward']} | {gain} | {risk} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=150, help="worlds (prompts) a cell averages over")
    parser.add_argument("--draws", type=int, default=10, help="reward estimates a world")
    parser.add_argument("--kl", type=float, default=0.5, help="nats that every method spends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="file for everything as JSON")
    given = parser.parse_args()
    found = draw_maps(
        count=given.count,
        draws=given.draws,
        nats=given.kl,
        seed=given.seed,
        advance=lambda name: print(f"{name} ...", file=sys.stderr, flush=True),
    )
    show(found)
    if given.out:
        given.out.write_text(dumps(found) + "\n", encoding="utf-8")
