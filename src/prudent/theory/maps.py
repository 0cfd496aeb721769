"""The map of regimes: cells of worlds, what every method is worth in each, and where the variance-aware forms lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prudent.seeding import Seed
from prudent.theory.regimes import COMPARED, Regime, compare, exact_ratio, members_curve, members_needed

INEQUALITIES = (0.25, 0.5, 1.0, 1.5, 2.0)
CORRELATIONS = (-0.8, -0.4, 0.0, 0.4, 0.8)
ERRORS = (0.0, 0.5, 1.0, 1.5, 2.0)
MEMBERS = (2, 3, 5, 10, 20, 50)
AWARE = ("proportional", "bregman", "exact")


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
