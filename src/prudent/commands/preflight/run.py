"""The steps of ``prudent preflight`` in order, each timed. Files appear whole or not at all (``runs.new_run``)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prudent.commands.common import Say, clocked, say, timer
from prudent.commands.preflight import inputs as reading
from prudent.commands.preflight import page, page_study
from prudent.commands.preflight.answer import Answer, answer, rough
from prudent.commands.preflight.given_pairs import Plan
from prudent.commands.preflight.inputs import Inputs
from prudent.commands.preflight.options import PreflightOptions
from prudent.commands.preflight.output import results, write_tables
from prudent.commands.preflight.page_explorer import explorer_section
from prudent.commands.preflight.page_study import StudiedFile
from prudent.commands.preflight.pieces import Work, plan_work
from prudent.commands.preflight.refine import labelled, refine
from prudent.commands.preflight.study import study
from prudent.commands.preflight.truth import Truth, accuracy, gold_truth, judge_truth
from prudent.commands.preflight.verdict import Verdict
from prudent.data.pools import Pool, write_pool
from prudent.files import hash_text
from prudent.progress import silent
from prudent.rewards.containers import CandidateFeatures, PairFeatures, combine
from prudent.rewards.heads import HeadEnsemble
from prudent.runs import Run, new_run, peak_bytes
from prudent.seeding import Seed, spawn

if TYPE_CHECKING:
    from prudent.rewards.model import RewardModel


def preflight(settings: PreflightOptions, *, say: Say = say) -> dict[str, Any]:
    """Run everything and write the folder ``out``; returns what results.json holds, with ``out``.

    Raises PrudentError (DataError for rows) for whatever in the input can't be used; nothing is then left at ``out``.
    """
    settings.checked()
    began = time.monotonic()
    with new_run(settings.out, "preflight", settings.chosen(), settings.seed, settings.overwrite) as run:
        stage = timer(run, say)
        fit_seed, study_seed = spawn(settings.seed, 3)[1:]
        with stage("reading"):
            found, pool = _gather(settings)
            judge = _load_judge(settings.judge)
        with stage("loading"):
            work = plan_work(settings, found, pool, judge)
        plan = _plan(settings)
        stopped = refine(
            work, run, began, settings.budget_seconds, say, lambda: _rough_verdict(settings, work, plan, fit_seed)
        )
        with clocked(run, "encoding"):
            found, trains, tests, pool, candidates = _read(settings, work)
        depth = work.read_at()
        found.notes.extend([depth["words"]] if depth else [])
        truth = _truth(settings, work, pool, candidates)
        with stage("draws and policies"):
            answered = answer(
                combine(trains), candidates, truth, plan, check=settings.check, seed=fit_seed, advance=say
            )
            answered = dataclasses.replace(answered, verdict=labelled(answered.verdict, work, stopped))
        with stage("variability study"):
            files, diversities = _study(settings, found, trains, tests, study_seed)
        hashes = {"preferences": found.hash(), "encoder": work.encoder.fingerprint, "pool": _pool_hash(pool)}
        run.manifest["hashes"] |= hashes
        with stage("report"):
            write_pool(run.path("pool.jsonl"), pool)
            write_tables(run, answered, files)
            report = _report(settings, found, candidates, answered, files, diversities, run)
            report.write(run, images=settings.images)
        about = {
            "notes": found.notes,
            "done": work.share(),
            "depth": depth,
            "stopped": stopped,
            "reading": found.reports,
            "settings": settings.chosen(),
            "seed": settings.seed,
            "timings_s": run.manifest["timings_s"],
            "cpu_s": run.manifest["cpu_s"],
            "peak_memory_mib": round(peak_bytes() / 2**20, 1),
        }
        run.manifest["peak_memory_mib"] = about["peak_memory_mib"]
        value = results(answered, files, diversities, about)
        run.write_json("results.json", value)
    return {**value, "out": str(settings.out)}


def _gather(settings: PreflightOptions) -> tuple[Inputs, Pool | None]:
    if settings.demo:
        from prudent.commands.preflight.demonstration import demo_inputs

        return demo_inputs(settings.seed)
    pool = None
    if settings.pool:
        pool = reading.read_candidates(settings.pool, settings.gold, settings.columns, settings.on_error)
    return reading.read_inputs(settings), pool


def _load_judge(name: str | None) -> RewardModel | None:
    if name is None:
        return None
    from prudent.rewards.model import RewardModel

    return RewardModel.load(name)


def _read(
    settings: PreflightOptions, work: Work
) -> tuple[Inputs, list[PairFeatures], list[PairFeatures], Pool, CandidateFeatures]:
    """What is done of the inputs, its features read from the encoder's cache."""
    found, pool = work.so_far()
    with silent():
        found, trains, tests = reading.encode_sources(work.encoder, found, settings.on_error)
        pool, candidates = reading.encode_pool(work.encoder, pool, found.notes, settings.on_error)
    return found, trains, tests, pool, candidates


def _rough_verdict(settings: PreflightOptions, work: Work, plan: Plan, seed: Seed) -> Verdict:
    _, trains, _, pool, candidates = _read(settings, work)
    return rough(combine(trains), candidates, _truth(settings, work, pool, candidates), plan, seed=seed)


