"""What ``prudent rlp`` does with exact policies: repetitions round by round, each round a run folder, then a report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prudent.commands.common import result_console, say
from prudent.commands.overoptimize.run import text_world, with_notes_said
from prudent.commands.rlp.options import RlpOptions
from prudent.errors import PrudentError
from prudent.evaluation.intervals import Estimate, paired_bootstrap
from prudent.evaluation.overoptimization.worlds import TextWorld
from prudent.features.limits import shown
from prudent.files import hash_file
from prudent.policies.answer_groups import final_answer, label_pool
from prudent.policies.rlp import (
    DESCRIPTIONS,
    Model,
    Options,
    PoolProblem,
    Repetition,
    advance,
    begin,
    check,
    judge,
    labelled_pairs,
)
from prudent.policies.views import view_model_of
from prudent.progress import meter
from prudent.runs import MANIFEST, new_run, resumable_run
from prudent.seeding import numpy_generator, spawn

METRICS = ("gold", "best", "accuracy", "policy_accuracy", "variance", "variance_reference", "kl")
MOST_PAIRS = 100_000_000  # of responses of the test prompts, compared at once: 800 MB a table
DEFAULT_KINDS = ("spg", "spg-reference", "self")


def run(given: RlpOptions) -> dict[str, Any]:
    """The command, with policies of either kind."""
    if given.policy == "exact":
        return refresh(given)
    from prudent.commands.rlp.align import refresh_by_rl

    return refresh_by_rl(given)


def refresh(given: RlpOptions) -> dict[str, Any]:
    """Repetitions round by round, then the report; what rlp.json holds."""
    kinds = list(dict.fromkeys(given.kind or DEFAULT_KINDS))
    named = ("pairs", "slope", "members", "samples", "gamma", "weight", "repeats")
    options = Options(steps=given.steps or 200, target_kl=given.kl, **{name: getattr(given, name) for name in named})
    with resumable_run(given.out, "rlp", given.fixed(), given.seed) as (outer, resumes):
        if resumes:
            say(f"going on in {given.out}")
        text = text_world(given)
        problem, how, text = pool_problem(text, given)
        say(f"{len(text)} prompts; equal answers by {how}; {given.repetitions} repetitions of {', '.join(kinds)}")
        rounds = [one_round(problem, kinds, options, number, given) for number in range(given.rounds + 1)]
        payload = describe(text, how, kinds, rounds, given)
        if given.pool is not None:
            outer.manifest["hashes"]["pool"] = hash_file(given.pool)
        outer.write_json("rlp.json", payload)
        rows = [
            (number, repetition, kind, metric, entry[kind][metric])
            for number, found in enumerate(rounds)
            for repetition, entry in enumerate(found["judged"])
            for kind in entry
            for metric in METRICS
        ]
        columns = ("round", "repetition", "kind", "metric", "value")
        outer.write_table("rounds.parquet", {name: [row[i] for row in rows] for i, name in enumerate(columns)})
        from prudent.commands.rlp.page import report

        report(text, payload, rounds, given).write(outer)
    say(f"wrote {given.out}")
    return payload


def pool_problem(text: TextWorld, given: RlpOptions) -> tuple[PoolProblem, str, TextWorld]:
    """The pool with features and groups (splits are the repetitions'), how answers were grouped, the prompts used."""
    from prudent.features.encoder import Encoder

    refuse_many_pairs(text)
    encoder = Encoder(given.language_model, pooling=given.pooling, max_length=given.max_length, layer=given.blocks)
    vectors, text = text.use(lambda part: encoder.encode(*part.flat()), given.on_error)
    text = with_notes_said(text, text.shown(partial(shown, encoder.renderer)))
    gold, present = text.padded_gold()
    sizes = [len(r) for r in text.responses]
    how = given.group or default_grouping(text)
    centred = (vectors - vectors.mean(0)).split(sizes)
    labels = torch.full(present.shape, -1, dtype=torch.long)
    found = label_pool(text.responses, how, vectors=centred, threshold=given.threshold, nli=given.nli)
    labels[present] = torch.tensor([label for row in found for label in row])
    features = torch.zeros(*present.shape, vectors.shape[1])
    features[present] = vectors
    none = torch.empty(0, dtype=torch.long)
    words = {
        "answer": "the final answer",
        "embedding": f"cosine similarity of at least {given.threshold}",
        "entailment": f"entailment both ways by {given.nli}",
    }
    return PoolProblem(features, gold, present, labels, none, none, none), words[how], text


def refuse_many_pairs(text: TextWorld) -> None:
    """PrudentError where judging every two responses of the test prompts would not fit in memory."""
    width = max(map(len, text.responses))
    if len(text) / 3 * width**2 > MOST_PAIRS:
        most = int((3 * MOST_PAIRS / len(text)) ** 0.5)
        raise PrudentError(
            f"{text.name}: a prompt has {width:,} responses; every two of them are compared, and the limit for "
            f"{len(text)} prompts is {most:,} responses a prompt; give fewer"
        )


def default_grouping(text: TextWorld) -> str:
    """ "answer" where most responses mark one, else "embedding"."""
    flat = [response for responses in text.responses for response in responses]
    marked = sum(final_answer(response) is not None for response in flat)
    return "answer" if marked > len(flat) / 2 else "embedding"


def split(problem: PoolProblem, seed: Any) -> PoolProblem:
    """The problem with its prompts in thirds: labelled, unlabelled, test."""
    order = torch.from_numpy(numpy_generator(seed).permutation(len(problem.gold)))
    a, b = len(order) // 3, 2 * len(order) // 3
    parts = (order[:a], order[a:b], order[b:])
    return PoolProblem(problem.features, problem.gold, problem.present, problem.labels, *parts)


def one_round(
    problem: PoolProblem, kinds: list[str], options: Options, number: int, given: RlpOptions
) -> dict[str, Any]:
    """Round ``number`` of every repetition, read from its folder where it is finished."""
    folder = given.out / f"round-{number}"
    if (folder / MANIFEST).is_file():
        return json.loads((folder / "round.json").read_text(encoding="utf-8"))
    before = None if number == 0 else load_models(given.out / f"round-{number - 1}")
    judged: list[dict[str, Any]] = []
    facts: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    with meter(f"round {number}", given.repetitions) as one_done:
        for repetition, seed in enumerate(spawn(given.seed, given.repetitions)):
            split_seed, own = spawn(seed, 2)
            mine = split(problem, split_seed)
            if repetition == 0 and number == 0:
                check(mine, options)
            features = mine.standardised_on(mine.labelled)
            if number == 0:
                state = begin(mine, features, kinds, options, own)
                facts.append({})
            else:
                assert before is not None
                state = restored(mine, features, options, own, before[repetition])
                facts.append(advance(mine, features, state, kinds, options, number))
            judged.append({kind: judge(mine, features, model, options) for kind, model in state.models.items()})
            tensors |= saved(state, repetition)
            one_done()
    found = {"round": number, "judged": judged, "facts": facts}
    with new_run(
        folder, f"rlp round {number}", {"kinds": kinds, "repetitions": given.repetitions}, given.seed
    ) as inner:
        inner.write_json("round.json", found)
        inner.write_tensors("models.safetensors", tensors)
    return json.loads((folder / "round.json").read_text(encoding="utf-8"))


def saved(state: Repetition, repetition: int) -> dict[str, torch.Tensor]:
    """A repetition's reward models and ridge as tensors."""
    tensors = {f"{repetition}/ridge": torch.tensor(state.ridge, dtype=torch.float64)}
    for kind, model in state.models.items():
        if model.network is not None:
            tensors |= {f"{repetition}/{kind}/network/{k}": v.clone() for k, v in model.network.state_dict().items()}
        elif model.weights is not None:
            tensors[f"{repetition}/{kind}/weights"] = model.weights.clone()
    return tensors


def load_models(folder: Path) -> dict[int, dict[str, Any]]:
    """Repetition -> {"ridge": number, kind: Model} of a finished round."""
    from safetensors.torch import load_file

    found: dict[int, dict[str, Any]] = {}
    networks: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "models.safetensors").items():
        index, _, rest = name.partition("/")
        entry = found.setdefault(int(index), {})
        if rest == "ridge":
            entry["ridge"] = float(tensor)
        elif rest.endswith("/weights"):
            entry[rest.removesuffix("/weights")] = Model(tensor)
        else:
            kind, _, parameter = rest.partition("/network/")
            networks.setdefault((int(index), kind), {})[parameter] = tensor
    for (repetition, kind), state in networks.items():
        found[repetition][kind] = Model(None, view_model_of(state))
    return found


