"""Sweeps over how a reward model is made, and whether what is published about overoptimisation holds in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prudent.evaluation.overoptimization.curves import Curve, MethodCurve, against_first, drawn_curve, methods_at_kl
from prudent.evaluation.overoptimization.goodhart import Setting, World
from prudent.seeding import Seed, spawn

SWEEPS = ("pairs", "layers", "noise", "members", "rule", "variance")
PAIRS = (100, 200, 400, 800, 1600, 3200, 6400)
SLOPES = (1.0, 2.0, 4.0, 8.0, math.inf)
MEMBERS = (1, 2, 5, 10, 20)
RULES = ("mean", "median", "min", "lcb", "uwo", "cvar")
METHODS = ("mean", "proportional", "bregman", "exact", "lcb", "variance-only", "permuted")
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8)  # of the largest KL, for methods at matched KL
NEAR_CHANCE = 0.55
SMOOTH = 0.8
FEW = 0.1  # share of curves up to which a clear fall can be luck


@dataclass(frozen=True)
class Finding:
    """A published finding held to these sweeps. confirmed: True, False, or None where the sweeps can't tell."""

    claim: str
    confirmed: bool | None
    evidence: str


def distinct_pairs(world: World) -> int:
    """Number of different pairs of a training prompt's candidates."""
    counts = world.present[world.train].sum(1)
    return int((counts * (counts - 1)).sum()) // 2


def settings_of(sweep: str, base: Setting, world: World) -> list[tuple[str, Setting, dict[str, Any]]]:
    """(label, setting, facts) of every step of a sweep that changes the setting alone."""
    if sweep == "pairs":
        every = distinct_pairs(world)
        counts = [n for n in PAIRS if n < every]
        steps = [*counts, *([every] if every <= 2 * PAIRS[-1] else [])]
        return [(f"{n} pairs" + (" (all)" if n == every else ""), replace(base, pairs=n), {"size": n}) for n in steps]
    if sweep == "noise":
        return [
            ("no label noise" if math.isinf(s) else f"slope {s:g}", replace(base, slope=s), {"size": s}) for s in SLOPES
        ]
    if sweep == "members":
        return [(f"K = {k}", replace(base, members=k, rule="mean"), {"size": k}) for k in MEMBERS]
    members = max(base.members, 5)
    return [
        ("one member", replace(base, members=1), {}),
        *((rule, replace(base, members=members, rule=rule, options={}), {}) for rule in RULES),
    ]


def sweep_curves(
    sweep: str,
    worlds: Mapping[int, World],
    base: Setting,
    n: Sequence[int],
    *,
    draws: int,
    seed: Seed,
    advance: Callable[[], None] = lambda: None,
) -> list[Curve]:
    """Curves of one sweep. worlds: by number of layers, the deepest is the one that other sweeps use. Every step of a
    sweep draws the same preferences where it can (the same seeds), so steps differ by what is swept."""
    deepest = max(worlds)
    if sweep == "layers":
        curves = [
            drawn_curve(
                f"{layer} layers", world, base, n, draws=draws, seed=seed, advance=advance, facts={"size": layer}
            )
            for layer, world in sorted(worlds.items())
        ]
    else:
        curves = [
            drawn_curve(label, worlds[deepest], setting, n, draws=draws, seed=seed, advance=advance, facts=facts)
            for label, setting, facts in settings_of(sweep, base, worlds[deepest])
        ]
    return against_first(curves, seed=seed)


def variance_sweep(
    world: World, base: Setting, *, draws: int, seed: Seed, advance: Callable[[], None] = lambda: None
) -> list[MethodCurve]:
    """Vanilla against variance-aware forms and their controls at matched KL, the members' mean as the reward."""
    kls = [share * math.log(world.samples) for share in SHARES]
    setting = replace(base, members=max(base.members, 5))
    return methods_at_kl(world, setting, METHODS, kls, draws=draws, seed=spawn(seed, 1)[0], advance=advance)


def steps_of(sweeps: Sequence[str], base: Setting, worlds: Mapping[int, World]) -> int:
    """How many curves the sweeps hold, for a progress bar."""
    deepest = worlds[max(worlds)]
    return sum(
        len(worlds) if sweep == "layers" else 1 if sweep == "variance" else len(settings_of(sweep, base, deepest))
        for sweep in sweeps
    )


def findings(curves: Mapping[str, Sequence[Curve]], methods: Sequence[MethodCurve]) -> list[Finding]:
    """What is published, and whether it holds here."""
    found = [_turn_over(curves)]
    if "pairs" in curves:
        found += [_near_chance(curves["pairs"]), smooth(curves["pairs"], "the number of pairs")]
    if len(curves.get("layers", ())) >= 3:
        found += [smooth(curves["layers"], "the size of the feature model"), _larger_is_safer(curves["layers"])]
    if "members" in curves:
        found.append(_ensembles_help(curves["members"]))
    if methods:
        found.append(_variance_helps(methods))
    return found


def _last_sampled(curve: Curve) -> Any:
    return [point for point in curve.points if point.how == "best of n"][-1]


