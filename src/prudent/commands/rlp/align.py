"""``prudent rlp --policy align``: the loop with RL on a language model, in the embedded world, where gold is exact.

Round r: reward model -> policy trained from the reference by RL -> fresh samples of it -> synthetic pairs -> reward
model of round r + 1. Every round is a run folder; an interrupted loop goes on with the first one that is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from prudent.commands.align.inputs import demo_pairs, demo_sides
from prudent.commands.align.options import AlignOptions
from prudent.commands.align.problem import Judged
from prudent.commands.align.run import build_models, reference_sampler
from prudent.commands.align.series import Models, judge, train_options, trainer_of
from prudent.commands.common import say
from prudent.commands.rlp.options import RlpOptions
from prudent.evaluation.intervals import paired_bootstrap
from prudent.policies.answer_groups import label_pool, synthetic_pair
from prudent.policies.rl.engine import Step
from prudent.policies.rl.policy import Policy
from prudent.policies.rl.rollouts import Rollouts, roll_out
from prudent.rewards.containers import CandidateFeatures
from prudent.rewards.heads import HeadEnsemble
from prudent.rewards.uncertainty import centre
from prudent.runs import MANIFEST, new_run, resumable_run
from prudent.seeding import spawn


@dataclass
class State:
    """What rounds share: models, settings, sides, truth, and the labelled pairs' features with their prompts."""

    models: Models
    settings: AlignOptions
    train: CandidateFeatures
    test: CandidateFeatures
    judged: Judged
    chosen: torch.Tensor
    rejected: torch.Tensor
    groups: list[int]


def refresh_by_rl(given: RlpOptions) -> dict[str, Any]:
    """The loop, round by round, then the report; what rlp.json holds."""
    steps = given.steps or 40
    prompts = given.prompts or 64
    settings = AlignOptions(
        out=given.out,
        demo=True,
        policy=given.language_model,
        objectives=("vanilla",),
        reward="mean",
        members=given.members,
        steps=steps,
        train_prompts=prompts // 2,
        eval_prompts=prompts - prompts // 2,
        pooling=given.pooling,
        max_length=given.max_length,
        layer=given.layer,
        seed=given.seed,
        demo_side=given.side,
        demo_pairs=given.pairs,
        demo_slope=given.slope,
    ).checked()
    with resumable_run(given.out, "rlp", given.fixed(), given.seed) as (outer, resumes):
        if resumes:
            say(f"going on in {given.out}")
        state = prepare(settings, given)
        rounds = [one_round(state, number, given) for number in range(given.rounds + 1)]
        payload = describe(rounds, given)
        outer.write_json("rlp.json", payload)
        report(payload, given).write(outer)
    say(f"wrote {given.out}")
    return payload


def prepare(settings: AlignOptions, given: RlpOptions) -> State:
    """Models, the two sides with the reference's samples, and the labelled preferences."""
    split, label, sampling = spawn(settings.seed, 3)
    models = build_models(settings)
    sides = demo_sides(settings, models.encoder, reference_sampler(settings, models), split, sampling)
    pairs = demo_pairs(sides, settings, label)
    return State(
        models, settings, sides.train, sides.test, sides.judged, pairs.chosen, pairs.rejected, list(pairs.groups)
    )


def one_round(state: State, number: int, given: RlpOptions) -> dict[str, Any]:
    """Round ``number``: reward model, policy, judgement, samples, synthetic pairs; read where it is finished."""
    from safetensors.torch import load_file

    folder = given.out / f"round-{number}"
    if (folder / MANIFEST).is_file():
        return json.loads((folder / "round.json").read_text(encoding="utf-8"))
    fit_seed, policy_seed, train_seed, judge_seed, sample_seed, pair_seed = spawn(spawn(given.seed, number + 3)[-1], 6)
    chosen, rejected, groups = state.chosen, state.rejected, list(state.groups)
    if number > 0:
        extra = load_file(given.out / f"round-{number - 1}" / "synthetic.safetensors")
        chosen, rejected = torch.cat([chosen, extra["chosen"]]), torch.cat([rejected, extra["rejected"]])
        groups += extra["prompt"].tolist()
    heads = HeadEnsemble.fit(chosen, rejected, members=given.members, groups=groups, seed=fit_seed)
    policy = state.models.new_policy(policy_seed)
    history = trained(policy, heads, state, number, train_seed)
    test_ids = state.models.encoder.renderer.prompts(state.test.prompts)
    found, _ = judge(policy, state.models, state.test, state.judged, test_ids, state.settings, judge_seed)
    train_ids = state.models.encoder.renderer.prompts(state.train.prompts)
    rollouts = roll_out(
        policy.sampler(),
        state.models.tokenizer,
        train_ids,
        range(len(state.train)),
        completions=given.samples,
        max_new_tokens=state.settings.max_new_tokens,
        seed=sample_seed,
    )
    pairs, facts = synthetic(rollouts, heads, state, given, pair_seed)
    result = {"round": number, "pairs": len(chosen), "final": found, "history": history, "samples": facts}
    with new_run(folder, f"rlp round {number}", {"policy": "align"}, given.seed) as inner:
        inner.write_json("round.json", result)
        inner.write_tensors("synthetic.safetensors", pairs)
        inner.write_tensors("heads.safetensors", {"weights": heads.weights, "mean": heads.mean, "scale": heads.scale})
        inner.write_jsonl("samples.jsonl", [{"prompt": p, "text": t} for p, t in zip(rollouts.prompts, rollouts.texts)])
    return json.loads((folder / "round.json").read_text(encoding="utf-8"))


