"""What ``prudent best-of-n`` does: pick each prompt's best candidate, say how sure it is and what other rules pick."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prudent.commands.best_of_n.options import BestOfNOptions
from prudent.commands.best_of_n.page import page
from prudent.commands.common import say
from prudent.data.failing import counted
from prudent.data.pools import Pool, use_pool
from prudent.errors import PrudentError
from prudent.evaluation.intervals import bootstrap
from prudent.evaluation.overoptimization.fits import kl_best_of_n
from prudent.evaluation.overoptimization.worlds import read_candidates
from prudent.evaluation.ties import same_choice
from prudent.features.limits import same_responses, words
from prudent.files import hash_file
from prudent.policies.best_of_n import Pick, picks
from prudent.rewards.aggregation import describe
from prudent.rewards.model import RewardModel
from prudent.rewards.uncertainty import finite_rows
from prudent.runs import new_run

if TYPE_CHECKING:
    import torch


def best_of_n(options: BestOfNOptions) -> dict[str, Any]:
    """Pick, write the run folder; what best_of_n.json holds."""
    pool, rule = read_candidates(options.pool, options.columns, options.on_error), options.rule
    if options.n is not None:
        pool = first_candidates(pool, options.n)
    reward_model = RewardModel.load(
        options.model, model=options.language_model, dtype=options.dtype, max_length=options.max_length
    )
    count = sum(map(len, pool.responses))
    say(f"scoring {count} candidates of {len(pool)} prompts with {reward_model.members} members")
    scores, pool, bad = use_pool(
        lambda prompts, texts: finite_rows(reward_model.score(prompts, texts)), pool, options.pool, options.on_error
    )
    prompts, texts, owners = pool.flat()
    seen = same_responses(reward_model.shown(prompts, texts), owners, texts)
    if said := words(seen):
        say(f"warning: {said}")
    if rule in ("lcb", "uwo") and len(scores) < 2:
        raise PrudentError(f"rule {rule!r} needs at least two members and {options.model} has one; choose --rule mean")
    given = {} if options.coefficient is None else {"coefficient": options.coefficient}
    found = picks(scores, [len(r) for r in pool.responses], rule, options=given, together=reward_model.one_origin)
    summary = summarise(pool, found, scores, rule, options.seed) | {"shown": seen, **counted(bad)}
    chosen = {"pool": str(options.pool), "model": options.model, "rule": rule, "n": options.n, **given}
    with new_run(options.out, "best-of-n", chosen, options.seed, options.overwrite) as run:
        run.manifest["hashes"]["pool"] = hash_file(options.pool)
        run.write_jsonl("picks.jsonl", rows_of(pool, found, rule))
        run.write_json("best_of_n.json", summary)
        page(pool, found, summary, rule).write(run)
    say(f"wrote {options.out}")
    return summary


def first_candidates(pool: Pool, n: int) -> Pool:
    """The pool with at most n candidates a prompt; PrudentError where a prompt has fewer."""
    short = [position for position, texts in enumerate(pool.responses) if len(texts) < n]
    if short:
        raise PrudentError(
            f"prompt {pool.ids[short[0]]!r} has only {len(pool.responses[short[0]])} responses, fewer than --n {n} "
            f"({len(short)} such prompts)"
        )
    gold = None if pool.gold is None else [values[:n] for values in pool.gold]
    return replace(pool, responses=[texts[:n] for texts in pool.responses], gold=gold)


def rows_of(pool: Pool, found: list[Pick], rule: str) -> list[dict[str, Any]]:
    """Rows of picks.jsonl. reward and standard_deviation_centred: of members centred per prompt; mean: raw."""
    rows = []
    for position, (key, prompt, texts, chosen) in enumerate(zip(pool.ids, pool.prompts, pool.responses, found)):
        row = {"id": key, "prompt": prompt, "response": texts[chosen.index], "index": chosen.index, "rule": rule}
        row |= {"reward": chosen.reward, "mean": chosen.mean, "standard_deviation_centred": chosen.deviation}
        row |= {"margin": chosen.margin, "picks_by_rule": chosen.by_rule}
        if pool.gold is not None:
            row["gold"] = pool.gold[position][chosen.index]
        rows.append(row)
    return rows


def summarise(pool: Pool, found: list[Pick], scores: torch.Tensor, rule: str, seed: int) -> dict[str, Any]:
    """Counts, how often rules agree with the pick, KL, and gold by rule where it is known (mean over tied picks)."""
    rules = list(found[0].by_rule)
    sizes = [len(texts) for texts in pool.responses]
    summary: dict[str, Any] = {
        "prompts": len(pool),
        "members": len(scores),
        "rule": describe(rule),
        "candidates": {"least": min(sizes), "most": max(sizes)},
        "kl_nats": sum(map(kl_best_of_n, sizes)) / len(sizes),
        "agreement": {
            name: sum(same_choice(p.best.numpy(), p.best_by_rule[name].numpy()) for p in found) / len(found)
            for name in rules
        },
        "ties": sum(p.margin == 0 and size > 1 for p, size in zip(found, sizes)),
        "gold": None,
    }
    if pool.gold is not None:
        reference = [sum(values) / len(values) for values in pool.gold]
        ways = {rule: [p.best for p in found]} | {name: [p.best_by_rule[name] for p in found] for name in rules}
        summary["gold"] = {"reference": sum(reference) / len(reference)}
        for name, chosen in ways.items():
            each = zip(pool.gold, chosen, reference)
            gains = [sum(itertools.compress(v, best.tolist())) / int(best.sum()) - base for v, best, base in each]
            summary["gold"][name] = bootstrap(gains, seed=seed)
    return summary
