"""Do the variance-aware forms beat vanilla on the embedded world, and do the controls share the advantage?

    python benchmarks/embedded_risk.py [--pairs 200 800] [--slopes 2 4 8] [--draws 50] [--splits 4] [--out rows.json]

Each draw takes fresh preference pairs (Bradley-Terry on gold) on half of the prompts, fits ten bootstrap heads on
features of the embedded language model, and every method's policy over the 16 responses of each other prompt is
valued by gold. Splits are balanced over the constraints; draws of all splits are pooled. Beside the policies: how
often a member orders two responses of a held-out prompt as gold does, how unequal the variance is, and whether low
variance goes with truth. ``--side restraint`` and ``--side demand`` keep the quarter of the prompts whose constraints
all ask for less, or all for more: two worlds of opposite truth in which there is something to learn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from prudent.commands.preflight.core import DrawnScores, Outcomes, at_equal_beta, at_equal_kl, estimate_of, join, table
from prudent.commands.preflight.truth import inequality, link, ordering
from prudent.demo.world import SIDES, World, draw_preferences, load_world, side_indices, split
from prudent.files import dumps
from prudent.rewards.draws import bootstrap_counts, fit_resamples
from prudent.seeding import Seed, spawn

Choice = Callable[[int, float, Seed], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
METHODS = ("vanilla", "mean", "lcb", "proportional", "bregman", "exact", "variance-only", "permuted")


def encoded(world: World, pooling: str) -> torch.Tensor:
    """Features (prompts, responses, d) of the embedded language model, from the cache where they are there.

    Always encoded as "last+mean", the demonstration's own pooling, of which "last" and "mean" are the halves.
    """
    from prudent.features.encoder import Encoder

    prompts, responses = world.flat()
    both = Encoder("smollm2", pooling="last+mean").encode(prompts, responses)
    half = both.shape[1] // 2
    flat = {"last": both[:, :half], "mean": both[:, half:], "last+mean": both}[pooling]
    return flat.reshape(len(world), -1, flat.shape[-1]).float()


def fresh_scores(
    features: torch.Tensor,
    choose: Choice,
    test: torch.Tensor,
    *,
    pairs: int,
    slope: float,
    draws: int,
    members: int,
    seed: Seed,
) -> DrawnScores:
    """Scores (draws, members, P_test, C) of heads that learn from fresh pairs, each draw's its own.

    features (P, C, d). choose(pairs, slope, seed): a draw of preferences as (prompt, chosen, rejected) indices. Members
    bootstrap the draw, whole prompts at a time. The ridge is cross-validated on the first draw and kept.
    """
    flat = features.reshape(-1, features.shape[-1]).float()
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    standard = ((features.float() - mean) / scale).to(torch.float32)
    target = standard[test].reshape(-1, features.shape[-1])
    scores = []
    ridge: float | str = "cv"
    for child in spawn(seed, draws):
        pick, cross, *boot = spawn(child, 2 + members)
        prompt, better, worse = choose(pairs, slope, pick)
        difference = standard[prompt, better] - standard[prompt, worse]
        counts = bootstrap_counts(pairs, boot, groups=prompt)
        fit = fit_resamples(difference, counts, ridge=ridge, groups=prompt, seed=cross)
        ridge = fit.ridge
        scores.append((fit.weights.float() @ target.T).reshape(members, len(test), -1))
    return DrawnScores(torch.stack(scores).double(), float(ridge), None)


def regime(
    world: World, features: torch.Tensor, pairs: int, slope: float, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one regime: every method at every beta, at equal beta and at the KL that vanilla spends.

    The same draws serve every reward option (a member alone, or the members' mean) and every method.
    """
    found: dict[tuple[str, str], list[Outcomes]] = {}
    facts: list[tuple[float, float, float, float]] = []
    for number, seed in enumerate(spawn(given.seed, given.splits)):
        train, test = split(world, seed=number)
        test = train if given.seen else test

        def choose(count: int, steepness: float, child: Any, train: torch.Tensor = train) -> Any:
            return draw_preferences(world, train, count, steepness, child)

        drawn: DrawnScores = fresh_scores(
            features, choose, test, pairs=pairs, slope=slope, draws=given.draws, members=given.members, seed=seed
        )
        truth = world.gold[test]
        reference = torch.full_like(truth, 1 / truth.shape[1])
        for reward in given.rewards:
            seen = estimate_of(drawn, reference, reward=reward)
            equal_beta = at_equal_beta(seen, reference, truth, given.betas, methods=METHODS)
            equal_kl = at_equal_kl(seen, reference, truth, equal_beta, methods=METHODS)
            found.setdefault((reward, "equal beta"), []).append(equal_beta)
            found.setdefault((reward, "equal KL"), []).append(equal_kl)
        spread = inequality(seen.variance, reference)
        order = ordering(drawn.scores[:, 0], truth, reference, most=given.draws)
        facts.append((order, spread, link(seen.variance, truth, reference), drawn.ridge))
    named = dict(zip(("accuracy", "inequality", "link", "ridge"), torch.tensor(facts).mean(0).tolist(), strict=True))
    return [
        {"pairs": pairs, "slope": slope, "reward": reward, "comparison": comparison, **named, **row}
        for (reward, comparison), parts in found.items()
        for row in sorted(table(join(parts), seed=given.seed), key=lambda row: row["setting"])
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """One block a regime: gain and risk with their intervals, and the paired difference of risk from vanilla."""
    last = None
    for row in rows:
        head = (row["pairs"], row["slope"], row["reward"], row["comparison"], row["setting"])
        if head != last:
            last = head
            print(
                f"\n{row['pairs']} pairs, slope {row['slope']:g}, reward {row['reward']}, {row['comparison']}, beta "
                f"{row['setting']:g} | accuracy {row['accuracy']:.3f}, inequality {row['inequality']:.2f}, "
                f"link {row['link']:+.3f}, ridge {row['ridge']:.3g}"
            )
        if row.get("gain_low") is None:
            print(f"  {row['method']:14} reaches that KL in fewer than two draws")
            continue
        versus = f"  (unreached in {row['unreached']} draws)" if row["unreached"] else ""
        if row.get("vs_risk_low") is not None:
            versus = (
                f"  vs vanilla {row['vs_risk']:+.3f} [{row['vs_risk_low']:+.3f}, {row['vs_risk_high']:+.3f}]{versus}"
            )
        print(
            f"  {row['method']:14} gain {row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]  "
            f"risk {row['risk']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  KL {row['kl']:.2f}{versus}"
        )


def in_short(rows: list[dict[str, Any]]) -> None:
    """A line of Markdown a regime: risk at vanilla's KL; bold where its paired difference from vanilla excludes 0."""
    print("\n| Pairs, slope, beta | Right order | " + " | ".join(METHODS) + " |")
    for row in rows:
        if row["comparison"] != "equal KL" or row["method"] != "vanilla" or row["reward"] != rows[0]["reward"]:
            continue
        same = {
            r["method"]: r
            for r in rows
            if all(r[k] == row[k] for k in ("pairs", "slope", "setting", "reward")) and r["comparison"] == "equal KL"
        }
        cells = []
        for found in (same[method] for method in METHODS):
            sure = found.get("vs_risk_low") is not None and not found["vs_risk_low"] <= 0 <= found["vs_risk_high"]
            cells.append(
                "" if found.get("risk") is None else f"**{found['risk']:.0%}**" if sure else f"{found['risk']:.0%}"
            )
            cells[-1] += f" ({found['unreached']} unreached)" if found["unreached"] else ""
        print(f"| {row['pairs']}, {row['slope']:g}, {row['setting']:g} | {row['accuracy']:.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=None, help="a part of the world (default: all)")
    parser.add_argument("--pairs", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--slopes", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--rewards", nargs="+", default=["member:0", "mean"])
    parser.add_argument("--draws", type=int, default=50, help="draws a split")
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--pooling", default="last", choices=("last", "mean", "last+mean"))
    parser.add_argument("--seen", action="store_true", help="solve policies on the prompts that pairs were drawn from")
    parser.add_argument("--side", default="balanced", choices=SIDES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="file for all rows as JSON")
    options = parser.parse_args()
    embedded = load_world(options.prompts)
    places = side_indices(embedded, options.side)
    kept, vectors = embedded.take(places), encoded(embedded, options.pooling)[places]
    collected: list[dict[str, Any]] = []
    for count in options.pairs:
        for steep in options.slopes:
            collected += regime(kept, vectors, count, steep, options)
            print(f"{count} pairs, slope {steep:g} done", file=sys.stderr, flush=True)
    show(collected)
    in_short(collected)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(json.dumps(json.loads(dumps({"rows": collected})), indent=1) + "\n")
