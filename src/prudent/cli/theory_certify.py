"""The steps of ``prudent theory certify``: a model and a pool, or the embedded world whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prudent.cli.common import say
from prudent.errors import PrudentError
from prudent.reporting import charts
from prudent.reporting.report import Report
from prudent.runs import hash_file, new_run
from prudent.theory.certificates import (
    RULES,
    Belief,
    Certificate,
    belief_from_members,
    belief_from_posterior,
    certify,
    cross_fit,
)

SHOWN = ("plug_in", "optimism", "improvement", "deviation", "bound", "uniform", "risk", "kl")


def padded(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(..., N) prompt by prompt to (..., P, C), zeros where a prompt has fewer responses."""
    out = torch.zeros(*values.shape[:-1], len(counts), max(counts), dtype=torch.float64)
    start = 0
    for place, count in enumerate(counts):
        out[..., place, :count] = values[..., start : start + count].double()
        start += count
    return out


def read_belief(model: Path, pool: Path) -> tuple[Belief, torch.Tensor | None, Any]:
    """(belief about the pool, members' deviations (K, P, C) or None for a posterior, the pool)."""
    from prudent.data.pools import read_pool
    from prudent.rewards.laplace import LaplacePosterior
    from prudent.rewards.model import RewardModel

    candidates = read_pool(pool)
    counts = [len(texts) for texts in candidates.responses]
    if min(counts) < 2:
        raise PrudentError(
            f"{pool}: prompt {counts.index(min(counts)) + 1} has {min(counts)} response; give at least 2"
        )
    reward = RewardModel.load(model)
    prompts = [prompt for prompt, texts in zip(candidates.prompts, candidates.responses) for _ in texts]
    responses = [text for texts in candidates.responses for text in texts]
    sizes = torch.tensor(counts)
    place = torch.arange(max(counts))
    reference = torch.where(place < sizes[:, None], 1.0 / sizes[:, None].double(), 0.0)
    if isinstance(reward.scorer, LaplacePosterior):
        features = reward.encoder.encode(prompts, responses)
        mean = padded(reward.scorer.expected(features), counts)
        factor = padded(reward.scorer.factor(features).T, counts).permute(1, 2, 0)
        return belief_from_posterior(mean, factor, reference), None, candidates
    scores = padded(reward.score(prompts, responses), counts)
    belief = belief_from_members(scores, reference)
    moved = scores - scores.mean(0)
    return belief, moved - (reference * moved).sum(-1, keepdim=True), candidates


def certify_model(
    out: Path,
    model: Path,
    pool: Path,
    *,
    betas: Sequence[float],
    delta: float,
    images: bool,
    overwrite: bool,
    seed: int,
) -> dict[str, Any]:
    """Write the certificate of a reward model on a pool; returns what results.json holds."""
    options = {"model": str(model), "pool": str(pool), "betas": list(betas), "delta": delta}
    with new_run(out, "theory certify", options, seed, overwrite) as run:
        say("scoring the pool ...")
        belief, deviations, candidates = read_belief(model, pool)
        run.manifest["hashes"]["pool"] = hash_file(pool)
        rows, prompts = [], []
        for method in RULES:
            for beta in betas:
                found = certify(belief, beta, method, delta=delta)
                rows.append(_row(found, belief, deviations, delta))
                prompts += _prompt_rows(found, candidates.ids)
        result = {
            "delta": delta, "prompts": len(candidates.prompts), "overall": rows,
            "belief": "posterior" if deviations is None else f"ensemble of {len(deviations)}",
            "verdict": _verdict(rows, delta),
        }  # fmt: skip
        run.write_json("results.json", result)
        run.write_table("prompts.parquet", {key: [row[key] for row in prompts] for key in prompts[0]})
        _page(result).write(run, images=images)
    return result


def _row(found: Certificate, belief: Belief, deviations: torch.Tensor | None, delta: float) -> dict[str, Any]:
    row = {"method": found.method, "beta": found.beta, **{name: getattr(found, name) for name in SHOWN}}
    row["prompts_at_risk"] = float((found.prompts["risk"] > 0.5).double().mean())
    if deviations is not None:
        member = cross_fit(belief, deviations, found.beta, found.method, delta=delta)
        row |= {"member_improvement": member.improvement, "member_bound": member.bound}
    return row


def _prompt_rows(found: Certificate, ids: Sequence[Any]) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in found.prompts.items()}
    return [
        {"id": str(ids[place]), "method": found.method, "beta": found.beta,
         **{name: values[place] for name, values in columns.items()}}
        for place in range(len(columns["plug_in"]))
    ]  # fmt: skip


def _verdict(rows: Sequence[dict[str, Any]], delta: float) -> str:
    sure = [row for row in rows if row["bound"] > 0]
    level = f"{100 * (1 - delta):g} %"
    if not sure:
        return f"No setting is certified to improve on the reference at {level}."
    best = max(sure, key=lambda row: row["bound"])
    return (
        f"{len(sure)} of {len(rows)} settings are certified to improve on the reference at {level}; the largest "
        f"bound is "
        f"{best['bound']:.3g} ({best['method']}, beta {best['beta']:g}), where the plug-in promises "
        f"{best['plug_in']:.3g}. "
        "It rests on the members' spread being the whole error of their mean."
    )