def _turn_over(curves: Mapping[str, Sequence[Curve]]) -> Finding:
    claim = "Pushed far enough, gold turns down while the proxy still rises (2210.10760)"
    turned = []
    total = 0
    for group in curves.values():
        for curve in group:
            total += 1
            if curve.fall is not None and curve.fall.high is not None and curve.fall.high < 0:
                turned.append(f"{curve.label} {curve.fall.text}")
    evidence = (
        f"in {len(turned)} of {total} curves gold at the largest n is clearly below its best"
        + (f", for instance {', '.join(turned[:3])}" if turned else "")
        + "; paired over the same prompts and draws"
    )
    if 0 < len(turned) <= FEW * total:
        return Finding(
            claim,
            None,
            evidence + "; with so many curves, and each best point found on the same data, so few can be luck",
        )
    return Finding(claim, bool(turned), evidence)


def _near_chance(curves: Sequence[Curve]) -> Finding:
    claim = "Below a few hundred to two thousand comparisons reward models are near chance (2210.10760)"
    rows = [(c.facts["pairs"], c.accuracy.value) for c in curves if c.accuracy.value is not None]
    low = [pairs for pairs, accuracy in rows if accuracy < NEAR_CHANCE]
    listed = ", ".join(f"{pairs}: {accuracy:.3f}" for pairs, accuracy in rows)
    return Finding(claim, bool(low), f"held-out accuracy by pairs {listed}; near chance means below {NEAR_CHANCE}")


def linear_fit(x: np.ndarray, y: np.ndarray) -> float:
    """R squared of a straight line."""
    if len(x) < 3 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def smooth(curves: Sequence[Curve], what: str) -> Finding:
    """Finding: whether alpha and beta of the fits follow a line in the logarithm of size (R squared)."""
    claim = f"Coefficients change smoothly, about linearly in the logarithm of {what} (2210.10760)"
    rows = [
        (math.log(c.facts["size"]), c.fit.alpha, c.fit.beta)
        for c in curves
        if c.fit is not None and 0 < c.facts["size"] < math.inf
    ]
    if len(rows) < 3:
        return Finding(claim, None, f"only {len(rows)} curves could be fitted")
    x, alpha, beta = (np.array(column) for column in zip(*rows))
    squared = linear_fit(x, alpha), linear_fit(x, beta)
    confirmed = all(np.isfinite(r) and r >= SMOOTH for r in squared)
    evidence = f"R squared of a line: alpha {squared[0]:.2f}, beta {squared[1]:.2f} over {len(x)} curves"
    return Finding(claim, confirmed, evidence)


def _larger_is_safer(curves: Sequence[Curve]) -> Finding:
    claim = "Larger reward models overoptimise less (2210.10760)"
    small, large = curves[0], curves[-1]
    if small.beta.value is None or large.beta.value is None:
        return Finding(claim, None, "the smallest or the largest curve has no fit")
    gold = _last_sampled(small).gold, _last_sampled(large).gold
    evidence = (
        f"beta {small.label} {small.beta.text}, {large.label} {large.beta.text}; gold at the largest n "
        f"{gold[0].text} and {gold[1].text}"
    )
    clear = large.beta.high is not None and small.beta.low is not None and large.beta.high < small.beta.low
    return Finding(claim, clear, evidence)


def _ensembles_help(curves: Sequence[Curve]) -> Finding:
    claim = "An ensemble's mean gives more gold than one reward model at the same n (2401.16635, 2310.02743)"
    over = curves[-1].over_first
    if over is None or over.value is None:
        return Finding(claim, None, "the curves can't be compared in pairs")
    evidence = f"gold at the largest n, {curves[-1].label} minus {curves[0].label}, paired: {over.text}"
    return Finding(claim, over.low is not None and over.low > 0, evidence)


def _variance_helps(methods: Sequence[MethodCurve]) -> Finding:
    claim = "At matched KL, weighting by variance gives more gold than not (the claim behind variance-aware RLHF)"
    by_name = {method.method: method for method in methods}
    blind = by_name.get("variance-only")
    wins, shared, parts = [], [], []
    for name in ("proportional", "bregman", "exact"):
        if name not in by_name:
            continue
        mine = by_name[name]
        clear = [i for i, over in enumerate(mine.over_vanilla) if over.low is not None and over.low > 0]
        worse = [over for over in mine.over_vanilla if over.high is not None and over.high < 0]
        parts.append(f"{name} clearly better at {len(clear)} and clearly worse at {len(worse)} of {len(mine.kls)} KLs")
        as_good = [i for i in clear if blind is not None and reaches(blind.gold[i], mine.gold[i])]
        wins.append(len(clear) > len(as_good) and not worse)
        shared.append(bool(as_good))
    controls = [name for name in ("variance-only", "permuted") if name in by_name]
    parts += [f"control {name} at the largest KL {by_name[name].over_vanilla[-1].text}" for name in controls]
    confirmed = True if any(wins) else None if any(shared) else False
    if confirmed is None:
        parts.append("a control that never looks at the reward gains as much, so the gain may not come from the reward")
    return Finding(claim, confirmed, "; ".join(parts))


def reaches(control: Any, method: Any) -> bool:
    """Whether a control's gold lies within the method's interval or above it."""
    return control.value is not None and method.low is not None and control.value >= method.low


def curve_rows(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """A row a point, for tables and charts."""
    return [
        {
            "sweep": sweep,
            "label": c.label,
            "n": p.n,
            "kl": p.kl,
            "distance": p.distance,
            "how": p.how,
            "gold": p.gold.value,
            "gold_low": p.gold.low,
            "gold_high": p.gold.high,
            "proxy": p.proxy.value,
            "proxy_low": p.proxy.low,
            "proxy_high": p.proxy.high,
        }
        for sweep, group in curves.items()
        for c in group
        for p in c.points
    ]
