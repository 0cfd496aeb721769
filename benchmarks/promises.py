"""Are the promises kept? Policies promised and valued in the embedded world, whose gold reward is known.

    python benchmarks/promises.py [--side restraint] [--draws 12] [--prompts 320] [--out rows.json]

Each draw trains reward models on fresh noisy preferences, promises each policy's improvement on other prompts, and
is held against gold (times the slope of the preferences, so that both are log-odds). Beliefs: ten heads on bootstraps
(ensemble), the noise of one head from its residuals (sandwich), and Laplace, which counts the prior too (posterior).
Then the methods at equal KL, and by equation (40) of docs/theory.md why the two forms differ there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prudent.arrays import ArrayLike, as_tensor
from prudent.commands.preflight.truth import link
from prudent.demo.world import SIDES, draw_preferences, load_world, split
from prudent.evaluation.risk import paired_risk, policy_risk
from prudent.evaluation.statistics import bootstrap
from prudent.files import dumps
from prudent.policies.estimates import estimate
from prudent.policies.finite import beta_for_kl, kl, solve, value
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
from prudent.theory.levels import tilt_gain, tilt_kl, tilts
from prudent.theory.realised import can_fail, realised_gain, risk_curve

Choose = Callable[[Seed], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
METHODS = ("vanilla", "proportional", "bregman")
COMPARED = ("vanilla", "proportional", "bregman", "exact", *CONTROLS)


class AtKL(NamedTuple):
    """Why the forms differ at equal KL, means over prompts, equation (40): proportional = bregman + given_up + link.

    bregman, proportional: gains at the KL. given_up: what the Bregman form loses when it moves only as far as it does
    inside the proportional form (<= 0 as a rule). link: what is gained on top by counting rewards from their plain
    mean. kl_within: nats that the Bregman part keeps. first_order: the gap's prediction from (31) and (32), which it
    approaches as the KL goes to 0.
    """

    bregman: float
    given_up: float
    link: float
    proportional: float
    kl_within: float
    first_order: float


def split_at_kl(
    reward: ArrayLike, reference: ArrayLike, variance: ArrayLike, gold: ArrayLike, target: float
) -> AtKL | None:
    """Equation (40) for one draw at ``target`` nats; None where a form can't reach that KL. Rewards are centred here.

    reward, variance, reference, gold: (prompts, candidates).
    """
    r, pi0, sigma2, truth = (as_tensor(x, torch.float64) for x in (reward, reference, variance, gold))
    r = r - (pi0 * r).sum(-1, keepdim=True)

    def policy(form: str, beta: torch.Tensor) -> torch.Tensor:
        return solve(r, pi0, beta, variance=sigma2, form=form)

    forms = ("bregman", "proportional")
    betas = {form: beta_for_kl(partial(policy, form), pi0, target, strict=False) for form in forms}
    if not all(bool(torch.isfinite(beta)) for beta in betas.values()):
        return None
    start = value(pi0, truth)

    def gain(chosen: torch.Tensor) -> float:
        return float((value(chosen, truth) - start).mean())

    within = policy("bregman", betas["proportional"])
    whole, both = (gain(policy(form, betas[form])) for form in forms)
    left = gain(within)
    parts = tilts(r, pi0, 1.0, sigma2)

    def predicted(tilt: torch.Tensor) -> float:
        size = float(tilt_kl(tilt, pi0).mean())
        return math.sqrt(target / size) * float(tilt_gain(tilt, pi0, truth).mean()) if size > 0 else math.nan

    return AtKL(
        bregman=whole,
        given_up=left - whole,
        link=both - left,
        proportional=both,
        kl_within=float(kl(within, pi0).mean()),
        first_order=predicted(parts.proportional) - predicted(parts.bregman),
    )


def beliefs(
    chosen: torch.Tensor, rejected: torch.Tensor, groups: list[Any], test: torch.Tensor, ridge: float | str, seed: Seed
) -> tuple[dict[str, Belief], torch.Tensor, float]:
    """Beliefs of a bootstrap ensemble, of a sandwich and of a Laplace posterior about test responses (P, C, d);
    members' scores (K, P, C), and the ridge used."""
    prompts, width, size = test.shape
    rows = test.reshape(-1, size)
    heads = HeadEnsemble.fit(chosen, rejected, members=10, ridge=ridge, groups=groups, seed=seed)
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
            forms.append(
                {
                    "draw": number,
                    "kl": target,
                    "correlation": link(known.variance[None], gold, reference),
                    **parts._asdict(),
                }
            )
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
    for nats in dict.fromkeys(one["kl"] for one in gains):
        base = found.get((nats, "vanilla"), {})
        for method in COMPARED:
            own = found.get((nats, method), {})
            row: dict[str, Any] = {"kl": nats, "method": method, "reached": len(own) / draws}
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
    for nats in dict.fromkeys(row["kl"] for row in forms):
        own = [row for row in forms if row["kl"] == nats]
        names = [name for name in own[0] if name not in ("draw", "kl")]
        gap = bootstrap([row["proportional"] - row["bregman"] for row in own])
        over_draws = {name: sum(row[name] for row in own) / len(own) for name in names}
        ends = {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
        table.append({"kl": nats, "draws": len(own), **over_draws, **ends})
    return table


SURE = 0.1  # a promised risk below this reads as: it will improve
MEANS = ("plug_in", "corrected", "realised", "risk", "realised_risk", "covered")


def means(table: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over methods and betas by belief."""
    found: dict[str, dict[str, float]] = {}
    for belief in dict.fromkeys(row["belief"] for row in table):
        own = [row for row in table if row["belief"] == belief]
        found[belief] = {name: sum(row[name] for row in own) / len(own) for name in MEANS}
    return found


def verdict(table: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]], delta: float) -> str:
    held = ", ".join(f"{100 * row['covered']:.0f} % ({belief})" for belief, row in means(table).items())
    text = f"The {100 * (1 - delta):g} % bound on a whole pool held in {held} of cases. "
    sure = [row for row in curves if row["belief"] == "ensemble" and row["promised"] < SURE]
    count = sum(row["n"] for row in sure)
    if not count:
        return text.strip()
    failed = sum(row["n"] * row["realised"] for row in sure) / count
    return text + (
        f"Single prompts are another matter: of those that the ensemble gives a chance below {100 * SURE:.0f} % of "
        f"ending no better than the reference, {100 * failed:.0f} % did."
    )


def markdown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; a value that a row lacks is left empty."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Everything for one side of the embedded world."""
    from prudent.features.encoder import Encoder

    world = load_world(given.prompts, given.side)
    prompts, responses = world.flat()
    features = Encoder("smollm2", pooling="last+mean", max_length=1024).encode(prompts, responses)
    train, test = split(world, seed=given.seed)
    rows = calibrate(
        features.reshape(*world.gold.shape, -1),
        world.gold,
        lambda child: draw_preferences(world, train, given.pairs, given.slope, child),
        test,
        advance=lambda number: print(f"draw {number + 1} of {given.draws}", file=sys.stderr, flush=True),
        **{name: getattr(given, name) for name in ("slope", "betas", "kls", "draws", "delta", "seed")},
    )
    gold = world.gold[test].double()
    table = summarise(rows["promises"])
    curves = risk_curves(rows["promises"], torch.full_like(gold, 1.0 / gold.shape[1]), gold)
    return {
        "summary": table,
        "risk_curves": curves,
        "methods": methods_table(rows["gains"], given.draws),
        "forms": forms_table(rows["forms"]),
        "verdict": verdict(table, curves, given.delta),
    }


def show(found: dict[str, Any]) -> None:
    """The verdict and every table as text."""
    print(found["verdict"] + "\n\nMeans over methods and betas; improvements in log-odds, risk of the whole pool\n")
    print(markdown(("belief", *MEANS), [{"belief": name, **row} for name, row in means(found["summary"]).items()]))
    for name in ("methods", "forms"):
        columns = list(dict.fromkeys(key for row in found[name] for key in row))
        print(f"\n{name} at equal KL\n\n" + markdown(columns, found[name]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=None, help="a part of the world (default: all)")
    parser.add_argument("--side", default="balanced", choices=SIDES)
    parser.add_argument("--draws", type=int, default=40, help="fresh sets of preferences")
    parser.add_argument("--pairs", type=int, default=400, help="preferences a draw")
    parser.add_argument("--slope", type=float, default=4.0)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--kls", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--delta", type=float, default=0.05, help="chance of being wrong that the bounds allow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="file for everything as JSON")
    options = parser.parse_args()
    result = run(options)
    show(result)
    if options.out:
        options.out.write_text(dumps(result) + "\n", encoding="utf-8")