def restored(
    problem: PoolProblem, features: torch.Tensor, options: Options, seed: Any, entry: dict[str, Any]
) -> Repetition:
    """A repetition as its last round left it; its preferences are drawn again from its seed."""
    labelled = labelled_pairs(problem, options, spawn(seed, 3)[0])
    models = {kind: model for kind, model in entry.items() if kind != "ridge"}
    return Repetition(seed, labelled, entry["ridge"], models)


def values(found: dict[str, Any], kind: str, metric: str) -> np.ndarray:
    """A metric of one kind of reward model over repetitions (n,)."""
    return np.array([entry[kind][metric] for entry in found["judged"]])


def difference(a: np.ndarray, b: np.ndarray, seed: int) -> Estimate:
    """Mean paired difference over repetitions with its bootstrap interval."""
    return paired_bootstrap(a, b, seed=seed).difference


def describe(
    text: TextWorld, how: str, kinds: list[str], rounds: list[dict[str, Any]], given: RlpOptions
) -> dict[str, Any]:
    """Means by round and kind, paired differences to the reward model that is not refreshed, and the samples' facts."""
    table, seed = [], given.seed
    for number, found in enumerate(rounds):
        for kind in found["judged"][0]:
            base = "fixed-views" if kind == "uml" else "fixed"
            row: dict[str, Any] = {"round": number, "kind": kind, "against": base}
            for metric in METRICS:
                row[metric] = float(values(found, kind, metric).mean())
            row["gold_over_fixed"] = difference(values(found, kind, "gold"), values(found, base, "gold"), seed)
            right, fixed = (values(found, name, "policy_accuracy") for name in (kind, base))
            row["accuracy_over_fixed"] = difference(right, fixed, seed)
            row["better_share"] = float((values(found, kind, "gold") > values(found, base, "gold")).mean())
            row["samples"] = _fact_means(found, kind)
            table.append(row)
    last = rounds[-1]
    contrasts = {
        f"{a} - {b}": difference(values(last, a, "gold"), values(last, b, "gold"), seed)
        for a, b in (("spg", "spg-reference"), ("spg", "self"), ("uml", "fixed-views"))
        if a in last["judged"][0] and b in last["judged"][0]
    }
    variance = {
        kind: difference(values(last, kind, "variance"), values(rounds[0], "fixed", "variance"), seed)
        for kind in kinds
        if kind != "uml" and given.members > 1
    }
    world = {"world": text.name, "gold": text.unit, "prompts": len(text), "notes": text.notes, "groups": how}
    size = {"rounds": len(rounds) - 1, "repetitions": given.repetitions, "kl_nats": given.kl}
    named = {"kinds": {k: DESCRIPTIONS[k] for k in last["judged"][0]}, "table": table}
    return {**world, **size, **named, "contrasts_last_round": contrasts, "variance_change_on_policy": variance}