def _pool_hash(pool: Pool) -> str:
    return hash_text(*(repr(prompt) for prompt in pool.prompts), *(text for row in pool.responses for text in row))


def _plan(settings: PreflightOptions) -> Plan:
    return Plan(
        betas=settings.betas,
        draws=settings.draws,
        members=settings.members,
        ridge=settings.ridge_value,
        reward=settings.reward_rule,
        floor=settings.floor,
        max_risk=settings.max_risk,
    )


def _truth(settings: PreflightOptions, work: Work, pool: Pool, candidates: CandidateFeatures) -> Truth | None:
    """Gold where the pool has it and no judge is named; the judge; else None: by the posterior given the pairs."""
    if work.judge is None:
        gold = reading.pool_gold(pool)
        return None if gold is None else gold_truth(gold, candidates.reference, settings.gold or "gold")
    counts = reading.pool_counts(pool)
    judged = torch.cat(work.judged, 1)
    if judged.shape[1] != sum(counts):  # a prompt whose features aren't finite was left out
        judged = work.judge.score(*pool.flat()[:2])
    scores = torch.stack([reading.padded(row, counts) for row in judged])
    return judge_truth(scores, candidates.reference, accuracy(torch.cat(work.margins)))


def _study(
    settings: PreflightOptions, found: Inputs, trains: Sequence[PairFeatures], tests: Sequence[PairFeatures], seed: Seed
) -> tuple[list[StudiedFile], list[dict[str, Any]]]:
    """The variability study of each file, and members that differ by resample beside those that differ by training."""
    pairs = combine(list(trains))
    files: list[StudiedFile] = []
    diversities = []
    for diversity, child in zip(("bootstrap", "init+shuffle"), spawn(seed, 2)):
        ensemble = HeadEnsemble.fit(
            **pairs.fit_arguments(),
            members=settings.members,
            diversity=diversity,
            ridge=settings.ridge_value,
            seed=child,
        )
        studied = []
        for source, test in zip(found.sources, tests):
            chosen, rejected = ensemble.scores(test.chosen), ensemble.scores(test.rejected)
            one = study(source.name, chosen, rejected, reading.length_difference(source.test))
            studied.append(StudiedFile(one, source.test, chosen, rejected))
        files = files or studied
        diversities += [
            {
                "file": file.study.name,
                "diversity": diversity,
                "accuracy": file.study.ensemble["accuracy"],
                **file.study.facts,
            }
            for file in studied
        ]
    return files, diversities


def _report(
    settings: PreflightOptions,
    found: Inputs,
    pool: CandidateFeatures,
    answered: Answer,
    files: Sequence[StudiedFile],
    diversities: Sequence[dict[str, Any]],
    run: Run,
) -> Any:
    names = ", ".join(source.name for source in found.sources)
    candidates = sum(map(len, pool.responses))
    subtitle = (
        f"{names}: {found.pairs} preference pairs; {candidates} candidate responses to {len(pool)} prompts; "
        f"{answered.facts['draws']} draws of {settings.members} members."
    )
    report = page.open_report("Preflight: what happens if you optimise against this reward?", subtitle, answered)
    explorer_section(report, answered, pool, settings.max_risk)
    page.risk_section(report, answered, settings.max_risk)
    page.equal_kl_section(report, answered)
    page.distributions_section(report, answered)
    page.trust_section(report, answered)
    page.outlook_section(report, answered)
    page_study.study_section(report, files, diversities)
    page.close_report(
        report,
        _choices(settings, found, answered),
        {**settings.chosen(), "seed": settings.seed},
        run.manifest["timings_s"],
        peak_bytes() / 2**20,
    )
    return report


def _choices(settings: PreflightOptions, found: Inputs, answered: Answer) -> list[str]:
    """Every choice behind the numbers, in words."""
    ridges = ", ".join(f"{ridge:.3g}" for ridge in answered.facts["ridge"])
    if settings.pool or settings.demo:
        where = f"candidates from the {'embedded world' if settings.demo else f'pool {Path(str(settings.pool)).name}'}"
    else:
        where = (
            f"{settings.samples} candidates a prompt sampled from {settings.policy} at temperature 1, nothing "
            f"truncated, at most {settings.max_new_tokens} tokens, on held-out prompts"
        )
    return [
        *found.notes,
        f"Features: {settings.pooling} token states of {settings.encoder}, frozen; linear Bradley-Terry heads, ridge "
        f"{ridges} ({'by cross-validation' if settings.ridge == 'cv' else 'as given'}).",
        f"{where[0].upper()}{where[1:]}; each has the same weight in the reference policy.",
        "The reward is "
        + ("the head fitted on all pairs" if settings.reward == "member" else "the members' mean")
        + "; each member is fitted on a resample of the pairs, whole prompts at a time; the variance is the sample "
        "variance (ddof = 1) over members.",
        "Each draw is a reward from the posterior given the pairs; it values the policies that these pairs give."
        if answered.kind == "posterior"
        else "Each draw resamples the pairs and fits reward and members anew, for the procedure risk.",
        "Scores are centred per prompt under the reference; the variance is divided by its mean over the pool and "
        f"raised to at least {settings.floor:g}.",
        "The risk is that of data like these; it knows nothing of a shift in what people prefer, nor of responses that "
        "the policy has not sampled.",
    ]