def trained(policy: Policy, heads: HeadEnsemble, state: State, number: int, seed: Any) -> list[Any]:
    """Train a policy from the reference against the members' mean; its history."""

    def report_step(step: Step) -> None:
        metrics = step.metrics
        say(
            f"round {number} step {step.step}/{state.settings.steps}: reward {metrics['reward']:+.3f} "
            f"truth {metrics.get('truth', float('nan')):.3f} KL {metrics['kl']:.2f}"
        )

    options, floor = train_options(state.settings, "vanilla", 0, seed), state.settings.floor
    trainer = trainer_of(policy, state.models, heads, state.judged, state.train, options, floor)
    return trainer.train(report_step)


def synthetic(
    rollouts: Rollouts, heads: HeadEnsemble, state: State, given: RlpOptions, seed: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float | None]]:
    """SPG's pairs from fresh samples, as features, and their facts with gold's opinion of them."""
    prompts = [state.train.prompts[p] for p in rollouts.prompts]
    vectors = state.models.encoder.encode(prompts, rollouts.texts)
    rewards = heads.scores(vectors).mean(0)
    gold = state.judged.train(rollouts.prompts, rollouts.texts, None)
    indices = torch.tensor(rollouts.prompts)
    owners = [torch.nonzero(indices == p)[:, 0] for p in range(len(state.train))]
    parts = (vectors - vectors.mean(0), [[rollouts.texts[int(i)] for i in own] for own in owners])
    labels = label_pool(
        parts[1],
        given.group or "embedding",
        vectors=[parts[0][own] for own in owners],
        threshold=given.threshold,
        nli=given.nli,
    )
    made, confidence = [], 0.0
    for own, label, child in zip(owners, labels, spawn(seed, len(owners))):
        found = synthetic_pair(label, rewards[own].tolist(), given.gamma, child)
        confidence += found.confidence
        if found.chosen is not None and found.rejected is not None:
            made.append((int(own[found.chosen]), int(own[found.rejected])))
    table = torch.tensor(made, dtype=torch.long).reshape(-1, 2)
    margin = gold[table[:, 0]] - gold[table[:, 1]]
    unequal = margin != 0
    scores = heads.scores(vectors)
    variance = centre(scores, indices).var(0).mean() if len(scores) > 1 else None
    facts = {
        "coverage": len(made) / len(owners),
        "precision": float((margin[unequal] > 0).double().mean()) if bool(unequal.any()) else None,
        "confidence": confidence / len(owners),
        "relative_variance": None if variance is None else float(variance / centre(scores.mean(0), indices).var()),
    }
    pairs = {"chosen": vectors[table[:, 0]], "rejected": vectors[table[:, 1]], "prompt": indices[table[:, 0]]}
    return pairs, facts


def describe(rounds: list[dict[str, Any]], given: RlpOptions) -> dict[str, Any]:
    """What rlp.json holds: a row a round, gold against the first round's, the training curves."""
    first = torch.tensor(rounds[0]["final"]["value_by_prompt"], dtype=torch.float64)
    rows = [
        {
            "round": found["round"],
            "pairs": found["pairs"],
            "gold": found["final"]["value"],
            "kl": found["final"]["kl"],
            "more": paired_bootstrap(found["final"]["value_by_prompt"], first, seed=given.seed).difference,
            "length_tokens": found["final"]["length_tokens"],
            "samples": found["samples"],
        }
        for found in rounds
    ]
    training = [
        {
            "round": f"round {found['round']}",
            "step": e["step"],
            "gold": e["truth_gain"],
            "distance": max(e["kl"], 0.0) ** 0.5,
        }
        for found in rounds
        for e in found["history"]
    ]
    about = {"world": "embedded world", "side": given.side, "policy": "align", "steps": len(rounds[0]["history"])}
    return {**about, "rounds": rows, "training": training}


def report(payload: dict[str, Any], given: RlpOptions) -> Any:
    """The page of a run whose policy is trained by RL."""
    from prudent.reporting import charts
    from prudent.reporting.report import Report

    page = Report(
        "Reward learning on policy by RL",
        f"embedded world ({payload['side']}), {payload['steps']} training steps a policy",
    )
    last = payload["rounds"][-1]
    clear = last["more"].low is not None and last["more"].low > 0
    page.verdict(
        f"After {last['round']} refresh{'' if last['round'] == 1 else 'es'} the policy's gold is {last['gold']:.3f}; "
        f"against round 0 {last['more'].text} (bootstrap over prompts; one training run a round, so luck of the run is "
        "not in the interval).",
        "good" if clear else "neutral",
        "Result",
    )
    page.heading("Rounds")
    facts = ("coverage", "precision", "relative_variance")
    page.table(
        ["round", "pairs", "gold", "more than round 0", "KL", "length", *(name.replace("_", " ") for name in facts)],
        [
            [str(r["round"]), r["pairs"], r["gold"], r["more"].text, r["kl"], r["length_tokens"]]
            + [r["samples"][name] for name in facts]
            for r in payload["rounds"]
        ],
        "Every policy starts from the reference. KL is not held equal here: read gold beside it.",
    )
    chart = charts.lines(
        payload["training"],
        "distance",
        "gold",
        group="round",
        order="step",
        x_title="square root of KL (nats)",
        y_title="gold, from the reference",
        reference=(0.0, "reference"),
    )
    page.chart(chart, "training", "Each round's policy on its way from the reference, by the samples it trains on.")
    return page