def _fact_means(found: dict[str, Any], kind: str) -> dict[str, float | None]:
    rows = [entry[kind] for entry in found["facts"] if kind in entry]
    names = sorted({name for row in rows for name in row})
    result: dict[str, float | None] = {}
    for name in names:
        known = [row[name] for row in rows if row.get(name) is not None]
        result[name] = sum(known) / len(known) if known else None
    return result


def show(payload: dict[str, Any], options: RlpOptions) -> None:
    """The rounds, for a person."""
    if options.policy == "align":
        for row in payload["rounds"]:
            say(f"round {row['round']}: gold {row['gold']:.3f}, KL {row['kl']:.2f}, over round 0 {row['more'].text}")
        return
    from rich.table import Table

    table = Table(title=f"Reward learning on policy: gold at KL {payload['kl_nats']} nats, from the reference")
    for name in ("round", "kind", "gold", "more than fixed", "better in", "pairs' precision", "coverage"):
        table.add_column(name)
    for row in payload["table"]:
        facts = row["samples"]
        cells = ["–" if facts.get(name) is None else f"{facts[name]:.2f}" for name in ("precision", "coverage")]
        more, share = row["gold_over_fixed"].text, f"{row['better_share']:.0%}"
        table.add_row(str(row["round"]), row["kind"], f"{row['gold']:.4f}", more, share, *cells)
    result_console().print(table)