def _page(result: dict[str, Any]) -> Report:
    report = Report("What this reward model may promise", f"{result['belief']}, {result['prompts']} prompts")
    report.verdict(result["verdict"], "good" if "certified" in result["verdict"][:20] else "neutral")
    report.text(
        "Improvements are in units of the reward, means over prompts. **plug-in**: what the reward model says of the "
        "policy "
        "that it chose. **improvement**: the same without the optimism of choosing and judging by one estimate. "
        "**bound**: "
        f"below it the truth lies with probability {result['delta']:g}. **uniform**: a bound for every policy at "
        f"once (posterior only). "
        "**member**: the same for a policy tuned against one member, by cross-fitting."
    )
    chart = charts.lines(
        result["overall"], "beta", "improvement",
        group="method", x_scale="log", reference=0.0, reference_label="reference", y_title="improvement",
        title="Improvement by beta",
    )  # fmt: skip
    report.chart(chart, "improvement", "Above the line the policy is expected to beat its reference.")
    chart = charts.lines(result["overall"], "beta", "bound", group="method", x_scale="log", reference=0.0,
                         reference_label="reference", y_title="lower bound", title="Certified by beta")  # fmt: skip
    report.chart(chart, "bound", "Above the line the improvement is certified.")
    columns = list(result["overall"][0])
    report.table(columns, [[row[name] for name in columns] for row in result["overall"]])
    return report


def calibrate_embedded(
    out: Path, *, betas: Sequence[float], delta: float, prompts: int, draws: int, images: bool, overwrite: bool,
    seed: int, pairs: int = 400, slope: float = 4.0,
) -> dict[str, Any]:  # fmt: skip
    """Promised against realised on the embedded world; returns what results.json holds."""
    from prudent.demo.world import draw_preferences, load_world, split
    from prudent.features.encoder import Encoder
    from prudent.theory.embedded import calibrate, summarise

    options = {"prompts": prompts, "draws": draws, "betas": list(betas), "delta": delta, "pairs": pairs, "slope": slope}
    with new_run(out, "theory certify --embedded", options, seed, overwrite) as run:
        world = load_world(prompts)
        say("encoding the embedded responses ...")
        encoder = Encoder("smollm2", pooling="last+mean", max_length=1024)
        owners, texts = world.flat()
        features = encoder.encode(owners, texts).reshape(len(world), world.gold.shape[1], -1)
        train, test = split(world, seed=seed)
        say("training, promising and checking ...")
        rows = calibrate(
            features, world.gold, lambda child: draw_preferences(world, train, pairs, slope, child), test,
            slope=slope, betas=betas, draws=draws, delta=delta, seed=seed,
            tick=lambda number: say(f"draw {number + 1} of {draws}") if (number + 1) % 10 == 0 else None,
        )  # fmt: skip
        table = summarise(rows["promises"])
        result = {"settings": options, "summary": table, "forms": _forms(rows["forms"]), "verdict": _calibration(table)}
        run.write_json("results.json", result)
        run.write_jsonl("draws.jsonl", rows["promises"])
        _calibration_page(result, rows["promises"]).write(run, images=images)
    return result


def _forms(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [name for name in rows[0] if name not in ("draw", "beta")]
    table = []
    for beta in dict.fromkeys(row["beta"] for row in rows):
        own = [row for row in rows if row["beta"] == beta]
        table.append({"beta": beta, **{name: sum(row[name] for row in own) / len(own) for name in names}})
    return table


def _calibration(table: Sequence[dict[str, Any]]) -> str:
    parts = []
    for belief in dict.fromkeys(row["belief"] for row in table):
        own = [row for row in table if row["belief"] == belief]
        mean = {
            name: sum(row[name] for row in own) / len(own) for name in ("plug_in", "corrected", "realised", "covered")
        }
        parts.append(
            f"{belief}: promised {mean['plug_in']:.3f} plug-in and {mean['corrected']:.3f} corrected, realised "
            f"{mean['realised']:.3f}; the bound was reached in {100 * mean['covered']:.0f} % of cases"
        )
    return "Means over methods and betas. " + "; ".join(parts) + "."


def _calibration_page(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Report:
    report = Report("Promised against realised", "The embedded world, whose gold reward is known")
    report.verdict(result["verdict"], "neutral")
    report.text(
        "Each draw trains reward models on fresh noisy preferences, promises what each policy is worth on other "
        "prompts, and "
        "is held against gold (times the slope of the preferences, so that both are log-odds)."
    )
    for kind, title in (("plug_in", "Plug-in promise"), ("corrected", "Promise without its optimism")):
        data = [
            {"promised": row[kind], "realised": row["realised"], "belief": row["belief"]}
            for row in rows if row["method"] == "proportional"
        ]  # fmt: skip
        chart = charts.scatter(data, "promised", "realised", group="belief", diagonal=True, title=title)
        report.chart(
            chart, kind.replace("_", "-"), "Each dot is a draw at one beta; on the dashed line promises are kept."
        )
    columns = list(dict.fromkeys(name for row in result["summary"] for name in row))
    report.table(columns, [[row.get(name) for name in columns] for row in result["summary"]],
                 "covered: share of draws whose realised improvement reached the bound.")  # fmt: skip
    report.heading("Between the proportional and the Bregman form")
    report.text(
        "Both forms are one policy with rewards counted from different levels. **blind** is the policy of that "
        "difference "
        "alone, which never looks at which response is better; **link** is the correlation of log variance and gold."
    )
    names = list(result["forms"][0])
    report.table(names, [[row[name] for name in names] for row in result["forms"]], "Gains in gold, KL in nats.")
    return report
