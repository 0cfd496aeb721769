"""The steps of ``prudent theory certify --model FOLDER --pool FILE``: what a reward model may promise on a pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prudent.commands.common import say
from prudent.commands.preflight.inputs import pool_gold
from prudent.commands.theory.options import CertifyOptions
from prudent.data.pools import refuse_uneven
from prudent.errors import PrudentError
from prudent.evaluation.overoptimization.worlds import read_candidates
from prudent.files import hash_file
from prudent.progress import track
from prudent.reporting import charts
from prudent.reporting.report import Report
from prudent.rewards.uncertainty import centre
from prudent.runs import new_run
from prudent.theory.certificates import (
    LEAST_MEMBERS,
    RULES,
    Belief,
    Certificate,
    belief_from_members,
    belief_from_posterior,
    certify,
    cross_fit,
    policy_of,
)
from prudent.theory.realised import can_fail, realised_gain, risk_curve

if TYPE_CHECKING:
    from prudent.data.pools import Pool

SHOWN = ("plug_in", "optimism", "improvement", "deviation", "bound", "uniform", "risk", "kl")
HEADERS = {
    "plug_in": "plug-in",
    "prompts_at_risk": "prompts at risk",
    "member_improvement": "member",
    "member_bound": "member's bound",
    "realised": "realised, in gold",
    "promised_failures": "promised failures",
    "realised_failures": "realised failures",
}


def padded(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(..., N) prompt by prompt to (..., P, C), zeros where a prompt has fewer responses."""
    out = torch.zeros(*values.shape[:-1], len(counts), max(counts), dtype=torch.float64)
    start = 0
    for index, count in enumerate(counts):
        out[..., index, :count] = values[..., start : start + count].double()
        start += count
    return out


def read_belief(model: Path, candidates: Pool) -> tuple[Belief, torch.Tensor | None]:
    """(belief about the pool, members' deviations (K, P, C) or None for a posterior)."""
    from prudent.rewards.laplace import LaplacePosterior
    from prudent.rewards.model import RewardModel

    counts = [len(texts) for texts in candidates.responses]
    reward = RewardModel.load(model)
    prompts, responses, _ = candidates.flat()
    sizes = torch.tensor(counts)
    index = torch.arange(max(counts))
    reference = torch.where(index < sizes[:, None], 1.0 / sizes[:, None].double(), 0.0)
    if isinstance(reward.scorer, LaplacePosterior):
        features = reward.encoder.encode(prompts, responses)
        mean = padded(reward.scorer.expected(features), counts)
        factor = padded(reward.scorer.factor(features).T, counts).permute(1, 2, 0)
        return belief_from_posterior(mean, factor, reference), None
    if reward.members < LEAST_MEMBERS:
        raise PrudentError(
            f"{model} has {reward.members} members, fewer than the {LEAST_MEMBERS} with which the bound held; "
            f"fit with --members {LEAST_MEMBERS} or more, or --family laplace"
        )
    scores = padded(reward.score(prompts, responses), counts)
    moved = scores - scores.mean(0)
    return belief_from_members(scores, reference), centre(moved.double(), weights=reference)


def certify_model(asked: CertifyOptions) -> dict[str, Any]:
    """Write the certificate of a reward model on a pool; returns what results.json holds, with ``out``."""
    betas, delta, seed = asked.betas, asked.delta, asked.seed
    options = {"model": str(asked.model), "pool": str(asked.pool), "betas": list(betas), "delta": delta}
    with new_run(asked.out, "theory certify", options, seed, asked.overwrite) as run:
        candidates = read_candidates(asked.pool, asked.columns)
        refuse_uneven([len(texts) for texts in candidates.responses], candidates.ids)
        say("scoring the pool ...")
        belief, deviations = read_belief(asked.model, candidates)
        gold = pool_gold(candidates)
        run.manifest["hashes"]["pool"] = hash_file(asked.pool)
        rows: list[dict[str, Any]] = []
        prompts: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        for method in RULES:
            made = [certify(belief, beta, method, delta=delta) for beta in track(betas, f"certifying {method}")]
            real = [None if gold is None else _realised(belief, found, gold) for found in made]
            for found, each in zip(made, real):
                rows.append(_row(found, belief, deviations, delta) | _against(found, belief, gold, each))
                prompts += _prompt_rows(found, candidates.ids, each)
            if gold is not None:
                curves += _curve(method, belief, made, real, gold, seed)
        result = {
            "delta": delta,
            "prompts": len(candidates),
            "overall": rows,
            "risk_curves": curves,
            "belief": "posterior" if deviations is None else f"ensemble of {len(deviations)}",
            "verdict": _verdict(rows, delta),
        }
        run.write_json("results.json", result)
        run.write_table("prompts.parquet", {key: [row[key] for row in prompts] for key in prompts[0]})
        _page(result).write(run, images=asked.images)
    return {**result, "out": str(asked.out)}


def _row(found: Certificate, belief: Belief, deviations: torch.Tensor | None, delta: float) -> dict[str, Any]:
    row = {"method": found.method, "beta": found.beta, **{name: getattr(found, name) for name in SHOWN}}
    row["prompts_at_risk"] = float((found.prompts["risk"] > 0.5).double().mean())
    if deviations is not None:
        del row["uniform"]  # K members know K - 1 directions and can't bound all of them
        member = cross_fit(belief, deviations, found.beta, found.method, delta=delta)
        row |= {"member_improvement": member.improvement, "member_bound": member.bound}
    return row


