"""``prudent acquire``: read, encode, pick, forecast, write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prudent.acquisition.forecast import FACTORS, ForecastSettings, forecast_risk
from prudent.acquisition.information import LabelModel
from prudent.acquisition.pick import AcquireSettings
from prudent.acquisition.pick import acquire as pick
from prudent.acquisition.rules import RULES
from prudent.commands.acquire import inputs, page
from prudent.commands.acquire.options import AcquireOptions
from prudent.commands.common import say, timer
from prudent.commands.depth import at_depth
from prudent.data.pools import Pool, read_pool
from prudent.evaluation.risk_estimate import LEAST_PAIRS
from prudent.rewards.containers import CandidateFeatures, PairFeatures
from prudent.runs import new_run
from prudent.seeding import Seed, numpy_generator, spawn


def acquire(options: AcquireOptions) -> dict[str, Any]:
    """Run everything and write the folder ``out``; returns what results.json holds, with ``out``."""
    with new_run(options.out, "acquire", options.chosen(), options.seed, options.overwrite) as run:
        stage = timer(run, say)
        order_seed, forecast_seed = spawn(options.seed, 2)
        with stage("reading"):
            data, ties, notes = inputs.read_labelled(options)
            pool = read_pool(options.candidates, columns=options.columns, on_error=options.on_error)
            found = inputs.open_of(pool, options, data + ties)
        with stage("encoding"):
            whole = len(pool)
            encoder = inputs.open_encoder(options)
            encoder, depth = at_depth(encoder, options.layer, [part for _, part in data], options.seed)
            pairs, pool, candidates = inputs.encode(encoder, data, pool, notes, options.on_error)
            if len(pool) < whole:
                found = inputs.open_of(pool, options, data + ties)
            sides = inputs.sides_of(candidates, found)
            texts = 2 * len(pairs) + sum(map(len, pool.responses))
            notes += [] if depth is None else [depth.words(texts)]
        with stage("picking"):
            labels = LabelModel(options.noise, options.ties)
            index, score = pick(
                pairs.chosen,
                pairs.rejected,
                sides,
                options.budget,
                rule=options.rule,
                groups=found.prompt,
                seed=options.seed,
                settings=AcquireSettings(beta=options.policy_tilt, labels=labels, repeat=options.repeat),
            )
        rows = to_label(pool, found, index.tolist(), score.tolist(), options.rule, order_seed)
        outlook = None
        if options.simulations and len(pairs) < LEAST_PAIRS:
            notes.append(f"{len(pairs)} labelled pairs; a forecast needs {LEAST_PAIRS} to start from")
        elif options.simulations:
            with stage("forecast"):
                outlook = _forecast(options, pairs, candidates, sides, index, forecast_seed)
        value = {
            "rule": options.rule,
            "labelled": len(pairs),
            "open": len(found),
            "left_out": found.counts,
            "picked": len(rows),
            "second_labels": len(rows) - len(set(index.tolist())),
            "forecast": outlook,
            "depth": None if depth is None else depth.as_dict(texts),
            "notes": notes,
        }
        run.manifest["hashes"] |= {"encoder": encoder.fingerprint}
        run.write_jsonl("to_label.jsonl", rows)
        run.write_json("argilla.json", page.argilla_records(rows))
        run.write_text("label.html", page.label_form(rows))
        run.write_json("results.json", value)
        page.report(value, rows, options).write(run, images=False)
    return {**value, "out": str(options.out)}


def to_label(
    pool: Pool, found: inputs.OpenPairs, index: Sequence[int], score: Sequence[float], rule: str, seed: Seed
) -> list[dict[str, Any]]:
    """One row a label, in order. Which response stands first is drawn, so that its place says nothing."""
    swaps = numpy_generator(seed).random(len(index)) < 0.5
    asked: dict[int, int] = {}
    rows = []
    for order, (position, value, swap) in enumerate(zip(index, score, swaps.tolist()), start=1):
        prompt, (a, b) = found.prompt[position], found.sides[position]
        first, second = (b, a) if swap else (a, b)
        asked[position] = asked.get(position, 0) + 1
        again = f", label {asked[position]} of this pair" if asked[position] > 1 else ""
        rows.append(
            {
                "id": f"{pool.ids[prompt]}:{a}:{b}:{asked[position]}",
                "prompt": pool.prompts[prompt],
                "response_1": pool.responses[prompt][first],
                "response_2": pool.responses[prompt][second],
                "order": order,
                "rule": rule,
                "score": value,
                "why": RULES[rule].why + again,
            }
        )
    return rows


def _forecast(
    options: AcquireOptions,
    pairs: PairFeatures,
    candidates: CandidateFeatures,
    sides: torch.Tensor,
    index: torch.Tensor,
    seed: Seed,
) -> dict[str, Any]:
    """Risk at more labels: the picks first, in order, then other open pairs at random."""
    order, simulate = spawn(seed, 2)
    picked = list(dict.fromkeys(index.tolist()))
    rest = np.setdiff1d(np.arange(len(sides)), picked)
    planned = torch.tensor([*picked, *numpy_generator(order).permutation(rest).tolist()])
    n = len(pairs)
    sizes = {n + options.budget, *(math.ceil(n * factor) for factor in FACTORS)}
    sizes = {size for size in sizes if size <= n + len(planned)} or {n + len(planned)}
    planned = planned[: max(sizes) - n]
    return forecast_risk(
        pairs.chosen,
        pairs.rejected,
        candidates.features,
        candidates.reference,
        sides[planned, 0] - sides[planned, 1],
        sorted(sizes),
        settings=ForecastSettings(
            beta=options.policy_tilt,
            method=options.method,
            simulations=options.simulations,
            labels=LabelModel(options.noise, options.ties),
            max_risk=options.max_risk,
        ),
        seed=simulate,
    )