def _realised(belief: Belief, found: Certificate, gold: torch.Tensor) -> torch.Tensor:
    policy = policy_of(belief, belief.reward, found.beta, found.method)
    return realised_gain(policy, belief.reference, gold)


def _against(
    found: Certificate, belief: Belief, gold: torch.Tensor | None, each: torch.Tensor | None
) -> dict[str, float]:
    """Gold's mean over prompts, and the share of prompts that failed beside the share that was promised to."""
    if gold is None or each is None:
        return {}
    kept = can_fail(belief.reference, gold)
    return {
        "realised": float(each.mean()),
        "promised_failures": float(found.prompts["risk"][kept].mean()),
        "realised_failures": float((each[kept] <= 0).double().mean()),
    }


def _curve(
    method: str, belief: Belief, made: Sequence[Certificate], real: Sequence[Any], gold: torch.Tensor, seed: int
) -> list[dict[str, Any]]:
    kept = can_fail(belief.reference, gold)
    promised = torch.stack([found.prompts["risk"][kept] for found in made])
    realised = torch.stack([each[kept] for each in real])
    return [{"method": method, **row} for row in risk_curve(promised, realised, seed=seed)]


def _prompt_rows(found: Certificate, ids: Sequence[Any], each: torch.Tensor | None = None) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in found.prompts.items()}
    if each is not None:
        columns["realised"] = each.tolist()
    setting = {"method": found.method, "beta": found.beta}
    rows = zip(*columns.values())
    return [{"id": str(ids[index]), **setting, **dict(zip(columns, row))} for index, row in enumerate(rows)]


def _verdict(rows: Sequence[dict[str, Any]], delta: float) -> str:
    sure = [row for row in rows if row["bound"] > 0]
    level = f"{100 * (1 - delta):g} %"
    text = f"No setting is certified to improve on the reference at {level}."
    if sure:
        best = max(sure, key=lambda row: row["bound"])
        text = (
            f"{len(sure)} of {len(rows)} settings are certified to improve on the reference at {level}; the largest "
            f"bound is {best['bound']:.3g} ({best['method']}, beta {best['beta']:g}), where the plug-in promises "
            f"{best['plug_in']:.3g}. It rests on the members' variance being the whole error of their mean."
        )
    if "realised" in rows[0]:
        better = sum(row["realised"] > 0 for row in rows)
        promised, failed = (
            sum(row[name] for row in rows) / len(rows) for name in ("promised_failures", "realised_failures")
        )
        text += (
            f" By gold, {better} of {len(rows)} settings improve; of single prompts {100 * promised:.0f} % were "
            f"promised to end no better than the reference and {100 * failed:.0f} % did."
        )
    return text


def _tone(result: dict[str, Any]) -> str:
    sure = any(row["bound"] > 0 for row in result["overall"])
    wrong = any(row["bound"] > 0 and row.get("realised", 1.0) <= 0 for row in result["overall"])
    return "warn" if wrong else "good" if sure else "neutral"


def _page(result: dict[str, Any]) -> Report:
    report = Report("What this reward model may promise", f"{result['belief']}, {result['prompts']} prompts")
    report.verdict(result["verdict"], _tone(result))
    report.text(
        "Improvements are in units of the reward, means over prompts. **plug-in**: what the reward model says of the "
        "policy that it chose. **improvement**: the same without the optimism of choosing and judging by one "
        f"estimate. **bound**: below it the truth lies with probability {result['delta']:g}. **uniform**: a bound for "
        "every policy at once (posterior only). **member**: the same for a policy tuned against one member, by "
        "cross-fitting."
    )
    for name, axis, title, caption in (
        ("improvement", "improvement", "Improvement by beta", "Above the line a policy is expected to improve."),
        ("bound", "lower bound", "Certified by beta", "Above the line the improvement is certified."),
    ):
        chart = charts.lines(
            result["overall"],
            "beta",
            name,
            group="method",
            x_scale="log",
            reference=(0.0, "reference"),
            y_title=axis,
            title=title,
        )
        report.chart(chart, name, caption)
    if result["risk_curves"]:
        risk_chart(report, result["risk_curves"], "method")
    report.records(result["overall"], [(HEADERS.get(name, name), name) for name in result["overall"][0]])
    return report


def risk_chart(report: Report, curves: Sequence[dict[str, Any]], group: str, name: str = "risk") -> None:
    """Promised against realised risk of single prompts, whose gold is known."""
    report.heading("Promised against realised risk")
    titles = {"x_title": "promised chance of being no better", "y_title": "share that was no better"}
    chart = charts.calibration(curves, "promised", "realised", ends=("low", "high"), group=group, **titles)
    report.chart(
        chart,
        name,
        "Single prompts, all betas. Above the dashed line policies fail more often than was promised. Prompts whose "
        "gold is the same for every response can't be improved and are left out. Intervals are over prompts; those of "
        "one reward model err together, which no interval here sees.",
    )
